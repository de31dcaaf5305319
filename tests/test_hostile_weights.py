"""Weights that would run something, or that lie, given to `crm convert`: exit code 6, and nothing has run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_archives import ATTACKS, CANARY, archive
from test_loading import header

from crm_cli.models.weights import NAMES

HERE = Path(__file__).parent
BOTTLE = HERE / "photos" / "bottle.png"


def convert_with(folder: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """The real command line with the real stations, in a folder where a canary would be seen."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "CRM_WEIGHTS_HOME": str(place / "home")}
    words = ["convert", str(BOTTLE), "-o", str(place / "out"), "-p", "tiny", "--weights", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "crm_cli", *words, "--device", "cpu", "--no-report"],
        capture_output=True, text=True, cwd=place, env=environment, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def as_checkpoints(folder: Path, attack: bytes) -> None:
    """Where published checkpoints would be."""
    for name in ("CRM.pth", "pixel-diffusion.pth", "ccm-diffusion.pth"):
        archive(folder / name, attack)


def as_bare_pickles(folder: Path, attack: bytes) -> None:
    for name in NAMES:
        (folder / f"{name}.safetensors").write_bytes(attack)


def as_archives(folder: Path, attack: bytes) -> None:
    for name in NAMES:
        archive(folder / f"{name}.safetensors", attack)


# Every one starts a worker, which takes seconds; the reader itself meets all of them in test_archives.py.
FIRST = [pytest.param(name, marks=[pytest.mark.slow] * (index > 2)) for index, name in enumerate(ATTACKS)]


@pytest.mark.parametrize("attack", FIRST)
def test_pickles_that_would_run_something_make_no_asset_and_run_nothing(tmp_path: Path, attack: str) -> None:
    """Each in every disguise would take too long: they take turns."""
    disguises: tuple[Callable[[Path, bytes], None], ...] = (as_checkpoints, as_bare_pickles, as_archives)
    folder = tmp_path / "weights"
    folder.mkdir()
    disguises[list(ATTACKS).index(attack) % 3](folder, ATTACKS[attack])
    done = convert_with(folder, tmp_path)
    assert done.returncode == 6, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "[E_WEIGHTS_" in line
    assert not list(tmp_path.rglob(CANARY)) and not list(tmp_path.rglob("*.glb"))


@pytest.mark.parametrize(
    "data",
    [
        (1 << 62).to_bytes(8, "little") + b"{}" + bytes(100),
        (200_000_000).to_bytes(8, "little") + b"{" + b" " * 1000,
        pytest.param(
            header({"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}),
            marks=pytest.mark.slow,
        ),
        pytest.param((60_000).to_bytes(8, "little") + b"[" * 60_000, marks=pytest.mark.slow),
    ],
    ids=["endless header", "oversized header", "huge tensor", "deep header"],
)
def test_headers_that_lie_make_no_asset(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.safetensors").write_bytes(data)
    done = convert_with(folder, tmp_path)
    assert done.returncode == 6, done.stderr
    assert "[E_WEIGHTS_BROKEN]" in done.stderr and not list(tmp_path.rglob("*.glb"))
