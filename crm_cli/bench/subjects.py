"""What is converted: photos of made-up products, and surfaces of the kind that trained networks draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from crm_cli.fragments import Raster
from crm_cli.learn.photograph import SAMPLES, take
from crm_cli.models import flexicubes
from crm_cli.models.field import surface
from crm_cli.models.flexicubes import CubeWeights, OwnSurface
from crm_cli.records import Mesh

CORPUS_GRID = 80
"""Of the published surface."""


def write_photos(folder: Path, raster: Raster, *, count: int) -> list[PurePosixPath]:
    """Take so many photos, as shops do; the same every time, no two alike up to eight.

    Gives their names below the folder.
    """
    from PIL import Image

    names = []
    for number, sample in zip(range(min(count, len(SAMPLES))), SAMPLES, strict=False):
        name = PurePosixPath(f"{number}{sample.path.suffix}")
        Image.fromarray(take(sample, raster)).save(folder / name)
        names.append(name)
    return names


Distance = Callable[[Tensor], Tensor]
"""Signed distance [N], negative inside, at points [N 3]."""


@dataclass(frozen=True, slots=True)
class Solid:
    """A field known in closed form."""

    distance: Distance

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N]; the grid stays where it is."""
        return self.distance(points), torch.zeros_like(points)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        """Neutral."""
        return None

    def colour(self, points: Tensor) -> Tensor:
        """The place itself."""
        return (points + 1) / 2


def corpus() -> list[Mesh]:
    """Surfaces of 15,000 to 60,000 faces: bulges, a thin shell, a handle, corners with grooves."""
    return [surface(Solid(solid), CORPUS_GRID) for solid in (_bulges, _bowl, _mug, _crate)]


def _ball(points: Tensor, centre: tuple[float, float, float], radius: float) -> Tensor:
    distance: Tensor = (points - points.new_tensor(centre)).norm(dim=1) - radius
    return distance


def _join(distances: Sequence[Tensor], softness: float) -> Tensor:
    """The union of solids with rounded seams."""
    return -softness * torch.logsumexp(-torch.stack(list(distances)) / softness, 0)


def _bulges(points: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(9, 3, generator=generator) - 0.5).tolist()
    balls = [_ball(points, (x, y, z), 0.25 + 0.02 * n) for n, (x, y, z) in enumerate(centres)]
    return _join(balls, 0.03)


def _bowl(points: Tensor) -> Tensor:
    wall = (_ball(points, (0, 0, 0.3), 0.85)).abs() - 0.035
    return torch.maximum(wall, points[:, 2] - 0.25)


def _mug(points: Tensor) -> Tensor:
    x, y, z = points.unbind(1)
    across = (x**2 + y**2).sqrt()
    wall = torch.maximum((across - 0.5).abs() - 0.04, z.abs() - 0.7)
    floor = torch.maximum(across - 0.5, (z + 0.66).abs() - 0.04)
    ring = (((x - 0.5) ** 2 + z**2).sqrt() - 0.32) ** 2 + y**2
    handle = torch.maximum(ring.sqrt() - 0.06, 0.5 - across)
    return torch.minimum(torch.minimum(wall, floor), handle)


def _crate(points: Tensor) -> Tensor:
    box = (points.abs() - points.new_tensor((0.75, 0.5, 0.6))).amax(1)
    grooves = 0.03 * torch.sin(18 * points[:, 2]) * torch.cos(5 * points[:, 0])
    return box + grooves


class CorpusSurface(OwnSurface):
    """Draws the surface of a field and gives one of a corpus instead, each in its turn.

    For networks with random values: what their surface costs to clean and unwrap depends on chance.
    """

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        self._turn = itertools.cycle(meshes)

    def extract(  # type: ignore[override]  # a turn needs a state, which a static method has not
        self,
        vertices: Tensor,
        sdf: Tensor,
        resolution: int,
        *,
        weights: CubeWeights | None = None,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `flexicubes.extract`."""
        _, _, deviation = flexicubes.extract(vertices, sdf, resolution, weights=weights, refine=refine)
        mesh = next(self._turn)
        place = vertices.device
        return torch.from_numpy(mesh.vertices).to(place), torch.from_numpy(mesh.faces).to(place), deviation
