"""Pictures as latents an eighth as large, and back: the Stable Diffusion autoencoder.

(High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752.) Parameters carry the
names of the published checkpoints, so that those load strictly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crm_cli.models.layers import Upsample
from crm_cli.records import expect

SCALE = 0.18215
"""Makes latents about as large as unit noise (thu-ml/CRM, sd_v2_base_ipmv_zero_SNR.yaml)."""

LOG_VARIANCES = -30.0, 20.0
"""Range of log-variances, so that their exponential is a number in single precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Size of a Vae. Levels are counted from full resolution; each next one halves it."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, in units of `width`."""
    blocks: int = 2
    """Residual blocks of each level of the encoder; the decoder has one more."""
    latent_channels: int = 4
    groups: int = 32

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * multiplier for multiplier in self.multipliers]

    @property
    def factor(self) -> int:
        """Pixels of a picture for each one of its latent, along each axis."""
        return 1 << (len(self.multipliers) - 1)


RELEASE_VAE = VaeConfig()
"""The published one (thu-ml/CRM, imagedream/configs/sd_v2_base_ipmv_zero_SNR.yaml)."""

MINI_VAE = VaeConfig(width=8, multipliers=(1, 2, 2, 2), blocks=1, groups=4)
"""RELEASE_VAE's structure at no cost, for tests."""


class Vae(nn.Module):
    """Encode pictures and decode latents, one picture at a time.

    So memory stays that of one picture, and no picture's numbers depend on those beside it. Attributes
    are named as the published state dict names them (`vae_model.` removed).
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [N 4 S/8 S/8] of the latents of pictures [N 3 S S] in [-1, 1]."""
        expect("Vae", pictures=(pictures, "N 3 S S"))
        both = _each(lambda picture: self.quant_conv(self.encoder(picture)), pictures)  # [N 8 S/8 S/8]
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def encode(self, pictures: Tensor, noise: Tensor | None) -> Tensor:
        """Latents [N 4 S/8 S/8], about as large as unit noise, of pictures [N 3 S S] in [-1, 1].

        noise: what chooses among a picture's possible latents, [N 4 S/8 S/8] of unit variance. Without
        it, their mean.
        """
        mean, log_variance = self.moments(pictures)
        if noise is not None:
            mean = mean + torch.exp(log_variance / 2) * noise
        return SCALE * mean

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [N 3 8h 8w], about in [-1, 1] and not clamped, of latents [N 4 h w]."""
        expect("Vae", latents=(latents, f"N {self.config.latent_channels} h w"))
        return _each(lambda latent: self.decoder(self.post_quant_conv(latent)), latents / SCALE)


def _each(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return torch.cat([function(one) for one in torch.split(batch, 1)])


class Encoder(nn.Module):
    """From pictures [N 3 S S] to mean and log-variance, still mixed, [N 8 S/8 S/8]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        channels = widths[0]
        for number, width in enumerate(widths):
            level = Level(channels, width, blocks=config.blocks, groups=config.groups)
            if number < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
            channels = width
        self.mid = Middle(channels, config.groups)
        self.norm_out = _norm(channels, config.groups)
        self.conv_out = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N 8 S/8 S/8]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """From latents [N 4 h w] to pictures [N 3 8h 8w]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.widths
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.groups)
        # Numbered by resolution, as in the encoder, so the last one runs first.
        self.up = nn.ModuleList()
        for number, width in reversed(list(enumerate(widths))):
            level = Level(channels, width, blocks=config.blocks + 1, groups=config.groups)
            if number:
                level.upsample = Upsample(width)
            self.up.insert(0, level)
            channels = width
        self.norm_out = _norm(channels, config.groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N 3 8h 8w]."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class Level(nn.Module):
    """Residual blocks of one resolution, then `downsample` or `upsample` if there is one."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(channels_out if number else channels_in, channels_out, groups)
            for number in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N Cout h w], or half or double that size."""
        for block in self.block:
            x = block(x)
        for resample in ("downsample", "upsample"):
            x = getattr(self, resample)(x) if hasattr(self, resample) else x
        return x


class Middle(nn.Module):
    """At the lowest resolution all pixels see each other; [N C h w]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N C h w]."""
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; [N C h w]."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        is_same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N Cout h w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, self.nin_shortcut(x) + h)


class Attention(nn.Module):
    """Every pixel looks at all pixels of its picture, with a single head; [N C h w]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N C h w]."""
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))  # [N 1 hw C]
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        return cast(Tensor, x + self.proj_out(seen))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution that looks to the right and down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N C h/2 w/2]."""
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    # Its sums are single precision in every precision of the network.
    return nn.GroupNorm(groups, channels, eps=1e-6)
