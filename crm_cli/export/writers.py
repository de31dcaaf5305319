"""Which formats there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from crm_cli.errors import UsageError
from crm_cli.export.glb import write_glb
from crm_cli.export.obj import write_obj
from crm_cli.export.scene import Scene
from crm_cli.export.textures import Picture, TextureFormat, encode_texture
from crm_cli.export.usd import write_usd, write_usdz
from crm_cli.names import SUFFIXES
from crm_cli.preset import Exporting


class Writer(Protocol):
    """Writes a scene to `path` and its companions beside it; returns every file made, `path` first.

    It writes plainly: whoever calls gives it a folder of its own and moves the files from there.
    """

    def __call__(self, scene: Scene, path: Path, *, picture: Picture) -> list[Path]: ...  # noqa: D102


PLAIN_WRITERS: Mapping[str, Writer] = {"obj": write_obj, "usd": write_usd, "usdz": write_usdz}
"""Of the formats whose readers know PNG and JPEG alone, and no compression."""


def write_asset(scene: Scene, folder: Path, stem: str, export: Exporting) -> list[Path]:
    """Write one asset in the formats a preset asks for, as `folder/stem.*`; return the files, each once.

    OBJ and USD share one texture file. The same scene and settings give the same bytes, and files of that
    name are replaced, so that it may be called again with other settings until an asset fits its limits.
    """
    pictures: dict[TextureFormat, Picture] = {}
    files: dict[Path, None] = {}
    for name in export.formats:
        if name not in SUFFIXES:
            raise UsageError(
                f"export.formats: no such format {name!r}",
                code="E_FORMAT",
                remedy=f"choose from {', '.join(SUFFIXES)}",
            )
        kind = export.texture if name == "glb" else export.plain_texture
        if kind not in pictures:
            pictures[kind] = encode_texture(scene.texture, kind, quality=export.texture_quality)
        # Joined, not with_suffix(): a stem may hold dots.
        path = folder / f"{stem}{SUFFIXES[name]}"
        if name == "glb":
            made = write_glb(scene, path, picture=pictures[kind], compression=export.compression)
        else:
            made = PLAIN_WRITERS[name](scene, path, picture=pictures[kind])
        files.update(dict.fromkeys(made))
    return list(files)
