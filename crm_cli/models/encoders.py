"""Image ↔ latent codecs: what the denoisers see of pictures.

The embedded networks see patches; the published ones what their VAE and their image tower make of pictures
prepared just as they were prepared in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from crm_cli import frame
from crm_cli.records import Cutout

GREY = (127, 127, 127)
"""Background of everything the published networks see."""

VAE_PX = 256
"""What the published networks draw."""

TOWER_PX = 224
"""What CLIP's image tower sees."""

TOWER_MEAN = (0.48145466, 0.4578275, 0.40821073)
TOWER_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation of colours in [0, 1] (openai/CLIP, clip.py)."""


@dataclass(frozen=True, slots=True)
class PatchCodec:
    """Images cut into square patches, each of which becomes the channels of one latent pixel; lossless.

    Latent channel = image channel·patch² + row·patch + column; values become [-1, 1].
    """

    patch: int = 2
    """Side in pixels: 64 px views become the 32 × 32 latents of the small networks."""
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


def square_on_grey(cutout: Cutout) -> Image.Image:
    """The cut-out as an 8-bit picture on the published grey."""
    planes = torch.cat([cutout.rgb, cutout.alpha])
    pixels = (planes * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    canvas = Image.new("RGBA", (pixels.shape[1], pixels.shape[0]), (*GREY, 255))
    # Pillow's own integer arithmetic, as in thu-ml/CRM, run.py.
    return Image.alpha_composite(canvas, Image.fromarray(pixels)).convert("RGB")


def vae_picture(picture: Image.Image) -> Tensor:
    """A square 8-bit picture as the VAE sees it: [3 256 256] in [-1, 1]."""
    small = picture.resize((VAE_PX, VAE_PX), Image.Resampling.BILINEAR)
    return (_unit(small) - 0.5) / 0.5


def tower_picture(picture: Image.Image) -> Tensor:
    """A square 8-bit picture as CLIP's image tower sees it: [3 224 224], normalised."""
    return for_tower(_unit(picture.resize((TOWER_PX, TOWER_PX), Image.Resampling.BICUBIC)))


def for_tower(pictures: Tensor) -> Tensor:
    """Normalise colours in [0, 1] as CLIP does: [... 3 H W]."""
    mean, deviation = (
        torch.tensor(values, device=pictures.device)[:, None, None]
        for values in (TOWER_MEAN, TOWER_DEVIATION)
    )
    return (pictures - mean) / deviation


def _unit(picture: Image.Image) -> Tensor:
    """[3 H W] in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def from_vae(pictures: Tensor, *, truncate: bool) -> Tensor:
    """What the VAE decodes, in [0, 1]; truncate cuts it to 8 bits, as published between the stages."""
    shown = ((pictures.float() + 1) / 2).clamp(0, 1)
    return (shown * 255).floor() / 255 if truncate else shown
