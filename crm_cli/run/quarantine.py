"""Photos that crash every worker: set aside with the evidence, until they change or somebody asks again.

OUT/.crm/quarantine/<asset>/
    evidence.json     what was asked for, and how it ended
    attempt-N.log     the last words of each worker that crashed: its complaints, and where its threads were
    photo.<ext>       the photo's bytes
    views/            the cut-out and six views, where the crash came after them
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crm_cli.run.files import write_atomically
from crm_cli.run.wire import dumps

FOLDER = "quarantine"


def folder_of(out: Path, asset_id: str) -> Path:
    """Where the evidence of an asset is kept."""
    return out / ".crm" / FOLDER / asset_id


def keep(
    out: Path,
    asset_id: str,
    *,
    run: str,
    about: Mapping[str, Any],
    logs: Sequence[str],
    photo: Path,
    views: Path | None,
) -> Path:
    """Keep the evidence of crashes in place of any earlier; returns its folder. Raises OSError.

    views: folder of the cache that holds the photo's views, if they got so far.
    """
    folder = folder_of(out, asset_id)
    folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, log in enumerate(logs, start=1):
        text = log.encode("utf-8", "backslashreplace")
        write_atomically(folder / f"attempt-{number}.log", text, run=run)
    # Evidence that cannot be had is no reason to lose the rest.
    with contextlib.suppress(OSError):
        shutil.copyfile(photo, folder / f"photo{photo.suffix.lower()}")
    if views is not None and views.is_dir():
        with contextlib.suppress(OSError):
            # Links cost no space, and nobody writes to what is in the cache.
            shutil.copytree(views, folder / "views", copy_function=_link)
    write_atomically(folder / "evidence.json", dumps(about).encode("ascii") + b"\n", run=run)
    return folder


def release(out: Path, asset_id: str) -> None:
    """Drop the evidence against a photo that has become an asset after all."""
    shutil.rmtree(folder_of(out, asset_id), ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where a file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
