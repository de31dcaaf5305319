"""Networks of the published structure with random values, for measuring what needs no trained ones.

Their answers mean nothing, but are about as large as trained networks' are: matrix units take less power on
zeros, and are slow on numbers next to zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Generator, nn

from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.clip import Contexts, TextTower
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.shards import bytes_of
from crm_cli.models.shelf import dtype_of
from crm_cli.models.weights import PARTS, WeightsSet

TEXT = "text"
"""The text tower, which is no part of a set."""

CORRECTION = 0.1
"""How far the random signed distance strays from the ball that the published one corrects: further than this
little of a shape is left."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RandomNetworks(Mapping[str, nn.Module]):
    """Every part of an architecture on a device, and the text tower, which only converting weights needs."""

    architecture: str
    parts: Mapping[str, nn.Module]
    text: TextTower

    def __getitem__(self, part: str) -> nn.Module:
        return self.parts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def bytes(self) -> int:
        """What the parts take; not the text tower."""
        return sum(bytes_of(network.state_dict()) for network in self.values())

    def listed(self) -> WeightsSet:
        """What stands for them where files would be listed: there are none."""
        return WeightsSet(name="random", architecture=self.architecture, directory=Path(), parts={})


def drawn_bytes(architecture: str, dtype: torch.dtype) -> int:
    """What `draw_networks` takes for an architecture, the text tower included."""
    networks = (_unfilled(architecture, part, dtype) for part in (*PARTS[architecture], TEXT))
    return sum(bytes_of(network.state_dict()) for network in networks)


def _unfilled(architecture: str, part: str, dtype: torch.dtype) -> nn.Module:
    """A part, or the text tower, in its number format and without values."""
    if part != TEXT:
        return ARCHITECTURES[architecture].unfilled(part).to(dtype_of(part, dtype))
    towers = ARCHITECTURES[architecture].towers
    assert towers is not None
    with torch.device("meta"):
        return TextTower(towers.text).to(dtype)


@torch.no_grad()
def draw_networks(architecture: str, *, device: str, dtype: torch.dtype, seed: int = 0) -> RandomNetworks:
    """Draw every network of an architecture: the same values for a seed and a device, whatever the precision.

    The denoisers' answers are taken for clean latents, not for noise: noise that is not in the picture would
    be amplified 120-fold where sampling starts, and everything behind it would calculate with huge numbers.
    """
    generator = Generator(device).manual_seed(seed)
    parts = {
        part: _fill(_unfilled(architecture, part, dtype), generator)
        for part in PARTS[architecture]
        if part != "contexts"
    }
    text = cast(TextTower, _fill(_unfilled(architecture, TEXT, dtype), generator))
    parts["contexts"] = Contexts.of(text).float()
    for stage in ("rgb", "ccm"):
        denoiser = cast(MultiViewUNet, parts[stage])
        denoiser.config = replace(denoiser.config, prediction="x0")
    return RandomNetworks(architecture=architecture, parts=parts, text=text)


def _fill(network: nn.Module, generator: Generator) -> nn.Module:
    """Give a network without values some that keep what passes through it at about its size; none is zero."""
    network = network.to_empty(device=generator.device).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if name.endswith("bias"):
            values *= 0.1
        elif name.endswith("weight"):
            values = values / math.sqrt(values[0].numel()) if values.ndim > 1 else 1 + 0.1 * values
        # All others are embeddings and learned channels.
        parameter.copy_(CORRECTION * values if name.startswith("sdfMlp.fc3.") else values)
    return network
