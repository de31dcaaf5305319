"""The multi-view latent U-Net that both diffusions use, published and small alike.

A Stable Diffusion 2.1 U-Net whose self-attention joins the tokens of all views of one object, with a
second cross-attention for image-prompt tokens and an embedding of the cameras (ImageDream,
arXiv 2312.02201; CRM, arXiv 2403.05034). Parameters carry the names of the published checkpoints, so
that those load strictly; the small networks are the same class with fewer parts.

Frames stand in the order of `frame.DENOISER_ORDER`; the reference photo, where there is one, is last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from crm_cli import frame
from crm_cli.models.layers import (
    Downsample,
    KeysValues,
    MultiViewTransformer,
    Prompt,
    Resampler,
    ResidualBlock,
    Upsample,
    first_frames,
    zeroed,
)
from crm_cli.records import expect

Prediction = Literal["eps", "x0"]

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
"""Elevation and azimuth of each view (thu-ml/CRM, imagedream/camera_utils.py).

The embedding is learned, so these keep the frame of its training, which is not that of `frame`: x to the
right of the front camera, y away from it, z up."""


def to_frames(views: Tensor) -> Tensor:
    """Put views [... 6 C H W] in the order of the networks."""
    return views[..., VIEWS_TO_FRAMES, :, :, :]


def to_views(frames: Tensor) -> Tensor:
    """Put frames [... 6 C H W], or 7 with the reference, in the order of `frame.VIEWS`."""
    return frames[..., FRAMES_TO_VIEWS, :, :, :]


def camera_vectors(frames: int) -> Tensor:
    """The cameras as the networks know them: [frames 16]; all zeros for the reference.

    Each is a camera-to-world matrix, row by row: columns right, up, back and position on the unit
    sphere, where position equals back. (thu-ml/CRM, imagedream/camera_utils.py)
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
"""Stage 1 of the published system (thu-ml/CRM, imagedream/configs/sd_v2_base_ipmv_zero_SNR.yaml)."""

RELEASE_CCM = replace(RELEASE_RGB, frames=6, concat_channels=4, has_reference=False)
"""Stage 2 of the published system (thu-ml/CRM, imagedream/configs/sd_v2_base_ipmv_chin8_zero_snr.yaml)."""

SMALL_RGB = DenoiserConfig(
    frames=7,
    channels_in=16,
    channels_out=16,
    width=48,
    multipliers=(1, 2, 4),
    blocks=(1, 1, 1),
    attention_levels=(1, 2),
    head_dim=32,
    prediction="x0",
    norm_groups=8,
    concat_channels=16,
    has_reference=True,
)
"""Stage 1 of the embedded system: RGBA patches of 64 px views; the photo stands beside every frame."""

SMALL_CCM = replace(
    SMALL_RGB,
    frames=6,
    channels_in=4,
    channels_out=4,
    concat_channels=16 + 4,
    width=32,
    has_reference=False,
)
"""Stage 2 of the embedded system: patches of depth behind the hull; beside them the six RGBA views and the
hull's own depth."""

MINI_RGB = replace(
    RELEASE_RGB,
    width=32,
    multipliers=(1, 2),
    blocks=(1, 1),
    attention_levels=(1,),
    head_dim=16,
    norm_groups=8,
    context_width=32,
    image_tokens=4,
    image_width=32,
    resampler_layers=1,
    resampler_heads=1,
)
"""RELEASE_RGB's structure at no cost, for tests."""

MINI_CCM = replace(MINI_RGB, frames=6, concat_channels=4, has_reference=False)
"""RELEASE_CCM's structure at no cost, for tests."""

TINY_RGB = replace(SMALL_RGB, width=8, multipliers=(1, 2), blocks=(0, 0), attention_levels=(), head_dim=8)
"""SMALL_RGB's inputs and outputs at no cost, for tests."""

