"""Damage to what crm has written down: records, journals, logs, and the assets themselves (A11)."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fakes
from typer.testing import CliRunner

from blows.bench import Bench, Finding
from crm_cli.cli.app import app
from crm_cli.errors import CrmError, ExitCode

COMMANDS = (
    ("status", "OUT"),
    ("status", "OUT", "--json"),
    ("verify", "OUT", "--json"),
    ("verify", "OUT", "--deep"),
    ("gc", "OUT", "--dry-run"),
    ("retry", "OUT", "--dry-run"),
    ("report", "OUT"),
    ("verify", "OUT", "--deep", "--repair"),
    ("gc", "OUT"),
)
"""In this order: the last change the folder."""

MENDED = 0.01
"""Share of damaged folders that a real run then brings to their end."""

EXPECTED = frozenset(ExitCode) - {ExitCode.BUG}


@dataclass(frozen=True)
class Folder:
    """A finished output folder, and what it says of itself."""

    bench: Bench
    standing: Path
    planned: dict[str, str]

    def places(self, *patterns: str) -> list[Path]:
        """Files of some kinds, relative to the folder."""
        found = {path for pattern in patterns for path in self.standing.glob(pattern)}
        return sorted(path.relative_to(self.standing) for path in found if path.is_file())


def damage(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Spoil a few files; look with every command; see what the next run trusts, and what verify finds."""
    names = ["a.jpg", "b.jpg", "sub/c.png", "input_d.jpg", "segv_e.jpg"]
    bench = Bench(root, *names, flags=("--jobs", "2"))
    standing = root / "standing"
    bench.run(standing, "--set", "seed=5")
    bench.run(standing, "--no-report")
    folder = Folder(bench, standing, _plan(bench, standing))
    disks = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else root
    out = disks / f"crm-{os.getpid()}-{root.name}"
    kinds = [_records, _assets, _words]
    try:
        while True:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(standing, out, symlinks=True)
            finding = dice.choice(kinds)(folder, out, dice)
            for command in COMMANDS:
                finding.wrong += _invoke(*command, out=out)[1]
            if dice.random() < MENDED:
                done = bench.run(out)
                finding.wrong += done.surprises(expected=[2, 3, 5])
                finding.figures["run to the end"] += 1
            yield finding
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _records(folder: Folder, out: Path, dice: random.Random) -> Finding:
    """Spoil records: none counts, others still do, and verify names each."""
    chosen = dice.sample(folder.places(".crm/records/*/*.json"), dice.randrange(1, 3))
    spoilt = [place for place in chosen if _spoil(out / place, dice)]
    hit = {
        asset
        for asset, files in _files_by_asset(folder).items()
        if any(record in spoilt for record in files["records"])
    }
    plan = _plan(folder.bench, out)
    wrong = [f"{asset} is trusted, and its record is spoilt" for asset in hit if plan.get(asset) == "cached"]
    wrong += [
        f"{asset} is {plan.get(asset)} although nothing of it was touched"
        for asset, action in folder.planned.items()
        if asset not in hit and plan.get(asset) != action
    ]
    told, more = _problems(out)
    wrong += more + [f"verify does not find {place}" for place in spoilt if place.name[:16] not in told]
    finding = Finding(wrong)
    finding.figures["records spoilt"] += len(spoilt)
    return finding


def _assets(folder: Folder, out: Path, dice: random.Random) -> Finding:
    """Spoil assets: whatever their size and time, a thorough look finds each."""
    chosen = dice.sample(folder.places("*.glb", "*.obj", "sub/*.usd"), dice.randrange(1, 3))
    spoilt = []
    for place in chosen:
        before = (out / place).stat()
        if _spoil(out / place, dice):
            spoilt.append(place)
            if (out / place).is_file() and dice.random() < 0.5:
                os.utime(out / place, ns=(before.st_atime_ns, before.st_mtime_ns))
    told, wrong = _problems(out, "--deep")
    wrong += [f"verify does not find {place}" for place in spoilt if place.as_posix() not in told]
    finding = Finding(wrong)
    finding.figures["assets spoilt"] += len(spoilt)
    return finding


