"""Folders that somebody made to do harm, converted by the real command line on the real reader of photos."""

import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import corpus
import pytest
from hostile import names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import ENVIRONMENT, HERE, crm

from crm_cli.errors import UsageError
from crm_cli.names import display_name
from crm_cli.run.lists import Listed
from crm_cli.run.selection import Selection
from crm_cli.run.walk import walk

PHOTO = corpus.encode(corpus.corners(), "PNG")

QUICK = ("-p", "tiny", "--jobs", "1", "--format", "glb", "--keep-ext")

READING = {"FAKES_LINE": "ReadingLine"}


def plant(root: Path, *paths: str, content: bytes = PHOTO) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (1_600_000_000, 1_600_000_000))
    return root


def snapshot(root: Path, *, leave_out: Path | None = None) -> dict[bytes, tuple[object, ...]]:
    """Everything below a folder with its kind, size, time and bytes, links as links."""
    seen: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        if leave_out is not None:
            folders[:] = [name for name in folders if Path(folder) / name != leave_out]
        for name in (*folders, *files):
            path = Path(folder) / name
            found = path.lstat()
            data = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
            target = os.readlink(path) if path.is_symlink() else ""  # noqa: PTH115 it may be no path at all
            size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
            seen[os.fsencode(path)] = (found.st_mode, size, found.st_mtime_ns, found.st_uid, data, target)
    return seen


def assets(out: Path) -> set[bytes]:
    return {os.fsencode(path.relative_to(out)) for path in out.rglob("*.glb")}


def passed_over(stderr: str) -> dict[str, str]:
    told = re.findall(r"^warning: (.*): passed over: (.*)$", stderr, re.MULTILINE)
    return dict(told)


def test_every_hostile_name_becomes_an_asset_of_its_own_inside_the_output_folder(tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    # Two names may differ in nothing but their letters' cases: then they would write the same files.
    chosen = [f"{number:02x}/{name}.png" for number, name in enumerate(names(120))]
    plant(photos, *chosen, "/".join(["deep"] * 64) + "/x.png", "n" * 247 + ".png")
    before = snapshot(tmp_path, leave_out=out)
    done = crm("convert", photos, "-o", out, *QUICK, **READING)
    assert snapshot(tmp_path, leave_out=out) == before
    expected = {os.fsencode(f"{path}.glb") for path in chosen}
    assert assets(out) == expected | {b"/".join([b"deep"] * 64) + b"/x.png.glb", b"n" * 247 + b".png.glb"}
    for name in chosen:
        assert display_name(name) in done.stderr
    assert all(letter.isprintable() or letter in "\n\u200d\ufe0f" for letter in done.stderr)
    assert not list(out.rglob("*.part")) and not list((out / ".crm" / "tmp").iterdir())
    again = crm("convert", photos, "-o", out, *QUICK, **READING)
    assert re.search(r"^ *cached +122 *$", again.stderr, re.MULTILINE)


def make_device(file: Path) -> None:
    try:
        os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs more rights")


def make_socket(file: Path) -> None:
    # The path of a socket may be short only.
    folder = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{file.name}")
    os.close(folder)


def make_two_links(file: Path) -> None:
    file.symlink_to(file.with_name("other.png"))
    file.with_name("other.png").symlink_to(file)


OBJECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda file: os.mkfifo(file), "not a regular file"),
    "device": (make_device, "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "link out": (lambda file: file.symlink_to("../secret.png"), "a link that leads out of the input folder"),
    "absolute link out": (
        lambda file: file.symlink_to("/etc/passwd"),
        "a link that leads out of the input folder",
    ),
    "link to a device": (
        lambda file: file.symlink_to("/dev/zero"),
        "a link that leads out of the input folder",
    ),
    "link to memory": (lambda file: file.symlink_to("/proc/self/mem"), "leads out|cannot be read"),
    "link to a folder": (lambda file: file.symlink_to("."), "not a regular file"),
}

UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to itself": (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
    "two links": (make_two_links, "Too many levels of symbolic links"),
    "link to nothing": (lambda file: file.symlink_to("nothing"), "No such file or directory"),
    "link through a file": (lambda file: file.symlink_to("good.png/x.png"), "Not a directory"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_is_no_file_of_the_folder_is_passed_over_and_said_so(tmp_path: Path, kind: str) -> None:
    photos, out = plant(tmp_path / "in", "good.png"), tmp_path / "out"
    plant(tmp_path, "secret.png")
    make, reason = OBJECTS[kind]
    make(photos / "odd.png")
    before = snapshot(tmp_path, leave_out=out)
    done = crm("convert", photos, "-o", out, *QUICK, "--no-report", **READING)
    assert assets(out) == {b"good.png.glb"}
    told = passed_over(done.stderr)
    assert re.search(reason, told.pop("odd.png"))
    assert set(told) <= {"other.png"}
    assert snapshot(tmp_path, leave_out=out) == before


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_called_a_photo_and_cannot_be_read_is_a_failure_and_not_forgotten(
    tmp_path: Path, kind: str
) -> None:
    photos, out = plant(tmp_path / "in", "good.png"), tmp_path / "out"
    make, reason = UNREADABLE[kind]
    make(photos / "odd.png")
    before = snapshot(tmp_path, leave_out=out)
    done = crm("convert", photos, "-o", out, *QUICK, "--no-report", "-q", check=3, **READING)
    assert assets(out) == {b"good.png.glb"}
    assert f"error: odd.png: cannot be read: {reason} [E_READ]; see to the file" in done.stderr
    assert snapshot(tmp_path, leave_out=out) == before


def test_folders_that_lead_in_circles_or_out_are_searched_once_or_not_at_all(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a/b/c.png"), tmp_path / "out"
    plant(tmp_path / "elsewhere", "d.png")
    (photos / "a" / "up").symlink_to("..")
    (photos / "out").symlink_to(tmp_path / "elsewhere")
    (photos / "folder.png").mkdir()
    (photos / "empty.png" / "inner.png").mkdir(parents=True)
    crm("convert", photos, "-o", out, *QUICK, "--no-report", **READING)
    assert assets(out) == {b"a/b/c.png.glb"}
    crm("convert", photos, "-o", tmp_path / "wide", *QUICK, "--no-report", "--follow-symlinks", **READING)
    assert assets(tmp_path / "wide") == {b"a/b/c.png.glb", b"out/d.png.glb"}


def test_a_link_inside_the_output_folder_leads_nothing_out_of_it(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "sub/a.png", "b.png", "c.png"), tmp_path / "out"
    plant(tmp_path / "elsewhere", "keep.txt", content=b"mine")
    (out / ".crm").mkdir(parents=True)
    (out / "sub").symlink_to(tmp_path / "elsewhere")
    (out / "b.png.glb").symlink_to(tmp_path / "elsewhere" / "keep.txt")
    before = snapshot(tmp_path, leave_out=out)
    crm("convert", photos, "-o", out, *QUICK, "--no-report", "--overwrite", check=3, **READING)
    assert snapshot(tmp_path, leave_out=out) == before
    assert not (out / "b.png.glb").is_symlink() and (out / "c.png.glb").is_file()


@pytest.mark.parametrize(
    ("first", "second"), [("caf\u00e9.png", "cafe\u0301.png"), ("A.png", "a.png"), ("\ufb01.png", "fi.png")]
)
def test_names_that_are_one_name_on_other_disks_are_refused_before_anything_starts(
    tmp_path: Path, first: str, second: str
) -> None:
    photos = plant(tmp_path / "in", first, second)
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, check=2)
    assert "E_NAME_COLLISION" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_name_that_leaves_no_room_for_the_assets_fails_alone_and_says_why(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "n" * 251 + ".png", "a.png")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, check=3, **READING)
    assert "longer than the disk allows [E_NAME_TOO_LONG]; give the photo a shorter name" in done.stderr
    assert "again:" not in done.stderr
    assert assets(tmp_path / "out") == {b"a.png.glb"}


