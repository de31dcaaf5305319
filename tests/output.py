"""Output folders for tests: photos planted, converted with fakes, copied and compared."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest

from crm_cli.preset import Override, load_preset
from crm_cli.run.batch import convert
from crm_cli.run.events import AssetFinished, AssetStarted, Event, RunFinished
from crm_cli.run.options import Engine, RunOptions

HERE = Path(__file__).parent


def put_fakes_on_the_path(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))


def plant(root: Path, *names: str) -> Path:
    """Photos of these names, older than a clock's doubt."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
        os.utime(file, (1_600_000_000, 1_600_000_000))
    return root


def run(
    photos: Path | Iterable[Path], out: Path, *assignments: str, engine: Engine | None = None, **changes: Any
) -> list[Event]:
    return list(begin(photos, out, *assignments, engine=engine, **changes))


def begin(
    photos: Path | Iterable[Path], out: Path, *assignments: str, engine: Engine | None = None, **changes: Any
) -> Iterator[Event]:
    preset = load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset
    options = RunOptions(
        inputs=(photos,) if isinstance(photos, Path) else tuple(photos), out=out, device="cpu", jobs=1,
        report=False, deadlines_s={"unwrap": 2.0},
    )  # fmt: skip
    return convert(preset, replace(options, **changes), engine=engine or fakes.engine())


def statuses(events: list[Event]) -> dict[str, str]:
    return {str(event.path): event.status for event in events if isinstance(event, AssetFinished)}


def started(events: list[Event]) -> set[str]:
    return {str(event.path) for event in events if isinstance(event, AssetStarted)}


def exit_code(events: list[Event]) -> int:
    assert isinstance(events[-1], RunFinished)
    return events[-1].exit_code


def published(out: Path) -> dict[str, bytes]:
    """Every file of the folder that is for people, by name."""
    files = (path for path in out.rglob("*") if path.is_file() and ".crm" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def everything(out: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file but the lock, which says who held it last."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(out)): (path.lstat().st_mtime_ns, path.read_bytes()) for path in files}


def copied(out: Path, to: Path) -> Path:
    """A copy with every file's time."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(out, to, symlinks=True))


def records(out: Path) -> list[Path]:
    return sorted((out / ".crm" / "records").glob("*/*.json"))
