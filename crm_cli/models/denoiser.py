"""The multi-view latent U-Net that both diffusions use, published and small alike.

A Stable Diffusion 2.1 U-Net whose self-attention joins the tokens of all views of one object, with a
second cross-attention for image-prompt tokens and an embedding of the cameras (CRM §3.1; ImageDream,
arXiv 2312.02201). Parameters carry the names of the published checkpoints, so that those load strictly;
the small networks are the same class with fewer parts.

Frames stand in the order of `frame.DENOISER_ORDER`; the reference photo, where there is one, is last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crm_cli import frame
from crm_cli.records import expect

Prediction = Literal["eps", "x0"]
Layer = TypeVar("Layer", bound=nn.Module)

RESAMPLER_HEAD_DIM = 64

VIEWS_TO_FRAMES = list(frame.DENOISER_ORDER)
FRAMES_TO_VIEWS = [frame.DENOISER_ORDER.index(view) for view in range(len(frame.VIEWS))]

CAMERA_ANGLES_DEG: dict[str, tuple[int, int]] = {
    "front": (0, 0),
    "left": (0, -90),
    "bottom": (-90, 0),
    "back": (0, 180),
    "right": (0, 90),
    "top": (90, 0),
}
"""Elevation and azimuth of each view (thu-ml/CRM, configs/specs). The embedding is learned, so these keep
the frame of its training: x right, y away from the front camera, z up; not the world of `frame`."""


def to_frames(views: Tensor) -> Tensor:
    """Put views [... 6 C H W] in the order of the networks."""
    return views[..., VIEWS_TO_FRAMES, :, :, :]


def to_views(frames: Tensor) -> Tensor:
    """Put frames [... 6 C H W], or 7 with the reference, in the order of `frame.VIEWS`."""
    return frames[..., FRAMES_TO_VIEWS, :, :, :]


def camera_vectors(frames: int) -> Tensor:
    """The cameras as the networks know them: [frames 16]; all zeros for the reference.

    Each is a camera-to-world matrix, row by row: columns right, up, back and position on the unit
    sphere, where position equals back. (thu-ml/CRM, libs/base_utils.py; CRM §3.1)
    """
    cameras = [_camera(*CAMERA_ANGLES_DEG[frame.VIEWS[view].name]) for view in frame.DENOISER_ORDER]
    cameras += [torch.zeros(16)] * (frames - len(cameras))
    return torch.stack(cameras)


def _camera(elevation_deg: int, azimuth_deg: int) -> Tensor:
    # Multiples of 90 degrees: rounding removes the 6e-17 that a sine leaves where zero belongs.
    sin_e, cos_e = (round(f(math.radians(elevation_deg))) for f in (math.sin, math.cos))
    sin_a, cos_a = (round(f(math.radians(azimuth_deg))) for f in (math.sin, math.cos))
    back = torch.tensor([cos_e * sin_a, -cos_e * cos_a, sin_e], dtype=torch.float32)
    right = torch.tensor([cos_a, sin_a, 0], dtype=torch.float32)
    columns = torch.stack([right, torch.linalg.cross(back, right), back, back], dim=1)  # [3 4]
    return torch.cat([columns.flatten(), torch.tensor([0.0, 0.0, 0.0, 1.0])])


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """What a network consists of. Levels are counted from full resolution; each next one halves it."""

    frames: int
    """Frames of one object: six views, and the reference if there is one."""
    channels_in: int
    """Channels of the noisy latent, without `concat_channels`."""
    channels_out: int
    width: int
    multipliers: tuple[int, ...]
    """Channels of each level, in units of `width`."""
    blocks: tuple[int, ...]
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_levels: tuple[int, ...]
    """Levels whose residual blocks are each followed by a transformer; the middle always has one."""
    head_dim: int
    prediction: Prediction
    norm_groups: int = 32
    concat_channels: int = 0
    """Channels of a condition that stands beside the noisy latent of every frame."""
    has_reference: bool = False
    """Whether the last frame's latent is replaced by a clean one."""
    context_width: int | None = None
    """Width of the text tokens; None: no cross-attention at all."""
    image_tokens: int | None = None
    """Queries of the image-prompt resampler; None: no image prompt."""
    image_width: int = 1280
    resampler_layers: int = 4
    resampler_heads: int = 12

    def __post_init__(self) -> None:
        """Check what would otherwise fail deep inside the network."""
        if len(self.multipliers) != len(self.blocks):
            raise ValueError(f"{len(self.multipliers)} multipliers but blocks for {len(self.blocks)} levels")
        if self.image_tokens is not None and self.context_width is None:
            raise ValueError("an image prompt needs context_width: its tokens have the width of the text's")
        for multiplier in self.multipliers:
            if self.width * multiplier % self.norm_groups:
                raise ValueError(
                    f"{self.width * multiplier} channels do not split into {self.norm_groups} groups"
                )

    @property
    def embedding_width(self) -> int:
        """Width of the time and camera embedding."""
        return 4 * self.width

    @property
    def downsampling(self) -> int:
        """Height and width of a latent must be multiples of this."""
        return int(2 ** (len(self.multipliers) - 1))


