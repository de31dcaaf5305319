import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fakes import CHECKS

from crm_cli.errors import Locked, OutputError, PhotoError, UsageError
from crm_cli.preset import Override, Preset, load_preset, value_of
from crm_cli.records import Camera, Verdict
from crm_cli.run import commits, files
from crm_cli.run import store as store_module
from crm_cli.run.commits import CommitRecord, Glance, Output, Recipe, Records
from crm_cli.run.files import Input, identities
from crm_cli.run.status import status
from crm_cli.run.store import Store
from crm_cli.run.wire import dumps

PRESET = load_preset("tiny").preset


def changed(*assignments: str) -> Preset:
    return load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset


def recipe(*assignments: str, views: str = "w", mesh: str = "w") -> Recipe:
    return Recipe.of(changed(*assignments), {"views": views, "mesh": mesh})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def store(out: Path) -> Iterator[Store]:
    opened = Store.open(out, run="r1")
    yield opened
    opened.close()


def attempt(
    store: Store, name: str = "a", *, text: str = "data", suffixes: tuple[str, ...] = ("glb", "obj")
) -> tuple[CommitRecord, Path]:
    """Files in a scratch folder, and the record that announces them."""
    scratch = store.scratch()
    outputs = []
    for suffix in suffixes:
        path = PurePosixPath(f"sub/{name}.{suffix}")
        (scratch / path).parent.mkdir(exist_ok=True)
        (scratch / path).write_text(f"{text} {suffix}")
        outputs.append(Output(path=path, size=len(f"{text} {suffix}"), mtime_ns=0, sha256="0" * 64))
    keys = recipe().keys(text)
    record = CommitRecord(
        asset=PurePosixPath(f"sub/{name}.jpg"), id=f"{name:0>16}", stem=PurePosixPath(f"sub/{name}"),
        input=Input(sha256="ab", size=1, mtime_ns=2, inode=3), keys=keys, outputs=tuple(outputs),
        weights={"views": "w"}, params_sha="p", seed=0, seconds={"bake": 0.5}, checks=CHECKS, warnings=(),
        run=store.run, attempt=1, t=time.time(), crm="0",
    )  # fmt: skip
    return record, scratch


KEYS_SO_FAR = {
    "default": "9a367d5386f84afe6fe7598e0aae5f38760b7cc367dddf9ddb68b4f3b31f984d",
    "web": "15560d1a98135128e09e5cdb2ca26434cd4b25026fbdcf1f713d6a4b24e948db",
    "fine": "82c352818ca506b173358ae00cf25fb6304431e7205fa10980731cc7edd82d69",
    "tiny": "254b92d69c84a2aff2864bcc7bd5f5fa68ba0ed7498eed2e1b8b73c8a985f144",
    "banner": "ff3ee9129b2afdead8bb9bf90ee5a0c417979e668ba0fa2f3a11ac83387412b6",
}
"""Recipe.of(preset, {"views": "v", "mesh": "m"}).keys("0" * 64).out since the stages' present numbers.

They change where a stage's number is raised, or a preset says something else; a setting that is merely new
belongs in LATER_SETTINGS.
"""


@pytest.mark.parametrize("name", KEYS_SO_FAR)
def test_what_is_finished_stays_finished_when_settings_are_added(name: str) -> None:
    keys = Recipe.of(load_preset(name).preset, {"views": "v", "mesh": "m"}).keys("0" * 64)
    assert keys.out == KEYS_SO_FAR[name]


@pytest.mark.parametrize("key", commits.LATER_SETTINGS)
def test_a_later_setting_counts_as_soon_as_it_says_something_new(key: str) -> None:
    silent = commits.LATER_SETTINGS[key]
    assert value_of(PRESET, key) == silent
    other = {"subject": "canvas", 1.0: "0.5", False: "true"}[silent]
    assert recipe(f"{key}={other}").keys("0").out != recipe().keys("0").out


CAMERA = Camera(
    kind="orthographic", view="front", centre_x=320.5, centre_y=240.0, px_per_unit=300.0, left=80.0, top=1.5,
    right=560.0, bottom=470.0, photo_width_px=640, photo_height_px=480, silhouette_iou=0.97, is_refined=True,
)  # fmt: skip


