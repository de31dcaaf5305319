"""How long one photo will take in the published networks here: operations counted, their speed measured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from crm_cli.models import vae
from crm_cli.models.denoiser import DenoiserConfig
from crm_cli.models.layers import KeysValues, MultiViewTransformer, ResidualBlock
from crm_cli.models.operations import (
    LATENT_SIDE,
    PICTURE_SIDE,
    PROMPT_TOKENS,
    SIZES,
    Piece,
    Sizes,
    denoiser_pieces,
    photo_operations,
    piece_operations,
    residual,
)
from crm_cli.models.vae import VaeConfig
from crm_cli.preset import Preset

REST_S = 15.0
"""What a photo takes beside the networks on one core: cut-out, surface, charts, files."""

PATIENCE_S = 2.0
"""After so long no measurement is repeated."""

REPEATS = 8
"""The best of so many counts: a first pass also sets things up, and neighbours come in bursts."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Operations a second, by the side of the feature maps."""

    by_side: Mapping[int, float]

    def seconds(self, counts: Counter[int]) -> float:
        """Time for operations by side, each at the pace of the nearest side that was measured."""
        return sum(count / self.by_side[self._nearest(side)] for side, count in counts.items())

    def _nearest(self, side: int) -> int:
        return min(self.by_side, key=lambda measured: max(measured / side, side / measured))


def forecast_s(architecture: str, preset: Preset, *, device: str, dtype: torch.dtype) -> float:
    """Seconds that one photo will take; for a CPU, where they are many.

    Measures for a few seconds with the threads that torch has now. What else the machine does at the moment
    counts little: the forecast is for a machine that does nothing else.
    """
    pace = measure_pace(SIZES[architecture], device=device, dtype=dtype)
    return pace.seconds(photo_operations(architecture, preset)) + REST_S


def processor_s() -> float:
    """Seconds that this process has worked, as if its threads had had the cores for themselves."""
    return time.process_time() / torch.get_num_threads()


@torch.inference_mode()
def measure_pace(
    sizes: Sizes, *, device: str, dtype: torch.dtype, clock: Callable[[], float] = processor_s
) -> Pace:
    """Time the work that is most of a photo's: at three sizes of feature maps.

    They take turns, so that a neighbour who is busy for a moment spoils one pass of each and no best one.
    """
    sides = [LATENT_SIDE >> level for level in sizes.rgb.attention_levels]
    with torch.device("meta"):
        work = {
            min(sides): _denoising(sizes.rgb, min(sides)),
            max(sides): _denoising(sizes.rgb, max(sides)),
            PICTURE_SIDE // 2: _decoding(sizes.vae, PICTURE_SIDE // 2),
        }
    passes: dict[int, Callable[[], object]] = {}
    generator = torch.Generator(device).manual_seed(0)
    for side, (network, _, shapes) in work.items():
        network = _filled(network.to(dtype).to_empty(device=device), generator)
        inputs = [torch.rand(tuple(shape), generator=generator, device=device).to(dtype) for shape in shapes]
        passes[side] = partial(network, *inputs)
    best = _quickest_s(passes, clock)
    return Pace({side: operations / best[side] for side, (_, operations, _) in work.items()})


_Work = tuple[nn.Module, int, Sequence[Sequence[int]]]
"""A network, the operations of one pass, and the shapes of what it takes."""


def _denoising(config: DenoiserConfig, side: int) -> _Work:
    """One residual block and one transformer of a denoiser, for all frames of one object."""
    piece = next(p for p in denoiser_pieces(config) if p.kind == "transformer" and p.side == side)
    channels = piece.channels_out
    operations = sum(
        piece_operations(config, Piece(kind, side, channels, channels))
        for kind in ("residual", "transformer")
    )
    inputs = [(config.frames, channels, side, side), (config.frames, config.embedding_width)]
    lengths = [] if config.context_width is None else [PROMPT_TOKENS]
    lengths += [] if config.image_tokens is None else [config.image_tokens]
    heads = channels // config.head_dim
    return _Site(config, channels), operations, [*inputs, *((1, heads, n, config.head_dim) for n in lengths)]


def _decoding(config: VaeConfig, side: int) -> _Work:
    """One residual block of the VAE, for one picture."""
    width = config.width
    network = vae.ResidualBlock(width, width, config.groups)
    return network, residual(side**2, width, width), [(1, width, side, side)]


class _Site(nn.Module):
    """A residual block and a transformer, as they stand in a denoiser."""

    def __init__(self, config: DenoiserConfig, channels: int) -> None:
        super().__init__()
        self.residual = ResidualBlock(
            channels, channels, embedding_width=config.embedding_width, groups=config.norm_groups
        )
        self.transformer = MultiViewTransformer(
            channels,
            frames=config.frames,
            groups=config.norm_groups,
            head_dim=config.head_dim,
            context_width=config.context_width,
            has_image=config.image_tokens is not None,
        )

    def forward(self, x: Tensor, embedding: Tensor, *tokens: Tensor) -> Tensor:
        """Return [F C h w]; tokens: what the prompts are [1 heads L head_dim]."""
        prompt = tuple(KeysValues(one, one) for one in tokens)
        return cast(Tensor, self.transformer(self.residual(x, embedding), prompt))


def _filled(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """The network with small numbers everywhere: zeros are quicker than weights are."""
    for parameter in network.parameters():
        parameter.uniform_(-0.05, 0.05, generator=generator)
    return network


def _quickest_s(passes: Mapping[int, Callable[[], object]], clock: Callable[[], float]) -> dict[int, float]:
    """Seconds of the best of a few passes of each kind, by its side."""
    best, began = dict.fromkeys(passes, float("inf")), clock()
    for _ in range(REPEATS):
        for side, work in passes.items():
            start = clock()
            work()
            best[side] = min(best[side], clock() - start)
        if clock() - began > PATIENCE_S:
            break
    return best
