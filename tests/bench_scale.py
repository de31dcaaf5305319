"""What many photos cost beside the work itself: the run's own time, memory and files, with a line of fakes.

    python tests/bench_scale.py [--counts 1 10 100 1000 10000] [--names 100000] [--folder DIR]
                                [--jobs 2] [--chart tests/scale.svg]

Every photo goes the whole way: a worker process, its pipe, files that are synced, a record, the journal, the
sheet. Only the stages do nothing, so that what is left is what the coordinator costs. With --folder, photos,
assets and what making them took are kept; only what a run over finished assets costs is then measured again.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scale_chart import Point, draw

HERE = Path(__file__).resolve().parent
TELL = "BENCH_SCALE_TELL"
"""Names a file, in the environment, in which the measured process says what it took."""

PHOTOS_PER_FOLDER = 100


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command took; its workers do not count."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    events: tuple[dict[str, object], ...]


def main() -> None:
    options = _options()
    with _folder(options.folder) as folder:
        points = [_measure(folder / str(count), count, jobs=options.jobs) for count in options.counts]
        if options.chart:
            options.chart.write_text(draw(points), encoding="utf-8")
        if options.names:
            photos = plant(folder / "names", options.names)
            cost = crm("convert", photos, "-o", folder / "nothing", "--dry-run", "-q", "--json")
            planned = sum(event["type"] == "asset_planned" for event in cost.events)
            _say(f"{planned:,} names planned in {cost.wall_s:.1f} s, {cost.peak_mb:.0f} MB")


def _measure(folder: Path, count: int, *, jobs: int) -> Point:
    photos, out = plant(folder / "in", count), folder / "out"
    words = ("convert", photos, "-o", out, "--jobs", str(jobs), "--json", "-q")
    kept = folder / "converted.json"
    if not kept.exists():
        cost = crm(*words)
        _refuse_others(cost, "converted", count)
        each_ms = 1000 / count
        kept.write_text(json.dumps([cost.wall_s * each_ms, cost.cpu_s * each_ms, cost.peak_mb]))
    wall_ms, cpu_ms, peak_mb = json.loads(kept.read_text())
    _say(
        f"{count:,} photos converted: {wall_ms:.2f} ms each, of which coordinator "
        f"{cpu_ms:.2f} ms of processor; peak {peak_mb:.0f} MB"
    )
    before = _standing(out)
    cost = crm(*words)
    _refuse_others(cost, "cached", count)
    stages = sum(event["type"] in ("asset_started", "stage_started") for event in cost.events)
    written = len(before.symmetric_difference(_standing(out)))
    _say(
        f"{count:,} photos again: {cost.wall_s:.2f} s, {cost.cpu_s:.2f} s of processor, peak "
        f"{cost.peak_mb:.0f} MB; {stages} stages, {written} files of assets or sheet written"
    )
    plan_s = _plan_seconds(photos, out)
    told = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in plan_s.items())
    _say(f"{count:,} photos planned: {sum(plan_s.values()):.3f} s of processor: {told}")
    sheet_s, status_s = (crm(command, out).wall_s for command in ("report", "status"))
    _say(f"{count:,} photos' sheet written anew in {sheet_s:.2f} s; status told in {status_s:.2f} s")
    calls = _calls(words)
    if calls:
        told = ", ".join(f"{name} {calls[name] / count:.2f}" for name in sorted(calls, key=calls.get)[:-8:-1])
        _say(f"{count:,} photos again, system calls each: {sum(calls.values()) / count:.2f} ({told})")
    return Point(
        photos=count, converted_ms=cpu_ms, converted_mb=peak_mb,
        again_s=cost.cpu_s, again_mb=cost.peak_mb, scan_s=sum(plan_s.values()),
    )  # fmt: skip


def _refuse_others(cost: Cost, end: str, count: int) -> None:
    """A run that did something else has measured something else."""
    ends = [event["status"] for event in cost.events if event["type"] == "asset_finished"]
    if ends != [end] * count:
        raise SystemExit(f"expected {count} photos {end}, got {len(ends)} with {sorted(set(map(str, ends)))}")


def plant(root: Path, count: int) -> Path:
    """Photos that differ in name and bytes, older than a clock's doubt; those that stand are left alone."""
    for number in range(count):
        folder = root / f"shelf-{number // PHOTOS_PER_FOLDER:04}"
        if number % PHOTOS_PER_FOLDER == 0:
            folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"photo-{number:06}.jpg"
        if not file.exists():
            file.write_bytes(b"%d" % number)
            os.utime(file, (1_600_000_000, 1_600_000_000))
    return root


