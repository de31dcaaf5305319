"""How near a surface comes to the true one: distances, F-score, volume, colour.

Lengths are world units: the front of every product is 1.6 long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from crm_cli.export.preview import sample
from crm_cli.learn.solid import Solid
from crm_cli.learn.subject import Body
from crm_cli.mesh.likeness import colour_distance
from crm_cli.models.field import Field, surface
from crm_cli.records import Mesh, TexturedMesh

F_SCORE_AT = 0.04
"""Two points count as matched within this distance."""

POINTS = 16384
"""Places on each surface: five within F_SCORE_AT of any point even where the surface is 16, as a shelf's may
be, so that a perfect one scores 0.99. Of 2,048 it would score 0.5 there."""

CELLS = 64
"""Cells a side of the grid on which volumes are compared: 0.03 each, finer than F_SCORE_AT."""

SOLID_GRID = 64
"""Cells a side of the grid that the surfaces of solids are drawn on; they are smooth."""

Places = NDArray[np.float32]


class Truth(Protocol):
    """What a surface is compared with."""

    @property
    def surface(self) -> Places:
        """Places on the outside, [POINTS 3]."""
        ...

    @property
    def surface_rgb(self) -> NDArray[np.float64]:
        """Their colours without light, sRGB in [0, 1], [POINTS 3]."""
        ...

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which of cell_centres() are inside, [CELLS³]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How near one surface comes to the truth."""

    chamfer: float
    """Mean distance to the nearest place of the other surface, of both directions."""
    f_score: float
    """Harmonic mean of the shares of each surface that lie within F_SCORE_AT of the other."""
    volume_iou: float
    """Of what is inside: intersection over union, on a grid."""
    colour: float
    """Mean CIEDE2000 difference between places of the true surface and the nearest drawn ones: about 1 can
    just be seen. The truth is without light and the photo is not, so that some is left of a perfect asset."""


class Spots(NamedTuple):
    """Places on a mesh: face [N] and the weights of its corners [N 3]."""

    face: NDArray[np.int64]
    weights: NDArray[np.float64]

    def blend(self, values: NDArray[Any], faces: NDArray[np.integer[Any]]) -> Places:
        """Interpolate what corners carry: values [V K], faces [F 3] into them; gives [N K]."""
        corners = values.astype(np.float64)[faces[self.face]]
        blended: Places = np.einsum("nk,nkd->nd", self.weights, corners).astype(np.float32)
        return blended


Paint = Callable[[Spots, Places], NDArray[np.float64]]
"""Colours [N 3] at spots of a mesh, which lie at these places."""


def fit_asset(textured: TexturedMesh, truth: Truth) -> Fit:
    """Measure a finished asset, coloured as its texture has it."""
    texture = (torch.from_numpy(textured.texture).float() / 255).permute(2, 0, 1)[None]
    unwrapped = textured.unwrapped

    def paint(spots: Spots, _: Places) -> NDArray[np.float64]:
        uv = torch.from_numpy(spots.blend(unwrapped.uv, unwrapped.uv_faces))
        return sample(texture, uv[None])[0].double().numpy()

    return fit(textured.mesh, truth, paint)


def fit_solid(field: Field, truth: Truth) -> Fit:
    """Measure a solid that needs no learning, as its field has it."""
    mesh = surface(field, SOLID_GRID)
    return fit(mesh, truth, lambda _, places: field.colour(torch.from_numpy(places)).double().numpy())


def fit(mesh: Mesh, truth: Truth, paint: Paint) -> Fit:
    """Measure a closed mesh against the truth."""
    from scipy.spatial import cKDTree

    spots = spread_spots(mesh.vertices, mesh.faces, POINTS)
    drawn = spots.blend(mesh.vertices, mesh.faces)
    to_true = cKDTree(truth.surface).query(drawn)[0]
    to_drawn, nearest = cKDTree(drawn).query(truth.surface)
    within = occupied(Solid(mesh.vertices, mesh.faces, np.zeros(len(mesh.faces), np.int64)))
    shared, union = np.count_nonzero(within & truth.inside), np.count_nonzero(within | truth.inside)
    found = paint(Spots(spots.face[nearest], spots.weights[nearest]), drawn[nearest])
    return Fit(
        chamfer=float(to_true.mean() + to_drawn.mean()) / 2,
        f_score=f_score(to_true, to_drawn),
        volume_iou=shared / union if union else 0.0,
        colour=colour_distance(truth.surface_rgb, found),
    )


def cell_centres() -> Places:
    """Where volumes are compared, [CELLS³ 3]."""
    axis = ((np.arange(CELLS) + 0.5) * (2 / CELLS) - 1).astype(np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def occupied(solid: Body) -> NDArray[np.bool_]:
    """Which cells a solid encloses, [CELLS³]."""
    inside: NDArray[np.bool_] = solid.signed_distance(cell_centres(), reach=1 / CELLS) < 0
    return inside


def spread(vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]], count: int) -> Places:
    """Spread points [N 3] evenly over a surface, the same ones every time."""
    return spread_spots(vertices, faces, count).blend(vertices, faces)


def spread_spots(vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]], count: int) -> Spots:
    """Spread places evenly over a surface, the same ones every time."""
    corners = vertices[faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    random = np.random.default_rng(0)
    chosen = random.choice(len(areas), size=count, p=areas / areas.sum())
    # The square root spreads evenly over a triangle.
    u, v = np.sqrt(random.random(count)), random.random(count)
    return Spots(chosen, np.stack([1 - u, u * (1 - v), u * v], axis=1))


def distances(drawn: Places, true: Places) -> tuple[float, float]:
    """Chamfer distance (mean of both directions) and F-score of two sets of points."""
    from scipy.spatial import cKDTree

    to_true, to_drawn = cKDTree(true).query(drawn)[0], cKDTree(drawn).query(true)[0]
    return float(to_true.mean() + to_drawn.mean()) / 2, f_score(to_true, to_drawn)


def f_score(to_true: NDArray[np.float64], to_drawn: NDArray[np.float64]) -> float:
    """Harmonic mean of precision and recall within F_SCORE_AT."""
    precision, recall = float((to_true < F_SCORE_AT).mean()), float((to_drawn < F_SCORE_AT).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
