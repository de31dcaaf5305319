"""Image ↔ latent codecs: what the denoisers see of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from crm_cli import frame

GREY = 0.5
"""The background of every picture a network sees; in a CCM the centre of the world."""


class Codec(Protocol):
    """Turns images into the latents of a denoiser and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents [... c s s] of images [... C S S] in [0, 1]."""
        ...

    def decode(self, latents: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Images in [0, 1] of latents; alpha [... 1 S S] is for codecs that cannot tell the background."""
        ...


@dataclass(frozen=True, slots=True)
class PatchCodec:
    """Images cut into square patches, each of which becomes the channels of one latent pixel; lossless.

    Latent channel = colour·patch² + row·patch + column; values [0, 1] become [-1, 1].
    """

    patch: int

    def encode(self, images: Tensor) -> Tensor:
        """Latents [... C·patch² S/patch S/patch] in [-1, 1] of images [... C S S] in [0, 1]."""
        return F.pixel_unshuffle(2 * images - 1, self.patch)

    def decode(self, latents: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Images [... C S S], clamped to [0, 1]; alpha is not needed."""
        return ((F.pixel_shuffle(latents, self.patch) + 1) / 2).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class DepthCodec:
    """CCMs as patches of the one coordinate that an orthographic view does not already know.

    The other two are the pixel's own place. The latent is the coordinate towards the camera, in
    [-1, 1], larger where nearer, and 0 on the background. Views stand in the order of `frame.VIEWS`.
    """

    patch: int

    def encode(self, images: Tensor) -> Tensor:
        """Latents [... 6 patch² s s] of CCMs [... 6 3 S S]."""
        nearness = [
            view.depth_sign * (2 * images[..., i, view.depth_axis, :, :] - 1)
            for i, view in enumerate(frame.VIEWS)
        ]
        return F.pixel_unshuffle(torch.stack(nearness, dim=-3)[..., None, :, :], self.patch)

    def decode(self, latents: Tensor, alpha: Tensor | None = None) -> Tensor:
        """CCMs [... 6 3 S S] of latents and alpha [... 6 1 S S]; mid grey where alpha is below one half."""
        if alpha is None:
            raise ValueError("a depth latent does not tell the background: alpha is needed")
        nearness = F.pixel_shuffle(latents, self.patch).clamp(-1, 1)  # [... 6 1 S S]
        toward = torch.tensor([view.toward for view in frame.VIEWS]).to(nearness)  # [6 3]
        points = pixel_grid(nearness.shape[-1]).to(nearness) + toward[..., None, None] * nearness
        return torch.where(alpha < 0.5, GREY, (points + 1) / 2)


def pixel_grid(size_px: int) -> Tensor:
    """World points [6 3 S S] of all views' pixels on the plane through the centre of the world."""
    along = (torch.arange(size_px) + 0.5) * 2 / size_px - 1
    v, u = torch.meshgrid(along, along, indexing="ij")
    right = torch.tensor([view.right for view in frame.VIEWS])[..., None, None]  # [6 3 1 1]
    up = torch.tensor([view.up for view in frame.VIEWS])[..., None, None]
    return right * u - up * v


def photo_for_frames(photo: Tensor) -> Tensor:
    """The photo [B C S S] beside every frame of the small stage 1: [B 7 C S S].

    Denoiser order, the reference last. Mirrored left to right for the back view, whose silhouette is
    the mirrored front one.
    """
    names = [frame.VIEWS[view].name for view in frame.DENOISER_ORDER] + ["reference"]
    mirrored = photo.flip(-1)
    return torch.stack([mirrored if name == "back" else photo for name in names], dim=1)