TINY_CCM = replace(SMALL_CCM, width=8, multipliers=(1, 2), blocks=(0, 0), attention_levels=(), head_dim=8)
"""SMALL_CCM's inputs and outputs at no cost, for tests."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Conditions:
    """Everything a forward pass needs that does not change with the step; see `MultiViewUNet.prepare`."""

    cameras: Tensor
    """Camera embedding [F E] or [B F E]."""
    prompts: tuple[Prompt, ...]
    """One for each transformer in the order of computation; empty without cross-attention."""
    concat: Tensor | None
    reference: Tensor | None

    def last(self, objects: int) -> Conditions:
        """The same for the last objects of the batch alone: the conditional half of a guided one."""

        def part(tensor: Tensor) -> Tensor:
            return tensor[-objects:]

        return Conditions(
            cameras=self.cameras if self.cameras.ndim == 2 else part(self.cameras),
            prompts=tuple(
                tuple(KeysValues(part(seen.keys), part(seen.values)) for seen in prompt)
                for prompt in self.prompts
            ),
            concat=None if self.concat is None else part(self.concat),
            reference=None if self.reference is None else part(self.reference),
        )


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
        if config.context_width is not None and config.image_tokens is not None:
            self.image_embed = Resampler(
                config.context_width,
                queries=config.image_tokens,
                image_width=config.image_width,
                layers=config.resampler_layers,
                heads=config.resampler_heads,
            )
        first = nn.Conv2d(config.channels_in + config.concat_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips = self._add_down_path()
        middle = skips[-1]
        self.middle_block = nn.ModuleList(
            [self._residual(middle, middle), self._transformer(middle), self._residual(middle, middle)]
        )
        self.output_blocks = nn.ModuleList()
        self._add_up_path(skips)
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, width * config.multipliers[0], eps=1e-5),
            nn.SiLU(),
            zeroed(nn.Conv2d(width * config.multipliers[0], config.channels_out, 3, padding=1)),
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
        site = nn.ModuleList([self._residual(channels_in, channels_out)])
        if level in self.config.attention_levels:
            site.append(self._transformer(channels_out))
        return site

    def _residual(self, channels_in: int, channels_out: int) -> ResidualBlock:
        return ResidualBlock(
            channels_in,
            channels_out,
            embedding_width=self.config.embedding_width,
            groups=self.config.norm_groups,
        )

    def _transformer(self, channels: int) -> MultiViewTransformer:
        return MultiViewTransformer(
            channels,
            frames=self.config.frames,
            groups=self.config.norm_groups,
            head_dim=self.config.head_dim,
            context_width=self.config.context_width,
            has_image=self.config.image_tokens is not None,
        )

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
            cameras: [F 16] or [B F 16]; by default `camera_vectors`.
            text: [B L D]; needed where `context_width` is set.
            image: What the image tower sees [B T Di], unsampled; needed where `image_tokens` is set.
            concat: [B F Cc h w]; needed where `concat_channels` is set.
            reference: Clean latent [B C h w] of the last frame; needed where `has_reference` is set.
        """
        config = self.config
        self._check_conditions(text=text, image=image, concat=concat, reference=reference)
        if cameras is None:
            cameras = camera_vectors(config.frames)
        return Conditions(
            cameras=self.camera_embed(cameras.to(next(self.parameters()))),
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
            image=(given["image"], f"B T {config.image_width}"),
            concat=(given["concat"], f"B {config.frames} {config.concat_channels} h w"),
            reference=(given["reference"], f"B {config.channels_in} h w"),
        )

    def _prompts(self, text: Tensor, image: Tensor | None) -> tuple[Prompt, ...]:
        read = self.read(text)
        if image is None:
            return tuple((words,) for words in read)
        return tuple(zip(read, self.see(image), strict=True))

    def read(self, text: Tensor) -> tuple[KeysValues, ...]:
        """What each transformer looks at of texts [B L D], in the order of computation."""
        return tuple(transformer.attention.read(text) for transformer in self._transformers())

    def see(self, image: Tensor) -> tuple[KeysValues, ...]:
        """What each transformer looks at of what the image tower sees [B T Di]."""
        tokens = self.image_embed(image)
        return tuple(transformer.attention.see(tokens) for transformer in self._transformers())

    def _transformers(self) -> list[MultiViewTransformer]:
        """In the order of computation, in which they were added."""
        return [module for module in self.modules() if isinstance(module, MultiViewTransformer)]

    def _residuals(self) -> list[ResidualBlock]:
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

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
        embedding = self.embedding(t, conditions.cameras)
        return self.steered(x, self.shifts(embedding), conditions)

    def embedding(self, t: Tensor, cameras: Tensor) -> Tensor:
        """Time and cameras as the residual blocks are told of them: [B·F E].

        t: [B], or [B F] where every frame has its own. cameras: embedded, [F E] or [B F E].
        """
        time: Tensor = self.time_embed(sinusoid(t, self.config.width).to(cameras.dtype))  # [B E] or [B F E]
        return ((time if t.ndim == 2 else time[:, None]) + cameras).flatten(0, 1)

    def shifts(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """What each residual block adds for an embedding [N E]: [N C], in the order of computation."""
        return tuple(block.emb_layers(embedding) for block in self._residuals())

    def steered(
        self, x: Tensor, shifts: Sequence[Tensor], conditions: Conditions, *, kept: int | None = None
    ) -> Tensor:
        """Predict from noisy latents [B F C h w], told of time and cameras by `shifts`.

        The reference's own frame may be left out of x, since it is replaced anyway.

        kept: so many of the frames are wanted, the first ones; by default all. What only the others need is
        left out.

        Returns:
            [B F Cout h w], or [B kept Cout h w].
        """
        config = self.config
        if conditions.reference is not None:
            x = torch.cat([x[:, : config.frames - 1], conditions.reference[:, None]], dim=1)
        if conditions.concat is not None:
            x = torch.cat([x, conditions.concat], dim=2)
        passage = _Passage(shifts, conditions.prompts, frames=config.frames)
        if kept not in (None, config.frames):
            passage.narrow_in, passage.kept = self._transformers()[-1], kept
        y = self._through_levels(x.flatten(0, 1), passage)
        return y.reshape(x.shape[0], -1, *y.shape[1:])

    def _through_levels(self, x: Tensor, passage: _Passage) -> Tensor:
        skips: list[Tensor] = []
        for site in self.input_blocks:
            x = passage.through(cast(nn.ModuleList, site), x)
            skips.append(x)
        x = passage.through(self.middle_block, x)
        for site in self.output_blocks:
            x = torch.cat([x, passage.narrowed(skips.pop())], dim=1)
            x = passage.through(cast(nn.ModuleList, site), x)
        return cast(Tensor, self.out(x))


class _Passage:
    """One way through the network: what is picked up on it, and how many frames still go along."""

    def __init__(self, shifts: Sequence[Tensor], prompts: Sequence[Prompt], *, frames: int) -> None:
        self._shifts = iter(shifts)
        self._prompts = iter(prompts)
        self._frames = frames
        self.narrow_in: MultiViewTransformer | None = None
        """The last to mix frames; behind it each goes its own way, and those that nobody wants none."""
        self.kept: int | None = None
        self._is_narrow = False

    def through(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        """Apply the layers of one place."""
        for layer in layers:
            if isinstance(layer, ResidualBlock):
                x = layer.shifted(x, self.narrowed(next(self._shifts)))
            elif isinstance(layer, MultiViewTransformer):
                self._is_narrow = layer is self.narrow_in
                x = layer(x, next(self._prompts, ()), self.kept if self._is_narrow else None)
            else:
                x = layer(x)
        return x

    def narrowed(self, x: Tensor) -> Tensor:
        """Leave out of [B·F ...] the frames that no longer go along."""
        return first_frames(x, self._frames, cast(int, self.kept)) if self._is_narrow else x


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Timesteps [...] as waves [... width]: cosines first, frequencies from 1 down to almost 1/10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _perceptron(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels_in, channels_out), nn.SiLU(), nn.Linear(channels_out, channels_out)
    )
