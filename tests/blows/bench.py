"""Photos, what a run without a fault makes of them, and what must be true after any other run."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from output import HERE, plant

from crm_cli.run.commits import Records
from crm_cli.run.journal import read_lines
from crm_cli.run.store import REPORT
from crm_cli.run.sums import HEAD, SUMS
from crm_cli.run.verify import verify

PATIENCE_S = 120.0
"""A run that takes longer hangs: it takes half a second on a quiet machine."""

ORPHANS_S = 5.0
"""How long workers may outlive their parent."""

LIST = re.compile(re.escape(HEAD) + rb"(\\?[0-9a-f]{64}  [^\n]+\n)+")
"""A list of digests that is whole."""

Files = Mapping[str, bytes]


@dataclass(slots=True)
class Finding:
    """What one trial found."""

    wrong: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    """Added up over all trials."""
    longest_s: dict[str, float] = field(default_factory=dict)
    """The longest of all trials counts."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What all trials of an experiment found together."""

    name: str
    trials: int
    wrong: tuple[str, ...]
    figures: Mapping[str, int]
    longest_s: Mapping[str, float]
    seconds: float


Experiment = Callable[[Path, random.Random], Iterator[Finding]]
"""Deals blow after blow in a folder of its own; ends by itself only where there are no other blows."""


def hammer(
    name: str,
    experiment: Experiment,
    *,
    root: Path,
    seed: str = "1",
    count: int | None = None,
    seconds: float | None = None,
) -> Tally:
    """Run trials until there are so many, or until time is up; one is always begun."""
    root.mkdir(parents=True)
    since = time.monotonic()
    trials, wrong, figures, longest_s = 0, list[str](), Counter[str](), dict[str, float]()
    findings = experiment(root, random.Random(f"{seed} {name}"))
    for finding in itertools.islice(findings, count):
        wrong += [f"trial {trials}: {words}" for words in finding.wrong]
        figures.update(finding.figures)
        for what, took_s in finding.longest_s.items():
            longest_s[what] = max(took_s, longest_s.get(what, 0.0))
        trials += 1
        if seconds is not None and time.monotonic() - since > seconds:
            break
    findings.close()  # type: ignore[attr-defined]
    return Tally(name, trials, tuple(wrong), figures, longest_s, time.monotonic() - since)


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def surprises(self, *, expected: Sequence[int]) -> list[str]:
        """What no user should ever see."""
        wrong = []
        if self.code not in expected:
            last = self.stderr.strip().splitlines()[-1:] or [""]
            wrong.append(f"exit {self.code}, not one of {list(expected)}: {last[0][:200]}")
        if "Traceback" in self.stderr:
            wrong.append(f"a traceback: {self.stderr[self.stderr.index('Traceback') :][-600:]}")
        return wrong


