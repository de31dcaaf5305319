"""Image ↔ latent codecs: what the denoisers see of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crm_cli import frame


@dataclass(frozen=True, slots=True)
class PatchCodec:
    """Images cut into square patches, each of which becomes the channels of one latent pixel; lossless.

    Latent channel = image channel·patch² + row·patch + column; values become [-1, 1].
    """

    patch: int = 4
    """Side in pixels: 64 px views become the 16 × 16 latents of the small networks."""
    lowest: float = 0.0
    """Images have values from here to 1: 0 for colour and coverage, -1 for depth."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents [... C·patch² S/patch S/patch] of images [... C S S]."""
        return F.pixel_unshuffle((images - self.lowest) * (2 / (1 - self.lowest)) - 1, self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [... C S S], clamped to their range."""
        images = (F.pixel_shuffle(latents, self.patch) + 1) * ((1 - self.lowest) / 2) + self.lowest
        return images.clamp(self.lowest, 1)


def photo_for_frames(photo: Tensor) -> Tensor:
    """The photo [B C S S] beside every frame of the small stage 1: [B 7 C S S].

    Denoiser order, the reference last. Mirrored left to right for the back view, whose silhouette is
    the mirrored front one.
    """
    names = [frame.VIEWS[view].name for view in frame.DENOISER_ORDER] + ["reference"]
    mirrored = photo.flip(-1)
    return torch.stack([mirrored if name == "back" else photo for name in names], dim=1)
