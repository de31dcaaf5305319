"""What is written down while a network trains: CSV always, TensorBoard where that is installed, pictures.

A resumed run drops what an earlier one wrote of steps that are taken again, so that the logs of a run that
was stopped are those of one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from crm_cli.errors import OutputError
from crm_cli.pipeline import as_picture

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

TRAINING, HELD_OUT = "log.csv", "held-out.csv"

SAMPLES = "samples"
"""Folder of the pictures."""


class Logs:
    """The logs of one run."""

    def __init__(self, folder: Path, step: int, board: SummaryWriter | None) -> None:
        """Go on behind this step."""
        self._folder, self._board = folder, board
        with _writing(folder):
            for name in (TRAINING, HELD_OUT):
                _forget(folder / name, after=step)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Write down what the steps were like."""
        self._numbers(TRAINING, "training", step, values)

    def held_out(self, step: int, values: Mapping[str, float]) -> None:
        """Write down how good the averaged network is on products it has not seen."""
        self._numbers(HELD_OUT, "held out", step, values)

    def picture(self, step: int, picture: Tensor) -> None:
        """Keep a picture [3 H W] in [0, 1]."""
        image = as_picture(picture.cpu())
        with _writing(self._folder):
            (self._folder / SAMPLES).mkdir(exist_ok=True)
            image.save(self._folder / SAMPLES / f"step-{step:06d}.png")
        if self._board is not None:
            self._board.add_image("samples", np.asarray(image), step, dataformats="HWC")
            self._flush(self._board)

    def _numbers(self, name: str, group: str, step: int, values: Mapping[str, float]) -> None:
        with _writing(self._folder):
            _append(self._folder / name, step, values)
        if self._board is not None:
            for term, value in values.items():
                self._board.add_scalar(f"{group}/{term}", value, step)
            self._flush(self._board)

    def _flush(self, board: SummaryWriter) -> None:
        """Let others see the curves now; where that fails, training goes on without them."""
        try:
            board.flush()
        except OSError as error:
            log.warning("no TensorBoard any more: %s", error)
            self._board = None


@contextmanager
def open_logs(folder: Path, step: int) -> Iterator[Logs]:
    """Open the logs of a run that goes on behind this step."""
    with ExitStack() as stack:
        board = _board(folder, step)
        if board is not None:
            stack.callback(_close, board)
        yield Logs(folder, step, board)


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer; None without the extra `train`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed: curves are in %s alone", folder / TRAINING)
        return None
    with _writing(folder):
        return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def _close(board: SummaryWriter) -> None:
    """What cannot be written was told before."""
    with suppress(OSError):
        board.close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what is to be done where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder}: the log cannot be written: {error.strerror or error}",
            code="E_OUTPUT",
            remedy="free space or fix rights; the same command goes on from the last checkpoint",
        ) from error


def _forget(file: Path, *, after: int) -> None:
    """Drop the lines of later steps, and one that was cut off."""
    if not file.exists():
        return
    header, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) <= after]
    if len(kept) < len(lines):
        part = file.with_suffix(".part")
        part.write_text("".join([header, *kept]), encoding="utf-8")
        part.replace(file)


def _append(file: Path, step: int, values: Mapping[str, float]) -> None:
    is_new = not file.exists()
    with file.open("a", encoding="utf-8") as out:
        if is_new:
            out.write(",".join(["step", *values]) + "\n")
        out.write(f"{step}," + ",".join(f"{value:.6g}" for value in values.values()) + "\n")
