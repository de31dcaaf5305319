"""Where and how a run works: nothing here changes what an asset looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crm_cli.preset import Preset
from crm_cli.run.walk import Selection
from crm_cli.run.worker import PIPELINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What converts a photo, and which weights it reads. Tests swap it; no preset can."""

    line: str
    weights: Callable[[Preset], Mapping[str, str]]
    """Digest of the weights that a stage reads, by stage; raises EnvironmentProblem where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where and how assets are made; nothing here changes what they are."""

    inputs: tuple[Path, ...]
    out: Path
    select: Selection = field(default_factory=Selection)
    keep_ext: bool = False
    preset_name: str = "default"
    device: str = "auto"
    jobs: int | None = None
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    max_mpixels: float = 64.0
    overwrite: bool = False
    retry_failed: bool = False
    fail_fast: bool = False
    dry_run: bool = False
    allow_empty: bool = False
    report: bool = True
    wait_lock_s: float = 0.0


@dataclass(slots=True)
class Stop:
    """Set by signal handlers, read by the run."""

    signal: int | None = None
    """The first signal: nothing new starts."""
    is_urgent: bool = False
    """A second one: running photos are given up."""


def weights_digests(preset: Preset) -> dict[str, str]:
    """Digests of the weights on disk, for the stages that read them."""
    from crm_cli.models.weights import digest_of, find

    files = find(preset.weights).files
    both = "".join(digest_of(files[name]) for name in ("rgb", "ccm"))
    views = hashlib.sha256(both.encode("ascii")).hexdigest()
    return {"views": views, "mesh": digest_of(files["reconstruction"])}


PRODUCTION = Engine(line=PIPELINE, weights=weights_digests)
