"""One asset made again, from what its file says and its photo, and compared with it byte for byte.

It is made by a run of its own, of one photo under the asset's name: OBJ and USD name the files beside them
after it. So a worker, its libraries and their settings are those of any run.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crm_cli import __version__
from crm_cli.errors import CrmError, EnvironmentProblem, NoInput, UsageError
from crm_cli.names import SUFFIXES
from crm_cli.preset import Preset, read_json
from crm_cli.records import RealSize
from crm_cli.run.files import hash_file, hash_photo
from crm_cli.run.machine import find_devices
from crm_cli.run.options import RunOptions
from crm_cli.run.products import Product

if TYPE_CHECKING:
    from crm_cli.export.provenance import Format, Labelled, Provenance
    from crm_cli.models.weights import WeightsSet

MOST_MPIXELS = 1e6
"""The photo was taken once."""

_LEVEL = re.compile(r"(.+)_lod\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recreation:
    """How an asset is going to be made again."""

    file: Path
    format: Format
    sha256: str
    """Of the file."""
    preset: Preset
    options: RunOptions
    name: str
    """Of the file that will be compared with it, in the output folder."""
    warnings: tuple[str, ...]
    """What is not as it was then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What came of it."""

    is_identical: bool
    differences: tuple[str, ...]
    """Of the file and those beside it, each `part` or `file: part`, the first first."""
    made: Path
    warnings: tuple[str, ...]


def plan_recreation(
    file: Path, photo: Path, *, scratch: Path, out: Path | None = None, weights: str = "", device: str = ""
) -> Recreation:
    """Read a file's recipe and hold it against what is here.

    NoInput where the file is not ours or the photo another, UsageError where it holds no recipe that this
    version could follow, EnvironmentProblem where its weights are not here.

    Args:
        file: The asset.
        photo: What it was made of.
        scratch: An empty folder, for the photo under another name and, without `out`, for what is made.
        out: Where what is made is to stay.
        weights: Where to look for them; empty: where they usually are.
        device: To use another than then.
    """
    from crm_cli.export.provenance import read_label

    label = read_label(file)
    said = label.provenance
    if said.settings is None:
        raise UsageError(
            f"{file}: does not hold the settings it was made with",
            code="E_NO_RECIPE",
            remedy="it was made by an early version of crm, or edited"
            if not said.preset
            else "it was edited",
        )
    _require_photo(photo, said)
    found = _find_weights(said, choice=weights)
    preset = read_json(said.preset, weights=_named(found, said, scratch), origin=str(file))
    made = (out or scratch / "out").absolute()
    if file.absolute().is_relative_to(made):
        raise UsageError(
            f"-o {out}: holds the file that is to be compared",
            code="E_OUT_HOLDS_FILE",
            remedy="name another folder",
        )
    stem = _stem(file, said)
    (scratch / "in").mkdir()
    source = scratch / "in" / f"{stem}{photo.suffix}"
    shutil.copyfile(photo, source)
    used = _device(said, device)
    warnings = [*_changes(said), *_device_changes(said, used)]
    return Recreation(
        file=file,
        format=label.format,
        sha256=hash_file(file).sha256,
        preset=preset,
        options=RunOptions(
            inputs=(source,),
            products=_listed(said, source.name),
            out=made,
            device=used,
            jobs=_jobs(said),
            precision=said.precision or "auto",
            max_mpixels=MOST_MPIXELS,
            cache_bytes=0,
            min_free_bytes=0,
            report=False,
        ),
        name=_name(file, label),
        warnings=tuple(warnings),
    )


def compare(wanted: Recreation) -> Likeness:
    """Hold what was made against the file, and against the files beside it that belong to it."""
    from crm_cli.export.difference import differences

    made, here = wanted.options.out / wanted.name, wanted.file.absolute().parent
    if not made.is_file():
        raise UsageError(
            f"{wanted.file}: the same settings make no {wanted.name}",
            code="E_NO_RECIPE",
            remedy="give the file the name that crm gave it",
        )
    unlike = differences(wanted.file, made, wanted.format)
    warnings = list(wanted.warnings)
    for file in sorted(made.parent.iterdir()):
        if _belongs(file, made, wanted.format):
            beside = here / file.name
            if not beside.is_file():
                warnings.append(f"{file.name} is not beside it, and was not compared")
            elif hash_file(beside).sha256 != hash_file(file).sha256:
                unlike.append(f"{file.name}: {'texture' if file.suffix != '.mtl' else 'material'}")
    return Likeness(is_identical=not unlike, differences=tuple(unlike), made=made, warnings=tuple(warnings))


def _belongs(file: Path, made: Path, kind: Format) -> bool:
    """Whether a file is the texture or MTL of the one that is compared; levels of detail have their own."""
    from crm_cli.export.scene import companion_stem

    is_companion = file.stem == companion_stem(made.stem) and file.suffix not in SUFFIXES.values()
    return is_companion and (kind == "obj" or (kind == "usd" and file.suffix != ".mtl"))


def _require_photo(photo: Path, said: Provenance) -> None:
    """Raise NoInput where a photo is another than the file was made of."""
    try:
        digest = hash_photo(photo).sha256
    except OSError as error:
        raise NoInput(f"{photo}: cannot be read: {error.strerror or error}", code="E_NO_FILE") from error
    if digest != said.photo_sha256:
        raise NoInput(
            f"{photo}: not the photo it was made of: SHA-256 {digest[:12]}…, not {said.photo_sha256[:12]}…",
            code="E_OTHER_PHOTO",
            remedy="give the very file, unedited",
        )


def _find_weights(said: Provenance, *, choice: str) -> WeightsSet:
    """The weights of the recorded digest, wherever they are; EnvironmentProblem where they are nowhere."""
    from crm_cli.models.weights import find

    for place in (choice,) if choice else ("embedded", "published"):
        try:
            found = find(place)
        except CrmError:
            if choice:
                raise
            continue
        if found.digest == said.weights_sha256:
            return found
        if choice:
            raise EnvironmentProblem(
                f"--weights {choice}: digest {found.digest[:12]}…, it was made with "
                f"{said.weights} ({said.weights_sha256[:12]}…)",
                code="E_WEIGHTS_OTHER",
                remedy="give those it was made with",
            )
    raise EnvironmentProblem(
        f"the weights it was made with, {said.weights} ({said.weights_sha256[:12]}…), are not here",
        code="E_WEIGHTS_MISSING",
        remedy="`crm weights fetch` gets the published ones; --weights FOLDER names a folder of your own",
    )


def _named(found: WeightsSet, said: Provenance, scratch: Path) -> str:
    """What the preset must call them, so that the new file says of them what the old one does."""
    if found.name == said.weights:
        return found.name if found.name in ("embedded", "published") else str(found.directory)
    if said.weights in ("", ".", "..") or Path(said.weights).name != said.weights:
        return str(found.directory)
    (scratch / "weights").mkdir()
    link = scratch / "weights" / said.weights
    link.symlink_to(found.directory, target_is_directory=True)
    return str(link)


def _stem(file: Path, said: Provenance) -> str:
    """The asset's name, from that of one of its files."""
    level = _LEVEL.fullmatch(file.stem)
    return level[1] if level and _has_levels(said) else file.stem


