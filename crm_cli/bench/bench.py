"""`crm bench` without its words: which systems are put side by side, on which networks, and what came out."""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from crm_cli import __version__
from crm_cli.bench.command import Command, time_command
from crm_cli.bench.cost import SystemCost
from crm_cli.bench.measure import Subjects, Told, measure, shortened
from crm_cli.bench.peak import measure_peaks
from crm_cli.bench.subjects import write_photos
from crm_cli.bench.systems import (
    ARCHITECTURE_OF,
    Networks,
    Opener,
    preset_for,
    published_precision,
    require_room,
)
from crm_cli.run.machine import threads_each
from crm_cli.run.options import check_precision
from crm_cli.toolbox import accelerator_name, resolve_device, resolve_precision, usable_cores

PRESETS_OF: dict[Networks, tuple[str, ...]] = {
    "published": ("exact", "fast", "turbo"),
    "embedded": ("default",),
    "miniature": ("exact", "fast", "turbo"),
}
"""What is measured where nobody asks for other presets."""


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
    """From the start on, no photo is begun that would end later; one is always measured."""
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
    presets = {name: preset_for(name, settings.networks) for name in _presets(settings)}
    for preset in presets.values():
        shortened(preset, settings.steps)
    device = resolve_device(settings.device)
    threads = threads_each([device], is_small=is_small, jobs=None)
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    precision = "float32" if is_small else resolve_precision(settings.precision, device)
    formats = [precision, *([published_precision(device)] if settings.has_baseline else [])]
    if not is_small:
        require_room(ARCHITECTURE_OF[settings.networks], formats, device)
    tell("what this machine can do")
    # The reconstruction is always in single precision.
    peaks = measure_peaks(device, {getattr(torch, name) for name in [*formats, "float32"]})
    bench = Opener(
        settings.networks,
        steps=settings.steps,
        device=device,
        threads=threads,
        precision=precision,
        tell=tell,
    )
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
            limit_s=settings.limit_s - (time.monotonic() - began),
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
