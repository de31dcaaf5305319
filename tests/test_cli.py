import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crm_cli.preset import list_presets

HERE = Path(__file__).parent

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("CRM_")},
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    # Where nobody has put any weights.
    "CRM_WEIGHTS_HOME": str(HERE / "nowhere"),
    "COLUMNS": "100",
    "TERM": "xterm",
}


def crm(*words: str | Path, check: int | None = 0, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with fakes for stations."""
    command = [sys.executable, str(HERE / "fakes.py"), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**ENVIRONMENT, **changes}, errors="surrogateescape"
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def plant(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return root


QUICK = ("-p", "tiny", "--no-report", "--jobs", "1")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from crm_cli.cli.app import main\n"
        "sys.argv = ['crm', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as error: assert error.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'warp', 'yaml', 'cv2', 'scipy', 'rich', 'tqdm'}\n"
        "heavy |= {'huggingface_hub', 'crm_cli.run.batch', 'crm_cli.models.weights'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    for words in (["--help"], ["convert", "--help"], ["weights", "fetch", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        assert "crm" in done.stdout


def test_a_whole_run_imports_nothing_heavy_into_the_coordinator(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg")
    code = (
        "import sys, fakes\n"
        "from crm_cli.cli.app import main\n"
        "try: main(fakes.engine())\n"
        "except SystemExit as error: assert error.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'warp', 'cv2', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    words = ["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


def test_photos_become_assets_and_status_counts_them(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "shoes/b.png", "input_c.jpg")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--format", "glb,usd", check=3)
    assert done.stdout == ""
    assert "error: input_c.jpg: nothing in the picture [E_EMPTY]; another photo" in done.stderr
    assert re.search(r"^ *converted +2 *$", done.stderr, re.MULTILINE)
    assert re.search(r"^ *failed +1 +\(input 1\) *$", done.stderr, re.MULTILINE)
    assert (tmp_path / "out" / "shoes" / "b.glb").exists()
    assert not (tmp_path / "out" / "shoes" / "b.obj").exists()
    told = crm("status", tmp_path / "out").stdout
    assert "2 finished" in told and "input_c.jpg: nothing in the picture [E_EMPTY]" in told
    assert re.search(r"^2 made with fakes \([0-9a-f]{12}\)$", told, re.MULTILINE)
    plain = json.loads(crm("status", tmp_path / "out", "--json").stdout)
    assert plain["finished"] == 2 and plain["failures"][0]["asset"] == "input_c.jpg"
    assert plain["is_running"] is False


def test_the_screen_of_a_log_has_one_line_for_each_photo(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg")
    lines = crm("convert", photos, "-o", tmp_path / "out", *QUICK).stderr.splitlines()
    assert re.fullmatch(r"2 photos: 2 to convert; 1 worker; weights: fakes \([0-9a-f]{12}\)", lines[0])
    assert lines[1].startswith("[1/2] a.jpg: converted in ")
    assert lines[2].startswith("[2/2] b.jpg: converted in ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["convert", "IN", "-o", "OUT", "--set", "rgb.stpes=3"], 2, "did you mean 'steps'?"),
        (["convert", "IN", "-o", "OUT", "--format", "fbx"], 2, "export.formats"),
        (["convert", "IN", "-o", "OUT", "--matting", "magic"], 2, "matting.method"),
        (["convert", "IN", "-o", "OUT", "--timeout", "unwrap"], 2, "expected STAGE=TIME"),
        (["convert", "IN", "-o", "OUT", "--timeout", "lunch=3"], 2, "no such stage"),
        (["convert", "IN", "-o", "OUT", "--timeout", "bake=nan"], 2, "not a time"),
        (["convert", "IN", "-o", "OUT", "--device", "toaster"], 2, "--device toaster"),
        (["convert", "IN", "-o", "OUT", "--precision", "float8"], 2, "--precision float8"),
        (["convert", "IN", "-o", "OUT", "--progress", "fireworks"], 2, "--progress fireworks"),
        (["convert", "IN", "-o", "OUT", "--jobs", "0"], 2, "--jobs"),
        (["convert", "IN", "-o", "OUT", "--preset", "nosuch"], 2, "nosuch"),
        (["convert", "IN"], 2, "--out"),
        (["convert", "IN", "-o", "OUT", "--include", "*.bmp"], 7, "no photo found"),
        (["convert", "NOWHERE", "-o", "OUT"], 7, "NOWHERE"),
        (["convert", "IN", "-o", "IN/a.jpg"], 2, "no folder [E_OUT_IS_FILE]"),
        (["status", "IN"], 7, "not an output folder"),
        (["weights", "verify", "IN"], 6, "IN"),
        (["weights", "convert", "IN"], 6, "CRM.pth"),
        (["weights", "convert", "IN", "--architecture", "huge"], 2, "huge"),
        (["weights", "fetch", "--repo", "a/b/c"], 2, "OWNER/NAME"),
    ],
)
def test_a_wrong_call_is_refused_with_its_code_before_anything_is_written(
    tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    plant(tmp_path / "IN", "a.jpg")
    words = [str(tmp_path / word) if word.startswith(("IN", "OUT")) else word for word in words]
    done = crm(*words, check=code)
    assert message in done.stderr
    assert not (tmp_path / "OUT").exists()
    assert [path.name for path in (tmp_path / "IN").iterdir()] == ["a.jpg"]


def test_a_collision_is_refused_before_anything_starts(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "a.png")
    done = crm("convert", photos, "-o", tmp_path / "out", check=2)
    assert "a.jpg and a.png" in done.stderr and "--keep-ext" in done.stderr
    assert not (tmp_path / "out").exists()
    crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--keep-ext", "--format", "glb")
    assert {path.name for path in (tmp_path / "out").glob("*.glb")} == {"a.jpg.glb", "a.png.glb"}


def test_with_json_stdout_holds_events_alone(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "noisy_b.jpg", "raise_c.jpg")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "--json", check=3)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["schema"] for event in events} == {"crm.events/1"}
    assert [events[0]["type"], events[-1]["type"]] == ["run_started", "run_finished"]
    assert events[-1]["exit_code"] == 3
    finished = {event["path"]: event for event in events if event["type"] == "asset_finished"}
    assert finished["a.jpg"]["outputs"] == ["a.glb", "a.obj", "a.usd"]
    assert finished["raise_c.jpg"]["kind"] == "internal"


def test_a_closed_pipe_does_not_end_a_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "b.jpg")
    command = [sys.executable, HERE / "fakes.py", "convert", photos, "-o", tmp_path / "out", *QUICK, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert errors.count("stdout was closed") == 1
    assert (tmp_path / "out" / "slow_a.glb").exists()


def test_hostile_names_reach_the_terminal_as_plain_text(tmp_path: Path) -> None:
    names = [
        "[/b].jpg",
        "[red]x.jpg",
        "\x1b[2Jinput_.jpg",
        "a\nb.jpg",
        "\u202egpj.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    photos = plant(tmp_path / "in", *names)
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "-v")
    assert "[/b].jpg" in done.stderr and "[red]x.jpg" in done.stderr
    for shown in ("\\x1b[2Jinput_.jpg", "a\\x0ab.jpg", "\\u202egpj.jpg", "\\xff.jpg"):
        assert shown in done.stderr
    assert not {"\x1b", "\u202e"} & set(done.stderr)


def test_quiet_says_nothing_but_failures(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "input_b.jpg")
    done = crm("convert", photos, "-o", tmp_path / "out", *QUICK, "-q", check=3)
    assert done.stderr.splitlines() == ["error: input_b.jpg: nothing in the picture [E_EMPTY]; another photo"]


def test_a_flag_beats_the_environment_which_beats_set(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    words = ["convert", photos, *QUICK, "--set", "export.formats=usd"]
    for out, flags, environment, expected in (
        ("1", [], {}, "usd"),
        ("2", [], {"CRM_FORMAT": "obj"}, "obj"),
        ("3", ["--format", "glb"], {"CRM_FORMAT": "obj"}, "glb"),
    ):
        crm(*words, *flags, "-o", tmp_path / out, **environment)
        assert [path.name for path in (tmp_path / out).glob("a.*")] == [f"a.{expected}"]


def test_what_is_left_to_the_weights_is_shown_for_both() -> None:
    shown = crm("presets", "show", "--set", "ccm.steps=7").stdout
    assert re.search(
        r"^rgb\.steps: auto  # .*; 1 with the embedded weights, 20 with the published$", shown, re.MULTILINE
    )
    assert re.search(r"^ccm\.steps: 7  # calls of the network$", shown, re.MULTILINE)


def test_presets_are_listed_and_shown_with_their_origin() -> None:
    listed = dict(line.split(maxsplit=1) for line in crm("presets", "list").stdout.splitlines())
    assert next(iter(listed)) == "default" and set(listed) == set(list_presets())
    assert listed["exact"].startswith("The published system as its authors run it, up to the surface")
    assert not any(said.endswith(".") or "#" in said for said in listed.values())
    shown = crm("presets", "show", "tiny", "--origin", "--set", "seed=3").stdout.splitlines()
    assert "seed: 3  # from --set" in shown
    assert any(line.startswith("weights: ") and line.endswith("# from default.yaml") for line in shown)


def test_the_doctor_names_devices_tools_weights_and_the_commands_that_add_what_is_missing() -> None:
    told = crm("doctor").stdout
    assert re.search(r"^devices: cpu", told, re.MULTILINE)
    assert re.search(r"^ +rasteriser +torch +(used|works)$", told, re.MULTILINE)
    assert re.search(r"^weights: embedded \(.*\b[0-9a-f]{12}\b.*\)$", told, re.MULTILINE)
    if "nvdiffrast is not installed" in told:
        assert "pip install git+https://github.com/NVlabs/nvdiffrast --no-build-isolation" in told


def read_terminal(leader: int, until: bytes, patience_s: float = 20.0) -> bytes:
    """Everything a terminal was sent, until the given bytes appear or it is closed."""
    seen, ends = b"", time.monotonic() + patience_s
    while until not in seen and time.monotonic() < ends:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                data = os.read(leader, 1 << 16)
            except OSError:  # Linux says so when the other side is closed
                break
            seen += data
    return seen


@pytest.mark.parametrize(("number", "code"), [(None, 0), (signal.SIGINT, 130)])
def test_the_live_screen_gives_the_cursor_back(tmp_path: Path, number: int | None, code: int) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "slow_b.jpg", "slow_c.jpg")
    leader, follower = pty.openpty()
    command = [sys.executable, HERE / "fakes.py", "convert", photos, "-o", tmp_path / "out", *QUICK]
    process = subprocess.Popen(command, stderr=follower, stdout=follower, env=ENVIRONMENT)
    os.close(follower)
    seen = read_terminal(leader, b"unwrap")
    assert b"\x1b[?25l" in seen and b"slow_a.jpg" in seen
    if number is not None:
        process.send_signal(number)
    seen += read_terminal(leader, b"no such bytes")
    os.close(leader)
    assert process.wait() == code
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert b"converted" in seen
