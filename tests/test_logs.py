"""Logs go on where a run does; TensorBoard shows them where it is installed, and is not missed elsewhere."""

from __future__ import annotations

import builtins
import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crm_cli.errors import OutputError
from crm_cli.learn.logs import open_logs

PICTURE = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))


def is_kept(file: Path | io.BytesIO) -> bool:
    levels = (PICTURE.permute(1, 2, 0) * 255).round().byte().numpy()
    return np.array_equal(np.asarray(Image.open(file)), levels)


def write(folder: Path, steps: range, *, begin: int = 0) -> None:
    with open_logs(folder, begin) as logs:
        for step in steps:
            logs.training(step, {"loss": step / 2})
            logs.held_out(step, {"iou": step / 4})
            logs.picture(step, PICTURE)


def test_curves_and_pictures_are_in_the_board(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra train is not installed"
    )
    write(tmp_path, range(1, 4))
    write(tmp_path, range(3, 5), begin=2)  # step 3 was not saved, and is taken again
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("training/loss")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 2.0),
    ]
    assert [e.value for e in board.Scalars("held out/iou")] == [0.25, 0.5, 0.75, 1.0]
    assert [is_kept(io.BytesIO(e.encoded_image_string)) for e in board.Images("samples")] == [True] * 4
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n2,1\n3,1.5\n4,2\n"


def test_without_tensorboard_there_are_csv_and_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    write(tmp_path, range(1, 3))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["held-out.csv", "log.csv", "samples"]
    assert [is_kept(file) for file in (tmp_path / "samples").iterdir()] == [True] * 2


class FullBoard:
    """A TensorBoard on a disk that is full."""

    def add_scalar(self, *_: object) -> None: ...

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    close = flush


def test_a_board_that_cannot_be_written_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crm_cli.learn.logs._board", lambda folder, step: FullBoard())
    with open_logs(tmp_path, 0) as logs:
        logs.training(1, {"loss": 1.0})
        logs.training(2, {"loss": 1.0})
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_an_error_of_the_training_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="its own"), open_logs(tmp_path, 0):
        raise OSError("its own")


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crm_cli.learn.logs._board", lambda folder, step: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_logs(tmp_path, 0) as logs:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            with pytest.raises(OutputError, match="E_OUTPUT"):
                logs.training(1, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
