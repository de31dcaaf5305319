"""How many operations one photo takes in the published networks, counted from their sizes.

A multiplication with its addition counts as two operations. Only matrix products, convolutions and
attention are counted; what else a network does goes with them. Counts by side tell how large the feature
maps are, in pixels along a side: large and small ones are not calculated equally fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crm_cli.frame import PLANES
from crm_cli.models import clip, denoiser, reconstruction, vae
from crm_cli.models.clip import TowerConfig
from crm_cli.models.denoiser import DenoiserConfig
from crm_cli.models.layers import RESAMPLER_HEAD_DIM
from crm_cli.models.reconstruction import GAP_SCALES, ReconstructionConfig
from crm_cli.models.steps import planned
from crm_cli.models.unet import UNetConfig
from crm_cli.models.vae import VaeConfig
from crm_cli.preset import Preset

PICTURE_SIDE = 256
LATENT_SIDE = 32

PROMPT_TOKENS = 77
PATCHES = 256
"""Of a photo in the image tower: 16 × 16 of 14 × 14 px each. One more token stands for the whole photo."""
PATCH_VALUES = 3 * 14 * 14

VIEWS = 6

SURFACE_SHARE = 5
"""Cubes of an n³ grid that a surface crosses, in n²: a ball that fills the grid crosses 1.5·π·n²."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Everything in an architecture that takes time."""

    rgb: DenoiserConfig
    ccm: DenoiserConfig
    vision: TowerConfig
    text: TowerConfig
    vae: VaeConfig
    reconstruction: ReconstructionConfig


SIZES = {
    "release": Sizes(
        rgb=denoiser.RELEASE_RGB,
        ccm=denoiser.RELEASE_CCM,
        vision=clip.RELEASE_VISION,
        text=clip.RELEASE_TEXT,
        vae=vae.RELEASE_VAE,
        reconstruction=reconstruction.RELEASE,
    ),
    "miniature": Sizes(
        rgb=denoiser.MINI_RGB,
        ccm=denoiser.MINI_CCM,
        vision=clip.MINI_VISION,
        text=clip.MINI_TEXT,
        vae=vae.MINI_VAE,
        reconstruction=reconstruction.MINI,
    ),
}


class Piece(NamedTuple):
    """One layer of a denoiser; side is that of its answer."""

    kind: Literal["convolution", "residual", "transformer"]
    side: int
    channels_in: int
    channels_out: int


def convolution(places: int, channels_in: int, channels_out: int, kernel: int = 3) -> int:
    """Of a square kernel, at so many places of the answer."""
    return 2 * places * channels_in * channels_out * kernel**2


