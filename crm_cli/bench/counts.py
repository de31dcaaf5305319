"""What the stages of a photo must do at least, as one count for ours and one for the published loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from crm_cli.bench.clock import CONDITIONS, DECODE, HAND_OVER, IMAGINE, Plans
from crm_cli.bench.peak import Peaks
from crm_cli.models import denoiser, operations, reconstruction
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.operations import SIZES, VIEWS
from crm_cli.preset import EMBEDDED, Preset

COVERED = 0.6
"""Share of the texels that lie in a chart and are coloured: 0.55 to 0.65 on ordinary solids."""

ASKED = 0.08
"""Share of the texels for which the embedded network is asked for a colour, the others being read between
them: counted as 0.07 to 0.10 at 1024 px, where the photo does not count."""

REFERENCE_TEXTURE_PX = 1024
"""Side of the published system's texture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations, and bytes of weights that are read for them."""

    operations: float
    bytes: int
    dtype: torch.dtype

    def floor_s(self, peaks: Peaks) -> float:
        """The least time a machine needs: for its products, or for the weights, whichever is longer."""
        return max(self.operations / peaks.operations[self.dtype], self.bytes / peaks.bytes)


def our_work(architecture: str, preset: Preset, dtype: torch.dtype) -> dict[str, Work]:
    """Operations of each stage of a photo as this program works; see `Plans` for steps."""
    if architecture == EMBEDDED:
        return {IMAGINE: _embedded(preset, dtype), **_shape(architecture, preset)}
    sizes, plans = SIZES[architecture], Plans.of(preset)
    encode, decode = operations.encode(sizes.vae).total(), operations.decode(sizes.vae).total()
    weighed = _Weigher(architecture, dtype)
    passes = {
        stage: (plan.evaluations + plan.guided, plan.evaluations)
        for stage, plan in zip(("rgb", "ccm"), plans, strict=True)
    }
    configs = {"rgb": sizes.rgb, "ccm": sizes.ccm}
    prepared = {stage: operations.engine_preparation(config) for stage, config in configs.items()}
    diffusions = {
        stage: weighed(units * operations.engine_step(configs[stage]).total(), {stage: calls})
        for stage, (units, calls) in passes.items()
    }
    return {
        CONDITIONS: weighed(
            encode + operations.look(sizes.vision) + prepared["rgb"], {"vision": 1, "vae.encoder": 1}
        ),
        "rgb": diffusions["rgb"],
        HAND_OVER: weighed(VIEWS * (decode + encode) + prepared["ccm"], {"vae": 1}),
        "ccm": diffusions["ccm"],
        DECODE: weighed(VIEWS * decode, {"vae.decoder": 1}),
        **_shape(architecture, preset),
    }


def reference_work(architecture: str, preset: Preset, dtype: torch.dtype) -> dict[str, Work]:
    """The same as the published code works; see `reference`."""
    sizes, plans = SIZES[architecture], Plans.of(preset)
    encode, decode = operations.encode(sizes.vae).total(), operations.decode(sizes.vae).total()
    seen = operations.look(sizes.vision) + 2 * operations.read(sizes.text)
    config, grid = sizes.reconstruction, preset.reconstruction.grid
    weighed = _Weigher(architecture, dtype)
    return {
        CONDITIONS: weighed(seen + 2 * encode, {"vision": 1, "vae.encoder": 1}),
        "rgb": weighed(
            plans.rgb.evaluations * operations.step_as_published(sizes.rgb), {"rgb": plans.rgb.evaluations}
        ),
        HAND_OVER: weighed((VIEWS + 1) * (decode + encode) + seen, {"vision": 1, "vae": 1}),
        "ccm": weighed(
            plans.ccm.evaluations * operations.step_as_published(sizes.ccm), {"ccm": plans.ccm.evaluations}
        ),
        DECODE: weighed(VIEWS * decode, {"vae.decoder": 1}),
        "reconstruct": _Weigher(architecture, torch.float32)(
            operations.planes(config.unet, config.plane_px)
            + (grid + 1) ** 3 * operations.distance_head(config)
            + grid**3 * operations.weight_head(config),
            {"reconstruction": 1},
        ),
        "bake": _bake(config, REFERENCE_TEXTURE_PX),
    }


def embedded_reference_work(preset: Preset, dtype: torch.dtype) -> dict[str, Work]:
    """The embedded networks with the published loop's way from views to files."""
    config, grid = reconstruction.SMALL, preset.reconstruction.grid
    return {
        IMAGINE: _embedded(preset, dtype),
        "reconstruct": _Weigher(EMBEDDED, torch.float32)(
            operations.shape(config, grid=grid, is_dense=True), {"reconstruction": 1}
        ),
        "bake": _bake(config, REFERENCE_TEXTURE_PX),
    }


def _embedded(preset: Preset, dtype: torch.dtype) -> Work:
    """Both diffusions of the embedded system; patches need no network."""
    count = 0
    for config, plan in zip((denoiser.SMALL_RGB, denoiser.SMALL_CCM), Plans.of(preset), strict=True):
        count += (plan.evaluations + plan.guided) * operations.denoiser_step(config).total()
        count += (1 + (plan.guided > 0)) * operations.denoiser_preparation(config)
    rgb, ccm = Plans.of(preset)
    return _Weigher(EMBEDDED, dtype)(count, {"rgb": rgb.evaluations, "ccm": ccm.evaluations})


def _shape(architecture: str, preset: Preset) -> dict[str, Work]:
    """What both kinds of weights do alike: from views to a surface, and its colours."""
    small = architecture == EMBEDDED
    config = reconstruction.SMALL if small else SIZES[architecture].reconstruction
    wanted = preset.reconstruction
    return {
        "reconstruct": _Weigher(architecture, torch.float32)(
            operations.shape(config, grid=wanted.grid, is_dense=wanted.dense), {"reconstruction": 1}
        ),
        "bake": _bake(config, preset.texture.size_px, share=ASKED if small else COVERED),
    }


def _bake(config: reconstruction.ReconstructionConfig, size_px: int, *, share: float = COVERED) -> Work:
    return Work(operations=share * size_px**2 * operations.colour_head(config), bytes=0, dtype=torch.float32)


class _Weigher:
    """Adds to operations the bytes of the networks that they go through."""

    def __init__(self, architecture: str, dtype: torch.dtype) -> None:
        self._architecture = architecture
        self._dtype = dtype

    def __call__(self, count: float, passes: Mapping[str, int]) -> Work:
        """passes: how often a network's weights are read, by its name or that of one of its layers."""
        values = sum(times * _values(self._architecture, name) for name, times in passes.items())
        return Work(operations=count, bytes=values * self._dtype.itemsize, dtype=self._dtype)


@cache
def _values(architecture: str, name: str) -> int:
    """Parameters of a network, or of a layer of it."""
    part, _, layer = name.partition(".")
    network = ARCHITECTURES[architecture].unfilled(part)
    if layer:
        network = network.get_submodule(layer)
    return sum(parameter.numel() for parameter in network.parameters())
