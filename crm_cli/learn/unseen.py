"""Products that no training saw: the photo of each, and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from crm_cli.fragments import Raster
from crm_cli.learn.examples import draw_posed, make_example, outer_surface
from crm_cli.learn.fit import POINTS, Places, occupied
from crm_cli.learn.tasks import records_of
from crm_cli.records import Crop, Cutout, Photo, SixViews


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Unseen:
    """One product; it is a Truth of its own photo."""

    seed: int
    family: str
    photo: Photo
    cutout: Cutout
    views: SixViews
    """As rendered, at the photo's size."""
    surface: Places
    surface_rgb: NDArray[np.float64]
    inside: NDArray[np.bool_]


def unseen(seed: int, raster: Raster, *, size_px: int = 64) -> Unseen:
    """Draw the product of a seed, photograph it as a training example of so many pixels, and measure it."""
    example = make_example(np.random.default_rng(seed), raster, size_px=size_px, has_field=False)
    posed = draw_posed(np.random.default_rng(seed))
    body = posed.product.body(posed.vertices)
    places, rgb = outer_surface(np.random.default_rng([seed, 1]), posed, body, POINTS)
    photo, cutout = held(example.photo, seed)
    rgba, depth = (torch.from_numpy(one)[None].float() for one in (example.views, example.depth))
    [views] = records_of(rgba / 255, depth)
    return Unseen(
        seed=seed,
        family=example.family,
        photo=photo,
        cutout=cutout,
        views=views,
        surface=places.astype(np.float32),
        surface_rgb=rgb / 255,
        inside=occupied(body),
    )


def held(rgba: NDArray[np.uint8], seed: int) -> tuple[Photo, Cutout]:
    """An example's photo [4 S S] as the pipeline would hold it; it is framed as cut-outs are."""
    name, digest, side_px = PurePosixPath(f"{seed}.png"), f"{seed:064x}", rgba.shape[-1]
    rgb = np.ascontiguousarray(rgba[:3].transpose(1, 2, 0))
    pixels = torch.from_numpy(rgba).float() / 255
    cutout = Cutout(
        rgb=pixels[:3],
        alpha=pixels[3:],
        crop=Crop(centre_x=side_px / 2, centre_y=side_px / 2, side_px=float(side_px)),
        photo=name,
        digest=digest,
        matting="alpha",
    )
    return Photo(path=name, rgb=rgb, alpha=rgba[3], digest=digest), cutout