def _words(folder: Folder, out: Path, dice: random.Random) -> Finding:
    """Spoil journals and logs: what is finished stays so."""
    patterns = (".crm/journal/*", ".crm/runs/*/*", ".crm/quarantine/*/*", ".crm/sheet", ".crm/lock")
    for place in dice.sample(folder.places(*patterns), dice.randrange(1, 4)):
        _spoil(out / place, dice)
    plan = _plan(folder.bench, out)
    wrong = [
        f"{asset} is {plan.get(asset)} because words were spoilt"
        for asset, action in folder.planned.items()
        if action == "cached" and plan.get(asset) != "cached"
    ]
    finding = Finding(wrong)
    finding.figures["journals and logs spoilt"] += 1
    return finding


def _spoil(path: Path, dice: random.Random) -> bool:
    """Damage a file in one of many ways; False where it is the same afterwards."""
    before = path.read_bytes()
    dice.choice(WAYS)(path, before, dice)
    return not path.is_file() or path.is_symlink() or path.read_bytes() != before


def _truncate(path: Path, data: bytes, dice: random.Random) -> None:
    path.write_bytes(data[: dice.randrange(len(data) + 1)])


def _flip(path: Path, data: bytes, dice: random.Random) -> None:
    spoilt = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 20))):
        spoilt[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(spoilt)


def _delete(path: Path, data: bytes, dice: random.Random) -> None:
    path.unlink()


def _reorder(path: Path, data: bytes, dice: random.Random) -> None:
    lines = data.splitlines(keepends=True)
    dice.shuffle(lines)
    path.write_bytes(b"".join(lines))


def _repeat(path: Path, data: bytes, dice: random.Random) -> None:
    lines = data.splitlines(keepends=True)
    path.write_bytes(data + b"".join(dice.choices(lines, k=dice.randrange(1, 4))))


def _randomise(path: Path, data: bytes, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(len(data)))


def _retype(path: Path, data: bytes, dice: random.Random) -> None:
    """Leave valid JSON of another shape."""
    path.write_text(dice.choice(SHAPES) + "\n")


def _glue(path: Path, data: bytes, dice: random.Random) -> None:
    """What a torn line and a good one after it become."""
    at = dice.randrange(len(data))
    path.write_bytes(data[:at] + data[dice.randrange(at, len(data)) :])


def _fold(path: Path, data: bytes, dice: random.Random) -> None:
    """A folder where a file was."""
    path.unlink()
    path.mkdir()


def _lead_astray(path: Path, data: bytes, dice: random.Random) -> None:
    """A link where a file was."""
    path.unlink()
    path.symlink_to(dice.choice(("nowhere", "/dev/null", ".")))


SHAPES = ("[]", "{}", "null", '{"ev":7,"asset":[]}', '{"ev":"asset_failed","error":3}', "[" * 5000)

WAYS: tuple[Callable[[Path, bytes, random.Random], None], ...] = (
    _truncate, _flip, _flip, _delete, _reorder, _repeat, _randomise, _retype, _glue, _fold, _lead_astray,
)  # fmt: skip


def _files_by_asset(folder: Folder) -> dict[str, dict[str, list[Path]]]:
    """Which records are of which photo."""
    found: dict[str, dict[str, list[Path]]] = {}
    for place in folder.places(".crm/records/*/*.json"):
        asset = json.loads((folder.standing / place).read_bytes())["asset"]
        found.setdefault(asset, {"records": []})["records"].append(place)
    return found


def _plan(bench: Bench, out: Path) -> dict[str, str]:
    """What the next run would do with each photo."""
    _, _, *words = bench.command(out, "--dry-run", "--json")
    stdout, wrong = _invoke(*words[1:], out=out)
    assert not wrong, wrong
    events = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    return {event["path"]: event["action"] for event in events if event["type"] == "asset_planned"}


def _problems(out: Path, *flags: str) -> tuple[str, list[str]]:
    """What verify tells, as one text."""
    return _invoke("verify", "OUT", "--json", *flags, out=out)


def _invoke(*words: str, out: Path) -> tuple[str, list[str]]:
    """Give a command in this very process; what it printed, and what was wrong."""
    command = [str(out) if word == "OUT" else word for word in words]
    result = CliRunner().invoke(app, command, obj=fakes.engine())
    is_expected = result.exception is None or isinstance(result.exception, CrmError | SystemExit)
    if not is_expected or (isinstance(result.exception, SystemExit) and result.exit_code not in EXPECTED):
        return result.stdout, [f"crm {' '.join(words[:4])}: {result.exception!r}"]
    return result.stdout, []
