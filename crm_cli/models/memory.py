"""How much memory the published networks take: weights counted, work watched where it takes none.

Work is done on torch's meta device, where tensors have sizes and no bytes; what is alive at a time is what a
device would have to hold. An allocator keeps some more, and kernels have scratch memory of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crm_cli.models import clip
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.engine import Engine, Shown
from crm_cli.models.flexicubes import grid
from crm_cli.models.operations import LATENT_SIDE, PICTURE_SIDE, SIZES, SURFACE_SHARE, VIEWS, Sizes
from crm_cli.models.reconstruction import Reconstruction
from crm_cli.models.shards import bytes_of
from crm_cli.models.shelf import dtype_of
from crm_cli.models.vae import Vae
from crm_cli.preset import Preset
from crm_cli.records import SixViews


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that each part of a set of weights takes: to be there, and to be at work."""

    weights: Mapping[str, int]
    work: Mapping[str, int]
    """The most that is alive at a time beside the weights; parts take turns."""

    @property
    def at_once(self) -> int:
        """With every part in its place."""
        return sum(self.weights.values()) + max(self.work.values())

    @property
    def in_turns(self) -> int:
        """With no part there but the one at work."""
        return max(self.weights[part] + self.work[part] for part in self.work)


def need(architecture: str, preset: Preset, *, dtype: torch.dtype, batch: int = 1) -> Need:
    """What a set of weights of the published kind needs, on an accelerator, for so many photos at a time.

    dtype: what the networks calculate in, but for those in `shelf.STAY_WIDE`.
    """
    parts = {
        part: need_of(part, architecture, preset, dtype=dtype, batch=batch)
        for part in ARCHITECTURES[architecture].parts
    }
    return Need(
        weights={part: weights for part, (weights, _) in parts.items()},
        work={part: work for part, (_, work) in parts.items()},
    )


@torch.inference_mode()
def need_of(
    part: str, architecture: str, preset: Preset, *, dtype: torch.dtype, batch: int = 1
) -> tuple[int, int]:
    """Bytes of one part's weights, and of its work; see `need`."""
    network = ARCHITECTURES[architecture].unfilled(part).requires_grad_(False).to(dtype_of(part, dtype))
    work = partial(_WORK[part], network, SIZES[architecture], preset, batch)
    with torch.device("meta"):
        return bytes_of(network.state_dict()), peak_bytes(work)


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes of the tensors that were alive together at the worst moment of some work, made by it."""
    watch = _Watch()
    with watch:
        work()
    return watch.peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations give, until it is let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id_of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            # Views share what they show; what is written in place was there before.
            if isinstance(tensor, Tensor) and (number := id_of(tensor)) not in given | self._alive.keys():
                storage = tensor.untyped_storage()
                self._alive[number] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, number)
        self.peak = max(self.peak, sum(self._alive.values()))
        return answer


def id_of(tensor: Tensor) -> int:
    """The same for all tensors that share memory."""
    return int(tensor.untyped_storage()._cdata)


def _denoise(network: nn.Module, sizes: Sizes, preset: Preset, batch: int, *, stage: str) -> None:
    assert isinstance(network, MultiViewUNet)
    config = network.config
    assert config.context_width is not None
    place, side = next(network.parameters()).dtype, LATENT_SIDE
    shown = Shown(
        image=torch.zeros(batch, clip.TOKENS, config.image_width, dtype=place),
        reference=torch.zeros(batch, config.channels_in, side, side) if config.has_reference else None,
        concat=torch.zeros(batch, config.frames, config.concat_channels, side, side)
        if config.concat_channels
        else None,
    )
    sampling = preset.rgb if stage == "rgb" else preset.ccm
    texts = torch.zeros(2, clip.LENGTH, config.context_width)
    engine = Engine(network, sampling, texts=texts, shown=shown)
    engine.step(network, is_guided=engine.is_ever_guided)


def _look(network: nn.Module, sizes: Sizes, preset: Preset, batch: int) -> None:
    pictures = torch.zeros(batch, 3, clip.PICTURE_PX, clip.PICTURE_PX, dtype=next(network.parameters()).dtype)
    network(pictures)


def _code(network: nn.Module, sizes: Sizes, preset: Preset, batch: int) -> None:
    assert isinstance(network, Vae)
    dtype, config = next(network.parameters()).dtype, sizes.vae
    latents = torch.zeros(batch * VIEWS, config.latent_channels, LATENT_SIDE, LATENT_SIDE, dtype=dtype)
    network.encode(torch.zeros(batch * VIEWS, 3, PICTURE_SIDE, PICTURE_SIDE, dtype=dtype), latents)
    network.decode(latents)


def _nothing(network: nn.Module, sizes: Sizes, preset: Preset, batch: int) -> None:
    """Contexts are read as they are."""


def _reconstruct(network: nn.Module, sizes: Sizes, preset: Preset, batch: int) -> None:
    """One photo, whatever the batch: its planes, then its grid, its cubes and its texture."""
    assert isinstance(network, Reconstruction)
    pictures = torch.zeros(VIEWS, 3, PICTURE_SIDE, PICTURE_SIDE)
    field = network.field(SixViews(rgb=pictures, ccm=pictures, alpha=pictures[:, :1]))
    cells = preset.reconstruction.grid
    points = grid(cells, device="meta")
    answers = field.geometry(points)
    field.cube_weights(torch.zeros(SURFACE_SHARE * cells**2, 8, 3))
    del answers, points
    field.colour(torch.zeros(preset.texture.size_px**2, 3))


_WORK: Mapping[str, Callable[[nn.Module, Sizes, Preset, int], None]] = {
    "rgb": partial(_denoise, stage="rgb"),
    "ccm": partial(_denoise, stage="ccm"),
    "vision": _look,
    "vae": _code,
    "contexts": _nothing,
    "reconstruction": _reconstruct,
}
