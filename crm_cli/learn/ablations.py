"""What becomes of the reconstruction without one of the paper's ideas: variants of one small training.

Each variant differs from the one it is compared with in one thing. Two networks are the measure: `unet` is
the published structure in small (a correction to a sphere, read from the summed triplane alone), in which
the U-Net has to do everything; `hull` is the embedded network, which begins with the depth hull of its
views. `tests/ablations.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from crm_cli.learn.tasks import ReconstructionTask, degraded, records_of
from crm_cli.learn.train import Batch, Terms, TrainSettings
from crm_cli.learn.transformer import PlaneTransformer, TransformerConfig
from crm_cli.learn.turned import in_world
from crm_cli.models import agree
from crm_cli.models.reconstruction import (
    SMALL,
    PlaneField,
    Reconstruction,
    ReconstructionConfig,
    add_input_noise,
    network_input,
    roll_out,
)
from crm_cli.models.unet import UNetConfig
from crm_cli.records import SixViews, Triplane

PLAIN = ReconstructionConfig(
    unet=UNetConfig(in_channels=16, out_channels=16, widths=(8, 16, 32), layers=1, groups=8),
    plane_px=32,
    learned_channels=4,
    head_width=64,
    from_hull=False,
)
"""The published structure in small: what the U-Net does not write into the triplane, no head knows."""

HULLED = replace(SMALL, plane_px=PLAIN.plane_px)
"""The embedded network, its planes half as large."""

TRANSFORMER = TransformerConfig(patch_px=4, width=48, blocks=4, heads=4)
"""As many parameters as PLAIN's U-Net, within a tenth: 192 tokens of 4 × 4 pixels."""

EVERY = 4
"""One in so many of an example's places is learnt from: more objects teach more than more places of one."""

HULL_PX = 64
"""Side at which the hull of outlines is carved: the size of the views the small networks draw."""

Retouch = Callable[[SixViews, Tensor | None], SixViews]
"""What a variant does to six views before its network sees them, given their turn [3 3] (see turned.py)."""


def untouched(views: SixViews, turn: Tensor | None = None) -> SixViews:
    """Leave them as they are."""
    return views


def without_maps(views: SixViews, turn: Tensor | None = None) -> SixViews:
    """Take the coordinate maps away: grey everywhere, the background too."""
    return replace(views, ccm=torch.full_like(views.ccm, 0.5))


def outlines_alone(views: SixViews, turn: Tensor | None = None) -> SixViews:
    """Put in the place of the maps what the six outlines say by themselves: the visual hull's depth."""
    size = views.alpha.shape[-1]
    outlines = functional.interpolate(views.alpha, (HULL_PX, HULL_PX), mode="area")
    depth = functional.interpolate(agree.hull_depth(outlines[None]), (size, size), mode="nearest")[0]
    return replace(views, ccm=agree.maps_of(depth, views.alpha))


def from_turned_cameras(views: SixViews, turn: Tensor | None) -> SixViews:
    """Say where in the world turned cameras see each pixel."""
    if turn is None:
        raise ValueError("views of turned cameras need examples with `turn`")
    return in_world(views, turn)


class UnmaskedReconstruction(Reconstruction):
    """Reads all three coordinates of every map, for views in which none of them is the pixel's place."""

    def fields(
        self, views: Sequence[SixViews], *, generators: Sequence[Generator | None] | None = None
    ) -> list[PlaneField]:
        """Reconstruct objects with one pass, as `Reconstruction.fields` does from maps that are masked."""
        px = self.config.plane_px
        seen = [network_input(one, px)[:6] for one in views]  # colours of both sides
        maps = [functional.interpolate(one.ccm, (px, px), mode="area") for one in views]
        x = torch.stack(
            [torch.cat((rgb, roll_out(ccm.flip(1)))) for rgb, ccm in zip(seen, maps, strict=True)]
        )
        planes = self.unet2(add_input_noise(x, generators or [None] * len(views)))
        return [PlaneField(self, Triplane(planes=torch.stack(one.chunk(3, 2))), None) for one in planes]


def build_unet(config: ReconstructionConfig) -> Reconstruction:
    """The convolutional U-Net."""
    return Reconstruction(config)


def build_transformer(config: ReconstructionConfig) -> Reconstruction:
    """A transformer in its place."""
    return _with_transformer(Reconstruction(config))


def build_unmasked_transformer(config: ReconstructionConfig) -> Reconstruction:
    """A transformer that reads all three coordinates."""
    return _with_transformer(UnmaskedReconstruction(config))


