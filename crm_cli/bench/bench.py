"""`crm bench` without its words: which systems are put side by side, on which networks, and what came out."""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from crm_cli import __version__
from crm_cli.bench.clock import Plans
from crm_cli.bench.command import Command, time_command
from crm_cli.bench.counts import embedded_reference_work, our_work, reference_work
from crm_cli.bench.measure import BASELINE, Subjects, System, SystemCost, Told, measure, shortened
from crm_cli.bench.networks import RandomNetworks, bytes_of, draw_networks
from crm_cli.bench.peak import measure_peaks
from crm_cli.bench.reference import ReferenceShaped
from crm_cli.bench.subjects import CorpusSurface, corpus, write_photos
from crm_cli.errors import EnvironmentProblem
from crm_cli.fragments import Raster
from crm_cli.mesh.raster import RASTERS
from crm_cli.pipeline import Line
from crm_cli.preset import DEFAULT, EMBEDDED, Override, Preset, load_preset
from crm_cli.records import Mesh
from crm_cli.run.machine import threads_each
from crm_cli.run.options import check_precision
from crm_cli.toolbox import (
    WORK_BYTES,
    WORK_BYTES_CPU,
    Toolbox,
    accelerator_name,
    choose,
    open_toolbox,
    resolve_device,
    resolve_precision,
    usable_cores,
    usable_memory,
)

Networks = Literal["published", "embedded", "miniature"]

ARCHITECTURE_OF: dict[Networks, str] = {
    "published": "release",
    "embedded": EMBEDDED,
    "miniature": "miniature",
}

PRESETS_OF: dict[Networks, tuple[str, ...]] = {
    "published": ("exact", "fast", "turbo"),
    "embedded": ("default",),
    "miniature": ("exact", "fast", "turbo"),
}
"""What is measured where nobody asks for other presets."""

EXACT = "exact"
"""The preset whose work the baseline does."""

