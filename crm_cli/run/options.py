"""Where and how a run works: nothing here changes what an asset looks like."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crm_cli.errors import UsageError
from crm_cli.preset import AUTO, EMBEDDED, Override, Preset, ResolvedPreset, load_preset
from crm_cli.run.amounts import Share
from crm_cli.run.keeping import CACHE_SIZE, read_size
from crm_cli.run.lists import Listed
from crm_cli.run.products import Product
from crm_cli.run.selection import Selection
from crm_cli.run.worker import DESK, PIPELINE

if TYPE_CHECKING:
    from crm_cli.models.weights import WeightsSet

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its format has it."""

GRACE_S = 20.0
"""How long SIGTERM, SIGHUP and a time limit let running photos finish: schedulers kill after 30 s."""

STAGES: Mapping[str, str] = {
    "prepare": "prep",
    "imagine": "views",
    "reconstruct": "mesh",
    "unwrap": "out",
    "bake": "out",
    "deliver": "out",
}
"""Stages as people call them → the key they belong to."""

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
"""What the networks may calculate in; auto is what the device does best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedWeights:
    """The weights that a run really reads: what `auto` became."""

    name: str
    architecture: str
    digest: str
    """Of the whole set."""
    stages: Mapping[str, str]
    """Digest of the weights that a stage reads, by stage."""
    largest_bytes: int = 0
    """What the largest part takes in single precision; 0 where that is not worth a thought."""

    @property
    def is_small(self) -> bool:
        """Whether many photos at a time fit a CPU."""
        return self.architecture == EMBEDDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What converts a photo, and which weights it reads. Tests swap it; no preset can."""

    line: str
    desk: str
    """What has the networks of an accelerator, for the lines."""
    weights: Callable[[Preset], UsedWeights]
    """Finds what a preset's weights are on this machine; raises EnvironmentProblem where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where and how assets are made; nothing here changes what they are, but the sizes of products."""

    inputs: tuple[Path, ...]
    out: Path
    urls: tuple[str, ...] = ()
    """More inputs, in object stores."""
    place: str = ""
    """URL of the output folder where it is in an object store; `out` is then its local mirror."""
    endpoint: str = ""
    """Address of the object store's service; empty: what its own tools would take."""
    listed: tuple[Listed, ...] = ()
    """More inputs, from lists; relative ones keep their folders in the names of their assets."""
    select: Selection = field(default_factory=Selection)
    keep_ext: bool = False
    products: tuple[Product, ...] = ()
    """What products really measure: the one thing here that assets depend on, each on its own row."""
    preset_name: str = "default"
    """As the sheet shows it, with what was changed on the command line."""
    device: str = "auto"
    jobs: int | None = None
    precision: str = AUTO
    """One of PRECISIONS."""
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    max_mpixels: float = 64.0
    cache_bytes: int = read_size(CACHE_SIZE)
    """What kept views may take in the output folder after a run; 0: none are kept or used."""
    overwrite: bool = False
    skip_existing: bool = False
    """Leave photos alone whose asset somebody else has put in place, or edited."""
    keep_stale: bool = False
    """Keep assets that were made of the same photo with other settings or weights."""
    force_stage: str | None = None
    """One of STAGES: every photo is made anew from it on."""
    retry_failed: bool = False
    fail_fast: bool = False
    max_failures: Share | None = None
    """So many failures end the run."""
    allow_failures: Share | None = None
    """So many failures still count as success."""
    fail_on: Literal["review", "fail"] | None = None
    """Assets with this verdict, or a worse one, count like failures in the exit code; None: none does."""
    time_limit_s: float | None = None
    """After so long nothing new starts."""
    grace_s: float = GRACE_S
    """How long running photos may take once a run has to end."""
    min_free_bytes: int | None = None
    """Space without which no photo is begun; None: what so many photos may need, see space.py."""
    dry_run: bool = False
    allow_empty: bool = False
    report: bool = True
    junit: Path | None = None
    """Where else than in the run's folder the results are written as JUnit XML."""
    wait_lock_s: float = 0.0

    @property
    def shown_out(self) -> Path | str:
        """What people call the output folder."""
        return self.place or self.out