def test_a_record_keeps_the_camera_and_one_of_the_first_version_has_none(store: Store) -> None:
    record = replace(attempt(store)[0], camera=CAMERA, checks=replace(CHECKS, seen_share=0.25))
    assert CommitRecord.from_bytes(record.as_bytes()) == record
    plain = json.loads(record.as_bytes())
    del plain["camera"], plain["checks"]["seen_share"], plain["crc"]
    body = json.dumps(plain, separators=(",", ":"))[:-1].encode("ascii")
    older = CommitRecord.from_bytes(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
    assert (older.camera, older.checks.seen_share) == (None, 0.0)


def die(store: Store) -> None:
    """Let the lock go as the kernel does when a process is killed: nothing is tidied up."""
    assert store._lock is not None
    store._lock.release()
    store._lock = None


def reopened(store: Store, out: Path) -> Store:
    store.close()
    return Store.open(out, run="r2")


@pytest.mark.parametrize(
    ("change", "first_stage"),
    [
        ("matting.method=none", "prep"),
        ("seed=7", "views"),
        ("mesh.faces=999", "mesh"),
        ("export.formats=glb", "out"),
    ],
)
def test_a_setting_changes_the_keys_from_its_stage_on_and_none_before(change: str, first_stage: str) -> None:
    before, after = recipe().keys("photo"), recipe(change).keys("photo")
    stages = ["prep", "views", "mesh", "out"]
    differing = [stage for stage in stages if getattr(before, stage) != getattr(after, stage)]
    assert differing == stages[stages.index(first_stage) :]


def test_a_key_is_the_digest_of_a_list_in_json_that_begins_with_the_key_before() -> None:
    made = recipe(views='w"é')
    key, keys = "ab" * 32, made.keys("ab" * 32)
    for stage, weights in (("prep", ""), ("views", 'w"é'), ("mesh", "w"), ("out", "")):
        settings, *others = json.loads(f"[{made.words[stage]}]")
        assert len(settings) == 64 and others == [weights, commits.STAGE_NUMBERS[stage]]
        key = hashlib.sha256(json.dumps([key, settings, *others]).encode()).hexdigest()
        assert getattr(keys, stage) == key


def test_a_glance_at_a_record_sees_what_the_record_says_and_trusts_no_wrong_byte(
    store: Store, out: Path
) -> None:
    record, scratch = attempt(store)
    committed = store.publish(record, scratch)
    [seen] = Records.scan(out).glance(committed.id)
    assert is_part(json.loads(dumps(seen)), json.loads(dumps(committed)))
    [file] = (out / ".crm" / "records").glob("*/*.json")
    raw = file.read_bytes()
    for place in range(0, len(raw), 7):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert Records.scan(out).glance(committed.id) == []
    file.write_bytes(raw)
    assert Records.scan(out).glance(committed.id) == [seen]


def is_part(part: Any, whole: Any) -> bool:
    """Whether JSON says nothing that other JSON does not say in the same place."""
    if isinstance(part, dict):
        return all(name in whole and is_part(value, whole[name]) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(is_part, part, whole))
    return bool(part == whole)


def between(names: Iterable[str]) -> list[str]:
    """Everything else where a plan does not look."""
    others = [name for name in names if name not in ("v", "weights", "verdict")]
    return ["v", "weights", *others, "verdict"]


@pytest.mark.parametrize("order", [list, sorted, reversed, between])
def test_a_glance_needs_no_order_of_fields_and_takes_no_name_for_one(
    store: Store, order: Callable[[Iterable[str]], Iterable[str]]
) -> None:
    record, _ = attempt(store)
    stem = PurePosixPath('a,"verdict":,"weights":{')
    verdict = Verdict(grade="review", score=0.25, reasons=())
    record = replace(record, stem=stem, verdict=verdict)
    plain = json.loads(record.as_bytes())
    del plain["crc"]
    body = dumps({name: plain[name] for name in order(plain)})[:-1].encode()
    seen = Glance.from_bytes(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
    assert (seen.stem, seen.verdict, seen.t, seen.keys.out) == (str(stem), verdict, record.t, record.keys.out)
    assert seen == Glance.from_bytes(record.as_bytes())


def test_weights_and_photo_are_part_of_the_keys() -> None:
    before = recipe().keys("photo")
    assert recipe(mesh="other").keys("photo").views == before.views
    assert recipe(mesh="other").keys("photo").mesh != before.mesh
    assert recipe(views="other").keys("photo").views != before.views
    assert recipe().keys("another").prep != before.prep


def test_a_record_comes_back_as_it_was_and_no_changed_byte_is_believed(store: Store) -> None:
    record, _ = attempt(store)
    record = replace(record, asset=PurePosixPath(os.fsdecode(b"caf\xe9\n.jpg")), warnings=("ö",))
    raw = record.as_bytes()
    assert CommitRecord.from_bytes(raw) == record
    assert raw.count(b"\n") == 1 and raw.isascii()
    for index in range(len(raw)):
        with pytest.raises(ValueError):
            CommitRecord.from_bytes(raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :])
        with pytest.raises(ValueError):
            CommitRecord.from_bytes(raw[:index])


def test_pictures_of_an_earlier_try_never_show_another_asset(out: Path) -> None:
    thumbs = out / "report" / "thumbs"
    for number, kinds in enumerate((("turn.webp", "seen.webp", "model.js"), ("turn.webp",))):
        store = Store.open(out, run=f"r{number}")
        record, scratch = attempt(store)
        (scratch / "report" / "thumbs").mkdir(parents=True)
        for kind in kinds:
            (scratch / "report" / "thumbs" / f"{record.id}-{kind}").write_text(kind)
        store.publish(record, scratch)
        store.close()
        (thumbs / f"{record.id}-mine.txt").write_text("somebody's")
        (thumbs / f"{'0' * 16}-seen.webp").write_text("another asset's")
    left = {f"{record.id}-turn.webp", f"{record.id}-mine.txt", f"{'0' * 16}-seen.webp"}
    assert {path.name for path in thumbs.iterdir()} == left


def test_a_published_asset_stands_with_its_record(store: Store, out: Path) -> None:
    record, scratch = attempt(store)
    (scratch / "report" / "thumbs").mkdir(parents=True)
    (scratch / "report" / "thumbs" / "a.webp").write_text("picture")
    committed = store.publish(record, scratch)
    records = Records.scan(out)
    assert records.of(record.id) == [committed]
    assert records.intact(committed)
    assert (out / "sub" / "a.glb").read_text() == "data glb"
    assert (out / "report" / "thumbs" / "a.webp").read_text() == "picture"
    (out / "sub" / "a.obj").unlink()
    assert not records.intact(committed)


def boundaries(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Make the given operation on the disk, counted from one, the last thing that is tried."""
    passed: list[str] = []

    def guard(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def guarded(*arguments: object, **options: object) -> object:
            passed.append(name)
            if len(passed) >= stop_at:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, guarded)

    guard(os, "fsync")
    guard(Path, "replace")
    guard(Path, "mkdir")
    guard(Path, "unlink")
    return passed


def test_wherever_publishing_ends_no_record_lies_and_the_next_run_can_do_it_again(tmp_path: Path) -> None:
    reached = 0
    for stop_at in range(1, 100):
        out = tmp_path / str(stop_at)
        store = Store.open(out, run="r1")
        old, scratch = attempt(store, text="old", suffixes=("glb", "obj", "usd"))
        store.publish(old, scratch)
        store = reopened(store, out)
        new, scratch = attempt(store, text="new")
        with pytest.MonkeyPatch.context() as patch:
            passed = boundaries(patch, stop_at)
            try:
                store.publish(new, scratch)
                is_through = True
            except KeyboardInterrupt:
                is_through = False
        records = Records.scan(out)
        for record in records.of(new.id):
            # The new record stands only once every file does; the old one may stand beside new files.
            assert records.intact(record) or record.keys == old.keys
            texts = {(out / output.path).read_text() for output in record.outputs}
            expected = (
                {"new glb", "new obj"} if record.keys == new.keys else {"old glb", "old obj", "old usd"}
            )
            assert not records.intact(record) or texts == expected
        store = reopened(store, out)
        again, scratch = attempt(store, text="new")
        committed = store.publish(again, scratch)
        assert store.records.intact(committed)
        store.close()
        assert not list((out / ".crm" / "tmp").iterdir())
        leftovers = [p for p in out.rglob("*") if p.name.endswith((".part", ".intent"))]
        assert not leftovers
        reached = len(passed)
        if is_through:
            break
    assert reached >= 12


def test_a_file_that_crm_did_not_write_is_never_overwritten_unless_told_to(store: Store, out: Path) -> None:
    (out / "sub").mkdir()
    (out / "sub" / "a.obj").write_text("an artist's")
    record, scratch = attempt(store)
    with pytest.raises(PhotoError, match=r"sub/a\.obj is in the way") as caught:
        store.publish(record, scratch)
    assert caught.value.kind == "conflict"
    assert (out / "sub" / "a.obj").read_text() == "an artist's"
    assert not (out / "sub" / "a.glb").exists()
    store.publish(record, scratch, may_overwrite=True)
    assert (out / "sub" / "a.obj").read_text() == "data obj"


def test_an_edited_file_is_not_ours_any_more(store: Store, out: Path) -> None:
    record, scratch = attempt(store)
    store.publish(record, scratch)
    (out / "sub" / "a.glb").write_text("improved by hand")
    store = reopened(store, out)
    record, scratch = attempt(store, text="new")
    with pytest.raises(PhotoError, match="changed since"):
        store.publish(record, scratch)
    assert (out / "sub" / "a.glb").read_text() == "improved by hand"
    store.close()


def test_a_photo_is_never_overwritten_even_when_told_to(store: Store, out: Path) -> None:
    (out / "sub").mkdir()
    photo = out / "sub" / "a.glb"
    photo.write_text("a photo with an odd name")
    record, scratch = attempt(store)
    with pytest.raises(PhotoError, match="it is an input"):
        store.publish(record, scratch, may_overwrite=True, is_input=photo.samefile)
    assert photo.read_text() == "a photo with an odd name"


def test_a_file_is_known_under_other_names_and_when_it_was_replaced(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("a")
    other.write_text("b")
    known = identities(file)
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "twin").hardlink_to(file)
    for name in ("a", "link", "twin"):
        assert not known.isdisjoint(identities(tmp_path / name))
    assert known.isdisjoint(identities(other))
    other.replace(file)
    assert not known.isdisjoint(identities(file))
    file.unlink()
    assert not known.isdisjoint(identities(file)), "nor does it matter that it is gone"


def test_a_linked_folder_in_the_output_is_not_followed(store: Store, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out / "sub").symlink_to(tmp_path / "elsewhere")
    record, scratch = attempt(store)
    with pytest.raises(PhotoError):
        store.publish(record, scratch)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_shorter_than_announced_is_not_published(store: Store, out: Path) -> None:
    record, scratch = attempt(store)
    (scratch / "sub" / "a.glb").write_text("da")
    with pytest.raises(PhotoError, match="announced"):
        store.publish(record, scratch)
    assert not (out / "sub").exists()


def test_a_worker_cannot_write_outside_the_output(store: Store, tmp_path: Path) -> None:
    record, scratch = attempt(store)
    escaping = replace(record.outputs[0], path=PurePosixPath("../../escaped.glb"))
    with pytest.raises(PhotoError, match="outside"):
        store.publish(replace(record, outputs=(escaping,)), scratch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_or_broken_disk_ends_the_run_and_not_one_photo(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    record, scratch = attempt(store)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="cannot be written"):
        store.publish(record, scratch)
    assert Records.scan(out).of(record.id) == []


def test_an_output_folder_that_vanished_is_not_made_again(store: Store, out: Path, tmp_path: Path) -> None:
    record, scratch = attempt(store)
    out.rename(tmp_path / "moved")
    with pytest.raises(OutputError):
        store.publish(record, tmp_path / "moved" / scratch.relative_to(out))
    with pytest.raises(OutputError):
        store.scratch()
    assert not out.exists()


def test_a_second_run_is_refused_with_the_holder_and_admitted_afterwards(out: Path) -> None:
    first = Store.open(out, run="r1")
    with pytest.raises(Locked, match=f"process {os.getpid()} on "):
        Store.open(out, run="r2")
    first.close()
    Store.open(out, run="r3").close()


def test_a_run_can_wait_for_the_lock(out: Path) -> None:
    holder = "import sys, time; from pathlib import Path; from crm_cli.run.store import Store\n"
    holder += "Store.open(Path(sys.argv[1]), run='r1'); print('held', flush=True); time.sleep(0.6)"
    with subprocess.Popen([sys.executable, "-c", holder, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        Store.open(out, run="r2", wait_lock_s=20).close()


def test_a_child_process_does_not_keep_the_lock(out: Path) -> None:
    store = Store.open(out, run="r1")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    die(store)
    Store.open(out, run="r2").close()
    child.communicate(b"\n")


def test_what_dead_runs_left_is_cleared_away(store: Store, out: Path) -> None:
    record, scratch = attempt(store)
    store.publish(record, scratch)
    dead = out / ".crm" / "tmp" / "old-1"
    dead.mkdir()
    (dead / "half.glb").write_text("ha")
    part = next((out / ".crm" / "records").iterdir()) / ".crm-old-1-00.part"
    part.write_text("{")
    die(store)
    Store.open(out, run="r2").close()
    assert not dead.exists() and not part.exists()
    assert len(Records.scan(out).of(record.id)) == 1


def test_a_folder_of_a_newer_format_is_refused_untouched(out: Path) -> None:
    Store.open(out, run="r1").close()
    (out / ".crm" / "FORMAT").write_text("2\n")
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match="format '2'"):
        Store.open(out, run="r2")
    assert sorted(out.rglob("*")) == before


def test_a_file_in_place_of_the_output_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("no folder")
    with pytest.raises(OutputError):
        Store.open(tmp_path / "out", run="r1")


def test_superseded_records_go_but_not_the_one_that_alone_knows_a_file(store: Store, out: Path) -> None:
    record, scratch = attempt(store, text="old", suffixes=("glb", "usd"))
    store.publish(record, scratch)
    for text, standing in (("newer", 2), ("newest", 2)):
        store = reopened(store, out)
        record, scratch = attempt(store, text=text, suffixes=("glb",))
        store.publish(record, scratch)
        assert len(Records.scan(out).of(record.id)) == standing
    store = reopened(store, out)
    record, scratch = attempt(store, text="last", suffixes=("glb", "usd"))
    store.publish(record, scratch)
    assert len(Records.scan(out).of(record.id)) == 1
    store.close()


def test_an_atomic_write_leaves_the_old_bytes_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old", run="r")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError):
            files.write_atomically(path, b"new", run="r")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_lock_says_who_holds_it(store: Store, out: Path) -> None:
    holder = json.loads((out / ".crm" / "lock").read_text())
    assert holder["pid"] == os.getpid() and holder["run"] == "r1"


def test_names_of_runs_sort_as_they_began_also_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [
        1_700_000_000_000_000_000 + us * 1000 for us in (0, 1, 15, 16, 99_999, 100_000, 999_999, 1_000_000)
    ]
    names = []
    for moment in moments:
        monkeypatch.setattr("time.time_ns", lambda moment=moment: moment)
        names.append(store_module.new_run())
    assert names == sorted(names)
    assert store_module.new_run() != names[-1]


def test_a_disk_that_cannot_read_a_record_makes_nobody_do_its_asset_again(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, scratch = attempt(store)
    store.publish(record, scratch)
    records = Records.scan(out)

    def fail(descriptor: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", fail)
        with pytest.raises(OutputError, match=r"out: cannot be read: Input/output error"):
            records.of(record.id)


def test_what_a_kill_left_in_the_folder_of_its_run_is_cleared_away(out: Path) -> None:
    Store.open(out, run="r1").close()
    left = out / ".crm" / "runs" / "r1" / ".crm-r1-1-ab.part"
    left.parent.mkdir()
    left.write_text("half")
    Store.open(out, run="r2").close()
    assert not left.exists()


def test_pictures_do_not_make_a_vanished_folder_again(store: Store, out: Path, tmp_path: Path) -> None:
    thumbs = tmp_path / "elsewhere" / "report" / "thumbs"
    thumbs.mkdir(parents=True)
    (thumbs / "a.webp").write_text("picture")
    store.close()
    shutil.rmtree(out)
    with pytest.raises(FileNotFoundError):
        store._move_pictures(tmp_path / "elsewhere", "0" * 16)
    assert not out.exists()


@pytest.mark.parametrize("name", ["records", "journal"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Store.open(out, run="r1").close()
    listing = os.scandir, os.listdir

    def fail(which: int, path: Path) -> object:
        if Path(path).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listing[which](path)

    monkeypatch.setattr(os, "scandir", lambda path: fail(0, path))
    monkeypatch.setattr(os, "listdir", lambda path: fail(1, path))
    with pytest.raises(OutputError, match=r"out: cannot be read: Input/output error"):
        status(out)
