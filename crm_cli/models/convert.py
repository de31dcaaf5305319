"""The published checkpoints become a folder of weights, once: each part in files of its own.

Nothing is rounded: tensors keep the precision they were published in. None is copied but while it is
written, so that memory stays small beside the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.archives import read_checkpoint
from crm_cli.models.checkpoints import (
    RECONSTRUCTION,
    TOWER_FILES,
    UNET,
    Tensors,
    Tower,
    check_fit,
    check_schedule,
    from_published,
    from_tower_file,
    has_tower,
    text_tower,
    unwrapped,
)
from crm_cli.models.hub import require_room
from crm_cli.models.shards import DTYPES, appearing, bytes_of, require_replaceable, write_list, write_part
from crm_cli.models.weights import (
    LATENT_NAMES,
    PUBLISHED_FILES,
    SECOND,
    Progress,
    WeightsSet,
    digest_of,
    expanded,
    find,
    ignore,
)

KINDS = {"reconstruction": PUBLISHED_FILES[0], "rgb": PUBLISHED_FILES[1], "ccm": PUBLISHED_FILES[2]}
"""The part that tells what a checkpoint is, and what it was published as."""

FIRST_LAYER = "input_blocks.0.0.weight"
"""Of a denoiser: its input channels tell which of the two it is."""

MARGIN_BYTES = 1 << 20
"""Beside the tensors themselves: headers and the list."""

TOWER_PARTS: dict[Tower, tuple[str, ...]] = {"clip": ("vision", "contexts"), "vae": ("vae",)}
"""What becomes of each tower."""

Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A file that was given, and what is in it by its published names."""

    file: Path
    tensors: Tensors


def convert(
    sources: Sequence[Path],
    folder: Path,
    *,
    architecture: str = "release",
    clip: Path | None = None,
    vae: Path | None = None,
    progress: Progress | None = None,
) -> WeightsSet:
    """Turn published checkpoints into a folder of weights, or leave everything as it was.

    Raises EnvironmentProblem for checkpoints that are not what they should be, OutputError where the
    folder cannot be written.

    Args:
        sources: The three files, whatever they are called, or a folder that has them by their names.
        folder: Replaced if it holds converted weights already.
        architecture: `release`, or `miniature` in tests.
        clip: A file of CLIP to take instead of what the diffusion checkpoints bring.
        vae: The same of the autoencoder.
        progress: Told of each source that is hashed, then of each part that is written.
    """
    folder = place_for(folder, architecture)
    checkpoints = [Checkpoint(file=file, tensors=read_checkpoint(file)) for file in _files(sources)]
    given: dict[Tower, Path | None] = {"clip": clip, "vae": vae}
    extras = {tower: _tower_checkpoint(tower, file) for tower, file in given.items() if file}
    parts = _parts(_by_kind(checkpoints, architecture), extras, architecture)
    size = sum(bytes_of(tensors) for tensors in parts.values())
    require_room(folder, size + MARGIN_BYTES)
    files = [*(checkpoint.file for checkpoint in checkpoints), *(extra.file for extra in extras.values())]
    count = _Count(progress or ignore, size + sum(file.stat().st_size for file in files))
    listed = {"architecture": architecture, "source": _describe_sources(files, count)}
    with appearing(folder) as place:
        written = {part: write_part(place, part, tensors, count.of(part)) for part, tensors in parts.items()}
        write_list(place, listed, written)
    return find(str(folder))


def place_for(folder: Path, architecture: str) -> Path:
    """Where a conversion would write, or raise what it would fail with before it reads anything."""
    if architecture not in ARCHITECTURES or ARCHITECTURES[architecture].towers is None:
        raise UsageError(
            f"{architecture}: not the architecture of a published system",
            code="E_WEIGHTS_NAME",
            remedy=f"one of {', '.join(name for name, one in ARCHITECTURES.items() if one.towers)}",
        )
    folder = expanded(str(folder)).resolve()
    require_replaceable(folder)
    return folder


