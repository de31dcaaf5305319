"""LPIPS: how unlike two pictures look, by what a VGG16 sees in them (arXiv 1801.03924).

The weights are other people's and come with nothing: torchvision's `vgg16` state dict (its classifier is
passed over) and the linear heads of version 0.1, `vgg.pth` in the package lpips. Both may be torch files,
old ones too, or safetensors, or one file that holds all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from crm_cli.errors import EnvironmentProblem
from crm_cli.models.archives import read_old_checkpoint

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, for pictures in [-1, 1]. (richzhang/PerceptualSimilarity, lpips.py)"""

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Convolutions of VGG16 by their number in torchvision's `features`; all stages but the first halve first."""

REMEDY = "give torchvision's vgg16 and the vgg.pth of lpips 0.1: --lpips FILE --lpips FILE"

LEAST_NORM = 1e-10
"""Added to the length of a pixel's features before they are divided by it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Lpips:
    """The frozen networks: for each stage its convolutions, weight and bias, and the head's weights [C]."""

    stages: tuple[tuple[tuple[Tensor, Tensor], ...], ...]
    heads: tuple[Tensor, ...]

    @classmethod
    def read(cls, files: Sequence[Path], *, device: str = "cpu") -> Lpips:
        """Read the weights from files that together hold them; EnvironmentProblem where they do not."""
        held: dict[str, Tensor] = {}
        try:
            for file in files:
                held |= read_old_checkpoint(file)
            return cls.from_tensors({name: tensor.to(device) for name, tensor in held.items()})
        except EnvironmentProblem as error:
            raise EnvironmentProblem(f"--lpips {error.cause}", code=error.code, remedy=REMEDY) from error
        except KeyError as error:
            cause = f"--lpips {', '.join(map(str, files))}: no {error.args[0]} in there"
            raise EnvironmentProblem(cause, code="E_WEIGHTS_WRONG", remedy=REMEDY) from error

    @classmethod
    def from_tensors(cls, held: Mapping[str, Tensor]) -> Lpips:
        """Pick the weights by their public names; KeyError where one is missing."""
        return cls(
            stages=tuple(
                tuple(
                    (held[f"features.{n}.weight"].float(), held[f"features.{n}.bias"].float()) for n in stage
                )
                for stage in STAGES
            ),
            heads=tuple(held[f"lin{k}.model.1.weight"].float().view(-1) for k in range(len(STAGES))),
        )

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Distance of each of N pairs of pictures [N 3 H W] in [-1, 1], at least 16 px a side: [N]."""
        features = self._features(torch.cat((one, other)))
        total = one.new_zeros(len(one))
        for seen, head in zip(features, self.heads, strict=True):
            unit = seen / (torch.linalg.vector_norm(seen, dim=1, keepdim=True) + LEAST_NORM)
            difference = (unit[: len(one)] - unit[len(one) :]).square()
            total = total + torch.einsum("nchw,c->n", difference, head) / difference[0, 0].numel()
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """What each stage ends with, [N C H W]."""
        shift, scale = (pictures.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x = (pictures - shift) / scale
        found = []
        for number, stage in enumerate(self.stages):
            if number:
                x = functional.max_pool2d(x, 2)
            for weight, bias in stage:
                x = functional.conv2d(x, weight, bias, padding=1).relu()
            found.append(x)
        return found
