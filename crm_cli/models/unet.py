"""The convolutional U-Net that turns rolled-out views into a rolled-out triplane.

Structure and parameter names are those of the UNet2DModel that the published checkpoint was trained
with (huggingface/diffusers, models/unets/unet_2d.py), so its state dict loads as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """Size of a ReconstructionUNet."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    """Channels of each level, finest first; each level halves the picture."""
    layers: int = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention: tuple[int, ...] = ()
    """Levels with attention beside each residual block; the middle has it where any level has."""
    head_dim: int = 8
    groups: int = 32


class ReconstructionUNet(nn.Module):
    """U-Net over pictures [B C H W] whose sides 2^(levels - 1) divides."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        time_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = _TimeEmbedding(widths[0], time_width)
        levels = range(len(widths))
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level in levels:
            block = _Level(config, level, [skips[-1], *[widths[level]] * (config.layers - 1)])
            skips += [widths[level]] * config.layers
            if level != levels[-1]:
                block.downsamplers = nn.ModuleList([_Downsample(widths[level])])
                skips.append(widths[level])
            self.down_blocks.append(block)
        self.mid_block = _Middle(config)
        self.up_blocks = nn.ModuleList()
        current = widths[-1]
        for level in reversed(levels):
            inputs = []
            for _ in range(config.layers + 1):
                inputs.append(current + skips.pop())
                current = widths[level]
            block = _Level(config, level, inputs)
            if level != 0:
                block.upsamplers = nn.ModuleList([_Upsample(widths[level])])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], EPSILON)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        """x: [B in_channels H W]. Returns [B out_channels H W]."""
        time = self.time_embedding(timestep)  # [1 4·width]
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for place in range(self.config.layers):
                x = block(place, x, time)
                skips.append(x)
            for downsampler in getattr(block, "downsamplers", ()):
                x = downsampler(x)
                skips.append(x)
        x = self.mid_block(x, time)
        for block in self.up_blocks:
            for place in range(self.config.layers + 1):
                x = block(place, torch.cat((x, skips.pop()), 1), time)
            for upsampler in getattr(block, "upsamplers", ()):
                x = upsampler(x)
        result: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return result


class _TimeEmbedding(nn.Module):
    """Sinusoid of the timestep, cosines first, through two layers."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, timestep: int) -> Tensor:
        half = self.linear_1.in_features // 2
        weight = self.linear_1.weight
        rates = torch.exp(torch.arange(half, device=weight.device) * (-math.log(10000) / half))
        waves = torch.cat(((timestep * rates).cos(), (timestep * rates).sin()))[None].to(weight.dtype)
        result: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return result


class _Resnet(nn.Module):
    def __init__(self, config: UNetConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, in_width, EPSILON)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.widths[0], out_width)
        self.norm2 = nn.GroupNorm(config.groups, out_width, EPSILON)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_width, out_width, 1) if in_width != out_width else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[..., None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        result: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return result


class _Attention(nn.Module):
    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = width // config.head_dim
        self.group_norm = nn.GroupNorm(config.groups, width, EPSILON)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).mT  # [B HW C]
        q, k, v = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )  # [B heads HW C/heads]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = x + self.to_out[0](mixed).mT.unflatten(2, x.shape[2:])
        return result


class _Level(nn.Module):
    """Residual blocks of one level, each followed by attention where the level has it."""

    def __init__(self, config: UNetConfig, level: int, in_widths: list[int]) -> None:
        super().__init__()
        width = config.widths[level]
        if level in config.attention:
            self.attentions = nn.ModuleList([_Attention(config, width) for _ in in_widths])
        self.resnets = nn.ModuleList([_Resnet(config, in_width, width) for in_width in in_widths])

    def forward(self, place: int, x: Tensor, time: Tensor) -> Tensor:
        """Apply one of the residual blocks and its attention."""
        result: Tensor = self.resnets[place](x, time)
        return self.attentions[place](result) if hasattr(self, "attentions") else result


class _Middle(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.attentions = nn.ModuleList([_Attention(config, width)] if config.attention else [])
        self.resnets = nn.ModuleList([_Resnet(config, width, width) for _ in range(2)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attention(x)
        result: Tensor = self.resnets[1](x, time)
        return result


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result