@dataclass(slots=True)
class Stop:
    """Set by signal handlers, read by the run."""

    signal: int | None = None
    """The first signal: nothing new starts."""
    is_urgent: bool = False
    """A second one: running photos are given up."""

    @property
    def is_graceful(self) -> bool:
        """Whether it was sent by something that will not wait for ever, unlike a person at a keyboard."""
        return self.signal in (signal.SIGTERM, signal.SIGHUP)

    @property
    def name(self) -> str:
        """What the first signal is called."""
        return signal.Signals(self.signal).name if self.signal is not None else ""


def check_junit(wanted: Path | None) -> None:
    """Refuse a place for results that is none, before there are any."""
    if wanted is None:
        return
    if not wanted.absolute().parent.is_dir():
        raise UsageError(f"--junit {wanted}: no such folder", code="E_JUNIT", remedy="make the folder first")
    # What stands there is replaced, and a device or pipe must never be.
    if wanted.exists() and not wanted.is_file():
        raise UsageError(f"--junit {wanted}: no file", code="E_JUNIT", remedy="name a file")


def check_limits(options: RunOptions) -> None:
    """Refuse a limit that is none."""
    if not math.isfinite(options.max_mpixels):
        raise UsageError(
            f"--max-mpixels {options.max_mpixels}: not a number of pixels",
            code="E_MPIXELS",
            remedy="a large number lets everything in",
        )


def makes_views_anew(force_stage: str | None) -> bool:
    """Whether kept views must not be used: a stage is forced that comes before they are whole."""
    return force_stage is not None and STAGES[force_stage] in ("prep", "views")


def check_stage(wanted: str | None) -> None:
    """Refuse a stage that there is not."""
    if wanted is not None and wanted not in STAGES:
        raise UsageError(
            f"--force-stage {wanted}: no such stage", code="E_STAGE", remedy=f"stages: {', '.join(STAGES)}"
        )


def check_precision(wanted: str) -> None:
    """Refuse what no network can calculate in."""
    if wanted not in PRECISIONS:
        raise UsageError(
            f"--precision {wanted}: no such precision",
            code="E_PRECISION",
            remedy=f"one of {', '.join(PRECISIONS)}",
        )


def check_steps(preset: Preset) -> None:
    """Refuse numbers of steps that a solver cannot make."""
    from crm_cli.models.steps import planned

    for sampling in (preset.rgb, preset.ccm):
        planned(sampling)


def used_weights(preset: Preset) -> UsedWeights:
    """What a preset's weights are on this machine; raises EnvironmentProblem where they were changed."""
    from crm_cli.models.weights import find, require_intact

    found = find(preset.weights)
    require_intact(found)
    views = [part for part in found.parts if part != "reconstruction"]
    wide = [0] if found.architecture == EMBEDDED else _part_bytes(found)
    return UsedWeights(
        name=found.name,
        architecture=found.architecture,
        digest=found.digest,
        stages={"views": found.digest_of(*views), "mesh": found.digest_of("reconstruction")},
        largest_bytes=max(wide),
    )


def _part_bytes(weights: WeightsSet) -> list[int]:
    """What each part takes in single precision, whatever it is stored in."""
    return [sum(_wide_bytes(file.path) for file in files) for files in weights.parts.values()]


def _wide_bytes(file: Path) -> int:
    """What the numbers of a safetensors file take in single precision, by its header; 0 where it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        return sum(4 * math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return 0  # whoever loads it will say what is wrong with it


def load_suited(name: str, overrides: Sequence[Override], engine: Engine) -> ResolvedPreset:
    """Read a preset, with what suits the weights that it will find on this machine."""
    resolved = load_preset(name, overrides)
    architecture = engine.weights(resolved.preset).architecture
    return load_preset(name, overrides, architecture=architecture)


PRODUCTION = Engine(line=PIPELINE, desk=DESK, weights=used_weights)
