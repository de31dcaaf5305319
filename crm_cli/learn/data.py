"""Training data on disk: shards of examples that are rendered once and read without filling the memory.

Example `n` is drawn from seed `n` alone, and from the folder of objects where there is one, so shards can
be made in any order and by any number of processes. Seeds below HELD_OUT are for training; HELD_OUT and
above are never trained on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import Raster
from crm_cli.learn.examples import ARRAYS, PRODUCTS, Source
from crm_cli.learn.products import FAMILIES
from crm_cli.learn.ranks import Stopped
from crm_cli.toolbox import choose

log = logging.getLogger(__name__)

HELD_OUT = 1_000_000
"""First seed that no training ever sees."""

SHARD = 256
"""Examples per shard: 50 MB at 64 px."""

POLL_S = 0.2
"""How often one who waits for examples asks whether to go on."""

NO_FAMILY = 255
"""Label of what comes from files."""

Arrays = Mapping[str, NDArray[np.generic]]


class Writer(Protocol):
    """Renders one example per seed into a file; the file appears when it is whole."""

    def __call__(self, file: Path, seeds: range, raster: Raster, size_px: int, *, source: Source) -> None:
        """source: what examples show."""


def shard_of(size_px: int) -> int:
    """How many examples a shard of larger pictures holds, to be of the same size on disk."""
    return max(8, min(SHARD, SHARD * 64**2 // size_px**2))


def write_shard(
    file: Path,
    seeds: range,
    raster: Raster,
    size_px: int,
    *,
    has_field: bool = True,
    source: Source = PRODUCTS,
) -> None:
    """Render one example per seed and store them stacked, uncompressed; the file appears when it is whole.

    Without has_field what only the reconstruction learns from is left out. source: what they show.

    Holds the arrays of `Example` with a leading axis of examples, `family` uint8 (index into FAMILIES, or
    NO_FAMILY) and `seed` int64.
    """
    made = [source.example(seed, raster, size_px=size_px, has_field=has_field) for seed in seeds]
    stacked: Arrays = {name: np.stack([getattr(one, name) for one in made]) for name in ARRAYS}
    store(file, seeds, {**stacked, "family": labels_of(one.family for one in made)})


def labels_of(families: Iterable[str]) -> NDArray[np.uint8]:
    """Families as shards hold them: their places in FAMILIES, or NO_FAMILY."""
    names = list(FAMILIES)
    return np.array([names.index(one) if one in FAMILIES else NO_FAMILY for one in families], np.uint8)


def store(file: Path, seeds: range, stacked: Arrays) -> None:
    """Write a shard, examples along the leading axis, and their seeds; the file appears when it is whole."""
    stacked = {**stacked, "seed": np.array(seeds, dtype=np.int64)}
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **stacked)
    part.replace(file)


def build(
    folder: Path,
    count: int,
    workers: int,
    *,
    first_seed: int = 0,
    size_px: int = 64,
    shard: int = SHARD,
    source: Source = PRODUCTS,
    write: Writer = write_shard,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Path]:
    """Render `count` examples into a folder, yielding each shard as it is finished; finished ones are kept.

    Args:
        folder: Made where it is missing.
        count: Examples in all; the last shard is smaller where it does not divide.
        workers: Processes that render.
        first_seed: Seed of the first example.
        size_px: Side of every picture.
        shard: Examples per file.
        source: See `write_shard`.
        write: What renders one shard.
        is_stopped: Asked now and then; whoever renders is then ended, and what is not whole is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo: list[tuple[Path, range]] = []
    for file, seeds in shards_of(folder, count, first_seed=first_seed, shard=shard):
        if file.exists():
            yield file
        else:
            todo.append((file, seeds))
    if not todo:
        return
    # Spawned, not forked: torch and warp hold threads that a fork would lose.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_interrupts) as pool:
        pending = {pool.submit(_render, file, seeds, size_px, source, write): file for file, seeds in todo}
        try:
            while pending and not is_stopped():
                for done in wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                    done.result()
                    log.info("wrote %s", pending[done])
                    yield pending.pop(done)
        finally:
            if pending:
                _end(pool)


def shards_of(
    folder: Path, count: int, *, first_seed: int = 0, shard: int = SHARD
) -> list[tuple[Path, range]]:
    """Name the files that so many examples fill, in the order of their seeds, and the seeds of each."""
    end = first_seed + count
    return [
        (folder / f"{start:07d}.npz", range(start, min(start + shard, end)))
        for start in range(first_seed, end, shard)
    ]


