"""A fault at every call that touches the output folder: an error, or death (A1).

strace makes the coordinator's n-th call of a kind fail, or kills it there; a dry run tells which n touch the
output folder. Workers are not traced: they write into scratch folders alone, and a full disk is dealt to them
elsewhere.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from blows.bench import Bench, Finding, assets

CALLS = (
    "write,pwrite64,fsync,fdatasync,ftruncate,fallocate,openat,rename,renameat,renameat2,link,unlink,unlinkat,"
    "mkdir,rmdir,utimensat"
)

FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO", "error=EDQUOT", "error=EROFS")

CALL = re.compile(r"(\w+)\((\d+<[^>]*>)?(.*)")
"""A line of strace's: the call, the descriptor that comes first with its path, the rest."""


def why_not() -> str | None:
    """What this machine lacks for these blows."""
    return None if shutil.which("strace") else "strace is not installed"


def into_an_empty_folder(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Three assets where there were none."""
    bench = Bench(root, "a.jpg", "sub/b.png", "c.jpg")
    yield from _every_fault(bench, dice, before=None)


def over_an_older_version(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Three assets anew, in the place of those that another preset had made."""
    bench = Bench(root, "a.jpg", "sub/b.png", "c.jpg")
    older = root / "older"
    bench.run(older, "--set", "seed=5")
    bench.others.append(assets(older))
    yield from _every_fault(bench, dice, before=older)


def _every_fault(bench: Bench, dice: random.Random, *, before: Path | None) -> Iterator[Finding]:
    """Deal every fault at every call once, in a random order."""
    log = bench.root / "log"
    out = _prepared(bench, before)
    done = bench.run(out, prefix=_strace(log))
    assert done.code == 0, done.stderr
    blows = [(call, fault) for call in _touching(log, out) for fault in FAULTS]
    dice.shuffle(blows)
    for (call, number), fault in blows:
        out = _prepared(bench, before)
        inject = f"inject={call}:{fault}:when={number}"
        done = bench.run(out, prefix=[*_strace(log), "-e", inject])
        finding = Finding()
        struck = _struck(log, out, fault)
        if struck is None:
            # The order of calls depends on when workers answer: this one hit a library or a pipe.
            finding.figures["beside the folder"] += 1
            yield finding
            continue
        is_kill = fault == FAULTS[0]
        wrong = done.surprises(expected=[-signal.SIGKILL] if is_kill else [0, 5])
        if done.code == 0 and assets(out) != bench.whole:
            wrong.append("exit 0, and not all is there")
        wrong += [*bench.corrupt(out), *bench.lost(out), *bench.unsettled(out)]
        finding.wrong = [f"{inject} ({struck}): {words}" for words in wrong]
        finding.figures.update(["kills" if is_kill else f"errors, exit {done.code}"])
        yield finding


def _prepared(bench: Bench, before: Path | None) -> Path:
    out = bench.fresh()
    if before is not None:
        shutil.copytree(before, out)
    return out


def _strace(log: Path) -> list[str]:
    return ["strace", "-y", "-o", str(log), "-e", f"trace={CALLS}"]


def _touching(log: Path, out: Path) -> list[tuple[str, int]]:
    """Calls that touched the output folder: of which kind, and which of its kind it was."""
    seen: Counter[str] = Counter()
    touching = []
    for line in log.read_text(errors="replace").splitlines():
        found = CALL.match(line)
        if found:
            seen[found[1]] += 1
            if _is_there(line, out):
                touching.append((found[1], seen[found[1]]))
    return touching


def _is_there(line: str, out: Path) -> bool:
    """Whether a call touches the output folder; what is written may name it as well, and does not count."""
    found = CALL.match(line)
    if not found:
        return False
    where = found[2] if found[1] in ("write", "pwrite64") else line
    return str(out) in (where or "")


def _struck(log: Path, out: Path, fault: str) -> str | None:
    """The call that a fault has struck, in short; None where that was none of the output folder's."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if CALL.match(line)]
    struck = lines[-1:] if fault.startswith("signal") else [line for line in lines if "(INJECTED)" in line]
    return next((line.replace(str(out), "OUT")[:160] for line in struck if _is_there(line, out)), None)
