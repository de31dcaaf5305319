import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from output import (
    HERE,
    copied,
    everything,
    exit_code,
    plant,
    published,
    put_fakes_on_the_path,
    records,
    run,
    started,
    statuses,
)

from crm_cli.errors import Locked, NoInput, OutputError
from crm_cli.run.commits import CommitRecord
from crm_cli.run.gc import sweep
from crm_cli.run.store import Store
from crm_cli.run.sums import SUMS
from crm_cli.run.verify import Verdict, repair, verify

NAMES = ("a.jpg", "b.jpg", "sub/c.png", "sub/d.webp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything finished; only ever copied."""
    base = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_on_the_path(patch)
        run(plant(base / "in", *NAMES), base / "out")
        yield base


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return copied(whole / "out", tmp_path / "out")


def found(verdict: Verdict) -> set[tuple[str, str]]:
    return {(problem.kind, str(problem.path)) for problem in verdict.problems}


def flip(file: Path, index: int, bit: int = 1) -> None:
    """Change one byte and leave no trace in the file's time."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[index] ^= bit
    file.write_bytes(bytes(data))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def record_of(out: Path, photo: str) -> Path:
    return next(path for path in records(out) if f'"asset":"{photo}"' in path.read_text())


def test_a_whole_folder_holds_and_looking_changes_nothing(out: Path) -> None:
    before = everything(out)
    for deep in (False, True):
        verdict = verify(out, deep=deep)
        assert (verdict.problems, verdict.exit_code) == ((), 0)
        assert (verdict.assets, verdict.files) == (4, 12)
    assert verdict.hashed_bytes == sum(len(data) for name, data in published(out).items() if name != SUMS)
    assert everything(out) == before


def test_every_flipped_byte_of_a_record_is_found(out: Path) -> None:
    path = records(out)[0]
    raw = path.read_bytes()
    place = str(path.relative_to(out))
    for index in range(len(raw)):
        path.write_bytes(raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :])
        assert found(verify(out)) == {("damaged", place)}


def _flip_record(out: Path, dice: random.Random) -> str:
    path = dice.choice(records(out))
    flip(path, dice.randrange(path.stat().st_size), 1 << dice.randrange(8))
    return str(path.relative_to(out))


def _cut_record(out: Path, dice: random.Random) -> str:
    path = dice.choice(records(out))
    os.truncate(path, dice.randrange(path.stat().st_size))
    return str(path.relative_to(out))


def _lengthen_record(out: Path, dice: random.Random) -> str:
    path = dice.choice(records(out))
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.randrange(1, 9)))
    return str(path.relative_to(out))


def _swap_record(out: Path, dice: random.Random) -> str:
    path, other = dice.sample(records(out), 2)
    path.write_bytes(other.read_bytes())
    return str(path.relative_to(out))


def _lose_record(out: Path, dice: random.Random) -> str:
    path = dice.choice(records(out))
    path.unlink()
    return str(path.relative_to(out)).partition(".json")[0].rpartition(".")[0]


def _asset(out: Path, dice: random.Random) -> Path:
    return dice.choice(sorted(out / name for name in published(out) if name != SUMS))


def _flip_asset(out: Path, dice: random.Random) -> str:
    path = _asset(out, dice)
    flip(path, dice.randrange(path.stat().st_size), 1 << dice.randrange(8))
    return str(path.relative_to(out))


def _cut_asset(out: Path, dice: random.Random) -> str:
    path = _asset(out, dice)
    os.truncate(path, dice.randrange(path.stat().st_size))
    return str(path.relative_to(out))


def _lose_asset(out: Path, dice: random.Random) -> str:
    path = _asset(out, dice)
    path.unlink()
    return str(path.relative_to(out))


def _touch_asset(out: Path, dice: random.Random) -> str:
    path = _asset(out, dice)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + dice.choice((-1, 1))))
    return str(path.relative_to(out))


def _replace_asset(out: Path, dice: random.Random) -> str:
    path = _asset(out, dice)
    copy = shutil.copy2(path, out.parent / "elsewhere")
    path.unlink()
    if dice.random() < 0.5:
        path.symlink_to(copy)
    else:
        path.mkdir()
    return str(path.relative_to(out))


DAMAGES: tuple[tuple[Callable[[Path, random.Random], str], str], ...] = (
    (_flip_record, "damaged"),
    (_cut_record, "damaged"),
    (_lengthen_record, "damaged"),
    (_swap_record, "damaged"),
    (_lose_record, "lost"),
    (_flip_asset, "corrupt"),
    (_cut_asset, "changed"),
    (_lose_asset, "missing"),
    (_touch_asset, "moved"),
    (_replace_asset, "changed"),
)


def test_each_of_two_hundred_random_damages_is_found_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    for seed in range(200):
        dice = random.Random(seed)
        out = copied(whole / "out", tmp_path / "out")
        damage, kind = DAMAGES[seed % len(DAMAGES)]
        place = damage(out, dice)
        assert found(verify(out, deep=True)) == {(kind, place)}, seed
        shallow = {"corrupt": set(), "moved": {("changed", place)}}.get(kind, {(kind, place)})
        assert found(verify(out)) == shallow, seed


def test_what_was_repaired_is_made_again_as_it_was(whole: Path, out: Path) -> None:
    before = published(out)
    flip(out / "a.glb", 7)
    (out / "b.obj").unlink()
    flip(record_of(out, "sub/c.png"), -5)  # in its checksum
    os.utime(out / "sub/d.usd", (5, 5))
    verdict = repair(out, deep=True)
    assert {problem.kind for problem in verdict.problems} == {"corrupt", "missing", "damaged", "moved"}
    assert all(problem.is_repaired for problem in verdict.problems)
    assert verdict.exit_code == 3
    assert found(verify(out, deep=True)) == set()
    assert set(published(out)) == set(before) - {"b.obj"}
    events = run(whole / "in", out)
    assert (exit_code(events), started(events)) == (0, {"a.jpg", "b.jpg", "sub/c.png"})
    assert published(out) == before
    assert verify(out, deep=True).problems == ()


def test_what_was_taken_back_is_not_lost_once_nothing_is_left_of_it(out: Path) -> None:
    for path in out.glob("a.*"):
        path.unlink()
    assert {problem.kind for problem in repair(out).problems} == {"missing"}
    assert [one.kind for one in sweep(out, cache_bytes=0).litter] == ["record"]
    assert verify(out).problems == ()


def test_an_edited_file_is_nobodys_to_repair(whole: Path, out: Path) -> None:
    (out / "a.glb").write_text("mine")
    flip(out / "a.obj", 0)
    record = record_of(out, "a.jpg").read_bytes()
    verdict = repair(out, deep=True)
    assert found(verdict) == {("changed", "a.glb"), ("corrupt", "a.obj")}
    assert not any(problem.is_repaired for problem in verdict.problems)
    assert (out / "a.glb").read_text() == "mine"
    assert record_of(out, "a.jpg").read_bytes() == record
    # It is found in the way before anything is made.
    events = run(whole / "in", out)
    assert (statuses(events)["a.jpg"], started(events)) == ("conflict", set())
    assert exit_code(run(whole / "in", out, overwrite=True)) == 0
    assert verify(out, deep=True).problems == ()


def test_a_record_that_tells_nothing_any_more_goes_and_the_files_stay(whole: Path, out: Path) -> None:
    path = record_of(out, "a.jpg")
    path.write_bytes(b"\x00" * 300)
    before = published(out)
    [problem] = repair(out).problems
    assert (problem.kind, problem.asset, problem.is_repaired) == ("damaged", PurePosixPath("a.jpg"), False)
    assert published(out) == before and not path.exists()
    assert {kind for kind, _ in found(verify(out))} == {"lost"}
    assert exit_code(run(whole / "in", out, overwrite=True)) == 0
    assert verify(out).problems == ()


def test_no_byte_of_a_record_can_make_a_repair_touch_another_file(whole: Path, tmp_path: Path) -> None:
    dice = random.Random(1)
    for _ in range(40):
        out = copied(whole / "out", tmp_path / "out")
        (out / "z.glb").write_text("mine")
        before = {name: kept for name, kept in everything(out).items() if not name.startswith(".crm")}
        _flip_record(out, dice)
        repair(out, deep=True)
        after = everything(out)
        assert {name: kept for name, kept in after.items() if not name.startswith(".crm")} == before
        assert "damaged" not in {kind for kind, _ in found(verify(out))}


def test_files_nobody_knows_are_passed_over(out: Path) -> None:
    (out / "mine.glb").write_text("mine")
    shelf = records(out)[0].parent
    (shelf / "notes.json").write_text("mine")
    (shelf / "notes.txt").write_text("mine")
    assert repair(out).problems == ()
    assert (shelf / "notes.json").exists() and (shelf / "notes.txt").exists() and (out / "mine.glb").exists()


def test_files_of_a_format_no_longer_wanted_are_not_asked_for(whole: Path, out: Path) -> None:
    run(whole / "in", out, "export.formats=glb")
    (out / "a.obj").unlink()
    assert verify(out, deep=True).problems == ()


def test_a_run_killed_between_two_moves_is_found_and_repaired(whole: Path, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(whole / "in", other, "export.formats=[glb, obj]", "seed=3")
    record = record_of(other, "a.jpg")
    intent = (out / record.relative_to(other)).with_suffix(".intent")
    shutil.copy2(record, intent)
    shutil.copy2(other / "a.glb", out / "a.glb")
    assert found(verify(out)) == {("changed", "a.glb")}
    [problem] = repair(out).problems
    assert problem.is_repaired
    events = run(whole / "in", out)
    assert (exit_code(events), started(events)) == (0, {"a.jpg"})


def test_what_a_run_at_work_is_replacing_is_no_damage(out: Path) -> None:
    path = record_of(out, "a.jpg")
    path.with_suffix(".intent").write_bytes(path.read_bytes())
    (out / "a.glb").unlink()
    (out / "b.glb").unlink()
    store = Store.open(out, run="r")
    assert found(verify(out)) == {("missing", "b.glb")}
    with pytest.raises(Locked):
        repair(out)
    store.close()
    assert found(verify(out)) == {("missing", "a.glb"), ("missing", "b.glb")}


def test_a_record_replaced_while_one_looks_is_looked_at_again(out: Path, monkeypatch) -> None:
    path = record_of(out, "a.jpg")
    new = path.with_name(f"{path.name[:16]}.{'0' * 12}.json")
    real = CommitRecord.from_bytes

    def replaced(raw: bytes) -> CommitRecord:
        record = real(raw)
        if path.exists() and str(record.asset) == "a.jpg":
            keys = replace(record.keys, out="0" * 64)
            (out / "a.glb").unlink()
            outputs = tuple(output for output in record.outputs if output.path.suffix != ".glb")
            new.write_bytes(replace(record, keys=keys, outputs=outputs).as_bytes())
            path.unlink()
        return record

    monkeypatch.setattr(CommitRecord, "from_bytes", replaced)
    assert verify(out).problems == ()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        verify(tmp_path)
    with pytest.raises(NoInput):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_records_that_cannot_be_listed_end_in_a_line(out: Path, monkeypatch) -> None:
    def fail(_: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", fail)
    with pytest.raises(OutputError):
        verify(out)


def crm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "fakes.py"), *map(str, words)], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_command_tells_every_problem_and_its_exit_code(out: Path) -> None:
    done = crm("verify", out, "--deep")
    assert (done.returncode, done.stdout.splitlines()[0].split(":")[0]) == (
        0,
        "4 assets, 12 files, 37.5 KB read",
    )
    (out / "sub/c.glb").unlink()
    done = crm("verify", out)
    assert done.returncode == 3
    assert done.stdout.startswith("missing: sub/c.glb (of sub/c.png): not there\n")
    plain = json.loads(crm("verify", out, "--repair", "--json").stdout)
    assert plain["exit_code"] == 3
    assert plain["problems"] == [
        {"kind": "missing", "path": "sub/c.glb", "asset": "sub/c.png", "is_repaired": True}
    ]
    assert crm("verify", out).returncode == 0
