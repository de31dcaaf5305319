"""How good the chain is on objects it has not seen: outlines, depth, Chamfer distance, F-score.

Every figure stands beside the same figure of a solid that needs no learning, the photo's outline inflated
or turned: networks that do not beat it are not worth shipping.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.models import agree
from crm_cli.models.field import Field, surface
from crm_cli.models.reconstruction import Reconstruction
from crm_cli.models.solids import fallback_solid
from crm_cli.pipeline import Imagine, silhouette_iou
from crm_cli.records import Crop, Cutout, Mesh, SixViews
from crm_cli.toolbox import Toolbox

if TYPE_CHECKING:
    from crm_cli.learn.train import Batch
    from crm_cli.preset import Preset

F_SCORE_AT = 0.04
"""Two points count as matched within this distance; the object spans 1.6."""

GRID = 64
"""Cells a side of the surfaces that are compared: finer than the F-score's distance, and quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One object's figures."""

    family: str
    outline_iou: float
    """Mean over the six views of the drawn outline against the true one."""
    depth_l1: float
    """Mean error of depth where both outlines are, in world units."""
    silhouette_iou: float
    """Front outline of the finished surface against the photo."""
    chamfer: float
    f_score: float
    baseline_chamfer: float
    baseline_f_score: float


def evaluate(
    toolbox: Toolbox, preset: Preset, batches: Iterable[tuple[str, Batch]], *, use_true_views: bool = False
) -> Iterator[Score]:
    """Score the chain on single examples: (family, batch of one).

    use_true_views: skip the denoisers and reconstruct from the rendered views, an upper bound.
    """
    imagine = Imagine(toolbox, preset)
    network = cast(Reconstruction, toolbox.networks["reconstruction"])
    for index, (family, batch) in enumerate(batches):
        cutout = _cutout(batch["photo"][0], index)
        truth = _true_views(batch)
        views = truth if use_true_views else imagine([cutout])[0]
        with torch.inference_mode():
            solid = _surface_points(fallback_solid(cutout), toolbox)
            try:
                drawn = _surface_points(network.field(views), toolbox)
            except PhotoError:  # an empty field; the pipeline falls back to the solid as well
                drawn = solid
        surface_points = batch["surface"][0].float().numpy()
        chamfer, f_score = distances(drawn[1], surface_points)
        baseline_chamfer, baseline_f_score = distances(solid[1], surface_points)
        outline_iou, depth_l1 = _view_errors(views, truth)
        yield Score(
            family=family,
            outline_iou=outline_iou,
            depth_l1=depth_l1,
            silhouette_iou=silhouette_iou(drawn[0], cutout, toolbox),
            chamfer=chamfer,
            f_score=f_score,
            baseline_chamfer=baseline_chamfer,
            baseline_f_score=baseline_f_score,
        )


def summary(scores: list[Score]) -> dict[str, float]:
    """Medians over objects of every figure."""
    names = [f.name for f in fields(Score) if f.name != "family"]
    return {name: round(median(getattr(score, name) for score in scores), 4) for name in names}


def by_family(scores: list[Score]) -> dict[str, dict[str, float]]:
    """Medians over the objects of each family."""
    return {
        family: summary([score for score in scores if score.family == family])
        for family in sorted({score.family for score in scores})
    }


def _cutout(rgba: Tensor, index: int) -> Cutout:
    """The example's photo as the pipeline would hold it; rgba: uint8 [4 S S]."""
    photo = rgba.float() / 255
    return Cutout(
        rgb=photo[:3],
        alpha=photo[3:],
        crop=Crop(centre_x=0.0, centre_y=0.0, side_px=float(rgba.shape[-1])),
        photo=PurePosixPath(f"{index}.png"),
        digest=f"{index:064x}",
        matting="alpha",
    )


def _true_views(batch: Batch) -> SixViews:
    views, depth = batch["views"][0].float() / 255, batch["depth"][0].float()
    alpha = views[:, 3:]
    return SixViews(rgb=agree.on_grey(views)[:, :3], alpha=alpha, ccm=agree.maps_of(depth, alpha))


def _view_errors(views: SixViews, truth: SixViews) -> tuple[float, float]:
    """Outline IoU and depth error, at the size of the true views."""
    size = truth.alpha.shape[-1]
    drawn = torch.nn.functional.interpolate(views.alpha, size=(size, size), mode="area") > agree.SOLID
    true = truth.alpha > agree.SOLID
    iou = ((drawn & true).sum((1, 2, 3)) / (drawn | true).sum((1, 2, 3)).clamp_min(1)).mean()
    both = (drawn & true)[:, 0]
    error = (_depth_at(views, size) - _depth_at(truth, size)).abs()[both]
    return float(iou), float(error.mean()) if both.any() else 2.0


def _depth_at(views: SixViews, size_px: int) -> Tensor:
    """Mean depth of what each pixel of a smaller picture covers of the object: [6 S S]."""
    solid = (views.alpha[:, 0] > agree.SOLID).float()
    total, share = (
        torch.nn.functional.interpolate(t[:, None], size=(size_px, size_px), mode="area")[:, 0]
        for t in (agree.depth_of(views.ccm) * solid, solid)
    )
    return total / share.clamp_min(1e-6)


def _surface_points(field: Field, toolbox: Toolbox, count: int = 4096) -> tuple[Mesh, NDArray[np.float32]]:
    """A surface and points spread evenly over it."""
    mesh = surface(field, GRID, device=toolbox.device)
    return mesh, spread(mesh.vertices, mesh.faces, count)


def spread(
    vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]], count: int
) -> NDArray[np.float32]:
    """Spread points [N 3] evenly over a surface, the same ones every time."""
    corners = vertices[faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    random = np.random.default_rng(0)
    chosen = random.choice(len(areas), size=count, p=areas / areas.sum())
    # The square root spreads evenly over a triangle.
    u, v = np.sqrt(random.random(count)), random.random(count)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    points: NDArray[np.float32] = np.einsum("nk,nkd->nd", weights, corners[chosen]).astype(np.float32)
    return points


def distances(drawn: NDArray[np.float32], true: NDArray[np.float32]) -> tuple[float, float]:
    """Chamfer distance (mean of both directions) and F-score."""
    from scipy.spatial import cKDTree

    to_true, to_drawn = cKDTree(true).query(drawn)[0], cKDTree(drawn).query(true)[0]
    precision, recall = float((to_true < F_SCORE_AT).mean()), float((to_drawn < F_SCORE_AT).mean())
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return float(to_true.mean() + to_drawn.mean()) / 2, f_score