def test_a_file_of_a_terabyte_that_takes_no_place_is_refused_at_once(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.png")
    with (photos / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, check=3, **READING)
    assert "huge.png: the file has more than 200 MB [E_IMG_TOO_LARGE]" in done.stderr
    assert assets(tmp_path / "out") == {b"a.png.glb"}
    again = crm("convert", photos, "-o", tmp_path / "out", *QUICK, check=3, **READING)
    assert "only --retry-failed tries it again" in again.stderr


def test_a_pipe_that_takes_a_photos_place_after_it_was_found_fails_alone(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "slow_a.png", "z.png"), tmp_path / "out"
    command = [sys.executable, HERE / "fakes.py", "convert", photos, "-o", out, *QUICK, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, **READING}
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        for line in process.stdout:
            if '"asset_started"' in line and "slow_a" in line:
                (photos / "z.png").unlink()
                os.mkfifo(photos / "z.png")
        errors = process.stderr.read()
        watchdog.cancel()
        assert process.wait(60) == 3, errors
    assert "z.png: cannot be read" in errors and "not a regular file" in errors
    assert assets(out) == {b"slow_a.png.glb"}


def test_a_photo_that_grows_all_along_is_not_taken_for_finished(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.png", "slow_grows.png"), tmp_path / "out"
    is_over = threading.Event()

    def grow() -> None:
        while not is_over.wait(0.02):
            with (photos / "slow_grows.png").open("ab") as file:
                file.write(b"more")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        done = crm("convert", photos, "-o", out, *QUICK, check=3, **READING)
    finally:
        is_over.set()
        thread.join()
    assert "slow_grows.png: changed while it was converted [E_CHANGED]" in done.stderr
    assert assets(out) == {b"a.png.glb"}


def test_a_folder_that_may_not_be_listed_is_a_failure(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv is None:
        pytest.skip("root may list everything, and setpriv is not installed")
    caps = "-dac_override,-dac_read_search"
    lower = [setpriv, f"--bounding-set={caps}", f"--inh-caps={caps}"] if os.geteuid() == 0 else []
    photos, out = plant(tmp_path / "in", "a.png", "locked/b.png", "c.png"), tmp_path / "out"
    (photos / "locked").chmod(0)
    (photos / "c.png").chmod(0)
    command = [*lower, sys.executable, HERE / "fakes.py", "convert", photos, "-o", out, *QUICK]
    try:
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, **READING},
            check=False,
        )
    finally:
        (photos / "locked").chmod(0o755)
    assert done.returncode == 3, done.stderr
    assert "error: locked: cannot be listed: Permission denied; see to its rights" in done.stderr
    assert "error: c.png: cannot be read" in done.stderr and "Permission denied" in done.stderr
    assert assets(out) == {b"a.png.glb"}


def test_bombs_and_lies_fail_alone_and_the_photo_between_them_is_converted(tmp_path: Path) -> None:
    chosen = [
        "a 196 MP PNG",
        "a PNG with 400 MB of text",
        "a TIFF of one tile of 4 GP",
        "a GIF that is called PNG",
    ]
    photos, out = plant(tmp_path / "in", "good.png"), tmp_path / "out"
    for number, name in enumerate(chosen):
        plant(photos, f"{number}.png", content=corpus.BOMBS[name][0]())
    done = crm("convert", photos, "-o", out, *QUICK, check=3, **READING)
    for number, name in enumerate(chosen):
        [line] = [line for line in done.stderr.splitlines() if line.startswith(f"error: {number}.png")]
        assert corpus.BOMBS[name][1] in line
    assert assets(out) == {b"good.png.glb"}
    assert "again:" not in done.stderr


PARTS = st.one_of(
    st.sampled_from(
        ["a", "A", "é", "e\u0301", "ß", "ss", "...", "a.jpg", "-", "report", "\\", "~", "%2e%2e", "CON"]
    ),
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=6),
    st.binary(min_size=1, max_size=6).map(os.fsdecode),
).filter(lambda part: not (set(part) & {"/", "\0"}) and part[0] != "." and len(os.fsencode(part)) < 200)

TREES = st.sets(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=TREES,
    suffixes=st.lists(st.sampled_from([".jpg", ".png", ".JPG"]), min_size=8, max_size=8),
    keep=st.booleans(),
)
def test_every_asset_lies_inside_the_output_folder_and_no_two_are_one(
    tmp_path: Path, tree: set[str], suffixes: list[str], keep: bool
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.rmtree(root, ignore_errors=True)
    planted = 0
    for path, suffix in zip(sorted(tree), suffixes, strict=False):
        try:
            plant(root, path + suffix, content=b"")
            planted += 1
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            pass  # a folder of that name stands there
    lists = [Listed(folder=tmp_path, path=Path("in/../in"), place="list, line 1")]
    try:
        found = walk([root], out, select=Selection(), keep_ext=keep, listed=lists)
    except UsageError as error:
        assert error.code == "E_NAME_COLLISION"
        return
    assert len(found.photos) == len({photo.file for photo in found.photos}) == planted
    targets = set()
    for photo in found.photos:
        target = Path(os.path.realpath(out / f"{photo.stem}.glb"))
        assert target.is_relative_to(out.resolve()) and target.parent != out.resolve().parent
        targets.add(str(target).casefold())
    assert len(targets) == len(found.photos)
