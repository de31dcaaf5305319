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
from crm_cli.models.shelf import STAY_WIDE
from crm_cli.models.weights import PARTS, WeightsSet

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
        return sum(
            tensor.numel() * tensor.itemsize
            for network in self.values()
            for tensor in network.state_dict().values()
        )

    def listed(self) -> WeightsSet:
        """What stands for them where files would be listed: there are none."""
        return WeightsSet(name="random", architecture=self.architecture, directory=Path(), parts={})


def bytes_of(architecture: str, dtype: torch.dtype) -> int:
    """What `draw_networks` takes for an architecture, the text tower included."""
    towers = ARCHITECTURES[architecture].towers
    assert towers is not None
    total = 0
    with torch.device("meta"):
        networks = {part: ARCHITECTURES[architecture].build(part) for part in PARTS[architecture]}
        networks["text"] = TextTower(towers.text)
    for part, network in networks.items():
        itemsize = torch.float32.itemsize if part in STAY_WIDE else dtype.itemsize
        total += itemsize * sum(tensor.numel() for tensor in network.state_dict().values())
    return total


@torch.no_grad()
def draw_networks(architecture: str, *, device: str, dtype: torch.dtype, seed: int = 0) -> RandomNetworks:
    """Draw every network of an architecture: the same values for a seed and a device, whatever the precision.

    The denoisers' answers are taken for clean latents, not for noise: noise that is not in the picture would
    be amplified 120-fold where sampling starts, and everything behind it would calculate with huge numbers.
    """
    generator = Generator(device).manual_seed(seed)
    towers = ARCHITECTURES[architecture].towers
    assert towers is not None
    parts: dict[str, nn.Module] = {}
    for part in PARTS[architecture]:
        with torch.device("meta"):
            network = ARCHITECTURES[architecture].build(part)
        if part != "contexts":
            parts[part] = _fill(network, generator, torch.float32 if part in STAY_WIDE else dtype)
    with torch.device("meta"):
        tower = TextTower(towers.text)
    text = cast(TextTower, _fill(tower, generator, dtype))
    parts["contexts"] = Contexts.of(text).float()
    for stage in ("rgb", "ccm"):
        denoiser = cast(MultiViewUNet, parts[stage])
        denoiser.config = replace(denoiser.config, prediction="x0")
    return RandomNetworks(architecture=architecture, parts=parts, text=text)


def _fill(network: nn.Module, generator: Generator, dtype: torch.dtype) -> nn.Module:
    """Give a network without values some that keep what passes through it at about its size; none is zero."""
    network = network.to(dtype).to_empty(device=generator.device).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if name.endswith("bias"):
            values *= 0.1
        elif name.endswith("weight"):
            values = values / math.sqrt(values[0].numel()) if values.ndim > 1 else 1 + 0.1 * values
        # All others are embeddings and learned channels.
        parameter.copy_(CORRECTION * values if name.startswith("sdfMlp.fc3.") else values)
    return network
