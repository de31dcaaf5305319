"""What the asked-for files need beside a plain install: asked before the first photo is touched."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from crm_cli.errors import EnvironmentProblem
from crm_cli.installed import why_not_importable
from crm_cli.preset import Exporting

COMPRESSORS: Mapping[str, str] = {"meshopt": "meshopt", "draco": "DracoPy"}
"""Compression as a preset names it → module that does it; the extra of the package has the preset's name."""

KTX2_TOOLS: Mapping[str, tuple[str, ...]] = {
    # Each on one thread, where the result does not depend on the machine.
    "basisu": (
        *("-ktx2", "-q", "{level}", "-mipmap", "-no_alpha", "-no_multithreading"),
        *("-file", "{png}", "-output_file", "{ktx2}"),
    ),
    "ktx": (
        *("create", "--format", "R8G8B8_SRGB", "--encode", "basis-lz", "--qlevel", "{level}"),
        *("--generate-mipmap", "--threads", "1", "{png}", "{ktx2}"),
    ),
    "toktx": (
        *("--t2", "--encode", "etc1s", "--qlevel", "{level}", "--assign_oetf", "srgb"),
        *("--genmipmap", "--threads", "1", "{ktx2}", "{png}"),
    ),
}
"""Programs that write KTX2 as KHR_texture_basisu wants it (ETC1S, sRGB, mipmaps), and how each is called.

(Basis Universal, basisu -help; KTX Tools Reference 4.4, ktx create and toktx)
"""


def check_export(export: Exporting) -> None:
    """Refuse settings for which this machine lacks a library or a program."""
    if "glb" not in export.formats:
        return
    if export.texture == "ktx2" and find_ktx2_tool() is None:
        raise no_ktx2_tool()
    if export.compression == "none":
        return
    remedy = f"pip install 'crm-cli[{export.compression}]'"
    reason = why_not_importable(COMPRESSORS[export.compression], remedy=remedy)
    if reason:
        module = COMPRESSORS[export.compression]
        raise EnvironmentProblem(
            f"export.compression: {export.compression} needs {module}: {reason}",
            code="E_COMPRESSION",
            remedy="" if remedy in reason else remedy,
        )


def find_ktx2_tool() -> str | None:
    """Name of the first program on PATH that writes KTX2."""
    return next((tool for tool in KTX2_TOOLS if shutil.which(tool)), None)


def no_ktx2_tool() -> EnvironmentProblem:
    """Say that no program writes KTX2 here."""
    return EnvironmentProblem(
        f"export.texture: ktx2 needs one of {', '.join(KTX2_TOOLS)} on PATH, and none is there",
        code="E_KTX2",
        remedy="install KTX-Software or Basis Universal, or --set export.texture=webp",
    )
