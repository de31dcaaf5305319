"""Which formats there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from crm_cli.errors import UsageError
from crm_cli.export.glb import write_glb
from crm_cli.export.obj import write_obj
from crm_cli.export.scene import Scene
from crm_cli.export.usd import write_usd, write_usdz


class Writer(Protocol):
    """Writes a scene to `path` and its companions beside it; returns every file made, `path` first.

    It writes plainly: whoever calls gives it a folder of its own and moves the files from there.
    """

    def __call__(self, scene: Scene, path: Path) -> list[Path]: ...  # noqa: D102


WRITERS: Mapping[str, tuple[str, Writer]] = {
    "glb": (".glb", write_glb),
    "obj": (".obj", write_obj),
    "usd": (".usdc", write_usd),
    "usdz": (".usdz", write_usdz),
}
"""Format as a preset names it → suffix of its main file, and its writer."""


def write_asset(scene: Scene, folder: Path, stem: str, formats: Iterable[str]) -> list[Path]:
    """Write one asset in several formats as `folder/stem.*`; return the files, each once.

    OBJ and USD share one texture file.
    """
    files: dict[Path, None] = {}
    for name in formats:
        if name not in WRITERS:
            raise UsageError(
                f"export.formats: no such format {name!r}",
                code="E_FORMAT",
                remedy=f"choose from {', '.join(WRITERS)}",
            )
        suffix, write = WRITERS[name]
        # Joined, not with_suffix(): a stem may hold dots.
        files.update(dict.fromkeys(write(scene, folder / f"{stem}{suffix}")))
    return list(files)