def linear(rows: int, width_in: int, width_out: int) -> int:
    """Of one matrix for so many rows."""
    return 2 * rows * width_in * width_out


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and answers of all heads together."""
    return 4 * queries * keys * width


def denoiser_pieces(config: DenoiserConfig, side: int = LATENT_SIDE) -> Iterator[Piece]:
    """The layers of a denoiser in the order of computation; see `MultiViewUNet`."""
    channels = config.width
    skips = [channels]
    last = len(config.multipliers) - 1
    yield Piece("convolution", side, config.channels_in + config.concat_channels, channels)
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.blocks[level]):
            yield from _site(config, side, channels, config.width * multiplier, level)
            channels = config.width * multiplier
            skips.append(channels)
        if level < last:
            side //= 2
            yield Piece("convolution", side, channels, channels)
            skips.append(channels)
    yield Piece("residual", side, channels, channels)
    yield Piece("transformer", side, channels, channels)
    yield Piece("residual", side, channels, channels)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for _ in range(config.blocks[level] + 1):
            yield from _site(config, side, channels + skips.pop(), config.width * multiplier, level)
            channels = config.width * multiplier
        if level:
            side *= 2
            yield Piece("convolution", side, channels, channels)
    yield Piece("convolution", side, channels, config.channels_out)


def _site(config: DenoiserConfig, side: int, channels_in: int, channels_out: int, level: int) -> list[Piece]:
    pieces = [Piece("residual", side, channels_in, channels_out)]
    if level in config.attention_levels:
        pieces.append(Piece("transformer", side, channels_out, channels_out))
    return pieces


def denoiser_step(config: DenoiserConfig, side: int = LATENT_SIDE) -> Counter[int]:
    """One evaluation for one object without guidance, by side; guidance doubles it."""
    counts = Counter({side: _time_embedding(config)})
    for piece in denoiser_pieces(config, side):
        counts[piece.side] += piece_operations(config, piece)
    return counts


def engine_step(config: DenoiserConfig, side: int = LATENT_SIDE) -> Counter[int]:
    """The same as an `engine.Engine` makes it.

    What blocks are told of time and cameras is looked up, and behind the last transformer a reference's frame
    goes no further.
    """
    pieces = list(denoiser_pieces(config, side))
    last = max(index for index, piece in enumerate(pieces) if piece.kind == "transformer")
    views = config.frames - config.has_reference
    counts: Counter[int] = Counter()
    for index, piece in enumerate(pieces):
        frames = config.frames if index <= last else views
        kept = views if index >= last else frames
        counts[piece.side] += _layer(config, piece, frames * piece.side**2, kept * piece.side**2)
    return counts


def engine_preparation(config: DenoiserConfig) -> int:
    """What an engine computes for one photo: what its transformers look at of the image."""
    width, queries = config.context_width, config.image_tokens or 0
    return (
        0
        if width is None or not queries
        else _keys_values(config, queries) + _resampler(config, width, queries)
    )


def _time_embedding(config: DenoiserConfig) -> int:
    width = config.embedding_width
    return linear(1, config.width, width) + linear(1, width, width)


def piece_operations(config: DenoiserConfig, piece: Piece) -> int:
    """One layer for all frames of one object."""
    places = config.frames * piece.side**2
    told = linear(config.frames, config.embedding_width, piece.channels_out)
    return _layer(config, piece, places, places) + (told if piece.kind == "residual" else 0)


def _layer(config: DenoiserConfig, piece: Piece, places: int, kept: int) -> int:
    """One layer at so many places; a transformer answers for the kept ones alone."""
    if piece.kind == "convolution":
        return convolution(places, piece.channels_in, piece.channels_out)
    if piece.kind == "transformer":
        return _transformer(config, places, kept, piece.channels_out)
    return residual(places, piece.channels_in, piece.channels_out)


def residual(places: int, channels_in: int, channels_out: int) -> int:
    """Two convolutions, and a third of one pixel where the number of channels changes."""
    count = convolution(places, channels_in, channels_out) + convolution(places, channels_out, channels_out)
    return count + (convolution(places, channels_in, channels_out, 1) if channels_in != channels_out else 0)


def _transformer(config: DenoiserConfig, tokens: int, kept: int, width: int) -> int:
    # What comes in, keys and values; queries, what leaves the attention and the transformer, then eight
    # widths there and four back.
    count = 3 * linear(tokens, width, width) + (3 + 8 + 4) * linear(kept, width, width)
    count += attention(kept, tokens, width)
    if config.context_width is not None:
        prompt_tokens = PROMPT_TOKENS + (config.image_tokens or 0)
        count += 2 * linear(kept, width, width) + attention(kept, prompt_tokens, width)
    return count


def denoiser_preparation(config: DenoiserConfig) -> int:
    """What one object's conditions take, once before all evaluations; see `MultiViewUNet.prepare`."""
    return _camera_embedding(config) + _prompts(config)


def _camera_embedding(config: DenoiserConfig) -> int:
    width = config.embedding_width
    return linear(config.frames, 16, width) + linear(config.frames, width, width)


