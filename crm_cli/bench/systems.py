"""The systems that are put side by side, opened: the published loop, and our presets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from crm_cli.bench.clock import Plans
from crm_cli.bench.cost import BASELINE, System
from crm_cli.bench.counts import embedded_reference_work, our_work, reference_work
from crm_cli.bench.measure import Told, shortened
from crm_cli.bench.networks import RandomNetworks, draw_networks, drawn_bytes
from crm_cli.bench.reference import ReferenceShaped
from crm_cli.bench.subjects import CorpusSurface, corpus
from crm_cli.errors import EnvironmentProblem
from crm_cli.fragments import Raster
from crm_cli.mesh.raster import RASTERS
from crm_cli.models.shelf import STAY_WIDE, laid_out
from crm_cli.pipeline import Line
from crm_cli.preset import DEFAULT, EMBEDDED, Override, Preset, load_preset
from crm_cli.records import Mesh
from crm_cli.toolbox import (
    WORK_BYTES,
    WORK_BYTES_CPU,
    Toolbox,
    choose,
    free_bytes,
    open_toolbox,
    usable_memory,
)

Networks = Literal["published", "embedded", "miniature"]

ARCHITECTURE_OF: dict[Networks, str] = {
    "published": "release",
    "embedded": EMBEDDED,
    "miniature": "miniature",
}

EXACT = "exact"
"""The preset whose work the baseline does."""

CPU_STEPS = 3
"""Of each diffusion of the published structure on a CPU, where a step of its size takes a minute."""


def preset_for(name: str, networks: Networks) -> Preset:
    """A preset as it is with one kind of networks, whatever weights it asks for itself."""
    overrides = [Override.from_assignment("weights=embedded")] if networks == "embedded" else []
    return load_preset(name, overrides, architecture=ARCHITECTURE_OF[networks]).preset


def published_precision(device: str) -> str:
    """Half precision, as the published command line; a CPU is slower with it than without."""
    return "float32" if device == "cpu" else "float16"


def require_room(architecture: str, formats: Sequence[str], device: str) -> None:
    """Refuse networks that do not fit, before they fill what there is.

    formats: of ours, and of the baseline's where there is one; see `Opener` for when they share.
    """
    is_cpu = device == "cpu"
    needed = sum(
        drawn_bytes(architecture, getattr(torch, name)) for name in (set(formats) if is_cpu else formats)
    )
    needed += WORK_BYTES_CPU if is_cpu else WORK_BYTES
    free = usable_memory() if is_cpu else free_bytes(device)
    if free is not None and needed > free:
        raise EnvironmentProblem(
            f"these networks need {needed / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free",
            code="E_BENCH_MEMORY",
            remedy="the baseline has a copy of its own, on a CPU where its precision differs: --no-baseline, "
            "or --networks embedded",
        )


class Opener:
    """Opens systems, and draws each set of networks once."""

    def __init__(
        self,
        networks: Networks,
        *,
        steps: int | None,
        device: str,
        threads: int,
        precision: str,
        tell: Told,
    ) -> None:
        """steps: evaluations of each denoiser that are made at most; None: all, or CPU_STEPS."""
        self._networks_name = networks
        self._architecture = ARCHITECTURE_OF[networks]
        is_slow = networks != EMBEDDED and device == "cpu"
        self._steps = CPU_STEPS if steps is None and is_slow else steps
        self._device = device
        self._threads = threads
        self._precision = precision
        self._tell = tell
        self._drawn: dict[tuple[str, bool], RandomNetworks] = {}
        self._corpus: list[Mesh] | None = None

    @property
    def raster(self) -> Raster:
        """What takes the photos."""
        return choose("rasteriser", RASTERS, "cpu")()

    def baseline(self) -> System:
        """The published loop."""
        name = EXACT if self._architecture != EMBEDDED else DEFAULT
        wanted = preset_for(name, self._networks_name)
        began = time.monotonic()
        precision = published_precision(self._device)
        dtype = getattr(torch, precision)
        if self._architecture == EMBEDDED:
            toolbox, text = self._embedded(wanted), None
            work = embedded_reference_work(wanted, dtype)
        else:
            toolbox, networks = self._random(precision, is_ours=False)
            text = networks.text
            work = reference_work(self._architecture, wanted, dtype)
        ran = shortened(wanted, self._steps)
        return System(
            name=BASELINE,
            convert=ReferenceShaped(toolbox, ran, text).convert,
            ran=Plans.of(ran),
            wanted=Plans.of(wanted),
            work=work,
            standing_bytes=_standing(toolbox),
            opened_s=time.monotonic() - began,
        )

    def system(self, name: str, wanted: Preset) -> System:
        """A preset of ours."""
        began = time.monotonic()
        if self._architecture == EMBEDDED:
            toolbox = self._embedded(wanted)
        else:
            toolbox, _ = self._random(self._precision, is_ours=True)
        ran = shortened(wanted, self._steps)
        return System(
            name=name,
            convert=Line(toolbox, ran).convert,
            ran=Plans.of(ran),
            wanted=Plans.of(wanted),
            work=our_work(self._architecture, wanted, getattr(torch, self._precision)),
            standing_bytes=_standing(toolbox),
            opened_s=time.monotonic() - began,
        )

    def _embedded(self, preset: Preset) -> Toolbox:
        return open_toolbox(preset, device=self._device, threads=self._threads)

    def _random(self, precision: str, *, is_ours: bool) -> tuple[Toolbox, RandomNetworks]:
        """Tools of this machine with networks of random values, and surfaces of the corpus."""
        # On an accelerator our weights lie in another order than the published loop's.
        key = (precision, is_ours or self._device == "cpu")
        if key not in self._drawn:
            self._tell(f"drawing {self._networks_name} networks in {precision}")
            dtype = getattr(torch, precision)
            drawn = draw_networks(self._architecture, device=self._device, dtype=dtype)
            for part in set(drawn) - STAY_WIDE if is_ours else ():
                laid_out(drawn[part], device=self._device, dtype=dtype)
            self._drawn[key] = drawn
        if self._corpus is None:
            self._corpus = corpus()
        networks = self._drawn[key]
        # The embedded ones are opened for the tools beside them: they take no time and no room.
        tools = open_toolbox(
            preset_for(DEFAULT, "embedded"), device=self._device, threads=self._threads, precision=precision
        )
        toolbox = replace(
            tools,
            networks=networks,
            weights=networks.listed(),
            dtype=getattr(torch, precision),
            surfacer=CorpusSurface(self._corpus),
        )
        return toolbox, networks


def _standing(toolbox: Toolbox) -> Callable[[], int]:
    """Bytes of networks that are there, and of recordings as they are made."""
    networks = toolbox.networks
    total = networks.bytes if isinstance(networks, RandomNetworks) else 0
    return lambda: total + toolbox.recorder.held_bytes
