"""How good finished assets are on products that no training saw.

What is measured is what a user gets: the mesh after cleaning and simplification, with its texture, or the
solid that took its place. Beside it stand two solids that need no learning, the photo's outline inflated
and its profile turned: networks that do not beat them are not worth shipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from crm_cli.learn.fit import Fit, fit_asset, fit_solid
from crm_cli.learn.unseen import Unseen
from crm_cli.models import agree
from crm_cli.models.solids import inflated, revolved
from crm_cli.pipeline import Candidate, Line, Stopwatch
from crm_cli.records import Cutout, Grade, Photo, SixViews

NO_DEPTH = 2.0
"""Error of depth where the imagined outline and the true one share nothing: as large as the world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One product's figures."""

    seed: int
    family: str
    outline_iou: float
    """Mean over the six views of the imagined outline against the true one."""
    depth_l1: float
    """Mean error of the imagined depth where both outlines are, in world units."""
    silhouette_iou: float
    """Front outline of the finished asset against the photo."""
    made: Fit
    inflated: Fit
    revolved: Fit
    is_low: bool
    """Whether the pipeline did not trust the networks and took a solid."""
    grade: Grade

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Score:
        """Read what as_json() gave."""
        fits = {name: Fit(**values[name]) for name in ("made", "inflated", "revolved")}
        return cls(**{**values, **fits})


Imagination = Callable[[Unseen], SixViews]
"""How a subject's views come about otherwise than from its photo alone."""


class Chain(Line):
    """A line from a cut-out to a textured mesh, whose views may be others than it would draw."""

    def imagine(self, cutout: Cutout) -> SixViews:
        """Draw the six views of one photo."""
        [views] = self._seeded[0].imagine([cutout])
        return views

    def make(self, photo: Photo, cutout: Cutout, views: SixViews) -> Candidate:
        """Make a textured mesh of views and judge it, as every conversion does."""
        unwatched = Stopwatch(lambda stage: None, self._waited_s)
        return self._made(self._seeded[0], views, photo, cutout, unwatched)


def compare_on(one: Unseen, chains: Iterable[Chain], imagine: Imagination | None = None) -> list[Score]:
    """Score what each of several chains makes of one subject; the solids are the same for all of them.

    imagine: draws the views instead of the chains' denoisers, for instance from the truth.
    """
    with torch.inference_mode():
        solids = [fit_solid(solid(one.cutout), one) for solid in (inflated, revolved)]
    found = []
    for chain in chains:
        made = chain.make(one.photo, one.cutout, imagine(one) if imagine else chain.imagine(one.cutout))
        outline_iou, depth_l1 = view_errors(made.views, one.views)
        found.append(
            Score(
                seed=one.seed,
                family=one.family,
                outline_iou=outline_iou,
                depth_l1=depth_l1,
                silhouette_iou=float(made.checks.silhouette_iou),
                made=fit_asset(made.textured, one),
                inflated=solids[0],
                revolved=solids[1],
                is_low=made.checks.confidence == "low",
                grade=made.verdict.grade,
            )
        )
    return found


def view_errors(views: SixViews, truth: SixViews) -> tuple[float, float]:
    """Outline IoU and depth error, at the size of the true views."""
    size_px = truth.alpha.shape[-1]
    drawn = interpolate(views.alpha, size=(size_px, size_px), mode="area") > agree.SOLID
    true = truth.alpha > agree.SOLID
    iou = ((drawn & true).sum((1, 2, 3)) / (drawn | true).sum((1, 2, 3)).clamp_min(1)).mean()
    both = (drawn & true)[:, 0]
    error = (_depth_at(views, size_px) - _depth_at(truth, size_px)).abs()[both]
    return float(iou), float(error.mean()) if both.any() else NO_DEPTH


def _depth_at(views: SixViews, size_px: int) -> Tensor:
    """Mean depth of what each pixel of a smaller picture covers of the object: [6 S S]."""
    solid = (views.alpha[:, 0] > agree.SOLID).float()
    total, share = (
        interpolate(t[:, None], size=(size_px, size_px), mode="area")[:, 0]
        for t in (agree.depth_of(views.ccm) * solid, solid)
    )
    return total / share.clamp_min(1e-6)


def figures(score: Score) -> dict[str, float]:
    """Every figure of a score by a flat name, as `f_score` or `inflated.f_score`; is_low is 0 or 1."""
    found = {
        name: float(getattr(score, name)) for name in ("outline_iou", "depth_l1", "silhouette_iou", "is_low")
    }
    for prefix, fit in (("", score.made), ("inflated.", score.inflated), ("revolved.", score.revolved)):
        found |= {prefix + figure.name: getattr(fit, figure.name) for figure in fields(Fit)}
    return found


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Medians over products of every figure; of `is_low` the share."""
    rows = [figures(score) for score in scores]
    return {
        name: round((fmean if name == "is_low" else median)(row[name] for row in rows), 4) for name in rows[0]
    }


def by_family(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Scores of each family, in order of their names."""
    families = sorted({score.family for score in scores})
    return {family: [score for score in scores if score.family == family] for family in families}