class _Count:
    """Adds up what is done step after step, for one progress over everything."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def of(self, step: str) -> Callable[[int], None]:
        """What a step reports to, its own bytes done."""
        before = self._done

        def report(done: int) -> None:
            self._done = before + done
            self._progress(step, self._done, self._total)

        return report


def _describe_sources(files: Sequence[Path], count: _Count) -> dict[str, dict[str, Any]]:
    """Size and digest of each file, by its name; by its path where two have the same."""
    names = [file.name for file in files]
    try:
        return {
            file.name if names.count(file.name) == 1 else str(file): {
                "bytes": file.stat().st_size,
                "sha256": digest_of(file, count.of(file.name)),
            }
            for file in files
        }
    except OSError as error:
        raise EnvironmentProblem(
            f"{error.filename}: cannot be read: {error.strerror or error}", code="E_WEIGHTS_MISSING"
        ) from error


def _files(sources: Sequence[Path]) -> list[Path]:
    """The files that are meant, those of folders by their published names."""
    files: list[Path] = []
    for source in sources:
        files += [_inside(source, name) for name in PUBLISHED_FILES] if source.is_dir() else [source]
    return files


def _inside(folder: Path, name: str) -> Path:
    for place in (folder / name, (folder / name).with_suffix(".safetensors")):
        if place.is_file():
            return place
    half = next((entry for entry in folder.glob(f"{name}*.incomplete")), None)
    if half is not None:
        raise _missing(f"{half}: only part of a download")
    raise _missing(f"{folder}: no {name}")


def _missing(cause: str, remedy: str = "get it with `crm weights fetch`") -> EnvironmentProblem:
    return EnvironmentProblem(cause, code="E_WEIGHTS_MISSING", remedy=remedy)


def _by_kind(checkpoints: Sequence[Checkpoint], architecture: str) -> dict[str, Checkpoint]:
    """The checkpoints by what they are, whatever they are called; one of each of KINDS."""
    found: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        with _naming(checkpoint.file):
            kind = _kind(unwrapped(checkpoint.tensors), architecture)
        if kind in found:
            raise UsageError(
                f"{found[kind].file} and {checkpoint.file}: both are what was published as {KINDS[kind]}",
                code="E_WEIGHTS_TWICE",
                remedy="give one of them",
            )
        found[kind] = checkpoint
    for kind, name in KINDS.items():
        if kind not in found:
            raise _missing(f"{', '.join(str(one.file) for one in checkpoints)}: none of them is {name}")
    return found


def _kind(tensors: Tensors, architecture: str) -> str:
    """What a checkpoint is, by its contents."""
    if any(name.startswith(RECONSTRUCTION) for name in tensors):
        return "reconstruction"
    first = next((tensors[prefix + FIRST_LAYER] for prefix in UNET if prefix + FIRST_LAYER in tensors), None)
    if first is None:
        raise _unknown("neither a denoiser nor a reconstruction network is in it")
    channels = {
        part: _built(architecture, part).state_dict()[FIRST_LAYER].shape[1] for part in ("rgb", "ccm")
    }
    for part, wanted in channels.items():
        if first.ndim > 1 and first.shape[1] == wanted:
            return part
    raise _unknown(f"{FIRST_LAYER} is {list(first.shape)}; published are {[*channels.values()]} channels")


def _unknown(cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(cause, code="E_WEIGHTS_WRONG", remedy="use the published files")


@cache
def _built(architecture: str, part: str) -> nn.Module:
    """A network without values, to compare names and shapes with."""
    return ARCHITECTURES[architecture].unfilled(part)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Say which file is meant."""
    try:
        yield
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{file}: {error.cause}", code=error.code, remedy=error.remedy) from error


def _tower_checkpoint(tower: Tower, file: Path) -> Checkpoint:
    tensors = read_checkpoint(file)
    with _naming(file):
        return Checkpoint(file=file, tensors=from_tower_file(tower, tensors))


def _parts(
    checkpoints: Mapping[str, Checkpoint], extras: Mapping[Tower, Checkpoint], architecture: str
) -> Parts:
    """Everything that is to be written, each part checked against its network."""
    parts: Parts = {}
    for kind, checkpoint in checkpoints.items():
        check_schedule(checkpoint.file, checkpoint.tensors)
        parts[kind] = _part(checkpoint, kind, architecture)
    for tower in TOWER_FILES:
        parts |= _tower_parts(tower, _bringing(tower, checkpoints, extras), architecture)
    # Always in one order: the set's digest goes over its parts in the order they are listed.
    return {part: parts[part] for part in (*LATENT_NAMES, *sorted(parts)) if part in parts}


def _part(checkpoint: Checkpoint, part: str, architecture: str) -> dict[str, Tensor]:
    with _naming(checkpoint.file):
        tensors = from_published(part, checkpoint.tensors, architecture=architecture)
        check_fit(part, _built(architecture, part), tensors)
        for name, tensor in tensors.items():
            if tensor.dtype not in DTYPES:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise _unknown(f"its {part} has {name} as {kind}; published are half and single precision")
    return tensors


def _bringing(
    tower: Tower, checkpoints: Mapping[str, Checkpoint], extras: Mapping[Tower, Checkpoint]
) -> list[Checkpoint]:
    """The files that a tower is in: one for both diffusions, or one for each."""
    if tower in extras:
        return [extras[tower]]
    found = [checkpoints[kind] for kind in ("rgb", "ccm") if has_tower(tower, checkpoints[kind].tensors)]
    if not found:
        raise _missing(
            f"{checkpoints['rgb'].file} and {checkpoints['ccm'].file}: neither brings its {tower.upper()}",
            remedy=f"name a file of it: --{tower} FILE",
        )
    return found


def _tower_parts(tower: Tower, found: Sequence[Checkpoint], architecture: str) -> Parts:
    """The parts that come from a tower; those of a second file only where they differ from the first's."""
    parts: Parts = {}
    for part in TOWER_PARTS[tower]:
        parts[part] = _part(found[0], part, architecture)
        for second in found[1:]:
            # Contexts are computed: what they are computed from is compared, and most often that is all.
            if not _is_same(*(_origin(one, part, architecture) for one in (found[0], second))):
                parts[SECOND + part] = _part(second, part, architecture)
    return parts


def _origin(checkpoint: Checkpoint, part: str, architecture: str) -> dict[str, Tensor]:
    """The published tensors that a part is made of."""
    if part == "contexts":
        return text_tower(checkpoint.tensors, architecture=architecture)
    return from_published(part, checkpoint.tensors, architecture=architecture)


def _is_same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
