"""A folder of weights on its way to disk: tensors streamed into files, the folder whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from crm_cli.errors import OutputError
from crm_cli.models import checked
from crm_cli.models.loading import TYPES
from crm_cli.models.weights import FORMAT, LATENT_NAMES, MANIFEST, SECOND, WeightsFile, nearest

SHARD_BYTES = 10**9
"""Larger parts are split: every file system takes this, and a broken file costs little."""

HEADER_ALIGNMENT = 8
"""The header is padded with blanks to a multiple of this (safetensors, format)."""

Thing = TypeVar("Thing")

DTYPES = {dtype: name for name, dtype in TYPES.items()}

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by whoever writes an unfinished folder; one that nobody holds is debris."""

ELSEWHERE = "free space, fix rights, or choose another place: CRM_WEIGHTS_HOME, `crm weights convert -o`"

OURS = re.compile(
    rf"({re.escape(SECOND)})?({'|'.join(LATENT_NAMES)})-\d{{5}}-of-\d{{5}}\.safetensors",
)
"""Files of a converted folder; others split theirs in the same way, and may have them nowhere else."""


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take, on disk as in memory."""
    return sum(tensor.nbytes for tensor in tensors.values())


def write_part(
    folder: Path, part: str, tensors: Mapping[str, Tensor], report: Callable[[int], None]
) -> list[WeightsFile]:
    """Write tensors, as they are, into PART-00001-of-0000N.safetensors and so on.

    The same tensors give the same bytes. `report` is told how many of theirs have been written.
    """
    shards = [dict(items) for items in grouped(tensors.items(), lambda item: item[1].nbytes, SHARD_BYTES)]
    files, done = [], 0
    for number, shard in enumerate(shards, 1):
        file = folder / f"{part}-{number:05}-of-{len(shards):05}.safetensors"
        _warn_of_infinite(part, shard)
        with file.open("xb") as stream:
            digest = hashlib.sha256()
            for place, data in enumerate(_serialised(shard)):
                stream.write(data)
                digest.update(data)
                done += len(data) if place else 0  # the header is nobody's tensor
                report(done)
            sync(stream)
        files.append(WeightsFile(path=file, bytes=file.stat().st_size, sha256=digest.hexdigest()))
    return files


def write_list(place: Path, listed: Mapping[str, Any], parts: Mapping[str, Sequence[WeightsFile]]) -> None:
    """Write the list of the parts in a folder, which makes it a set of weights.

    listed: what else it says; see `weights.MANIFEST`. parts: files that have just been written or compared
    with their digests.
    """
    files = {part: {"files": [_entry(file) for file in written]} for part, written in parts.items()}
    # Whatever moves the folder to its place leaves the files in it as they are.
    checked.note(
        place,
        {
            file.path.name: {**checked.state_of(file.path), "sha256": file.sha256}
            for written in parts.values()
            for file in written
        },
    )
    whole = {"format": FORMAT, **listed, "parts": files}
    write_whole(place / MANIFEST, json.dumps(whole, indent=1).encode("utf-8"))


def _entry(file: WeightsFile) -> dict[str, Any]:
    return {"name": file.path.name, "bytes": file.bytes, "sha256": file.sha256}


def grouped(things: Iterable[Thing], size_of: Callable[[Thing], int], most: int) -> Iterator[list[Thing]]:
    """Things in their order: at a time so many that their sizes add up to `most`, or one that is larger."""
    group: list[Thing] = []
    held = 0
    for thing in things:
        size = size_of(thing)
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(thing)
        held += size
    if group:
        yield group


def _warn_of_infinite(part: str, tensors: Mapping[str, Tensor]) -> None:
    """Say so where values are those of a training that diverged: photos would fail, and nobody knew why."""
    strange = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        log.warning("%s: %s%s: not finite, nothing can be made with them", part, strange[0], more)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Extremes take a tenth of the time of asking every value, and are not finite where one is not.
    return all(extreme.isfinite() for extreme in tensor.aminmax())


def _serialised(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece: its header, then one tensor after the other.

    The library writes the same, from a copy of all of them.
    """
    # Wide types first: so every tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        # A tensor may be a view into a storage that it shares with all the others.
        yield tensors[name].contiguous().flatten().view(torch.uint8).numpy().data


def write_whole(file: Path, data: bytes) -> None:
    """Write a small file to the disk itself."""
    with file.open("xb") as stream:
        stream.write(data)
        sync(stream)


def sync(stream: BinaryIO) -> None:
    """Return when what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def require_replaceable(folder: Path) -> None:
    """Raise OutputError where a new folder of weights would take the place of something else."""
    try:
        others = [
            name
            for name in _contents(folder)
            if name not in (MANIFEST, LOCK)
            and not name.startswith(checked.NOTES)
            and not OURS.fullmatch(name)
        ]
        is_mount = folder.is_mount()
    except OSError as error:
        raise _unwritable(folder, error) from error
    if is_mount:
        # A folder takes its place by a rename, and the root of a disk has none beside it.
        raise OutputError(
            f"{folder}: the root of a disk, which cannot be replaced",
            code="E_WEIGHTS_FOLDER",
            remedy="choose a folder in it",
        )
    if others:
        raise OutputError(
            f"{folder}: holds {sorted(others)[0]}, and would be replaced as a whole",
            code="E_WEIGHTS_FOLDER",
            remedy="choose a folder that is empty, or not there yet",
        )


def require_writable(folder: Path) -> None:
    """Raise OutputError where a folder could not be made or replaced; nothing is left behind."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder.parent)):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror or error}", code="E_OUTPUT", remedy=ELSEWHERE
        ) from error


def _contents(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends well and is gone otherwise.

    What stands in that place stands there until then. Debris of a process that was killed is removed.
    """
    mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    part = folder.with_name(f".{folder.name}-{mark}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _in_turn(folder.parent):
                _sweep(folder)
                part.mkdir()
                lock = stack.enter_context((part / LOCK).open("xb"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield part
            with _in_turn(folder.parent):
                (part / LOCK).unlink()
                _sync_folder(part)
                _swap(part, folder, folder.with_name(f".{folder.name}-{mark}.old"))
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Let one process at a time move things in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Network disks cannot lock a folder; there, two that end at the same moment may disturb each other.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _swap(part: Path, folder: Path, old: Path) -> None:
    try:
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left beside a folder, and put back what they had moved away."""
    left = re.compile(re.escape(f".{folder.name}-") + r"\d+-[0-9a-f]{8}\.(part|old)")
    for name in _contents(folder.parent):
        path = folder.with_name(name)
        if not left.fullmatch(name):
            continue
        if path.suffix == ".old" and not folder.exists():
            path.rename(folder)
        elif path.suffix == ".old" or not _is_held(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)


def _is_held(file: Path) -> bool:
    """Whether a process writes there; another user's folder counts as such."""
    try:
        # Network disks lock only what can be written.
        with file.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except FileNotFoundError:
        return False
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{error.filename or folder}: {error.strerror or error}",
        code="E_OUTPUT",
        remedy=ELSEWHERE,
    )
