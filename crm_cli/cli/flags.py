"""The flags of `crm convert`, put together by what they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_presets(incomplete: str) -> list[str]:
    """Names of presets, for the shell."""
    from crm_cli.preset import list_presets

    return [name for name in list_presets() if name.startswith(incomplete)]


def complete_formats(incomplete: str) -> list[str]:
    """Formats, for the shell; after a comma the next one."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ("glb", "obj", "usd", "usdz") if name.startswith(last)]


def complete_stages(incomplete: str) -> list[str]:
    """Names of stages, for the shell."""
    from crm_cli.run.options import STAGES

    return [name for name in STAGES if name.startswith(incomplete)]


# What to make.
# No paths: those would make one slash of a URL's two.
Out = Annotated[
    str, typer.Option("-o", "--out", help="Output folder, or its URL; mirrors the input's folders.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Photos, and folders searched for photos; or their URLs."),
]
PresetName = Annotated[
    str,
    typer.Option(
        "-p", "--preset", envvar="CRM_PRESET", help="Name of a preset, or a file.yaml.",
        autocompletion=complete_presets,
    ),
]  # fmt: skip
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset.")
]
Matting = Annotated[
    str | None,
    typer.Option(envvar="CRM_MATTING", help="Who finds the subject: auto, alpha, grabcut, rembg, none."),
]
Weights = Annotated[
    str | None, typer.Option(envvar="CRM_WEIGHTS", help="auto, embedded, published, or a folder.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format", envvar="CRM_FORMAT", help="glb, obj, usd, usdz; repeat, or separate by commas.",
        autocompletion=complete_formats,
    ),
]  # fmt: skip

# Which photos.
FromFile = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="More photos and folders, one a line; - is stdin.")
]
Null = Annotated[bool, typer.Option("-0", "--null", help="Lists end their paths with NUL bytes.")]
Include = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Take only photos that match.")]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave out what matches.")]
NoRecursive = Annotated[bool, typer.Option("--no-recursive", help="Do not search sub-folders.")]
FollowSymlinks = Annotated[
    bool,
    typer.Option(
        "--follow-symlinks", help="Take links that lead out of the input, and search linked folders."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N photos only.")]
ShardText = Annotated[
    str | None, typer.Option(metavar="I/N", help="Take part I of N, for N machines with one OUT.")
]
KeepExt = Annotated[
    bool, typer.Option("--keep-ext", help="Name assets a.jpg.glb, so that a.jpg and a.png can both stay.")
]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="No photo is no error.")]

# What to do with what is there, and with failures.
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files in OUT that crm did not write.")]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave photos alone whose files in OUT crm did not write.")
]
KeepStale = Annotated[
    bool, typer.Option("--keep-stale", help="Keep assets that other settings or weights have made.")
]
ForceStage = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE", help="Make every asset anew from a stage on: prepare, imagine, unwrap, …",
        autocompletion=complete_stages,
    ),
]  # fmt: skip
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try photos again that were refused or put in quarantine.")
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going/--fail-fast", help="Go on after failures, or stop after the first.")
]
MaxFailures = Annotated[
    str | None,
    typer.Option(metavar="N|P%", envvar="CRM_MAX_FAILURES", help="Stop once so many photos have failed."),
]
AllowFailures = Annotated[
    str | None,
    typer.Option(metavar="N|P%", envvar="CRM_ALLOW_FAILURES", help="So many failures still exit with 0."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and why; write nothing.")]

# Where and how long.
Jobs = Annotated[
    int | None, typer.Option("-j", "--jobs", min=1, envvar="CRM_JOBS", help="Photos at the same time.")
]
Device = Annotated[str, typer.Option(envvar="CRM_DEVICE", help="auto, cpu, cuda, or cuda:0,1.")]
Precision = Annotated[
    str, typer.Option(envvar="CRM_PRECISION", help="auto, float32, bfloat16 or float16, for large networks.")
]
Timeouts = Annotated[
    list[str] | None,
    typer.Option(
        "--timeout",
        metavar="STAGE=TIME",
        help="Change a stage's deadline, counted from its start or its last sign of life.",
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(metavar="TIME", envvar="CRM_TIME_LIMIT", help="Start no photo after this: 45m, 3h30m."),
]
Grace = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        envvar="CRM_GRACE",
        help="How long running photos may take after SIGTERM or the limit.",
    ),
]
WaitLock = Annotated[
    str, typer.Option(metavar="TIME", envvar="CRM_WAIT_LOCK", help="Wait for another run in OUT to end.")
]
MaxMpixels = Annotated[
    float, typer.Option(min=0.01, envvar="CRM_MAX_MPIXELS", help="Refuse photos of more million pixels.")
]
MinFree = Annotated[
    str,
    typer.Option(
        metavar="SIZE", envvar="CRM_MIN_FREE", help="Begin only with so much space free: 2G; 0 never asks."
    ),
]
CacheSize = Annotated[
    str,
    typer.Option(
        envvar="CRM_CACHE_SIZE",
        metavar="SIZE",
        help="What OUT may keep of imagined views, so that other textures or formats need no network.",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither keep views nor use kept ones.")]

# What is told, and where.
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no contact sheet.")]
Junit = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="CRM_JUNIT", help="Write the results as JUnit XML, for CI servers."),
]
