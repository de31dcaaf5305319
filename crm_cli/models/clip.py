"""What CLIP sees in a picture and reads in a text, as the denoisers take it: tokens, one layer early.

The two towers of OpenCLIP ViT-H-14 (arXiv 2212.07143; laion2b_s32b_b79k). Both stop before their last
block, and what would follow it in the image tower is not here. Parameters carry the names of the
published checkpoints, so that those load strictly once `unused` is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crm_cli.models.layers import join_heads, split_heads
from crm_cli.records import expect

PICTURE_PX = 224
PATCH_PX = 14
TOKENS = 1 + (PICTURE_PX // PATCH_PX) ** 2
"""Of a picture: its class, then its patches row by row."""

LENGTH = 77
"""Tokens of a text, padded."""
VOCABULARY = 49408

PROMPT = "3D assets"
NEGATIVE_PROMPT = (
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, "
    "poor lighting, dull, and unclear."
)
"""What guidance leads to and away from, the same for every photo (thu-ml/CRM, pipelines.py)."""

START, END = 49406, 49407
PROMPT_IDS = (274, 323, 13170)
# fmt: off
NEGATIVE_PROMPT_IDS = (
    11075, 1042, 871, 16505, 8159, 267, 12519, 267, 2103, 15376, 267, 21977, 267, 14384, 943, 267, 33337, 267,
    569, 3288, 5389, 267, 3665, 5799, 267, 19433, 267, 537, 32955, 269,
)
# fmt: on
"""The prompts in the byte-pair code of CLIP; both never change, so no tokenizer comes along."""


def prompt_tokens() -> Tensor:
    """The positive and the negative prompt, [2 77] int64: start, text, end, zeros."""
    texts = ([START, *ids, END] for ids in (PROMPT_IDS, NEGATIVE_PROMPT_IDS))
    return torch.tensor([ids + [0] * (LENGTH - len(ids)) for ids in texts])


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """Size of a VisionTower or TextTower."""

    width: int
    blocks: int
    """Those that run; a published tower has one more."""
    head_dim: int


RELEASE_VISION = TowerConfig(width=1280, blocks=31, head_dim=80)
RELEASE_TEXT = TowerConfig(width=1024, blocks=23, head_dim=64)

MINI_VISION = TowerConfig(width=32, blocks=2, head_dim=16)
"""RELEASE_VISION's structure at no cost, for tests."""

MINI_TEXT = MINI_VISION
"""RELEASE_TEXT's structure at no cost, for tests."""


def unused(vision: TowerConfig, text: TowerConfig) -> tuple[str, ...]:
    """How the names begin of what a published model has beyond these towers (`clip_model.model.` removed)."""
    return (
        f"visual.transformer.resblocks.{vision.blocks}.",
        "visual.ln_post.",
        "visual.proj",
        f"transformer.resblocks.{text.blocks}.",
        "text_projection",
        "logit_scale",
        "attn_mask",
    )


class VisionTower(nn.Module):
    """Tokens of pictures."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.class_embedding = nn.Parameter(torch.randn(width).div_(width**0.5))
        self.positional_embedding = nn.Parameter(torch.randn(TOKENS, width).div_(width**0.5))
        self.conv1 = nn.Conv2d(3, width, PATCH_PX, stride=PATCH_PX, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config, is_causal=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return tokens [B 257 D] of pictures [B 3 224 224], normalised by CLIP's mean and deviation."""
        expect("VisionTower", pictures=(pictures, f"B 3 {PICTURE_PX} {PICTURE_PX}"))
        patches = self.conv1(pictures).flatten(2).mT  # [B 256 D]
        classes = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([classes, patches], dim=1) + self.positional_embedding
        return cast(Tensor, self.transformer(self.ln_pre(x)))


class TextTower(nn.Module):
    """Tokens of texts."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, config.width).div_(config.width**0.5))
        self.token_embedding = nn.Embedding(VOCABULARY, config.width)
        self.transformer = Transformer(config, is_causal=True)
        self.ln_final = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B 77 D] of token ids [B 77], int64."""
        expect("TextTower", tokens=(tokens, f"B {LENGTH}"))
        x = self.token_embedding(tokens) + self.positional_embedding
        return cast(Tensor, self.ln_final(self.transformer(x)))


class Contexts(nn.Module):
    """What a text tower makes of the prompts: [2 77 D], the positive one first.

    The prompts never change, so this stands in for the tower.
    """

    tokens: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(2, LENGTH, width))

    @classmethod
    @torch.no_grad()
    def of(cls, tower: TextTower) -> Contexts:
        """Read the prompts, where the tower is and in its precision."""
        tokens = tower(prompt_tokens().to(tower.positional_embedding.device))
        contexts = cls(tokens.shape[-1]).to(tokens)
        contexts.tokens.copy_(tokens)
        return contexts


class Transformer(nn.Module):
    """Blocks one after the other; tokens [B N C]."""

    def __init__(self, config: TowerConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(config, is_causal=is_causal) for _ in range(config.blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B N C]."""
        return cast(Tensor, self.resblocks(x))


class Block(nn.Module):
    """Attention, then two layers, each beside a shortcut; tokens [B N C]."""

    def __init__(self, config: TowerConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = Attention(config, is_causal=is_causal)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = Perceptron(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B N C]."""
        x = x + self.attn(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Attention(nn.Module):
    """Every token looks at all of them, or at those up to itself; tokens [B N C]."""

    def __init__(self, config: TowerConfig, *, is_causal: bool) -> None:
        super().__init__()
        width = config.width
        self.head_dim = config.head_dim
        self.is_causal = is_causal
        # Queries, keys and values in one matrix, as in the published state dict.
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width).div_(width**0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B N C]."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.head_dim) for part in projected)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return cast(Tensor, self.out_proj(join_heads(seen)))


class Perceptron(nn.Module):
    """A layer four times as wide, through an exact GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [... C]."""
        return cast(Tensor, self.c_proj(F.gelu(self.c_fc(x))))
