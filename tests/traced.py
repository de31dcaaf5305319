"""Exact six views of analytic shapes: the ground truth that reconstruction is measured against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crm_cli.frame import VIEWS
from crm_cli.records import SixViews

Shape = Callable[[Tensor], Tensor]
"""Signed distance [N] at points [N 3]."""


def ball(radius: float = 0.7, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Shape:
    return lambda p: (p - p.new_tensor(centre)).norm(dim=1) - radius


def block(x: float, y: float, z: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Shape:
    def sdf(p: Tensor) -> Tensor:
        q = (p - p.new_tensor(centre)).abs() - p.new_tensor((x, y, z))
        return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)

    return sdf


def ring(radius: float = 0.6, tube: float = 0.2) -> Shape:
    """A torus lying flat."""
    return lambda p: torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - radius, p[:, 2]) - tube


def union(*shapes: Shape) -> Shape:
    return lambda p: torch.stack([shape(p) for shape in shapes]).amin(0)


def coordinates(p: Tensor) -> Tensor:
    """A colour that tells every point from every other."""
    return (p + 1) / 2


def trace(shape: Shape, size: int, *, colour: Callable[[Tensor], Tensor] = coordinates) -> SixViews:
    """Six views by sphere tracing; coverage from four rays a pixel."""
    rgb, ccm, alpha = [], [], []
    for view in VIEWS:
        right, up, toward = (torch.tensor(axis, dtype=torch.float32) for axis in view[1:])
        u = (2 * torch.arange(2 * size) + 1) / (2 * size) - 1
        _, fine_hit = _march(shape, -u[:, None, None] * up + u[:, None] * right, toward)
        u = (2 * torch.arange(size) + 1) / size - 1
        points, hit = _march(shape, -u[:, None, None] * up + u[:, None] * right, toward)
        grey = torch.full((3, size, size), 0.5)
        rgb.append(torch.where(hit, colour(points).T.view(3, size, size), grey))
        ccm.append(torch.where(hit, coordinates(points).T.view(3, size, size), grey))
        alpha.append(F.avg_pool2d(fine_hit[None].float(), 2))
    return SixViews(rgb=torch.stack(rgb), ccm=torch.stack(ccm), alpha=torch.stack(alpha))


def _march(shape: Shape, plane: Tensor, toward: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays from the camera meet the shape; a least step keeps grazing rays going, halvings undo it."""
    points = plane.reshape(-1, 3) + toward
    hit = torch.zeros(len(points), dtype=torch.bool)
    going = torch.arange(len(points))
    while len(going):
        inside = shape(points[going]) <= 0
        hit[going[inside]] = True
        going = going[~inside & ((points[going] @ toward) > -1)]
        points[going] -= shape(points[going])[:, None].clamp(min=0.01) * toward
    front, back = points[hit] + 0.011 * toward, points[hit]
    for _ in range(12):
        middle = (front + back) / 2
        inside = (shape(middle) <= 0)[:, None]
        front, back = torch.where(inside, front, middle), torch.where(inside, middle, back)
    points[hit] = back
    return points, hit.view(plane.shape[:2])
