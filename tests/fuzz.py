"""What the photo reader makes of damaged files, in processes that are watched.

    python tests/fuzz.py --count 100000 [--seed 1]
    python tests/fuzz.py --kind "slow bombs"

Each file must become a picture, or exactly one PhotoError with a code. Anything else is a finding: another
exception, a warning, a process that dies or does not end. Prints what became of them, the slowest and the
largest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

HERE = Path(__file__).parent

PATIENCE_S = 180.0
"""How long one file may take before its process counts as hanging; on a busy machine, too."""

STATUS = Path("/proc/self/status")


@dataclass(slots=True)
class Tally:
    """What became of all files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    cpu_s: float = 0.0
    largest: str = ""
    slowest: str = ""

    def add(self, name: str, outcome: str, wanted: str, peak_mb: float, cpu_s: float) -> None:
        self.outcomes[outcome.partition(":")[0]] += 1
        is_fine = outcome == "photo" or outcome.startswith("E_IMG_")
        if not is_fine or (wanted and outcome != wanted):
            self.findings.append(f"{name}: {outcome}" + (f", not {wanted}" if wanted else ""))
        if peak_mb > self.peak_mb:
            self.peak_mb, self.largest = peak_mb, name
        if cpu_s > self.cpu_s:
            self.cpu_s, self.slowest = cpu_s, name


def watch(kind: str, *, first: int = 0, last: int | None = None, seed: int = 1) -> Tally:
    """Read the files of one kind in a process; where it dies or hangs, in another from the next file on."""
    import corpus

    last = corpus.count(kind) if last is None else last
    tally = Tally()
    while first < last:
        with tempfile.TemporaryFile("w+") as words:
            command = [sys.executable, str(Path(__file__)), "--child", kind, str(first), str(last), str(seed)]
            paths = os.pathsep.join([str(HERE), str(HERE.parent)])
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
            ) as child:
                for line in _lines(child):
                    tally.add(*json.loads(line))
                    first += 1
            words.seek(0)
            said = words.read().strip()
        # Some decoders complain there about what they then read or refuse: a run keeps it in its log.
        if child.returncode:
            tally.findings.append(f"{kind} {first}: status {child.returncode}: {said[-500:]}")
            first += 1
    return tally


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Lines of a process that is killed when the next one does not come."""
    assert child.stdout is not None
    while True:
        watchdog = threading.Timer(PATIENCE_S, child.kill)
        watchdog.start()
        line = child.stdout.readline()
        watchdog.cancel()
        if not line:
            return
        yield line


def read_all(kind: str, first: int, last: int, seed: int) -> None:
    """The process's own part: one line of JSON for each file."""
    import corpus

    from crm_cli.errors import PhotoError
    from crm_cli.models.photo import LONGEST_SIDE_PX, read_photo

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo"
        for name, content, wanted in corpus.iterate(kind, seed=seed, first=first, last=last):
            file.write_bytes(content)
            del content
            _forget_peak()
            held_mb = _memory_mb("VmRSS")
            began = time.process_time()
            try:
                photo = read_photo(file, path=PurePosixPath("photo"), max_mpixels=64)
                fits = photo.rgb.dtype.name == "uint8" and max(photo.rgb.shape) <= LONGEST_SIDE_PX
                outcome = "photo" if fits else f"WRONG: {photo.rgb.dtype} {photo.rgb.shape}"
            except PhotoError as error:
                fits = str(error).isprintable() and bool(error.remedy) and error.kind == "input"
                outcome = error.code if fits else f"WRONG: {error.kind} {error}"
            except BaseException as error:
                outcome = f"RAISED: {type(error).__name__}: {error}"
            line = [name, outcome, wanted, _memory_mb("VmHWM") - held_mb, time.process_time() - began]
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mb(what: str) -> float:
    """What this process holds, or the most that it held since the peak was forgotten."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, first, last, seed = sys.argv[2:]
        read_all(kind, int(first), int(last), int(seed))
        return
    parser = argparse.ArgumentParser(description="Read damaged photos, and tell what becomes of them.")
    parser.add_argument("--kind", default="mutants", help="mutants, cuts, good files, bombs, slow bombs")
    parser.add_argument("--count", type=int, help="how many; all there are of the other kinds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    last = options.count or (5000 if options.kind == "mutants" else None)
    tally = watch(options.kind, last=last, seed=options.seed)
    total = tally.outcomes.total()
    rows = [f"{total} {options.kind}, seed {options.seed}, {time.monotonic() - began:.0f} s"]
    rows += [
        f"{outcome:<20}{many:>8}{100 * many / total:>7.1f} %"
        for outcome, many in tally.outcomes.most_common()
    ]
    rows += [
        f"most memory {tally.peak_mb:.0f} MB ({tally.largest})",
        f"slowest {tally.cpu_s:.2f} s ({tally.slowest})",
    ]
    rows += [f"FINDING {finding}" for finding in tally.findings] or ["nothing else happened"]
    sys.stdout.write("\n".join(rows) + "\n")
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