def _has_levels(said: Provenance) -> bool:
    """Whether the preset writes several files of a format, each of fewer triangles."""
    export: Any = (said.settings or {}).get("export")
    return isinstance(export, dict) and export.get("lods", [1.0]) != [1.0]


def _name(file: Path, label: Labelled) -> str:
    """The file's name as crm would write it: the suffix may be another by now."""
    return file.stem + SUFFIXES[label.format]


def _device(said: Provenance, wanted: str) -> str:
    """The device to use: that of then where there is one."""
    if wanted or said.device != "cuda":
        return wanted or "cpu"
    return find_devices("auto")[0]


def _listed(said: Provenance, photo: str) -> tuple[Product, ...]:
    """The table of products of then, as far as it was about this one."""
    listed = said.more.get("listed_size_mm", "")
    try:
        return (Product(name=photo, size=RealSize.from_text(listed)),) if listed else ()
    except ValueError:  # it was edited; the difference will be told
        return ()


def _jobs(said: Provenance) -> int | None:
    """So many workers that each gets the threads of then, where they count."""
    from crm_cli.toolbox import usable_cores

    threads = said.more.get("threads", "")
    return max(1, usable_cores() // int(threads)) if re.fullmatch(r"[1-9]\d{0,3}", threads) else None


def _changes(said: Provenance) -> list[str]:
    """What else computes now than did then."""
    from crm_cli.export.provenance import versions

    now = versions(*said.tools)
    pairs = [("crm", said.crm_version, __version__)]
    pairs += [
        (name, said.libraries.get(name, "none"), now.get(name, "none"))
        for name in sorted(said.libraries.keys() | now.keys())
    ]
    return [f"{name} was {old} then, and is {new} here" for name, old, new in pairs if old != new]


def _device_changes(said: Provenance, used: str) -> list[str]:
    kind = used.partition(":")[0]
    if said.device in ("", kind) or used == "auto":
        return []
    return [f"it was made on {said.device}, and is made on {kind} here: numbers are rounded in another way"]
