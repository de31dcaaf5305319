"""A small transformer in the place of the convolutional U-Net: rolled-out views in, rolled-out triplane out.

It reads the same picture as the U-Net, in patches, and gives a picture of the same shape, so that
everything before and behind it stays as it is. Blocks are pre-norm with learned positions (Dosovitskiy
et al. 2021, §3.1). Nothing in it knows which patches are neighbours; it learns that from the positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crm_cli.frame import PLANES
from crm_cli.models.reconstruction import ReconstructionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Size of a PlaneTransformer."""

    patch_px: int
    width: int
    blocks: int
    heads: int


class PlaneTransformer(nn.Module):
    """From [B C R 3R] and learned channels beside it to [B out_channels R 3R]."""

    def __init__(self, config: ReconstructionConfig, size: TransformerConfig) -> None:
        """Take channels and plane size from the configuration of the network it is part of."""
        super().__init__()
        self._patch_px = size.patch_px
        rows, columns = config.plane_px, len(PLANES) * config.plane_px
        self.learned_plane = nn.Parameter(torch.zeros(1, config.learned_channels, rows, columns))
        pixels = size.patch_px**2
        self.read = nn.Linear(config.unet.in_channels * pixels, size.width)
        self.position = nn.Parameter(0.02 * torch.randn(1, rows * columns // pixels, size.width))
        self.blocks = nn.ModuleList([_Block(size.width, size.heads) for _ in range(size.blocks)])
        self.norm = nn.LayerNorm(size.width)
        self.write = nn.Linear(size.width, config.unet.out_channels * pixels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B C R 3R], C + learned channels = in_channels."""
        learned = self.learned_plane.expand(len(x), -1, -1, -1)
        patches = functional.pixel_unshuffle(torch.cat((x, learned), 1), self._patch_px)  # [B K h w]
        tokens = self.read(patches.flatten(2).mT) + self.position  # [B hw width]
        for block in self.blocks:
            tokens = block(tokens)
        written: Tensor = self.write(self.norm(tokens))
        return functional.pixel_shuffle(written.mT.reshape(len(x), -1, *patches.shape[2:]), self._patch_px)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B hw width]."""
        q, k, v = (
            part.reshape(*part.shape[:2], self._heads, -1).transpose(1, 2)
            for part in self.to_qkv(self.norm1(tokens)).chunk(3, 2)
        )  # [B heads hw width/heads]
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.to_out(mixed)
        result: Tensor = tokens + self.fc2(functional.gelu(self.fc1(self.norm2(tokens))))
        return result
