"""Truths of analytic shapes: places on the surface, their colours, and what is inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from traced import Shape, coordinates

from crm_cli.learn.fit import POINTS, Places, cell_centres


@dataclass(frozen=True, eq=False)
class Known:
    """A truth whose places are coloured by where they are."""

    surface: Places
    surface_rgb: NDArray[np.float64]
    inside: NDArray[np.bool_]


def known(places: torch.Tensor, shape: Shape) -> Known:
    return Known(
        surface=places.numpy(),
        surface_rgb=coordinates(places).double().numpy(),
        inside=(shape(torch.from_numpy(cell_centres())) < 0).numpy(),
    )


def on_ball(radius: float) -> torch.Tensor:
    directions = torch.randn(POINTS, 3, generator=torch.Generator().manual_seed(0))
    return radius * directions / directions.norm(dim=1, keepdim=True)


def on_block(x: float, y: float, z: float) -> torch.Tensor:
    """Places on a block's six sides, as many on each as its area asks for."""
    random = torch.Generator().manual_seed(0)
    half = torch.tensor((x, y, z))
    side = torch.multinomial(torch.tensor((y * z, x * z, x * y)), POINTS, replacement=True, generator=random)
    places = (torch.rand(POINTS, 3, generator=random) * 2 - 1) * half
    sign = torch.randint(0, 2, (POINTS,), generator=random) * 2.0 - 1
    places[torch.arange(POINTS), side] = sign * half[side]
    return places


def best_f_score(area: float) -> float:
    """What a perfect surface scores: whether one of the others' places is near is a matter of chance."""
    return 1 - math.exp(-math.pi * 0.04**2 * POINTS / area)
