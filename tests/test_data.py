"""Shards come from their seeds alone, appear whole, and read back what was rendered."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from crm_cli.learn import data, examples
from crm_cli.learn.data import HELD_OUT, Growing, Shards, build, write_shard
from crm_cli.learn.examples import ARRAYS, make_example
from crm_cli.learn.photograph import SAMPLES
from crm_cli.learn.products import FAMILIES
from crm_cli.learn.ranks import Stopped
from crm_cli.mesh.raster import WarpRaster

RASTER = WarpRaster()


def test_a_shard_reads_back_its_examples(tmp_path: Path) -> None:
    write_shard(tmp_path / "0000003.npz", range(3, 6), RASTER, 32)
    shards = Shards(tmp_path)
    example = make_example(np.random.default_rng(4), RASTER, size_px=32)
    row = shards[1]
    for name in ARRAYS:
        np.testing.assert_array_equal(row[name], getattr(example, name))
    assert row["seed"] == 4
    assert list(FAMILIES)[shards.families[1]] == example.family
    assert [file.name for file in tmp_path.iterdir()] == ["0000003.npz"]


def test_examples_are_numbered_across_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "0000000.npz", range(2), RASTER, 16)
    write_shard(tmp_path / "0000002.npz", range(2, 5), RASTER, 16)
    shards = Shards(tmp_path)
    assert len(shards) == 5
    assert [int(shards[k]["seed"]) for k in range(5)] == list(range(5))
    with pytest.raises(IndexError):
        shards[5]
    batch = shards.batch(np.array([4, 0]))
    assert batch["seed"].tolist() == [4, 0]
    assert batch["photo"].shape == (2, 4, 16, 16) and batch["photo"].dtype.is_floating_point is False
    assert batch["depth"].dtype.itemsize == 4


def test_finished_shards_are_kept_and_missing_ones_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0000010.npz", range(10, 12), RASTER, 16)
    before = (tmp_path / "0000010.npz").stat().st_mtime_ns
    made = sorted(build(tmp_path, 5, 1, first_seed=10, size_px=16, shard=2))
    assert [file.name for file in made] == ["0000010.npz", "0000012.npz", "0000014.npz"]
    assert (tmp_path / "0000010.npz").stat().st_mtime_ns == before
    shards = Shards(tmp_path)
    assert [int(shards[k]["seed"]) for k in range(len(shards))] == list(range(10, 15))

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is left to render")

    monkeypatch.setattr(data, "_render", refuse)
    assert len(list(build(tmp_path, 5, 1, first_seed=10, size_px=16, shard=2))) == 3


def test_rendering_that_is_stopped_ends_at_once_and_leaves_nobody_behind(tmp_path: Path) -> None:
    finished: list[Path] = []
    rendering = build(tmp_path, 50, 1, size_px=16, shard=1, is_stopped=lambda: bool(finished))
    finished.extend(rendering)
    assert 1 <= len(finished) < 50
    # One may have been finished while nobody looked any more.
    assert len(finished) <= len(list(tmp_path.glob("*.npz"))) < 50
    for child in multiprocessing.active_children():
        child.join(timeout=30)
    assert multiprocessing.active_children() == []


def test_whoever_renders_is_ended_in_the_middle_of_a_file(tmp_path: Path) -> None:
    asked = iter([False] * 3)
    assert list(build(tmp_path, 600, 1, size_px=16, shard=600, is_stopped=lambda: next(asked, True))) == []
    assert not list(tmp_path.glob("*.npz"))


def test_waiting_for_examples_ends_when_nobody_wants_them_any_more(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 5, first=1, per_step=0.5, device="cpu", shard=2, is_stopped=lambda: True)
    with pytest.raises(Stopped):
        growing.at_step(0)


def test_a_failing_example_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(examples, "make_example", fail)
    with pytest.raises(MemoryError):
        write_shard(tmp_path / "0000000.npz", range(2), RASTER, 16)
    assert not list(tmp_path.iterdir())


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "0000000.npz", seed=np.arange(3))
    with pytest.raises(ValueError, match=r"seed\.npy is compressed"):
        Shards(tmp_path)


def test_sample_photos_are_of_held_out_products() -> None:
    assert all(sample.seed >= HELD_OUT for sample in SAMPLES)


def test_a_set_can_be_limited_to_its_first_examples(tmp_path: Path) -> None:
    for start in (0, 2):
        write_shard(tmp_path / f"{start:07d}.npz", range(start, start + 2), RASTER, 16)
    assert len(Shards(tmp_path)) == 4
    limited = Shards(tmp_path, 3)
    assert len(limited) == len(limited.families) == 3
    assert int(limited[2]["seed"]) == 2
    with pytest.raises(IndexError):
        limited[3]


def test_growing_examples_are_there_when_a_step_asks_for_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "0000000.npz", range(2), RASTER, 16, has_field=False)
    growing = Growing(tmp_path, 5, first=1, per_step=0.5, device="cpu", patience_s=0, shard=2)
    assert [growing.at_step(step) for step in (0, 1, 2, 3)] == [1, 1, 2, 2]
    with pytest.raises(TimeoutError, match=r"0000002\.npz: not written"):
        growing.at_step(4)
    for start, seeds in ((2, range(2, 4)), (4, range(4, 5))):
        write_shard(tmp_path / f"{start:07d}.npz", seeds, RASTER, 16, has_field=False)
    assert growing.at_step(1000) == 5
    assert growing.at_step(0) == 1, "a step sees no more because others came earlier"
    batch, whole = growing.batch(np.array([4, 0])), Shards(tmp_path).batch(np.array([4, 0]))
    for name in Growing.NAMES:
        assert torch.equal(batch[name], whole[name])


def test_pictures_alone_are_those_of_the_whole_example(tmp_path: Path) -> None:
    whole = make_example(np.random.default_rng(7), RASTER, size_px=16)
    pictures = make_example(np.random.default_rng(7), RASTER, size_px=16, has_field=False)
    for name in Growing.NAMES:
        np.testing.assert_array_equal(getattr(pictures, name), getattr(whole, name))
    assert len(pictures.points) == len(pictures.sdf) == len(pictures.surface) == 0 < len(whole.points)