def _with_transformer(network: Reconstruction) -> Reconstruction:
    network.add_module("unet2", PlaneTransformer(network.config, TRANSFORMER))
    return network


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One training, and what it is to show."""

    name: str
    against: str
    """The variant it is compared with; its own name where it is a measure."""
    changes: str
    """The one thing that differs from that one."""
    claim: str
    """What of the paper is tested."""
    config: ReconstructionConfig = PLAIN
    build: Callable[[ReconstructionConfig], Reconstruction] = build_unet
    retouch: Retouch = untouched
    is_turned: bool = False
    """Whether its examples come from turned cameras; see turned.py."""
    samples: int = 2400
    """Examples seen in training, repetitions counted."""
    batch: int = 8
    learning_rate: float = 1e-3

    @property
    def is_compared(self) -> bool:
        """Whether it is about an idea of the paper, and not about how to train."""
        return self in COMPARED

    def settings(self, *, seed: int, samples: int | None = None) -> TrainSettings:
        """How it is trained; samples: another number of examples than its own."""
        steps = max(1, (samples or self.samples) // self.batch)
        return TrainSettings(
            steps=steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            warmup=max(1, steps // 10),
            seed=seed,
            save_every=max(1, steps),
            log_every=max(1, steps // 40),
        )


UNET = Variant(
    name="unet",
    against="unet",
    changes="nothing: the published structure in small",
    claim="the measure of the next four",
)

HULL = Variant(
    name="hull",
    against="hull",
    changes="nothing: the embedded network",
    claim="the measure of hull-no-ccm",
    config=HULLED,
    samples=1000,
)

TURNED = replace(
    UNET,
    name="turned-views",
    changes="all six cameras turned by one random rotation an object; maps with all three coordinates",
    claim="a triplane looks like six orthographic views, and pixels lie in place (CRM, abstract)",
    build=UnmaskedReconstruction,
    retouch=from_turned_cameras,
    is_turned=True,
)

COMPARED: tuple[Variant, ...] = (
    UNET,
    replace(
        UNET,
        name="no-ccm",
        changes="coordinate maps are grey: the network sees six colour views",
        claim="coordinate maps tell the network where the surface is",
        retouch=without_maps,
    ),
    replace(
        UNET,
        name="transformer",
        changes="a transformer over 4 × 4 patches, of as many parameters, makes the triplane",
        claim="a transformer does not use what a triplane is, and learns more slowly (CRM, abstract)",
        build=build_transformer,
    ),
    TURNED,
    replace(
        TURNED,
        name="turned-transformer",
        against=TURNED.name,
        changes="a transformer looks at the turned views",
        claim="whether one that need not keep pixels in place suffers less",
        build=build_unmasked_transformer,
    ),
    HULL,
    replace(
        HULL,
        name="hull-no-ccm",
        changes="depth of the outlines' visual hull in the place of the maps",
        claim="the same, for a network that begins with a hull",
        retouch=outlines_alone,
    ),
)
"""One idea taken away at a time."""

STABILITY: tuple[Variant, ...] = tuple(
    replace(
        UNET,
        name=f"{name}-batch-{batch}-rate-{rate:g}",
        changes=f"{name}, batch {batch}, learning rate {rate:g}",
        claim="how batch and learning rate go together, for one number of examples seen",
        build=build,
        samples=1024,
        batch=batch,
        learning_rate=rate,
    )
    for name, build, batches in (
        ("unet", build_unet, (4, 16, 64)),
        ("transformer", build_transformer, (4, 16)),
    )
    for batch in batches
    for rate in (5e-4, 2e-3, 8e-3, 3.2e-2)
)
"""A shorter training with other batches and learning rates."""

VARIANTS = {variant.name: variant for variant in (*COMPARED, *STABILITY)}


class AblationTask(ReconstructionTask):
    """Training of the reconstruction, with a variant's network and its look at the views."""

    def __init__(self, variant: Variant, *, seed: int) -> None:
        """Draw the first parameters from the seed."""
        torch.manual_seed(seed)
        self.variant = variant
        network = variant.build(variant.config)
        if not variant.config.from_hull:
            # Nothing trains the grid's weights here; with zeros they stay neutral.
            for parameter in network.weightMlp.parameters():
                nn.init.zeros_(parameter)
        self.network = network

    def loss(self, batch: Batch, random: Generator) -> tuple[Tensor, Terms]:
        """The loss of training, at fewer places."""
        names = ("points", "sdf", "surface", "surface_rgb")
        return super().loss({**batch, **{name: batch[name][:, ::EVERY] for name in names}}, random)

    def shown(self, batch: Batch, random: Generator) -> list[SixViews]:
        """Views as in training, depth spoilt now and then, as the variant sees them."""
        return self._retouched(degraded(batch["views"].float() / 255, batch["depth"].float(), random), batch)

    def exact(self, batch: Batch) -> list[SixViews]:
        """Rendered views and depth, as the variant sees them."""
        return self._retouched(records_of(batch["views"].float() / 255, batch["depth"].float()), batch)

    def _retouched(self, views: list[SixViews], batch: Batch) -> list[SixViews]:
        turns = batch["turn"] if self.variant.is_turned else [None] * len(views)
        return [self.variant.retouch(one, turn) for one, turn in zip(views, turns, strict=True)]