RELEASE_RGB = DenoiserConfig(
    frames=7,
    channels_in=4,
    channels_out=4,
    width=320,
    multipliers=(1, 2, 4, 4),
    blocks=(2, 2, 2, 2),
    attention_levels=(0, 1, 2),
    head_dim=64,
    prediction="eps",
    has_reference=True,
    context_width=1024,
    image_tokens=16,
)
"""Stage 1 of the published system (thu-ml/CRM, configs/stage1)."""

RELEASE_CCM = replace(RELEASE_RGB, frames=6, concat_channels=4, has_reference=False)
"""Stage 2 of the published system (thu-ml/CRM, configs/stage2-v2-snr)."""

SMALL_RGB = DenoiserConfig(
    frames=7,
    channels_in=64,
    channels_out=64,
    width=64,
    multipliers=(1, 2),
    blocks=(1, 1),
    attention_levels=(1,),
    head_dim=32,
    prediction="x0",
    norm_groups=8,
    concat_channels=64,
    has_reference=True,
)
"""Stage 1 of the embedded system: RGBA patches of 64 px views; the photo stands beside every frame."""

SMALL_CCM = replace(SMALL_RGB, frames=6, channels_in=16, channels_out=16, width=48, has_reference=False)
"""Stage 2 of the embedded system: depth patches; the six RGBA views stand beside them."""

TINY_RGB = replace(SMALL_RGB, width=8, blocks=(0, 0), attention_levels=(), head_dim=8)
"""SMALL_RGB's inputs and outputs at no cost, for tests."""

TINY_CCM = replace(SMALL_CCM, width=8, blocks=(0, 0), attention_levels=(), head_dim=8)
"""SMALL_CCM's inputs and outputs at no cost, for tests."""


@dataclass(frozen=True, slots=True, eq=False)
class KeysValues:
    """What one attention looks at: keys and values [B heads L head_dim]."""

    keys: Tensor
    values: Tensor