def _prompts(config: DenoiserConfig) -> int:
    """Keys and values of everything that the transformers look at beside the views."""
    width, queries = config.context_width, config.image_tokens or 0
    if width is None:
        return 0
    keys_values = _keys_values(config, PROMPT_TOKENS + queries)
    return keys_values + (_resampler(config, width, queries) if queries else 0)


def _keys_values(config: DenoiserConfig, tokens: int) -> int:
    """Of so many tokens, for every transformer."""
    widths = [piece.channels_out for piece in denoiser_pieces(config) if piece.kind == "transformer"]
    return sum(2 * linear(tokens, config.context_width or 0, channels) for channels in widths)


def step_as_published(config: DenoiserConfig) -> int:
    """One guided evaluation for one object as the published code makes it.

    Every frame of both halves has its prompts prepared anew in each step, and a time embedding of its own.
    (thu-ml/CRM, imagedream/)
    """
    own = config.frames * (_prompts(config) + _time_embedding(config)) + _camera_embedding(config)
    return 2 * (denoiser_step(config).total() - _time_embedding(config) + own)


def _resampler(config: DenoiserConfig, width: int, queries: int) -> int:
    tokens, inner = PATCHES + 1, config.resampler_heads * RESAMPLER_HEAD_DIM
    layer = (
        2 * linear(queries, width, inner)
        + linear(tokens + queries, width, 2 * inner)
        + attention(queries, tokens + queries, inner)
        + 2 * linear(queries, width, 4 * width)
    )
    ends = linear(tokens, config.image_width, width) + linear(queries, width, width)
    return ends + config.resampler_layers * layer


def encode(config: VaeConfig, side: int = PICTURE_SIDE) -> Counter[int]:
    """One picture through the encoder of the VAE, by side."""
    widths = config.widths
    counts = Counter({side: convolution(side**2, 3, widths[0])})
    channels = widths[0]
    for level, width in enumerate(widths):
        for _ in range(config.blocks):
            counts[side] += residual(side**2, channels, width)
            channels = width
        if level < len(widths) - 1:
            side //= 2
            counts[side] += convolution(side**2, width, width)
    both = 2 * config.latent_channels
    counts[side] += convolution(side**2, channels, both) + convolution(side**2, both, both, 1)
    counts[side] += _vae_middle(side**2, channels)
    return counts


def decode(config: VaeConfig, side: int = LATENT_SIDE) -> Counter[int]:
    """One picture through the decoder of the VAE, by side."""
    widths, latent = config.widths, config.latent_channels
    channels = widths[-1]
    first = convolution(side**2, latent, latent, 1) + convolution(side**2, latent, channels)
    counts = Counter({side: first + _vae_middle(side**2, channels)})
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.blocks + 1):
            counts[side] += residual(side**2, channels, width)
            channels = width
        if level:
            side *= 2
            counts[side] += convolution(side**2, width, width)
    counts[side] += convolution(side**2, channels, 3)
    return counts


def _vae_middle(places: int, channels: int) -> int:
    among = 4 * linear(places, channels, channels) + attention(places, places, channels)
    return 2 * residual(places, channels, channels) + among


def look(config: TowerConfig) -> int:
    """One photo through the image tower."""
    return linear(PATCHES, PATCH_VALUES, config.width) + _tower_blocks(config, PATCHES + 1)


def read(config: TowerConfig) -> int:
    """One prompt through the text tower."""
    return _tower_blocks(config, PROMPT_TOKENS)


def _tower_blocks(config: TowerConfig, tokens: int) -> int:
    width = config.width
    return config.blocks * ((4 + 8) * linear(tokens, width, width) + attention(tokens, tokens, width))


def reconstruct(config: ReconstructionConfig, *, grid: int, is_dense: bool, texture_px: int) -> int:
    """One object from its views to its coloured surface; about, as it depends on the object."""
    return shape(config, grid=grid, is_dense=is_dense) + texture_px**2 * colour_head(config)


