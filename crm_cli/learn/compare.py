"""Whether one set of weights beats another, and what needs no learning: paired by product, with an interval.

Products differ far more from each other than two sets of weights do on one of them, so only differences
on the same product are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crm_cli.learn.evaluate import Score, by_family, figures

BETTER: Mapping[str, Literal["higher", "lower"]] = {
    "f_score": "higher",
    "chamfer": "lower",
    "volume_iou": "higher",
    "colour": "lower",
    "outline_iou": "higher",
    "depth_l1": "lower",
    "silhouette_iou": "higher",
    "is_low": "lower",
}
"""Which way each figure improves."""

DECIDES = "f_score"
"""The figure that weights must improve to ship: it counts missing and invented surface alike."""

ROUNDS = 4_000
"""Of the bootstrap: another thousand moves the ends of an interval by a hundredth of its width."""

CONFIDENCE = 0.95

SOLIDS = ("inflated", "revolved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """By how much a figure is better, in the mean over products; negative where it is worse."""

    figure: str
    mean: float
    low: float
    high: float
    """The interval that holds the mean of all such products, with CONFIDENCE."""

    @property
    def word(self) -> Literal["better", "worse", "undecided"]:
        """What the interval allows to say."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How far a family is ahead of the better of the two solids, in the mean F-score."""

    family: str
    solid: str
    margin: float

    @property
    def is_ahead(self) -> bool:
        """Whether the networks beat both solids."""
        return self.margin > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether weights may ship."""

    margins: tuple[Margin, ...]
    differences: tuple[Difference, ...] = ()
    """To the weights before them; none where there were none."""

    @property
    def behind(self) -> tuple[str, ...]:
        """Families in which a solid is as good."""
        return tuple(margin.family for margin in self.margins if not margin.is_ahead)

    @property
    def is_better(self) -> bool:
        """Whether the deciding figure is better than before beyond chance."""
        return all(one.word == "better" for one in self.differences if one.figure == DECIDES)

    @property
    def may_ship(self) -> bool:
        """Better than the weights before, and than no learning in every family."""
        return self.is_better and not self.behind


def decide(scores: Sequence[Score], before: Sequence[Score] | None = None) -> Decision:
    """Decide about weights by their scores, and by those of the weights before on the same products."""
    differences = () if before is None else compare(scores, before)
    return Decision(margins=margins(scores), differences=differences)


def compare(scores: Sequence[Score], before: Sequence[Score]) -> tuple[Difference, ...]:
    """Every figure against the same of other weights; ValueError where the products are not the same."""
    if [score.seed for score in scores] != [score.seed for score in before]:
        raise ValueError("scores of other products cannot be paired")
    new, old = ([figures(score) for score in many] for many in (scores, before))
    return tuple(
        difference(name, [row[name] for row in new], [row[name] for row in old], better=better)
        for name, better in BETTER.items()
    )


def difference(
    figure: str, new: Sequence[float], old: Sequence[float], *, better: Literal["higher", "lower"]
) -> Difference:
    """Compare pairs: their mean difference, with the percentile interval of a bootstrap over products."""
    gains = (np.asarray(new) - np.asarray(old)) * (1 if better == "higher" else -1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_shares(len(gains)) @ gains, [tail, 1 - tail])
    return Difference(figure=figure, mean=float(gains.mean()), low=float(low), high=float(high))


@lru_cache(maxsize=1)
def _shares(count: int) -> NDArray[np.float64]:
    """Draw so many products with replacement, again and again: the share of each, [ROUNDS count]."""
    counts = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=ROUNDS)
    shares: NDArray[np.float64] = counts / count
    return shares


def margins(scores: Sequence[Score]) -> tuple[Margin, ...]:
    """How far each family is ahead of the solid that suits it better, in order of their names."""
    found = []
    for family, own in by_family(scores).items():
        solids = {kind: fmean(getattr(score, kind).f_score for score in own) for kind in SOLIDS}
        best = max(solids, key=lambda kind: solids[kind])
        ahead = fmean(score.made.f_score for score in own) - solids[best]
        found.append(Margin(family=family, solid=best, margin=ahead))
    return tuple(found)
