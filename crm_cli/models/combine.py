"""Whole sets of weights in which some networks are other ones, such as were trained alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.hub import require_room
from crm_cli.models.loading import fits
from crm_cli.models.shards import appearing, require_replaceable, require_writable, sync, write_list
from crm_cli.models.weights import (
    CHECKPOINT_SUFFIXES,
    NAMES,
    Progress,
    WeightsFile,
    WeightsSet,
    digest_of,
    expanded,
    find,
    ignore,
    require_intact,
)
from crm_cli.preset import EMBEDDED

COPIED_BYTES = 1 << 24
"""At a time."""

Writers = Mapping[str, Callable[[Path], Sequence[WeightsFile]]]
"""What writes a part into a folder, for parts that are in no file yet."""


def combine(
    files: Sequence[Path], folder: Path, *, base: str | None = None, progress: Progress = ignore
) -> WeightsSet:
    """Put networks that were trained alone beside the others of a set, as they are.

    Args:
        files: One of each network, as `crm train --ship` writes them.
        folder: Replaced, if it holds weights already; `crm convert --weights` reads it.
        base: What has the others: `embedded`, `published`, or a folder; None: which of the first two is built
            like the files.
        progress: Told of what is copied.

    Raises:
        EnvironmentProblem: A file holds no network, or no set is built like it.
        UsageError: The files do not go together.
        OutputError: The folder cannot be written.
    """
    place = require_place(folder)
    architecture, networks = _together([expanded(str(file)) for file in files])
    weights = _others(base, architecture)
    given = {part: (_listed(file),) for part, file in networks.items()}
    wanted = replace(weights, parts={**weights.parts, **given})
    require_room(place, wanted.bytes)
    sources = {weights.name: said_of(weights)} | {
        one.path.name: {"bytes": one.bytes, "sha256": one.sha256} for [one] in given.values()
    }
    return write_set(wanted, place, {"source": sources}, progress=progress)


def _together(files: Sequence[Path]) -> tuple[str, dict[str, Path]]:
    """What all files are built like, and the file of each network; UsageError where they differ in kind."""
    architecture, networks = "", dict[str, Path]()
    for file in files:
        built_like, part = network_in(file)
        if architecture not in ("", built_like):
            raise UsageError(
                f"{file}: built like {built_like}, and {files[0]} like {architecture}",
                code="E_WEIGHTS_WRONG",
                remedy="give files of one kind",
            )
        if part in networks:
            raise UsageError(
                f"{networks[part]} and {file}: both are the {part} network",
                code="E_WEIGHTS_TWICE",
                remedy="give one of them",
            )
        architecture, networks[part] = built_like, file
    return architecture, networks


def _listed(file: Path) -> WeightsFile:
    return WeightsFile(path=file, bytes=file.stat().st_size, sha256=digest_of(file))


def network_in(file: Path, *, likely: str = "") -> tuple[str, str]:
    """Architecture and name of the network that a weights file fills; only its header is read.

    likely: what is looked for first, or what the file is called: building one to compare with takes a second.

    Raises:
        EnvironmentProblem: It cannot be read, or is of no network that is trained.
    """
    if file.suffix in CHECKPOINT_SUFFIXES and file.suffix != ".safetensors":
        raise EnvironmentProblem(
            f"{file}: a published checkpoint, which must be converted once",
            code="E_WEIGHTS_RAW",
            remedy="run `crm weights convert`, then give the folder it wrote",
        )
    remedy = "give a file that `crm train --ship` wrote"
    for part in sorted(NAMES, key=lambda part: part != (likely or file.stem)):
        for name, architecture in ARCHITECTURES.items():
            try:
                if fits(architecture.unfilled(part), [file]):
                    return name, part
            except EnvironmentProblem as error:
                raise EnvironmentProblem(error.cause, code=error.code, remedy=remedy) from error
    raise EnvironmentProblem(f"{file}: no network that crm trains", code="E_WEIGHTS_WRONG", remedy=remedy)


def _others(base: str | None, architecture: str) -> WeightsSet:
    """The set that has the networks which are not given; whole, and built like those that are."""
    try:
        weights = find(base or ("embedded" if architecture == EMBEDDED else "published"))
        require_intact(weights)
    except EnvironmentProblem as error:
        # Weights are spoken of as to those who convert with them.
        remedy = error.remedy.replace("--weights", "--with")
        if base is None:
            remedy = "run `crm weights fetch`, or name a set that has the other networks: --with FOLDER"
        raise EnvironmentProblem(error.cause, code=error.code, remedy=remedy) from error
    if weights.architecture != architecture:
        raise EnvironmentProblem(
            f"--with {weights.name}: built like {weights.architecture}, and the files like {architecture}",
            code="E_WEIGHTS_WRONG",
            remedy="name a set of their kind",
        )
    return weights


def require_place(folder: Path) -> Path:
    """Where a set would be written, or raise OutputError: days of training should not end there."""
    place = expanded(str(folder)).resolve()
    require_replaceable(place)
    require_writable(place)
    return place


def said_of(weights: WeightsSet) -> dict[str, Any]:
    """What a list says of the set that its parts are from."""
    return {"bytes": weights.bytes, "sha256": weights.digest}


def write_set(
    weights: WeightsSet,
    place: Path,
    listed: Mapping[str, Any],
    *,
    writers: Writers = MappingProxyType({}),
    progress: Progress = ignore,
) -> WeightsSet:
    """Write a set into a folder, which has it whole or is as it was; see `require_place`.

    Args:
        weights: Its files are copied byte for byte, wherever they are.
        place: The folder.
        listed: What its list says beside files and architecture.
        writers: Of parts that are not copied.
        progress: Told of what is copied.
    """
    done = 0
    with appearing(place) as folder:
        parts: dict[str, Sequence[WeightsFile]] = {}
        for part, files in weights.parts.items():
            if part in writers:
                parts[part] = writers[part](folder)
                continue
            copies = []
            for number, file in enumerate(files, 1):
                copies.append(_copied(file, folder / f"{part}-{number:05}-of-{len(files):05}.safetensors"))
                done += file.bytes
                progress(part, done, weights.bytes)
            parts[part] = copies
        write_list(folder, {"architecture": weights.architecture, **listed}, parts)
    return find(str(place))


def _copied(file: WeightsFile, copy: Path) -> WeightsFile:
    """Copy a file of a set."""
    with file.path.open("rb") as source, copy.open("xb") as target:
        shutil.copyfileobj(source, target, COPIED_BYTES)
        sync(target)
    if digest_of(copy) != file.sha256:
        raise EnvironmentProblem(
            f"{file.path}: its contents have changed since it was written",
            code="E_WEIGHTS_BROKEN",
            remedy="run `crm weights verify`",
        )
    return WeightsFile(path=copy, bytes=file.bytes, sha256=file.sha256)
