"""Sample pictures: tiles in rows, and how views, depths and fields become tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from crm_cli.errors import PhotoError
from crm_cli.models.agree import SOLID, maps_of
from crm_cli.toolbox import choose

if TYPE_CHECKING:
    from crm_cli.models.reconstruction import PlaneField

GAP_PX = 2

TILE_PX = 128
"""Side that smaller tiles are enlarged to, by whole numbers."""

GRID = 48
"""Cells a side of the surfaces that are shown."""


def sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Lay tiles [3 S S] of one size in rows, on white: [3 H W]. A shorter row is filled up on its left."""
    width = max(map(len, rows))
    return torch.cat([_row(row, width) for row in rows], 1)


def _row(tiles: Sequence[Tensor], width: int) -> Tensor:
    blank = torch.ones_like(tiles[0])
    return torch.cat([_framed(tile) for tile in [*[blank] * (width - len(tiles)), *tiles]], 2)


def _framed(tile: Tensor) -> Tensor:
    """Enlarge a small tile, and leave room at its right and below."""
    factor = max(1, TILE_PX // tile.shape[-1])
    large = tile.float().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return functional.pad(large, (0, GAP_PX, 0, GAP_PX), value=1.0)


def compared(photos: Tensor, drawn: Tensor, true: Tensor) -> Tensor:
    """Two rows for each object: photo and six views as drawn, and as they are: [3 H W].

    photos: [B 3 S S]; drawn, true: [B 6 3 S S].
    """
    rows: list[list[Tensor]] = []
    for photo, views, truth in zip(photos, drawn, true, strict=True):
        rows += [[photo, *views], list(truth)]
    return sheet(rows)


def on_white(rgba: Tensor) -> Tensor:
    """Colours that lie on mid grey with their coverage, on white instead: [... 4 S S] to [... 3 S S]."""
    return (rgba[..., :3, :, :] + 0.5 * (1 - rgba[..., 3:, :, :])).clamp(0, 1)


def shaded(depth: Tensor, alpha: Tensor) -> Tensor:
    """Depth in [-1, 1] as grey, the nearest brightest, white where nothing is: [... S S] to [... 3 S S]."""
    grey = torch.where(alpha > SOLID, (depth + 1) * 0.45, 1.0)
    return grey.clamp(0, 1).unsqueeze(-3).expand(*grey.shape[:-2], 3, *grey.shape[-2:])


def rendered(field: PlaneField, size_px: int) -> Tensor:
    """Six views of a field's surface with its colours, on white [6 3 S S]; all white where it has none."""
    from crm_cli.mesh.raster import RASTERS
    from crm_cli.models.field import surface
    from crm_cli.pipeline import look_at

    blank = torch.ones(6, 3, size_px, size_px)
    place = field.triplane.planes.device
    try:
        mesh = surface(field, GRID, device=str(place))
    except PhotoError:
        return blank
    depth, alpha = look_at(mesh, choose("rasteriser", RASTERS, "cpu")(), size_px)
    seen = (alpha > SOLID).expand_as(blank)
    points = (maps_of(depth, alpha) * 2 - 1).permute(0, 2, 3, 1)[seen[:, 0]]  # [N 3]
    colours = field.colour(points.to(place)).cpu()
    blank.permute(0, 2, 3, 1)[seen[:, 0]] = colours
    return blank