class Bench:
    """A folder of photos, and the assets that a run without a fault makes of them."""

    def __init__(self, root: Path, *names: str, flags: Sequence[str] = ("--jobs", "1")) -> None:
        self.root = root
        self.photos = plant(root / "in", *names)
        self.names = names
        self.flags = tuple(flags)
        self._trials = 0
        self._whole_folder = root / "whole"
        self.others: list[Files] = []
        """What else may stand under a final name, because another preset has made it."""

    @cached_property
    def _reference(self) -> Done:
        done = self.run(self._whole_folder)
        assert done.code == 0, done.stderr
        return done

    @cached_property
    def whole(self) -> Files:
        """What a finished run leaves."""
        assert self._reference.code == 0
        return assets(self._whole_folder)

    @property
    def seconds(self) -> float:
        """How long a run without a fault takes."""
        return self._reference.seconds

    def command(self, out: Path, *flags: str, entry: str = "fakes") -> list[str]:
        """The command line with fakes for stages. entry: the module that is run."""
        return [
            sys.executable, "-m", entry, "convert", str(self.photos), "-o", str(out), "-p", "tiny",
            "--device", "cpu", "--timeout", "unwrap=60", *self.flags, *flags,
        ]  # fmt: skip

    def start(
        self, out: Path, *flags: str, entry: str = "fakes", stderr: int = subprocess.PIPE, **settings: str
    ) -> subprocess.Popen[str]:
        """Begin a run. settings: environment variables."""
        return _popen(self.command(out, *flags, entry=entry), self.root, settings, stderr=stderr)

    def run(
        self, out: Path, *flags: str, entry: str = "fakes", prefix: Sequence[str] = (), **settings: str
    ) -> Done:
        """Run to the end. prefix: what runs the run."""
        since = time.monotonic()
        process = _popen([*prefix, *self.command(out, *flags, entry=entry)], self.root, settings)
        return finished(process, since)

    def fresh(self) -> Path:
        """An output folder for the next trial; that of the last one goes."""
        shutil.rmtree(self.root / f"out-{self._trials}", ignore_errors=True)
        self._trials += 1
        return self.root / f"out-{self._trials}"

    def corrupt(self, out: Path) -> list[str]:
        """Files under final names that are not whole, and records that vouch for wrong bytes."""
        return [*self._torn(out), *self._trusted(out)]

    def _torn(self, out: Path) -> Iterator[str]:
        versions = [self.whole, *self.others]
        for name, data in standing(out).items():
            if name.startswith(f"{REPORT}/"):
                if name.endswith(".html") and not data.rstrip().endswith(b"</html>"):
                    yield f"{name} is torn"
            elif name == SUMS:
                if not LIST.fullmatch(data):
                    yield f"{name} is torn"
            elif not name.endswith(".part") and all(version.get(name) != data for version in versions):
                yield f"{name} holds {len(data)} bytes that no run has made"

    def _trusted(self, out: Path) -> Iterator[str]:
        records = Records.scan(out)
        for record in records.newest():
            if not records.intact(record):
                continue
            for output in record.outputs:
                with contextlib.suppress(FileNotFoundError):  # while a run replaces it
                    data = (out / output.path).read_bytes()
                    if hashlib.sha256(data).hexdigest() != output.sha256 and records.is_as_written(output):
                        yield f"{output.path} is trusted and holds other bytes"

    @cached_property
    def _keys(self) -> set[str]:
        """What a run of ours was asked to make."""
        assert self._reference.code == 0
        lines = read_lines(self._whole_folder)
        return {line["key"] for line in lines if line["ev"] == "asset_done"}

    def finished(self, out: Path) -> set[str]:
        """Photos whose asset the next run would leave alone."""
        records = Records.scan(out)
        wanted = {key.partition(":")[0] for key in self._keys}
        newest = (record for record in records.newest() if record.keys.out in wanted)
        return {str(record.asset) for record in newest if records.intact(record)}

    def lost(self, out: Path) -> list[str]:
        """Assets that were said to be finished and would not count as such."""
        told = {
            line["asset"]
            for line in read_lines(out)
            if line["ev"] == "asset_done" and line["key"] in self._keys
        }
        return [f"{asset} was acknowledged and is lost" for asset in sorted(told - self.finished(out))]

    def unsettled(self, out: Path, *flags: str) -> list[str]:
        """What is wrong after the same command was run once more, to its end."""
        before, tried = self.finished(out), attempts(out)
        done = self.run(out, *flags)
        wrong = done.surprises(expected=[0])
        if assets(out) != self.whole:
            differ = sorted(
                name for name in {*assets(out), *self.whole} if assets(out).get(name) != self.whole.get(name)
            )
            wrong.append(f"not as a run without a fault leaves it: {', '.join(differ)}")
        again = before & (attempts(out) - tried).keys()
        wrong += [f"{asset} was finished and is done again" for asset in sorted(again)]
        wrong += [f"litter: {path}" for path in litter(out)]
        problems = verify(out, deep=True).problems
        return wrong + [f"verify: {problem.path}: {problem.kind}" for problem in problems]


def _popen(
    command: Sequence[str], root: Path, settings: Mapping[str, str], *, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    here = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command, cwd=root, env={**os.environ, **here, **settings}, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], since: float) -> Done:
    """Wait for a run; one that hangs is killed, and its exit code tells."""
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        stderr = f"{stderr or ''}\nhung for {PATIENCE_S:g} s"
    return Done(process.returncode, stdout, stderr or "", time.monotonic() - since)


def standing(out: Path) -> Files:
    """Every file of an output folder that is for people; what vanishes meanwhile does not stand."""
    found = {}
    for folder, folders, names in os.walk(out):  # it passes over folders that vanish
        if ".crm" in folders:
            folders.remove(".crm")
        for name in names:
            path = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(out).as_posix()] = path.read_bytes()
    return found


def assets(out: Path) -> Files:
    """The assets alone: a contact sheet tells the time, and a list of digests grows with them."""
    found = standing(out)
    return {name: found[name] for name in found if name != SUMS and not name.startswith(f"{REPORT}/")}


def litter(out: Path) -> list[Path]:
    """What only a run at work may leave about."""
    private = out / ".crm"
    found = [*(private / "tmp").glob("*"), *private.glob("reserve*"), *private.rglob("*.intent")]
    return [*found, *out.rglob("*.part")]


def attempts(out: Path) -> Counter[str]:
    """How often each photo was given to a worker."""
    return Counter(line["asset"] for line in read_lines(out) if line["ev"] == "attempt_start")


def workers_of(parent: int) -> list[int]:
    """Processes of the pool that a parent has started, also where it has died since."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-P" in words and words[-2:-1] == [str(parent).encode()]:
            found.append(int(folder.name))
    return found


def orphans_of(parent: int) -> list[str]:
    """Workers that are still there when their parent should have taken them along."""
    ends = time.monotonic() + ORPHANS_S
    while (left := workers_of(parent)) and time.monotonic() < ends:
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"worker {pid} outlived its parent" for pid in left]
