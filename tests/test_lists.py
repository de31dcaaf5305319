import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.errors import ExitCode, NoInput, UsageError
from crm_cli.run.lists import Listed, read_lists
from crm_cli.run.selection import Selection
from crm_cli.run.walk import walk

HERE = Path(__file__).parent


def plant(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(raw: bytes, *, is_null: bool = False) -> list[tuple[str, str]]:
    Path("list").write_bytes(raw)
    return [(str(listed.path), listed.place) for listed in read_lists(["list"], is_null=is_null)]


def stems(*names: str, inputs: tuple[Path, ...] = (), is_null: bool = False) -> list[str]:
    found = walk(inputs, Path("out"), select=Selection(), listed=read_lists(names, is_null=is_null))
    return [str(photo.stem) for photo in found.photos]


def test_a_list_has_one_path_a_line_and_blank_lines_do_not_count(here: Path) -> None:
    raw = b"\xef\xbb\xbfa.jpg\n\n  \r\nb c.jpg \r\n\td.jpg\ne.jpg"
    assert read(raw) == [
        ("a.jpg", "list, line 1"),
        ("b c.jpg ", "list, line 4"),
        ("\td.jpg", "list, line 5"),
        ("e.jpg", "list, line 6"),
    ]
    assert read(b"") == read(b"\n") == []


def test_with_null_names_may_hold_anything_else(here: Path) -> None:
    raw = b"\xef\xbb\xbfa\nb.jpg\0\0caf\xe9\r\0 \0e.jpg"
    assert read(raw, is_null=True) == [
        ("\ufeffa\nb.jpg", "list, entry 1"),
        ("caf\udce9\r", "list, entry 3"),
        (" ", "list, entry 4"),
        ("e.jpg", "list, entry 5"),
    ]


file_names = st.binary(min_size=1, max_size=20).filter(
    lambda raw: not set(raw) & set(b"\0/") and raw[:1] != b"."
)


@given(st.lists(file_names, max_size=8))
def test_every_name_that_a_file_can_have_is_read_back_exactly(raw: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_names(Path(folder) / "list", raw)


def check_names(path: Path, raw: list[bytes]) -> None:
    path.write_bytes(b"".join(name + b"\0" for name in raw))
    assert [os.fsencode(listed.path) for listed in read_lists([str(path)], is_null=True)] == raw


@pytest.mark.parametrize("name", ["nowhere", ".", "a\0b", "-0"])
def test_a_list_that_cannot_be_read_is_a_wrong_call(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_lists([name])
    assert "\n" not in str(caught.value)


def test_a_list_with_nul_bytes_is_refused_with_the_option_that_reads_it(here: Path) -> None:
    with pytest.raises(UsageError, match=r"list, line 2: holds a NUL byte .* -0 reads"):
        read(b"a.jpg\nb.jpg\0c.jpg\0")


def test_stdin_cannot_be_read_twice(here: Path) -> None:
    with pytest.raises(UsageError, match="only once"):
        read_lists(["-", "list", "-"])


def test_listed_photos_keep_their_folders_and_absolute_ones_their_names(here: Path) -> None:
    plant(here, "x/a.jpg", "y/a.jpg", "y/deep/b.png", "z/c.webp", "up/d.jpg")
    Path("list").write_text(f"x/a.jpg\n./y//a.jpg\n{here}/z/c.webp\nx/../up/d.jpg\ny/deep\n")
    assert stems("list") == ["c", "d", "x/a", "y/a", "y/deep/b"]


def test_a_photo_that_two_lists_or_an_input_name_as_well_is_taken_once(here: Path) -> None:
    plant(here, "x/a.jpg", "x/b.jpg", "y/c.jpg")
    Path("one").write_text(f"x/a.jpg\ny/c.jpg\n{here}/y/c.jpg\n")
    Path("two").write_text("y\nx/b.jpg\n")
    assert stems("one", "two") == ["x/a", "x/b", "y/c"]
    assert stems("one", "two", inputs=(Path("x"),)) == ["a", "b", "y/c"]


def test_what_is_listed_but_not_there_is_named_with_its_list_and_line(here: Path) -> None:
    plant(here, "a.jpg")
    Path("my\x1b list").write_text("a.jpg\n\nmissing\x1b.jpg\n")
    with pytest.raises(NoInput) as caught:
        stems("my\x1b list")
    assert str(caught.value).startswith("my\\x1b list, line 3: missing\\x1b.jpg: No such file or directory [")
    assert caught.value.exit_code == ExitCode.NO_INPUT


def test_a_list_that_is_something_else_is_refused_in_one_short_line(here: Path) -> None:
    Path("list").write_bytes(bytes(range(1, 10)) * 10_000)
    with pytest.raises(NoInput) as caught:
        stems("list")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    Path("lines").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(NoInput, match=r"lines, entry 1: a\.jpg\\x0ab\.jpg\\x0a: No such"):
        stems("lines", is_null=True)


def test_ten_thousand_listed_photos_are_found_in_the_order_of_their_bytes(here: Path) -> None:
    names = [f"{number % 97:02}/{number:05}.jpg" for number in range(10_000)]
    plant(here, *names)
    Path("list").write_text("\n".join(reversed(names)))
    assert stems("list") == sorted(name.removesuffix(".jpg") for name in names)


def test_a_listed_name_that_is_no_photo_is_passed_over_and_told(here: Path) -> None:
    plant(here, "sub/a.txt", "elsewhere/c.jpg")
    os.mkfifo("sub/pipe.jpg")
    Path("sub/out.jpg").symlink_to("/dev/zero")
    Path("list").write_text("sub/a.txt\nsub/pipe.jpg\nsub/out.jpg\n")
    found = walk((), Path("out"), select=Selection(), listed=read_lists(["list"]))
    assert found.photos == ()
    assert [skipped.path for skipped in found.passed_over] == ["sub/a.txt", "sub/pipe.jpg", "sub/out.jpg"]


def test_a_list_remembers_the_folder_it_was_read_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(here, "x/a.jpg")
    Path("list").write_text("x/a.jpg\n")
    listed = read_lists(["list"])
    assert listed == (Listed(folder=here, path=Path("x/a.jpg"), place="list, line 1"),)
    monkeypatch.chdir("/")
    [photo] = walk((), here / "out", select=Selection(), listed=listed).photos
    assert photo.file == here / "x" / "a.jpg"


def crm(*words: str, given: bytes = b"", cwd: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRM_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    command = [sys.executable, str(HERE / "fakes.py"), "convert", "-o", "out", "-p", "tiny", "--jobs", "1"]
    done = subprocess.run(
        [*command, "--format", "glb", "--no-report", *words],
        input=given, capture_output=True, env=environment, cwd=cwd,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done


def test_find_pipes_any_name_into_a_conversion(tmp_path: Path) -> None:
    names = ["two\nlines.jpg", os.fsdecode(b"caf\xe9.jpg"), "[b]/a.jpg", "\x1b[2J.png", "-x.jpg", " .jpg"]
    plant(tmp_path / "in", *names)
    given = subprocess.run(["find", ".", "-type", "f", "-print0"], capture_output=True, cwd=tmp_path / "in")
    done = crm("--from-file", "-", "-0", "-o", "../out", given=given.stdout, cwd=tmp_path / "in")
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.glb")}
    assert made == {Path(name).with_suffix(".glb") for name in names}


def test_inputs_and_lists_are_converted_together(tmp_path: Path) -> None:
    plant(tmp_path, "x/a.jpg", "y/b.jpg", "z/c.jpg")
    (tmp_path / "list").write_text("y/b.jpg\n")
    done = crm("x", "--from-file", "list", "--from-file", "-", given=b"z\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.glb")}
    assert made == {"a.glb", "y/b.glb", "z/c.glb"}


@pytest.mark.parametrize(
    ("words", "given", "code", "message"),
    [
        ((), b"", 2, b"nothing to convert"),
        (("-0", "a.jpg"), b"", 2, b"-0 without a list"),
        (("--from-file", "nowhere"), b"", 2, b"--from-file nowhere: cannot be read"),
        (("--from-file", "-", "--from-file", "-"), b"", 2, b"only once"),
        (("--from-file", "-"), b"a.jpg\0", 2, b"stdin, line 1: holds a NUL byte"),
        (("--from-file", "-"), b"b.jpg\n", 7, b"stdin, line 1: b.jpg: No such file"),
        (("--from-file", "-"), b"", 7, b"no photo found"),
        (("--from-file", "-", "--allow-empty"), b"", 0, b""),
    ],
)
def test_wrong_lists_are_refused_in_a_line_before_anything_is_written(
    tmp_path: Path, words: tuple[str, ...], given: bytes, code: int, message: bytes
) -> None:
    plant(tmp_path, "a.jpg")
    done = crm(*words, given=given, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert (tmp_path / "out").exists() == (code == 0)


def test_a_closed_stdin_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    line = f"exec {sys.executable} {HERE / 'fakes.py'} convert --from-file - -o out <&-"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and b"stdin: cannot be read" in done.stderr