def _plan_seconds(photos: Path, out: Path) -> dict[str, float]:
    """How long each part of a plan takes the processor, in this process; the best of three."""
    import fakes

    from crm_cli.preset import Override, load_preset
    from crm_cli.run.commits import Recipe, Records
    from crm_cli.run.journal import last_failures, unfinished_attempts
    from crm_cli.run.plan import Planner
    from crm_cli.run.selection import Selection
    from crm_cli.run.walk import walk

    preset = load_preset("tiny", [Override.from_assignment("export.formats=[glb]")]).preset
    recipe = Recipe.of(preset, fakes.engine().weights(preset).stages)
    found = walk([photos], out, select=Selection()).photos
    planner = Planner(recipe=recipe, records=Records.scan(out), failures={}, max_mpixels=64.0)
    parts: dict[str, Callable[[], object]] = {
        "names": lambda: walk([photos], out, select=Selection()),
        "records listed": lambda: Records.scan(out),
        "journal": lambda: (last_failures(out), unfinished_attempts(out)),
        "decisions": lambda: [planner.decide(photo) for photo in found],
    }
    assert all(planner.decide(photo).action == "cached" for photo in found)
    return {name: _best_s(work) for name, work in parts.items()}


def _best_s(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(3):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def _standing(out: Path) -> set[tuple[str, int, int]]:
    """Every file that is for people, with what changes when it is written again."""
    return {
        (str(path), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and ".crm" not in path.parts
    }


def _command(*words: object) -> list[str]:
    suffix = ["-p", "tiny", "--format", "glb"] if words[0] == "convert" else []
    return [sys.executable, str(HERE / "bench_scale.py"), "--inside", *map(str, words), *suffix]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRM_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), **more}


def crm(*words: object) -> Cost:
    """Run a command of crm with fakes in it."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        began = time.perf_counter()
        done = subprocess.run(
            _command(*words), stdout=subprocess.PIPE, env=environment(**{TELL: str(told)}), check=True
        )
        wall_s = time.perf_counter() - began
        cpu_s, peak_mb = json.loads(told.read_bytes())
    lines = done.stdout.splitlines() if "--json" in words else []
    return Cost(wall_s=wall_s, cpu_s=cpu_s, peak_mb=peak_mb, events=tuple(map(json.loads, lines)))


def _calls(words: tuple[object, ...]) -> dict[str, int]:
    """System calls by name; none where there is no strace."""
    if shutil.which("strace") is None:
        return {}
    with tempfile.NamedTemporaryFile() as table:
        tracer = ["strace", "-f", "-qq", "-c", "-U", "name,calls", "-o", table.name]
        command = [*tracer, *_command(*words)]
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=True)
        rows = re.findall(r"^(\w+)\s+(\d+)$", Path(table.name).read_text(), re.MULTILINE)
    return {name: int(calls) for name, calls in rows if name != "total"}


def _inside(words: list[str]) -> None:
    """Be the measured process."""
    import fakes

    from crm_cli.cli.app import main as run

    if TELL in os.environ:
        atexit.register(_tell, Path(os.environ[TELL]))
    sys.argv = ["crm", *words]
    run(fakes.engine())


def _tell(file: Path) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status")
    # Not ru_maxrss where it can be helped: on Linux it remembers the process that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = int(found[1]) * 1024 if found else usage.ru_maxrss * unit
    file.write_text(json.dumps([usage.ru_utime + usage.ru_stime, peak_bytes / 1e6]))


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        yield wanted
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what many photos cost beside the work itself.")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 10, 100, 1_000, 10_000])
    parser.add_argument("--names", type=int, default=100_000, help="how many names a dry run plans; 0: none")
    parser.add_argument("--folder", type=Path, help="where photos and assets are kept for the next time")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw what was measured")
    return parser.parse_args()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        _inside(sys.argv[2:])
    else:
        main()