def _leave_interrupts() -> None:
    """Leave an interrupt, which a terminal sends to all, to the process that asked for the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(pool: ProcessPoolExecutor) -> None:
    """End those who work, in the middle of it; a pool left to itself finishes all that was asked of it."""
    for worker in list((pool._processes or {}).values()):
        worker.terminate()
    pool.shutdown(cancel_futures=True)


def _render(file: Path, seeds: range, size_px: int, source: Source, write: Writer) -> None:
    """Write one shard in a worker process, on one thread."""
    from crm_cli.mesh.raster import RASTERS

    torch.set_num_threads(1)
    write(file, seeds, choose("rasteriser", RASTERS, "cpu")(), size_px, source=source)


def stored_size_px(folder: Path) -> int | None:
    """Side of the pictures in the sets of examples below a folder; None where there are none yet."""
    files = (file for part in ("train", "held-out") for file in (folder / part).glob("*.npz"))
    file = min(files, default=None)
    return None if file is None else int(_map_members(file)["photo"].shape[-1])


class Shards:
    """Examples in a folder, in the order of their seeds, read from disk when they are asked for."""

    def __init__(self, folder: Path, count: int | None = None) -> None:
        """Open the folder. count: take the first so many examples only, however many there are."""
        self.folder = folder
        self.files = sorted(folder.glob("*.npz"))
        self._count = count
        self._arrays = [_map_members(file) for file in self.files]
        self._ends = np.cumsum([len(arrays["seed"]) for arrays in self._arrays], dtype=np.int64)

    def __len__(self) -> int:
        stored = int(self._ends[-1]) if len(self._ends) else 0
        return stored if self._count is None else min(stored, self._count)

    def at_step(self, step: int) -> int:
        """All of them, at every step."""
        return len(self)

    @cached_property
    def families(self) -> NDArray[np.uint8]:
        """Family of every example, as an index into FAMILIES: [N]."""
        return np.concatenate([np.asarray(arrays["family"]) for arrays in self._arrays])[: len(self)]

    def __getitem__(self, index: int) -> dict[str, NDArray[np.generic]]:
        """Read one example: its arrays without the leading axis."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        return {name: np.array(array[row]) for name, array in self._arrays[shard].items()}

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Read several examples, stacked [B ...]: bytes stay bytes, half precision becomes float32."""
        rows = [self[int(index)] for index in indices]
        stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        return {name: t.float() if t.is_floating_point() else t for name, t in stacked.items()}


class Growing:
    """Pictures that are rendered while a network already learns from them, held where it learns.

    Step k may choose among the first so many, and waits for them: what it sees depends on the seed and on
    k alone, however fast they come.
    """

    NAMES = ("photo", "views", "depth")
    """What the denoisers learn from."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        first: int,
        per_step: float,
        device: str,
        patience_s: float = 120.0,
        shard: int = SHARD,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reserve room for all of them: 165 KB each at 64 px.

        first: how many the first step chooses from; per_step: by how many there are more with each step.
        is_stopped: asked while it waits; at_step then raises Stopped.
        """
        self._files = shards_of(folder, count, shard=shard)
        self._count, self._first, self._per_step = count, first, per_step
        self._device, self._patience_s, self._is_stopped = device, patience_s, is_stopped
        self._held: dict[str, Tensor] = {}
        self._taken = self._files_taken = 0

    def at_step(self, step: int) -> int:
        """How many a step may choose from, once they are there."""
        wanted = min(self._count, self._first + int(step * self._per_step))
        while self._taken < wanted:
            file, seeds = self._files[self._files_taken]
            self._take(_when_written(file, self._patience_s, self._is_stopped), len(seeds))
        return wanted

    def _take(self, file: Path, count: int) -> None:
        """Copy one shard to the device."""
        arrays = _map_members(file)
        for name in self.NAMES:
            rows = torch.from_numpy(np.array(arrays[name]))
            if name not in self._held:
                self._held[name] = torch.zeros(
                    (self._count, *rows.shape[1:]), dtype=rows.dtype, device=self._device
                )
            self._held[name][self._taken : self._taken + count] = rows.to(self._device)
        self._taken += count
        self._files_taken += 1

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Pick several examples, stacked [B ...]: bytes stay bytes, half precision becomes float32."""
        chosen = torch.from_numpy(indices).to(self._device)
        picked = {name: held[chosen] for name, held in self._held.items()}
        return {name: t.float() if t.is_floating_point() else t for name, t in picked.items()}


def _when_written(file: Path, patience_s: float, is_stopped: Callable[[], bool]) -> Path:
    """Wait for a shard that another process writes; TimeoutError where it does not come."""
    end = time.monotonic() + patience_s
    while not file.exists():
        if is_stopped():
            raise Stopped
        if time.monotonic() > end:
            raise TimeoutError(f"{file}: not written within {patience_s:.0f} s")
        time.sleep(0.02)
    return file


def _map_members(file: Path) -> dict[str, NDArray[np.generic]]:
    """Map the arrays of an uncompressed npz: pages are read when touched, dropped when memory is short."""
    arrays: dict[str, NDArray[np.generic]] = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{file}: {member.filename} is compressed; shards are stored plainly")
            # A local header: 30 bytes, of which the last four say how long the name and the extra field are.
            stream.seek(member.header_offset + 26)
            name_length, extra_length = np.frombuffer(stream.read(4), dtype="<u2").tolist()
            stream.seek(member.header_offset + 30 + name_length + extra_length)
            np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            arrays[member.filename.removesuffix(".npy")] = np.memmap(
                file, dtype=dtype, mode="r", offset=stream.tell(), shape=shape, order="F" if fortran else "C"
            )
    return arrays
