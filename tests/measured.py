"""What tests of the benchmark share: tools with random networks of the published structure, and a subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import torch

from crm_cli.bench.measure import shortened
from crm_cli.bench.networks import RandomNetworks, draw_networks
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import Crop, Cutout
from crm_cli.toolbox import Toolbox, open_toolbox


@cache
def drawn() -> RandomNetworks:
    return draw_networks("miniature", device="cpu", dtype=torch.float32)


@cache
def tools() -> Toolbox:
    """Everything of this machine around the random networks."""
    opened = open_toolbox(load_preset("tiny").preset, device="cpu", threads=1)
    return replace(opened, networks=drawn(), weights=drawn().listed(), dtype=torch.float32)


def exact(*assignments: str, steps: int = 2) -> Preset:
    overrides = [Override.from_assignment(text) for text in ("reconstruction.grid=16", *assignments)]
    return shortened(load_preset("exact", overrides, architecture="miniature").preset, steps)


def cutout(digest: str = "d" * 64, seed: int = 0) -> Cutout:
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 90, 4), np.uint8)
    pixels[:20] = 0
    planes = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return Cutout(
        rgb=planes[:3] * (planes[3:] > 0),
        alpha=planes[3:],
        crop=Crop(centre_x=45, centre_y=45, side_px=90),
        photo=PurePosixPath("a.png"),
        digest=digest,
        matting="alpha",
    )


def unheard(done: int, of: int) -> None:
    """Progress that nobody follows."""


def silent(text: str) -> None:
    """Words that nobody hears."""


__all__: Sequence[str] = ["cutout", "drawn", "exact", "silent", "tools", "unheard"]
