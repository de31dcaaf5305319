"""What the multi-view U-Net is built of; attributes are named as in the published state dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)

RESAMPLER_HEAD_DIM = 64


@dataclass(frozen=True, slots=True, eq=False)
class KeysValues:
    """What one attention looks at: keys and values [B heads L head_dim]."""

    keys: Tensor
    values: Tensor


Prompt = tuple[KeysValues, ...]
"""The tokens of one transformer's cross-attentions: text, and image prompt if there is one."""


class ResidualBlock(nn.Module):
    """Two convolutions with the time and camera embedding added between them; [N C h w]."""

    def __init__(self, channels_in: int, channels_out: int, *, embedding_width: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels_in, eps=1e-5),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, channels_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, channels_out, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # the published network has its dropout here: the next layer is number 3
            zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1)),
        )
        is_same = channels_in == channels_out
        self.skip_connection = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [N Cout h w]; embedding is [N E]."""
        return self.shifted(x, self.emb_layers(embedding))

    def shifted(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return [N Cout h w]; shift is what `emb_layers` make of the embedding, [N Cout]."""
        h = self.in_layers(x) + shift[:, :, None, None]
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

    def __init__(
        self,
        channels: int,
        *,
        frames: int,
        groups: int,
        head_dim: int,
        context_width: int | None,
        has_image: bool,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        block = TransformerBlock(
            channels, head_dim=head_dim, context_width=context_width, has_image=has_image
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zeroed(nn.Linear(channels, channels))

    @property
    def attention(self) -> PromptAttention:
        """What looks at the prompts."""
        return cast(PromptAttention, self.transformer_blocks[0].attn2)

    def forward(self, x: Tensor, prompt: Prompt, kept: int | None = None) -> Tensor:
        """Return [B·F C h w], as x is; with `kept`, only so many of each object's frames, the first ones.

        The others are looked at all the same.
        """
        places = x.shape[2] * x.shape[3]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B·F h·w C]
        tokens = tokens.reshape(-1, self.frames * tokens.shape[1], tokens.shape[2])  # [B F·h·w C]
        y = self.transformer_blocks[0](self.proj_in(tokens), prompt, kept and kept * places)
        y = self.proj_out(y)
        if kept is not None:
            x = first_frames(x, self.frames, kept)
        y = y.reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2)  # [B·F C h·w]
        return cast(Tensor, x + y.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Attention among all views, attention to the prompts, feed-forward; tokens [B N C]."""

    def __init__(self, channels: int, *, head_dim: int, context_width: int | None, has_image: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, head_dim)
        self.has_prompt = context_width is not None
        if context_width is not None:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = PromptAttention(channels, head_dim, context_width, has_image=has_image)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, prompt: Prompt, kept: int | None = None) -> Tensor:
        """Return [B N C]; with `kept`, only the first so many tokens, which look at all of them."""
        x = x[:, :kept] + self.attn1(self.norm1(x), kept)
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

    def forward(self, x: Tensor, kept: int | None = None) -> Tensor:
        """Return [B N C]; with `kept`, for the first so many tokens alone."""
        seen = ((self.to_q, x[:, :kept]), (self.to_k, x), (self.to_v, x))
        q, k, v = (split_heads(project(tokens), self.head_dim) for project, tokens in seen)
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

    def read(self, text: Tensor) -> KeysValues:
        """Project the tokens of a text [B L D]."""
        return self._keys_values(text, self.to_k, self.to_v)

    def see(self, image: Tensor) -> KeysValues:
        """Project the tokens of an image prompt [B L D]."""
        return self._keys_values(image, self.to_k_ip, self.to_v_ip)

    def _keys_values(self, tokens: Tensor, to_k: nn.Linear, to_v: nn.Linear) -> KeysValues:
        return KeysValues(split_heads(to_k(tokens), self.head_dim), split_heads(to_v(tokens), self.head_dim))

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Return [B N C]."""
        q = split_heads(self.to_q(x), self.head_dim)
        answers = [F.scaled_dot_product_attention(q, seen.keys, seen.values) for seen in prompt]
        return cast(Tensor, self.to_out(join_heads(torch.stack(answers).sum(dim=0))))


def first_frames(x: Tensor, frames: int, kept: int) -> Tensor:
    """[B·frames ...] as [B·kept ...]: the first frames of every object."""
    return x.reshape(-1, frames, *x.shape[1:])[:, :kept].flatten(0, 1)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B N C] as [B heads N head_dim]."""
    return x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B heads N head_dim] as [B N C]."""
    return x.transpose(1, 2).flatten(2)


class GatedLinear(nn.Module):
    """A linear layer whose second half, through an exact GELU, gates the first.

    (GEGLU, arXiv 2002.05202)
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

    def __init__(self, width: int, *, queries: int, image_width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, width).div_(width**0.5))
        self.proj_in = nn.Linear(image_width, width)
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([ResamplerAttention(width, heads), _feed_forward(width)]) for _ in range(layers)
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


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


def zeroed(layer: Layer) -> Layer:
    """Start a layer at zero, so that its branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