def shape(config: ReconstructionConfig, *, grid: int, is_dense: bool) -> int:
    """One object from its views to its surface; about, as it depends on the object."""
    surface = SURFACE_SHARE * grid**2
    # Around the surface every vertex is asked, of the others every second along each axis.
    points = (grid + 1) ** 3 if is_dense else (grid // 2 + 1) ** 3 + 2 * surface
    return (
        planes(config.unet, config.plane_px) + points * distance_head(config) + surface * weight_head(config)
    )


def distance_head(config: ReconstructionConfig) -> int:
    """One point's signed distance, and how far it is moved, or how far its views are overruled."""
    return _head(config, 1 + VIEWS if config.from_hull else 1 + 3)


def colour_head(config: ReconstructionConfig) -> int:
    """One point's colour."""
    return _head(config, 3 + VIEWS if config.from_hull else 3)


def weight_head(config: ReconstructionConfig) -> int:
    """One cube's weights; the embedded network leaves them neutral."""
    if config.from_hull:
        return 0
    return linear(1, 8 * config.unet.out_channels, config.head_width) + linear(1, config.head_width, 21)


def _head(config: ReconstructionConfig, answers: int) -> int:
    features, width = config.unet.out_channels, config.head_width
    if config.from_hull:
        seen = config.unet.in_channels - config.learned_channels
        features = len(PLANES) * (features + seen) + len(GAP_SCALES) * (VIEWS + 2)
    return linear(1, features, width) + linear(1, width, width) + linear(1, width, answers)


def planes(config: UNetConfig, plane_px: int) -> int:
    """One object through the U-Net that draws its planes; see `ReconstructionUNet`."""
    time_width = 4 * config.widths[0]
    places = 3 * plane_px**2
    last = len(config.widths) - 1
    count = convolution(places, config.in_channels, config.widths[0])
    count += linear(1, config.widths[0], time_width) + linear(1, time_width, time_width)

    def block(channels_in: int, level: int) -> int:
        width = config.widths[level]
        among = 4 * linear(places, width, width) + attention(places, places, width)
        return (
            residual(places, channels_in, width)
            + linear(1, time_width, width)
            + (among if level in config.attention else 0)
        )

    channels = config.widths[0]
    skips = [channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.layers):
            count += block(channels, level)
            channels = width
            skips.append(width)
        if level < last:
            places //= 4
            count += convolution(places, width, width)
            skips.append(width)
    count += 2 * (residual(places, channels, channels) + linear(1, time_width, channels))
    if config.attention:
        count += 4 * linear(places, channels, channels) + attention(places, places, channels)
    for level, width in reversed(list(enumerate(config.widths))):
        for _ in range(config.layers + 1):
            count += block(channels + skips.pop(), level)
            channels = width
        if level:
            places *= 4
            count += convolution(places, width, width)
    return count + convolution(places, channels, config.out_channels)


def photo_operations(architecture: str, preset: Preset) -> Counter[int]:
    """One photo through every network, by side."""
    sizes = SIZES[architecture]
    counts: Counter[int] = Counter()
    for config, sampling in ((sizes.rgb, preset.rgb), (sizes.ccm, preset.ccm)):
        steps, guided = planned(sampling)
        for side, count in engine_step(config).items():
            counts[side] += (steps + guided) * count
        counts[LATENT_SIDE] += engine_preparation(config)
    for side, count in encode(sizes.vae).items():
        counts[side] += (1 + VIEWS) * count  # the photo and the first stage's views
    for side, count in decode(sizes.vae).items():
        counts[side] += 2 * VIEWS * count
    counts[LATENT_SIDE] += look(sizes.vision)
    counts[PICTURE_SIDE] += reconstruct(
        sizes.reconstruction,
        grid=preset.reconstruction.grid,
        is_dense=preset.reconstruction.dense,
        texture_px=preset.texture.size_px,
    )
    return counts
