"""What other people wrote and the contact sheet carries along, unchanged; manifest.json says whose it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """The vendored viewer, as its manifest names it."""

    version: str
    source: str
    sha256: str
    style_sha256: str
    """Of the one stylesheet it puts on a page, base64: what a policy must admit."""
    licence: str
    script: Path
    licence_file: Path


@cache
def vendored_viewer() -> Viewer:
    """Read the manifest of what is vendored."""
    about = json.loads((HERE / "manifest.json").read_bytes())["model-viewer"]
    return Viewer(
        version=about["version"],
        source=about["source"],
        sha256=about["sha256"],
        style_sha256=about["style_sha256"],
        licence=about["licence"],
        script=HERE / about["file"],
        licence_file=HERE / about["licence_file"],
    )
