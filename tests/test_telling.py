"""What a run tells programs and files, whatever becomes of them while it works."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from output import plant
from test_cli import ENVIRONMENT, HERE, QUICK, crm

EVENT_TYPES = ["run_started", "plan"]


def types(text: str) -> list[str]:
    return [json.loads(line)["type"] for line in text.splitlines()]


def test_events_go_to_a_file_and_to_stdout_alike(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    file = tmp_path / "events.ndjson"
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--events", file, "--json")
    assert types(file.read_text()) == types(done.stdout)
    assert types(done.stdout)[:2] == EVENT_TYPES and types(done.stdout)[-1] == "run_finished"
    again = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--events", "-")
    assert types(again.stdout) == ["run_started", "plan", "asset_finished", "run_finished"]


@pytest.mark.parametrize("flags", [["--json"], ["--events", "-"], ["--print", "path"]])
def test_a_reader_that_leaves_ends_no_run(tmp_path: Path, flags: list[str]) -> None:
    photos = plant(tmp_path / "in", *(f"{number}.jpg" for number in range(6)))
    command = [sys.executable, str(HERE / "fakes.py"), "convert", str(photos), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, *QUICK, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        words = errors.read().decode()
    assert process.wait() == 0 and len(list((tmp_path / "out").glob("*.glb"))) == 6
    assert words.count("stdout was closed; going on without\n") == 1 and "Traceback" not in words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_events_ends_no_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--events", "/dev/full")
    assert "warning: /dev/full cannot be written (No space left on device)" in done.stderr
    logged = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--log-file", "/dev/full")
    assert "Traceback" not in logged.stderr


def test_a_place_for_events_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    for flag in ("--events", "--log-file"):
        done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, flag, tmp_path / "no" / "x", check=2)
        assert f"{flag} {tmp_path}/no/x: cannot be written: No such file" in done.stderr.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_files_of_assets_are_printed_as_they_are_named_for_the_next_program(tmp_path: Path) -> None:
    names = ("a.jpg", "new\nline.jpg", "caf\udce9.jpg", "input_x.jpg")
    photos = plant(tmp_path / "in", *names)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, HERE / "fakes.py", "convert", photos, "-o", out, *QUICK, "--print", "path0"],
        capture_output=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 3
    told = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    assets = {str(path) for path in out.iterdir() if path.is_file() and path.name != "SHA256SUMS"}
    assert told == assets and len(told) == 9
    again = crm("convert", photos, "-o", out, *QUICK, "--print", "path", "--include", "a.jpg")
    assert set(again.stdout.splitlines()) == {f"{out}/a.{suffix}" for suffix in ("glb", "obj", "usd")}


def test_every_run_leaves_a_log_and_may_append_to_another(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "input_b\x1b[2J.jpg")
    log = tmp_path / "crm.log"
    for _ in range(2):
        crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--log-file", log, "-q", check=3)
    kept = [path.read_text() for path in sorted((tmp_path / "out").glob(".crm/runs/*/log.txt"))]
    assert len(kept) == 2 and "a.jpg: converted in" in kept[0] and "a.jpg: cached" in kept[1]
    text = log.read_text()
    assert text.count("error: input_b\\x1b[2J.jpg: nothing in the picture") == 2 and "\x1b" not in text
    assert text.count("exit code 3 after") == 2
    assert all(line[:2] == "20" and line[10] == "T" for line in text.splitlines())


def test_an_error_that_ends_a_run_is_in_its_log(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "lacking_a.jpg")
    crm("convert", photos, "-o", tmp_path / "out", *QUICK, check=6)
    [log] = (tmp_path / "out").glob(".crm/runs/*/log.txt")
    assert (
        log.read_text().splitlines()[-1].endswith("error: no unwrapper works here [E_TOOL]; see `crm doctor`")
    )


def results(file: Path) -> dict[str, str]:
    """Outcome of each photo by its place in the folder, as JUnit has it."""
    return {
        f"{case.get('classname')}/{case.get('name')}": " ".join(
            inner.tag for inner in case if inner.tag != "properties"
        )
        for case in ET.parse(file).getroot().iter("testcase")
    }


def test_the_results_are_written_for_ci_servers_and_kept_with_the_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "x/input_b.jpg", "x/caf\udce9.jpg", "x/z.jpg")
    out, file = tmp_path / "out", tmp_path / "results.xml"
    crm("convert", photos, "-o", out, *QUICK, "--limit", "1")
    crm("convert", photos, "-o", out, *QUICK, "--junit", file, "--fail-fast", check=4)
    assert results(file) == {
        "./a.jpg": "skipped", "x/caf\\xe9.jpg": "", "x/input_b.jpg": "failure", "x/z.jpg": "skipped"
    }  # fmt: skip
    [kept] = [path for path in out.glob(".crm/runs/*/junit.xml") if path.read_bytes() == file.read_bytes()]
    assert kept
    refused = crm("convert", photos, "-o", out, *QUICK, "--junit", tmp_path / "no" / "x.xml", check=2)
    assert "no such folder [E_JUNIT]" in refused.stderr.replace("\n", "")
    for place in (tmp_path, "/dev/null"):
        other = crm("convert", photos, "-o", out, *QUICK, "--junit", place, check=2)
        assert f"--junit {place}: no file [E_JUNIT]" in other.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("flags", "environment", "is_coloured"),
    [
        ([], {}, False),
        (["--color", "always"], {}, True),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        ([], {"CRM_COLOR": "always"}, True),
    ],
)
def test_colour_is_for_those_who_ask(
    tmp_path: Path, flags: list[str], environment: dict[str, str], is_coloured: bool
) -> None:
    photos = plant(tmp_path / "in", "input_a.jpg")
    quick = [*QUICK, "--progress", "plain"]
    done = crm("convert", photos, "-o", tmp_path / "out", *quick, *flags, check=3, **environment)
    assert ("\x1b[31m" in done.stderr) == is_coloured


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--print", "names"], "one of path, path0"),
        (["--print", "path", "--json"], "both on stdout"),
        (["--print", "path", "--events", "-"], "both on stdout"),
        (["--color", "red"], "one of auto, always, never"),
        (["--overwrite", "--skip-existing"], "one or the other"),
        (["--grace", "soon"], "not a time"),
        (["--max-failures", "many"], "neither a number nor a percentage"),
        (["--allow-failures", "120%"], "neither a number nor a percentage"),
        (["--force-stage", "lunch"], "no such stage"),
        (["--timeout", "bake=0"], "leaves no time at all"),
        (["--min-free", "much"], "not a size"),
    ],
)
def test_flags_that_make_no_sense_start_nothing(tmp_path: Path, flags: list[str], words: str) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, *flags, check=2)
    assert words in done.stderr.replace("\n", " ") and not (tmp_path / "out").exists()


def test_after_failures_the_command_that_tries_them_again_is_told(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "raise_a.jpg")
    out = tmp_path / "my meshes"
    done = crm("convert", photos, "-o", out, *QUICK, check=3)
    assert f"what failed can be tried once more: crm retry '{out}'" in done.stderr.replace("\n", "")


def complete(words: str) -> list[str]:
    """What the shell offers for the last word of a command."""
    environment = {**ENVIRONMENT, "_CRM_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    done = subprocess.run(
        [sys.executable, "-m", "crm_cli"], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.split()


def test_a_shell_completes_commands_flags_and_values() -> None:
    assert {"convert", "retry", "verify", "status", "schema"} <= set(complete("crm "))
    assert {"--max-failures", "--max-mpixels"} == set(complete("crm convert --max-"))
    assert "turbo" in complete("crm convert --preset tu")
    assert complete("crm convert --force-stage re") == ["reconstruct"]
    assert complete("crm convert --format glb,o") == ["glb,obj"]
