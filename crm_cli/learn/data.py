"""Training data on disk: shards of examples that are rendered once and read without filling the memory.

Example `n` is drawn from seed `n` alone, so shards can be made in any order and by any number of
processes. Seeds below HELD_OUT are for training; HELD_OUT and above are never trained on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import Raster
from crm_cli.learn.examples import ARRAYS, make_example
from crm_cli.learn.products import FAMILIES

log = logging.getLogger(__name__)

HELD_OUT = 1_000_000
"""First seed that no training ever sees."""

SHARD = 256
"""Examples per shard: 50 MB at 64 px."""

Arrays = Mapping[str, NDArray[np.generic]]


def write_shard(file: Path, seeds: range, raster: Raster, size_px: int) -> None:
    """Render one example per seed and store them stacked, uncompressed; the file appears when it is whole.

    Holds the arrays of `Example` with a leading axis of examples, `family` uint8 (index into FAMILIES)
    and `seed` int64.
    """
    names = list(FAMILIES)
    columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ARRAYS}
    families = []
    for seed in seeds:
        example = make_example(np.random.default_rng(seed), raster, size_px=size_px)
        families.append(names.index(example.family))
        for name in ARRAYS:
            columns[name].append(getattr(example, name))
    stacked: dict[str, NDArray[np.generic]] = {name: np.stack(column) for name, column in columns.items()}
    stacked["family"] = np.array(families, dtype=np.uint8)
    stacked["seed"] = np.array(seeds, dtype=np.int64)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **stacked)
    part.replace(file)


def build(
    folder: Path, count: int, workers: int, *, first_seed: int = 0, size_px: int = 64, shard: int = SHARD
) -> Iterator[Path]:
    """Render `count` examples into a folder, yielding each shard as it is finished; finished ones are kept.

    Args:
        folder: Made where it is missing.
        count: Examples in all; the last shard is smaller where it does not divide.
        workers: Processes that render.
        first_seed: Seed of the first example.
        size_px: Side of every picture.
        shard: Examples per file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(first_seed, first_seed + count, shard)
    todo: list[tuple[Path, range]] = []
    for start in starts:
        file = folder / f"{start:07d}.npz"
        if file.exists():
            yield file
        else:
            todo.append((file, range(start, min(start + shard, first_seed + count))))
    if not todo:
        return
    # Spawned, not forked: torch and warp hold threads that a fork would lose.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(_render, file, seeds, size_px): file for file, seeds in todo}
        for done in as_completed(pending):
            done.result()
            log.info("wrote %s", pending[done])
            yield pending[done]


def _render(file: Path, seeds: range, size_px: int) -> None:
    """Write one shard in a worker process, on one thread."""
    from crm_cli.mesh.raster import WarpRaster

    torch.set_num_threads(1)
    write_shard(file, seeds, WarpRaster(), size_px)


class Shards:
    """Examples in a folder, in the order of their seeds, read from disk when they are asked for."""

    def __init__(self, folder: Path, count: int | None = None) -> None:
        """Open the folder. count: take the first so many examples only, however many there are."""
        self.files = sorted(folder.glob("*.npz"))
        self._count = count
        self._arrays = [_map_members(file) for file in self.files]
        self._ends = np.cumsum([len(arrays["seed"]) for arrays in self._arrays], dtype=np.int64)

    def __len__(self) -> int:
        stored = int(self._ends[-1]) if len(self._ends) else 0
        return stored if self._count is None else min(stored, self._count)

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