Prompt = tuple[KeysValues, ...]
"""The tokens of one transformer's cross-attentions: text, and image prompt if there is one."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Conditions:
    """Everything a forward pass needs that does not change with the step; see `MultiViewUNet.prepare`."""

    cameras: Tensor
    """Camera embedding [F E] or [B F E]."""
    prompts: tuple[Prompt, ...]
    """One for each transformer in the order of computation; empty without cross-attention."""
    concat: Tensor | None
    reference: Tensor | None


class MultiViewUNet(nn.Module):
    """Predict the noise, or the clean latent, of all frames of an object at once.

    Attributes are named as the published state dict names them (`model.diffusion_model.` removed).
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, config.embedding_width
        self.time_embed = _perceptron(width, embedding)
        self.camera_embed = _perceptron(16, embedding)
        if config.image_tokens is not None:
            self.image_embed = Resampler(config)
        first = nn.Conv2d(config.channels_in + config.concat_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips = self._add_down_path()
        middle = skips[-1]
        self.middle_block = nn.ModuleList(
            [
                ResidualBlock(middle, middle, config),
                MultiViewTransformer(middle, config),
                ResidualBlock(middle, middle, config),
            ]
        )
        self.output_blocks = nn.ModuleList()
        self._add_up_path(skips)
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, width * config.multipliers[0], eps=1e-5),
            nn.SiLU(),
            _zeroed(nn.Conv2d(width * config.multipliers[0], config.channels_out, 3, padding=1)),
        )

    def _add_down_path(self) -> list[int]:
        """Append the levels on the way down; return the channels of every skip."""
        config = self.config
        channels = config.width
        skips = [channels]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks[level]):
                self.input_blocks.append(self._site(channels, config.width * multiplier, level))
                channels = config.width * multiplier
                skips.append(channels)
            if level < len(config.multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
        return skips

    def _add_up_path(self, skips: list[int]) -> None:
        config = self.config
        channels = skips[-1]
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks[level] + 1):
                site = self._site(channels + skips.pop(), config.width * multiplier, level)
                channels = config.width * multiplier
                if level and block == config.blocks[level]:
                    site.append(Upsample(channels))
                self.output_blocks.append(site)

    def _site(self, channels_in: int, channels_out: int, level: int) -> nn.ModuleList:
        site = nn.ModuleList([ResidualBlock(channels_in, channels_out, self.config)])
        if level in self.config.attention_levels:
            site.append(MultiViewTransformer(channels_out, self.config))
        return site

    def prepare(
        self,
        *,
        cameras: Tensor | None = None,
        text: Tensor | None = None,
        image: Tensor | None = None,
        concat: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Conditions:
        """Compute once what every step would compute alike.

        Args:
            cameras: [F 16]; by default `camera_vectors`.
            text: [B L D] or [1 L D]; needed where `context_width` is set.
            image: Tokens of the image tower [B L D] before the resampler; needed where `image_tokens` is set.
            concat: [B F Cc h w]; needed where `concat_channels` is set.
            reference: Clean latent [B C h w] of the last frame; needed where `has_reference` is set.
        """
        config = self.config
        self._check_conditions(text=text, image=image, concat=concat, reference=reference)
        if cameras is None:
            cameras = camera_vectors(config.frames)
        return Conditions(
            cameras=self.camera_embed(cameras.to(next(self.parameters()))),  # [F E]
            prompts=() if text is None else self._prompts(text, image),
            concat=concat,
            reference=reference,
        )

    def _check_conditions(self, **given: Tensor | None) -> None:
        config = self.config
        needed = {
            "text": config.context_width is not None,
            "image": config.image_tokens is not None,
            "concat": config.concat_channels > 0,
            "reference": config.has_reference,
        }
        for name, is_needed in needed.items():
            if is_needed != (given[name] is not None):
                raise ValueError(f"this network {'needs' if is_needed else 'takes no'} {name}")
        expect(
            "Conditions",
            text=(given["text"], f"B L {config.context_width}"),
            concat=(given["concat"], f"B {config.frames} {config.concat_channels} h w"),
            reference=(given["reference"], f"B {config.channels_in} h w"),
        )

    def _prompts(self, text: Tensor, image: Tensor | None) -> tuple[Prompt, ...]:
        tokens = None if image is None else self.image_embed(image)
        transformers = [module for module in self.modules() if isinstance(module, MultiViewTransformer)]
        return tuple(transformer.prompt(text, tokens) for transformer in transformers)

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Predict from noisy latents; the reference's own frame comes back too and means nothing.

        Args:
            x: [B F C h w].
            t: Timesteps in 0..999: [B], or [B F] where every frame has its own.
            conditions: From `prepare`, for the same B.

        Returns:
            [B F Cout h w].
        """
        config = self.config
        expect("x", latents=(x, f"B {config.frames} {config.channels_in} h w"))
        if conditions.reference is not None:
            x = torch.cat([x[:, :-1], conditions.reference[:, None]], dim=1)
        if conditions.concat is not None:
            x = torch.cat([x, conditions.concat], dim=2)
        time = self.time_embed(sinusoid(t, config.width).to(x.dtype))  # [B E] or [B F E]
        embedding = (time if t.ndim == 2 else time[:, None]) + conditions.cameras  # [B F E]
        y = self._through_levels(x.flatten(0, 1), embedding.flatten(0, 1), iter(conditions.prompts))
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def _through_levels(self, x: Tensor, embedding: Tensor, prompts: Iterator[Prompt]) -> Tensor:
        skips: list[Tensor] = []
        for site in self.input_blocks:
            x = self._through(cast(nn.ModuleList, site), x, embedding, prompts)
            skips.append(x)
        x = self._through(self.middle_block, x, embedding, prompts)
        for site in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = self._through(cast(nn.ModuleList, site), x, embedding, prompts)
        return cast(Tensor, self.out(x))

    def _through(
        self, layers: nn.ModuleList, x: Tensor, embedding: Tensor, prompts: Iterator[Prompt]
    ) -> Tensor:
        for layer in layers:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding)
            elif isinstance(layer, MultiViewTransformer):
                x = layer(x, next(prompts, ()))
            else:
                x = layer(x)
        return x


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Timesteps [...] as waves [... width]: cosines first, frequencies from 1 down to almost 1/10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """Two convolutions with the time and camera embedding added between them; [N C h w]."""

    def __init__(self, channels_in: int, channels_out: int, config: DenoiserConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels_in, eps=1e-5),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding_width, channels_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, channels_out, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # the published network has its dropout here: the next layer is number 3
            _zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1)),
        )
        is_same = channels_in == channels_out
        self.skip_connection = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [N Cout h w]; embedding is [N E]."""
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return cast(Tensor, self.skip_connection(x) + self.out_layers(h))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N C h/2 w/2]."""
        return cast(Tensor, self.op(x))


class Upsample(nn.Module):
    """Double height and width, nearest neighbour, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N C 2h 2w]."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class MultiViewTransformer(nn.Module):
    """One transformer over all tokens of all frames of an object."""

    def __init__(self, channels: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.frames = config.frames
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, config)])
        self.proj_out = _zeroed(nn.Linear(channels, channels))

    def prompt(self, text: Tensor, image: Tensor | None) -> Prompt:
        """Keys and values of the context for this transformer; text, image: [B L D]."""
        attention = cast(PromptAttention, self.transformer_blocks[0].attn2)
        return attention.prompt(text, image)

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Return [B·F C h w], as x is."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B·F h·w C]
        tokens = tokens.reshape(-1, self.frames * tokens.shape[1], tokens.shape[2])  # [B F·h·w C]
        y = self.proj_out(self.transformer_blocks[0](self.proj_in(tokens), prompt))
        y = y.reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2)  # [B·F C h·w]
        return cast(Tensor, x + y.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Attention among all views, attention to the prompts, feed-forward; tokens [B N C]."""

    def __init__(self, channels: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, config.head_dim)
        self.has_prompt = config.context_width is not None
        if config.context_width is not None:
            self.norm2 = nn.LayerNorm(channels)
            has_image = config.image_tokens is not None
            self.attn2 = PromptAttention(channels, config.head_dim, config.context_width, has_image=has_image)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Return [B N C]."""
        x = x + self.attn1(self.norm1(x))
        if self.has_prompt:
            x = x + self.attn2(self.norm2(x), prompt)
        return cast(Tensor, x + self.ff(self.norm3(x)))


class SelfAttention(nn.Module):
    """Every token of every view looks at all of them."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B N C]."""
        q, k, v = (split_heads(project(x), self.head_dim) for project in (self.to_q, self.to_k, self.to_v))
        return cast(Tensor, self.to_out(join_heads(F.scaled_dot_product_attention(q, k, v))))


class PromptAttention(nn.Module):
    """Every token looks at the text and, apart from that, at the image prompt; both answers are added.

    A frame's tokens look at nothing but the prompt of their object, so all frames can be one sequence.
    """

    def __init__(self, channels: int, head_dim: int, context_width: int, *, has_image: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_width, channels, bias=False)
        self.to_v = nn.Linear(context_width, channels, bias=False)
        if has_image:
            self.to_k_ip = nn.Linear(context_width, channels, bias=False)
            self.to_v_ip = nn.Linear(context_width, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def prompt(self, text: Tensor, image: Tensor | None) -> Prompt:
        """Project the tokens; text, image: [B L D]."""
        seen = [self._keys_values(text, self.to_k, self.to_v)]
        if image is not None:
            seen.append(self._keys_values(image, self.to_k_ip, self.to_v_ip))
        return tuple(seen)

    def _keys_values(self, tokens: Tensor, to_k: nn.Linear, to_v: nn.Linear) -> KeysValues:
        return KeysValues(split_heads(to_k(tokens), self.head_dim), split_heads(to_v(tokens), self.head_dim))

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Return [B N C]."""
        q = split_heads(self.to_q(x), self.head_dim)
        answers = [F.scaled_dot_product_attention(q, seen.keys, seen.values) for seen in prompt]
        return cast(Tensor, self.to_out(join_heads(torch.stack(answers).sum(dim=0))))


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B N C] as [B heads N head_dim]."""
    return x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B heads N head_dim] as [B N C]."""
    return x.transpose(1, 2).flatten(2)


class GatedLinear(nn.Module):
    """A linear layer whose second half, through an exact GELU, gates the first.

    (GLU variants, arXiv 2002.05202, §2)
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels_in, 2 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [... Cout]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return cast(Tensor, value * F.gelu(gate))


class FeedForward(nn.Module):
    """A gated layer four times as wide, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identity stands where the published network has its dropout.
        self.net = nn.Sequential(
            GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [... C]."""
        return cast(Tensor, self.net(x))


class Resampler(nn.Module):
    """Boil the tokens of an image tower down to a few prompt tokens.

    (Flamingo, arXiv 2204.14198; IP-Adapter, arXiv 2308.06721)
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        assert config.context_width is not None and config.image_tokens is not None
        width = config.context_width
        self.latents = nn.Parameter(torch.randn(1, config.image_tokens, width) / width**0.5)
        self.proj_in = nn.Linear(config.image_width, width)
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([ResamplerAttention(width, config.resampler_heads), _feed_forward(width)])
            for _ in range(config.resampler_layers)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return prompt tokens [B Q D] of image tokens [B L Di]."""
        tokens = self.proj_in(image)
        queries = self.latents.expand(image.shape[0], -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(Sequence[nn.Module], layer)
            queries = queries + attention(tokens, queries)
            queries = queries + feed_forward(queries)
        return cast(Tensor, self.norm_out(self.proj_out(queries)))


class ResamplerAttention(nn.Module):
    """Queries look at the image tokens and at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * RESAMPLER_HEAD_DIM
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        """Return [B Q D]."""
        queries = self.norm2(queries)
        keys, values = self.to_kv(torch.cat([self.norm1(tokens), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(x, RESAMPLER_HEAD_DIM) for x in (self.to_q(queries), keys, values))
        return cast(Tensor, self.to_out(join_heads(F.scaled_dot_product_attention(q, k, v))))


def _perceptron(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels_in, channels_out), nn.SiLU(), nn.Linear(channels_out, channels_out)
    )


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


def _zeroed(layer: Layer) -> Layer:
    """Start a layer at zero, so that its branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