CPU_STEPS = 3
"""Of each diffusion at the published size on a CPU, where a step takes a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure."""

    networks: Networks
    presets: tuple[str, ...] = ()
    """Names; empty: those of PRESETS_OF."""
    device: str = "auto"
    precision: str = "auto"
    """Of our systems; the baseline has float16 on an accelerator and float32 on a CPU, as published."""
    photos: int = 5
    steps: int | None = None
    """Evaluations of each denoiser that are made at most; None: all, but on a CPU of the published ones."""
    limit_s: float = 60.0
    has_baseline: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that one run has measured, and where."""

    version: str
    machine: str
    device: str
    torch: str
    networks: str
    precision: str
    threads: int
    cores: int
    peak_operations: dict[str, float]
    """A second, by number format."""
    peak_bytes: float
    """A second."""
    run: Command | None
    """`crm convert` itself, where its weights are on the disk: of the embedded ones."""
    systems: tuple[SystemCost, ...]
    took_s: float


def choose_networks(device: str) -> Networks:
    """Those that are worth measuring on a device: the published ones take a CPU half an hour."""
    return "embedded" if resolve_device(device) == "cpu" else "published"


def run_bench(settings: Settings, tell: Told) -> Result:
    """Measure everything; CrmError where that is not possible here. tell: hears what is being done."""
    began = time.monotonic()
    check_precision(settings.precision)
    is_small = settings.networks == "embedded"
    presets = {name: _preset(name, settings.networks) for name in _presets(settings)}
    for preset in presets.values():
        shortened(preset, settings.steps)
    device = resolve_device(settings.device)
    threads = threads_each([device], is_small=is_small, jobs=None)
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    precision = "float32" if is_small else resolve_precision(settings.precision, device)
    formats = {precision, *([_published_precision(device)] if settings.has_baseline else [])}
    if not is_small:
        _require_room(ARCHITECTURE_OF[settings.networks], formats, device)
    tell("what this machine can do")
    # The reconstruction is always in single precision.
    peaks = measure_peaks(device, {getattr(torch, name) for name in formats | {"float32"}})
    bench = _Opener(settings, device=device, threads=threads, precision=precision, tell=tell)
    systems = [bench.baseline()] if settings.has_baseline else []
    systems += [bench.system(name, preset) for name, preset in presets.items()]
    with tempfile.TemporaryDirectory(prefix="crm-bench-") as folder:
        names = write_photos(Path(folder), bench.raster, count=settings.photos)
        subjects = Subjects(folder=Path(folder), names=names)
        run = None
        if is_small:
            tell("crm convert")
            run = time_command([Path(folder) / name for name in names], device=device)
        costs = measure(
            systems,
            subjects,
            device=device,
            photos=settings.photos,
            limit_s=settings.limit_s,
            peaks=peaks,
            tell=tell,
        )
    return Result(
        version=__version__,
        machine=describe_machine(device),
        device=device,
        torch=torch.__version__,
        networks=settings.networks,
        precision=precision,
        threads=threads,
        cores=usable_cores(),
        peak_operations={str(dtype).removeprefix("torch."): top for dtype, top in peaks.operations.items()},
        peak_bytes=peaks.bytes,
        run=run,
        systems=costs,
        took_s=time.monotonic() - began,
    )


def _presets(settings: Settings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(settings.presets)) or PRESETS_OF[settings.networks]


def _preset(name: str, networks: Networks) -> Preset:
    overrides = [Override.from_assignment("weights=embedded")] if networks == "embedded" else []
    return load_preset(name, overrides, architecture=ARCHITECTURE_OF[networks]).preset


def _published_precision(device: str) -> str:
    """Half precision, as the published command line; a CPU is slower with it than without."""
    return "float32" if device == "cpu" else "float16"


def _require_room(architecture: str, formats: set[str], device: str) -> None:
    """Refuse networks that do not fit, before they fill what there is."""
    is_cpu = device == "cpu"
    needed = sum(bytes_of(architecture, getattr(torch, name)) for name in formats)
    needed += WORK_BYTES_CPU if is_cpu else WORK_BYTES
    free = usable_memory() if is_cpu else torch.accelerator.get_memory_info(device)[0]
    if free is not None and needed > free:
        raise EnvironmentProblem(
            f"these networks need {needed / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free",
            code="E_BENCH_MEMORY",
            remedy="the baseline has a copy of its own where its precision differs: --no-baseline, "
            "or --precision; or --networks embedded",
        )


class _Opener:
    """Opens systems, and draws each set of networks once."""

    def __init__(self, settings: Settings, *, device: str, threads: int, precision: str, tell: Told) -> None:
        self._networks_name = settings.networks
        self._architecture = ARCHITECTURE_OF[settings.networks]
        self._steps = settings.steps
        if settings.steps is None and settings.networks == "published" and device == "cpu":
            self._steps = CPU_STEPS
        self._device = device
        self._threads = threads
        self._precision = precision
        self._tell = tell
        self._drawn: dict[str, RandomNetworks] = {}
        self._corpus: list[Mesh] | None = None

    @property
    def raster(self) -> Raster:
        """What takes the photos."""
        return choose("rasteriser", RASTERS, "cpu")()

    def baseline(self) -> System:
        """The published loop."""
        name = EXACT if self._architecture != EMBEDDED else DEFAULT
        wanted = _preset(name, self._networks_name)
        began = time.monotonic()
        precision = _published_precision(self._device)
        dtype = getattr(torch, precision)
        if self._architecture == EMBEDDED:
            toolbox, networks_bytes, text = self._embedded(wanted), 0, None
            work = embedded_reference_work(wanted, dtype)
        else:
            toolbox, networks = self._random(precision)
            text, networks_bytes = networks.text, networks.bytes
            work = reference_work(self._architecture, wanted, dtype)
        ran = shortened(wanted, self._steps)
        return System(
            name=BASELINE,
            convert=ReferenceShaped(toolbox, ran, text).convert,
            ran=Plans.of(ran),
            wanted=Plans.of(wanted),
            work=work,
            networks_bytes=networks_bytes,
            opened_s=time.monotonic() - began,
        )

    def system(self, name: str, wanted: Preset) -> System:
        """A preset of ours."""
        began = time.monotonic()
        if self._architecture == EMBEDDED:
            toolbox, networks_bytes = self._embedded(wanted), 0
        else:
            toolbox, networks = self._random(self._precision)
            networks_bytes = networks.bytes
        ran = shortened(wanted, self._steps)
        return System(
            name=name,
            convert=Line(toolbox, ran).convert,
            ran=Plans.of(ran),
            wanted=Plans.of(wanted),
            work=our_work(self._architecture, wanted, getattr(torch, self._precision)),
            networks_bytes=networks_bytes,
            opened_s=time.monotonic() - began,
        )

    def _embedded(self, preset: Preset) -> Toolbox:
        return open_toolbox(preset, device=self._device, threads=self._threads)

    def _random(self, precision: str) -> tuple[Toolbox, RandomNetworks]:
        """Tools of this machine with networks of random values, and surfaces of the corpus."""
        if precision not in self._drawn:
            self._tell(f"drawing {self._networks_name} networks in {precision}")
            self._drawn[precision] = draw_networks(
                self._architecture, device=self._device, dtype=getattr(torch, precision)
            )
        if self._corpus is None:
            self._corpus = corpus()
        networks = self._drawn[precision]
        # The embedded ones are opened for the tools beside them: they take no time and no room.
        tools = open_toolbox(
            _preset(DEFAULT, "embedded"), device=self._device, threads=self._threads, precision=precision
        )
        toolbox = replace(
            tools,
            networks=networks,
            weights=networks.listed(),
            dtype=getattr(torch, precision),
            surfacer=CorpusSurface(self._corpus),
        )
        return toolbox, networks


def describe_machine(device: str) -> str:
    """The processor and the accelerator by their names."""
    names = [platform.processor() or platform.machine()]
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                names = [line.partition(":")[2].strip()]
                break
    if device != "cpu":
        names.append(accelerator_name(device))
    return " + ".join(names)
