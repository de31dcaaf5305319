"""What a training step of a published denoiser costs, counted without computing anything.

    .venv-test/bin/python tests/bench_latent.py

Tensors of the whole step are described and not allocated, so that this runs anywhere and also shows that all
shapes fit at the published size. Attention is counted as the flash kernels of a GPU keep it: inputs, answer
and one number a query; what norms keep is what a CPU's autocast lets them. What the allocator and the
kernels take beside that is not counted. Operations are those of matrix products, convolutions and attention:
once forward, twice backward, and once more where blocks are computed twice.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from crm_cli.frame import VIEWS
from crm_cli.learn import latent
from crm_cli.learn.latent import Frozen, LatentSettings, LatentTask, Pictures
from crm_cli.models import operations
from crm_cli.models.architectures import ARCHITECTURES

OPTIMISED = 5
"""Parameters, gradients, two moments and the average."""


class Flash(torch.autograd.Function):
    """Attention as far as memory goes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        answer = torch.zeros_like(q)
        ctx.save_for_backward(q, k, v, answer, torch.zeros(q.shape[:3], device=q.device))
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise NotImplementedError("nothing is computed here")


def attend(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Any:
    """Attend as `Flash` does."""
    return Flash.apply(q, k, v)


class Kept:
    """Counts what is kept for the way back: each storage once, parameters not at all."""

    def __init__(self, network: nn.Module) -> None:
        self._own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        self._storages: dict[int, Any] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._storages[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    @property
    def gigabytes(self) -> float:
        return sum(storage.nbytes() for storage in self._storages.values()) / 1e9


def recompute_and_remember(kept: Kept, recompute: Callable[[nn.Module], None], network: nn.Module) -> None:
    """`latent.recompute`, with the blocks' inputs counted: no hook for what is saved hears of them."""

    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept(inputs[0])

    recompute(network)
    for block in network.modules():
        if "forward" in vars(block):
            block.register_forward_pre_hook(keep)


def count(
    architecture: str, stage: str, *, precision: str, is_recomputed: bool
) -> tuple[float, float, float]:
    """Gigabytes of what is optimised, of what is frozen, and of what one object keeps."""
    build = ARCHITECTURES[architecture].build
    narrow = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = build(stage)
        parts = {part: build(part).requires_grad_(False) for part in ("vae", "vision", "contexts")}
        kept = Kept(network)
        settings = LatentSettings(is_recomputed=is_recomputed)
        with mock.patch.object(latent, "recompute", partial(recompute_and_remember, kept, latent.recompute)):
            task = LatentTask(stage, network, Frozen(**parts), settings)  # type: ignore[arg-type]
        views = torch.zeros(1, 6, 3, latent.VAE_PX, latent.VAE_PX)
        with (
            narrow,
            mock.patch.object(functional, "scaled_dot_product_attention", attend),
            torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor),
        ):
            pictures = Pictures(seen=views[:, 0], rgb=views, maps=views)
            task.error(task.ask(pictures, torch.Generator()))
    bytes_of = [sum(t.nbytes for t in part.state_dict().values()) for part in (network, *parts.values())]
    return OPTIMISED * bytes_of[0] / 1e9, sum(bytes_of[1:]) / 1e9, kept.gigabytes


def tera_operations(architecture: str, stage: str, *, is_recomputed: bool) -> tuple[float, float]:
    """Of one object in the network, and in what is frozen, in units of 10¹²."""
    sizes = operations.SIZES[architecture]
    config = sizes.rgb if stage == "rgb" else sizes.ccm
    learned = operations.denoiser_step(config).total() + operations.denoiser_preparation(config)
    pictures = len(VIEWS) + (1 if stage == "rgb" else len(VIEWS))  # the reference, or the views beside maps
    read = pictures * operations.encode(sizes.vae).total() + operations.look(sizes.vision)
    return (4 if is_recomputed else 3) * learned / 1e12, read / 1e12


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="release", choices=["release", "miniature"])
    architecture = parser.parse_args().architecture
    sys.stdout.write(" " * 26 + "GB optimised   frozen     kept  10¹² learned   frozen\n")
    for stage in ("rgb", "ccm"):
        for precision in ("float32", "bfloat16"):
            for is_recomputed in (False, True):
                answer = count(architecture, stage, precision=precision, is_recomputed=is_recomputed)
                answer += tera_operations(architecture, stage, is_recomputed=is_recomputed)
                numbers = "{:12.2f}{:9.2f}{:9.2f}{:14.2f}{:9.2f}".format(*answer)
                blocks = "blocks twice" if is_recomputed else "blocks once"
                sys.stdout.write(f"{stage:4} {precision:8} {blocks:12}{numbers}\n")


if __name__ == "__main__":
    main()
