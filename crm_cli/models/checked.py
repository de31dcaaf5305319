"""What was hashed of a folder of weights, and when: large files are read again only where they changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOTES = ".checked.json"
"""Beside the list of weights; without it, everything is hashed again."""

Note = dict[str, Any]


def state_of(file: Path) -> Note:
    """What is another one as soon as a file is written to, replaced or copied."""
    known = file.stat()
    return {"bytes": known.st_size, "mtime_ns": known.st_mtime_ns, "inode": known.st_ino}


def noted(folder: Path) -> Mapping[str, Note]:
    """By the names of the files: their states when they were hashed, with the `sha256` that was found."""
    try:
        notes = json.loads((folder / NOTES).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def note(folder: Path, found: Mapping[str, Note]) -> bool:
    """Add to what is noted; return whether that could be written down."""
    part = folder / f"{NOTES}-{os.getpid()}.part"
    try:
        part.write_text(json.dumps({**noted(folder), **found}, indent=1), "ascii")
        part.replace(folder / NOTES)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True
