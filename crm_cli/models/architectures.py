"""The networks that a set of weights fills, by the name of its architecture.

`small` is the embedded system, `release` the published one; `miniature` is the published structure at no
cost, for tests. All can be built on the meta device, where nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from crm_cli.models import clip, denoiser, reconstruction, vae
from crm_cli.models.denoiser import DenoiserConfig, MultiViewUNet
from crm_cli.models.reconstruction import Reconstruction, ReconstructionConfig
from crm_cli.models.weights import SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Sizes of the two halves of CLIP."""

    vision: clip.TowerConfig
    text: clip.TowerConfig

    @property
    def unused(self) -> tuple[str, ...]:
        """How the names begin of what a published model has beyond them, below `clip_model.model.`."""
        return clip.unused(self.vision, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a set of weights consists of."""

    name: str
    parts: Mapping[str, Callable[[], nn.Module]]
    """What makes each network, its parameters still to be filled."""
    towers: Towers | None = None
    """CLIP, where the networks read its tokens. Of the text tower only its answers are kept: `contexts`."""

    def build(self, part: str) -> nn.Module:
        """A network by its part's name; the second diffusion's own are built like the first's."""
        return self.parts[part.removeprefix(SECOND)]()

    def unfilled(self, part: str) -> nn.Module:
        """The same without values: its tensors have sizes and take no memory."""
        with torch.device("meta"):
            return self.build(part)


def _latent(
    name: str,
    *,
    rgb: DenoiserConfig,
    ccm: DenoiserConfig,
    towers: Towers,
    codec: vae.VaeConfig,
    shape: ReconstructionConfig,
) -> Architecture:
    """The published structure in some size."""
    return Architecture(
        name=name,
        parts={
            "rgb": lambda: MultiViewUNet(rgb),
            "ccm": lambda: MultiViewUNet(ccm),
            "vision": lambda: clip.VisionTower(towers.vision),
            "vae": lambda: vae.Vae(codec),
            "contexts": lambda: clip.Contexts(towers.text.width),
            "reconstruction": lambda: Reconstruction(shape),
        },
        towers=towers,
    )


SMALL = Architecture(
    name="small",
    parts={
        "rgb": lambda: MultiViewUNet(denoiser.SMALL_RGB),
        "ccm": lambda: MultiViewUNet(denoiser.SMALL_CCM),
        "reconstruction": lambda: Reconstruction(reconstruction.SMALL),
    },
)

RELEASE = _latent(
    "release",
    rgb=denoiser.RELEASE_RGB,
    ccm=denoiser.RELEASE_CCM,
    towers=Towers(vision=clip.RELEASE_VISION, text=clip.RELEASE_TEXT),
    codec=vae.RELEASE_VAE,
    shape=reconstruction.RELEASE,
)

MINIATURE = _latent(
    "miniature",
    rgb=denoiser.MINI_RGB,
    ccm=denoiser.MINI_CCM,
    towers=Towers(vision=clip.MINI_VISION, text=clip.MINI_TEXT),
    codec=vae.MINI_VAE,
    shape=reconstruction.MINI,
)

ARCHITECTURES = {architecture.name: architecture for architecture in (SMALL, RELEASE, MINIATURE)}
