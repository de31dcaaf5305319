"""The published weights on their whole way: from a hub over the command line into an asset."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pickles
import pygltflib
import pytest
import torch
from hub_stand_in import Fault, HubStandIn, environment, serving

from crm_cli.cli import meter
from crm_cli.cli.app import main
from crm_cli.models import hub
from crm_cli.models.convert import convert
from crm_cli.models.weights import MANIFEST, PUBLISHED_FILES, find
from crm_cli.preset import Override, load_preset

HERE = Path(__file__).parent
BOTTLE = HERE / "photos" / "bottle.png"

MINIATURE = ("--architecture", "miniature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; there must be no other."""
        [line] = self.err.splitlines()
        assert line.startswith("error: ") and self.out == ""
        return line


Crm = Callable[..., Answer]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of miniature checkpoints; nobody changes it."""
    folder = tmp_path_factory.mktemp("published")
    pickles.write_published(folder)
    return folder


@pytest.fixture(scope="session")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What they are converted into; nobody changes it."""
    folder = tmp_path_factory.mktemp("converted") / "published"
    convert([published], folder, architecture="miniature")
    return folder


@pytest.fixture
def raw(published: Path, tmp_path: Path) -> Path:
    """A copy of them to spoil."""
    return Path(shutil.copytree(published, tmp_path / "raw"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted weights go; no hub is asked."""
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "cached", lambda **asked: {})
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def good(home: Path, converted: Path) -> Path:
    """A whole set of published weights in its place."""
    return Path(shutil.copytree(converted, home / "published"))


@pytest.fixture
def crm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Crm:
    """The command line in this process."""

    def run(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["crm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Answer(code=int(ended.value.code or 0), out=said.out, err=said.err)

    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """The command line in processes of their own: the hub's variables are read once in each."""

    environment: dict[str, str]

    def crm(self, *words: str | Path) -> Answer:
        command = [sys.executable, "-m", "crm_cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        assert "Traceback" not in done.stderr
        return Answer(code=done.returncode, out=done.stdout, err=done.stderr)

    def where(self, **changes: str) -> Shell:
        return replace(self, environment={**self.environment, **changes})


@pytest.fixture
def server(published: Path) -> Iterator[HubStandIn]:
    files = {name: (published / name).read_bytes() for name in PUBLISHED_FILES}
    with serving(HubStandIn(files=files)) as stand_in:
        yield stand_in


@pytest.fixture
def shell(tmp_path: Path, server: HubStandIn) -> Shell:
    return Shell(environment=environment(server, tmp_path))


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file of a folder by its path, hidden ones as well."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def listed(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.code == 0, answer.err
    return {row["name"]: row for row in json.loads(answer.out)}


def test_the_published_weights_come_from_the_hub_and_make_an_asset(
    tmp_path: Path, shell: Shell, server: HubStandIn, published: Path
) -> None:
    fetched = shell.crm("weights", "fetch", "--repo", "test/crm", "--download-only")
    assert fetched.code == 0 and fetched.err == ""
    files = [Path(line) for line in fetched.out.splitlines()]
    assert [file.name for file in files] == list(PUBLISHED_FILES)
    assert [file.read_bytes() for file in files] == [server.files[name] for name in PUBLISHED_FILES]
    assert listed(shell.crm("weights", "list", "--json"))["published"]["state"] == "not fetched"
    assert not (tmp_path / "home").exists()

    converted = shell.crm("weights", "convert", "--repo", "test/crm", *MINIATURE)
    assert converted.code == 0 and converted.err == ""
    assert converted.out.startswith("published: ready, miniature, ")
    weights = find(str(tmp_path / "home" / "published"))
    source = json.loads((weights.directory / MANIFEST).read_text())["source"]
    assert {name: source[name]["sha256"] for name in PUBLISHED_FILES} == {
        name: server.digest(name) for name in PUBLISHED_FILES
    }

    rows = listed(shell.crm("weights", "list", "--json"))
    assert rows["published"] == {
        "name": "published",
        "state": "ready",
        "problem": None,
        "is_default": True,
        "directory": str(tmp_path / "home" / "published"),
        "architecture": "miniature",
        "bytes": weights.bytes,
        "digest": weights.digest,
    }
    assert not rows["embedded"]["is_default"]
    verified = shell.crm("weights", "verify")
    assert verified.code == 0
    assert [line.split(":")[0] for line in verified.out.splitlines()] == ["embedded", "published"]

    out = tmp_path / "out"
    steps = ("--set", "rgb.steps=2", "--set", "ccm.steps=2")
    quick = ("-p", "tiny", "--format", "glb", "--no-report", "--jobs", "1", "--device", "cpu", *steps)
    words = ("convert", BOTTLE, "-o", out, "--weights", "published", "--json", *quick)
    done = shell.crm(*words)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    for kind in ("run_started", "run_finished"):
        [event] = [event for event in events if event["type"] == kind]
        assert (event["weights"], event["weights_digest"]) == ("published", weights.digest)
    assert f"published ({weights.digest[:12]})" in done.err
    extras = pygltflib.GLTF2().load(str(out / "bottle.glb")).asset.extras
    assert (extras["weights"], extras["weights_sha256"]) == ("published", weights.digest)
    settings = (
        "weights=published", "export.formats=glb", "rgb.steps=2", "ccm.steps=2", "matting.method=alpha"
    )  # fmt: skip
    suited = load_preset("tiny", [*map(Override.from_assignment, settings)], architecture="miniature")
    assert extras["preset_sha256"] == suited.preset.fingerprint()
    [record] = [json.loads(file.read_text()) for file in (out / ".crm" / "records").rglob("*.json")]
    assert (record["weights_name"], record["weights_digest"]) == ("published", weights.digest)
    assert record["weights"]["mesh"] == weights.digest_of("reconstruction")

    # What auto takes is the same, so nothing is left to do.
    auto = ("convert", BOTTLE, "-o", out, "--weights", "auto", "--json", *quick)
    again = [json.loads(line) for line in shell.crm(*auto).out.splitlines()]
    assert again[-1]["counts"] == {"cached": 1} and again[-1]["weights"] == "published"


def test_fetch_alone_does_everything_and_says_what_there_is(tmp_path: Path, shell: Shell) -> None:
    fetched = shell.crm("weights", "fetch", "--repo", "test/crm", *MINIATURE)
    assert fetched.code == 0 and fetched.err == ""
    assert fetched.out.startswith("published: ready, miniature, ")
    assert str(tmp_path / "home" / "published") in fetched.out


def test_downloaded_files_that_are_not_the_published_ones_are_refused(tmp_path: Path, shell: Shell) -> None:
    assert shell.crm("weights", "fetch", "--repo", "test/crm", "--download-only").code == 0
    cache = tmp_path / "hf" / "hub"
    (cache / "models--test--crm").rename(cache / "models--Zhengyi--CRM")
    row = listed(shell.crm("weights", "list", "--json"))["published"]
    assert (row["state"], row["problem"]) == ("not converted", "run `crm weights convert`")
    refused = shell.crm("weights", "convert", *MINIATURE)
    assert refused.code == 6
    assert "CRM.pth" in refused.error and hub.DIGESTS["CRM.pth"] in refused.error
    assert listed(shell.crm("weights", "list", "--json"))["published"]["state"] == "not fetched"


def test_weights_that_came_from_the_published_files_are_not_fetched_again(
    crm: Crm, good: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {name: hashlib.sha256((raw / name).read_bytes()).hexdigest() for name in PUBLISHED_FILES}
    asked: list[str] = []

    def fetch(*, repository: str, **_: object) -> list[Path]:
        asked.append(repository)
        return [raw / name for name in PUBLISHED_FILES]

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "DIGESTS", digests)
    assert crm("weights", "fetch", *MINIATURE).out.startswith("published: ready")
    assert asked == []
    monkeypatch.setattr(hub, "DIGESTS", {**digests, "CRM.pth": "0" * 64})
    assert crm("weights", "fetch", *MINIATURE).code == 0
    assert asked == [hub.REPOSITORY]


def test_what_was_converted_from_the_same_files_is_not_fetched_again(
    tmp_path: Path, shell: Shell, server: HubStandIn
) -> None:
    words = ("weights", "fetch", "--repo", "test/crm", *MINIATURE)
    first = shell.crm(*words)
    folder = tmp_path / "home" / "published"
    before = folder.stat().st_ino
    assert shell.where(HF_HUB_OFFLINE="1").crm(*words) == first
    shutil.rmtree(tmp_path / "hf")
    server.requests.clear()
    assert shell.crm(*words) == first
    assert server.downloads() == [] and folder.stat().st_ino == before
    # Weights that were changed are made anew, as the message about them says.
    flip_bytes(folder)
    assert shell.crm(*words) == first
    assert server.downloads() != [] and folder.stat().st_ino != before


def test_new_files_of_a_repository_are_fetched(tmp_path: Path, shell: Shell, server: HubStandIn) -> None:
    words = ("weights", "fetch", "--repo", "test/crm", *MINIATURE)
    first = shell.crm(*words)
    pickles.write_published(tmp_path / "new", extras=True)
    server.files = {name: (tmp_path / "new" / name).read_bytes() for name in PUBLISHED_FILES}
    # This stand-in has one commit, and what is cached of that is not asked for again.
    shutil.rmtree(tmp_path / "hf")
    server.requests.clear()
    assert shell.crm(*words).code == first.code == 0
    assert server.downloads() != []


@pytest.mark.parametrize("case", ["architecture", "home", "read-only home", "full home"])
def test_what_a_conversion_would_fail_with_is_told_before_anything_is_asked_for(
    tmp_path: Path, shell: Shell, server: HubStandIn, case: str
) -> None:
    if case == "architecture":
        answer = shell.crm("weights", "fetch", "--repo", "test/crm", "--architecture", "enormous")
        assert answer.code == 2 and "enormous: not the architecture" in answer.error
    elif case == "home":
        (tmp_path / "home").write_text("not a folder")
        answer = shell.crm("weights", "fetch", "--repo", "test/crm", *MINIATURE)
        assert answer.code == 5 and f"{tmp_path / 'home'}" in answer.error
        assert "CRM_WEIGHTS_HOME" in answer.error
    elif case == "read-only home":
        answer = shell.where(CRM_WEIGHTS_HOME="/proc/crm").crm(
            "weights", "fetch", "--repo", "test/crm", *MINIATURE
        )
        assert answer.code == 5 and "/proc/crm/published: cannot be written" in answer.error
        assert "CRM_WEIGHTS_HOME" in answer.error
    else:
        (tmp_path / "home" / "published").mkdir(parents=True)
        (tmp_path / "home" / "published" / "thesis.txt").write_text("mine")
        answer = shell.crm("weights", "fetch", "--repo", "test/crm", *MINIATURE)
        assert answer.code == 5 and "holds thesis.txt" in answer.error
    assert server.requests == []


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (Fault(contents=b"nonsense"), "what has come is kept"),
        (Fault(status=500), "answers 500"),
        (Fault(status=401), "HF_TOKEN"),
    ],
)
def test_a_fetch_that_fails_leaves_no_weights(
    tmp_path: Path, shell: Shell, server: HubStandIn, fault: Fault, word: str
) -> None:
    server.faults["CRM.pth"] = fault
    impatient = "from crm_cli.models import download; download.PAUSES_S = ()\n"
    code = f"{impatient}from crm_cli.cli.app import main; main()"
    words = [sys.executable, "-c", code, "weights", "fetch", "--repo", "test/crm", *MINIATURE]
    done = subprocess.run(words, capture_output=True, text=True, env=shell.environment)
    answer = Answer(code=done.returncode, out=done.stdout, err=done.stderr)
    assert answer.code == 6
    assert word in answer.error
    assert not (tmp_path / "home").exists()


def test_wrong_bytes_from_the_hub_are_refused_with_both_digests(
    tmp_path: Path, shell: Shell, server: HubStandIn
) -> None:
    wrong = bytes(len(server.files["CRM.pth"]))
    server.faults["CRM.pth"] = Fault(contents=wrong)
    answer = shell.crm("weights", "fetch", "--repo", "test/crm", *MINIATURE)
    assert answer.code == 6
    assert server.digest("CRM.pth") in answer.error
    assert hashlib.sha256(wrong).hexdigest() in answer.error
    assert not (tmp_path / "home").exists()


def test_offline_without_the_files_says_which_are_missing(tmp_path: Path, shell: Shell) -> None:
    answer = shell.where(HF_HUB_OFFLINE="1").crm("weights", "fetch")
    assert answer.code == 6
    assert "CRM.pth, pixel-diffusion.pth, ccm-diffusion.pth" in answer.error
    assert not (tmp_path / "home").exists()


def test_an_interrupted_fetch_ends_quietly_and_keeps_what_has_come(
    tmp_path: Path, shell: Shell, server: HubStandIn
) -> None:
    server.faults["CRM.pth"] = Fault(cut_after=100_000, hangs=True)
    # Whoever runs tests in the background makes their children deaf to this signal.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hearing}; from crm_cli.cli.app import main; main()"
    words = [sys.executable, "-c", code, "weights", "fetch", "--repo", "test/crm"]
    with subprocess.Popen(
        words, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        blobs = tmp_path / "hf" / "hub" / "models--test--crm" / "blobs"
        while not any(file.stat().st_size for file in blobs.glob("*.incomplete")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert any(file.stat().st_size for file in blobs.glob("*.incomplete"))
    assert not (tmp_path / "home").exists()


class Code:
    """What a checkpoint must never hold: to read it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def truncate(raw: Path) -> None:
    os.truncate(raw / "pixel-diffusion.pth", 1_000_000)


def empty(raw: Path) -> None:
    (raw / "CRM.pth").write_bytes(b"")


def say_not_found(raw: Path) -> None:
    (raw / "CRM.pth").write_text("<html>404</html>")


def download_half(raw: Path) -> None:
    (raw / "ccm-diffusion.pth").unlink()


def reshape(raw: Path) -> None:
    def change(files: pickles.Published) -> None:
        files["CRM.pth"]["sdfMlp.fc3.weight"] = torch.zeros(1, 3)

    pickles.write_published(raw, change=change)


def forget(raw: Path) -> None:
    def change(files: pickles.Published) -> None:
        del files["CRM.pth"]["sdfMlp.fc3.weight"]

    pickles.write_published(raw, change=change)


def hide_code(raw: Path) -> None:
    torch.save({"sdfMlp.fc3.weight": Code(raw.parent / "canary")}, raw / "CRM.pth")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (truncate, "pixel-diffusion.pth"),
        (empty, "CRM.pth"),
        (say_not_found, "CRM.pth"),
        (download_half, "ccm-diffusion.pth"),
        (reshape, "sdfMlp.fc3.weight"),
        (forget, "sdfMlp.fc3.weight"),
        (hide_code, "CRM.pth"),
    ],
)
def test_bad_checkpoints_end_with_one_line_and_leave_what_was_there(
    tmp_path: Path, crm: Crm, home: Path, good: Path, raw: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(raw)
    before = tree(home)
    answer = crm("weights", "convert", raw, *MINIATURE)
    assert answer.code == 6
    assert word in answer.error
    assert tree(home) == before
    assert not (tmp_path / "canary").exists()


def test_where_nothing_was_bad_checkpoints_leave_nothing(crm: Crm, home: Path, raw: Path) -> None:
    truncate(raw)
    assert crm("weights", "convert", raw, *MINIATURE).code == 6
    assert not home.exists() or tree(home) == {}


def test_without_anything_downloaded_convert_says_what_to_do(crm: Crm, home: Path) -> None:
    answer = crm("weights", "convert")
    assert answer.code == 6 and "crm weights fetch" in answer.error
    assert not home.exists()


def test_photos_are_not_converted_with_checkpoints_that_are_not(
    tmp_path: Path, crm: Crm, home: Path, raw: Path
) -> None:
    answer = crm("convert", BOTTLE, "-o", tmp_path / "out", "--weights", raw)
    assert answer.code == 6
    assert f"crm weights convert {raw}" in answer.error
    assert not (tmp_path / "out").exists()


def shorten(folder: Path) -> None:
    os.truncate(next(folder.glob("rgb-*")), 1000)


def lose(folder: Path) -> None:
    next(folder.glob("vae-*")).unlink()


def lose_list(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(shorten, "rgb-"), (lose, "vae-"), (lose_list, MANIFEST)],
    ids=["shortened", "lost", "list lost"],
)
def test_broken_published_weights_are_never_stepped_over(
    tmp_path: Path, crm: Crm, good: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(good)
    for weights in ("published", "auto"):
        answer = crm("convert", BOTTLE, "-o", tmp_path / "out", "--weights", weights)
        assert answer.code == 6 and word in answer.error
    answer = crm("weights", "verify")
    assert answer.code == 6 and word in answer.err
    row = listed(crm("weights", "list", "--json"))["published"]
    assert row["state"] == "broken" and word in row["problem"] and row["is_default"]
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_is_found_by_verify(crm: Crm, good: Path) -> None:
    file = next(good.glob("ccm-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    answer = crm("weights", "verify", "published")
    assert answer.code == 6 and file.name in answer.error


def flip_bytes(folder: Path) -> None:
    file = next(folder.glob("ccm-*"))
    with file.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        last = stream.read()
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes(byte ^ 1 for byte in last))


def edit_digest(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parts"]["ccm"]["files"][0]["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("spoil", [flip_bytes, edit_digest])
@pytest.mark.parametrize("is_copied", [False, True])
def test_no_photo_is_converted_with_changed_weights(
    tmp_path: Path, crm: Crm, home: Path, raw: Path, spoil: Callable[[Path], None], is_copied: bool
) -> None:
    crm("weights", "convert", raw, *MINIATURE)
    folder = home / "published"
    if is_copied:
        folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(folder)
    for _ in range(2):
        answer = crm("convert", BOTTLE, "-o", tmp_path / "out", "--weights", folder)
        assert answer.code == 6
        assert "ccm-00001-of-00001.safetensors: its contents have changed" in answer.error
        assert "[E_WEIGHTS_BROKEN]; run `crm weights " in answer.error
    assert not (tmp_path / "out").exists()


def test_a_set_that_claims_another_architecture_is_refused_and_has_another_digest(
    crm: Crm, good: Path
) -> None:
    file = good / MANIFEST
    before = find("published").digest
    file.write_text(file.read_text().replace('"miniature"', '"release"'))
    assert find("published").digest != before
    answer = crm("weights", "verify", "published")
    assert answer.code == 6
    assert "rgb-00001-of-00001.safetensors: belongs to another network" in answer.error
    assert "[E_WEIGHTS_WRONG]" in answer.error


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", ""])
@pytest.mark.parametrize("command", ["fetch", "convert"])
def test_a_repository_has_an_owner_and_a_name(crm: Crm, home: Path, command: str, name: str) -> None:
    answer = crm("weights", command, "--repo", name)
    assert answer.code == 2 and "OWNER/NAME" in answer.error


def test_the_help_says_where_weights_are_kept_and_which_architectures_there_are(crm: Crm) -> None:
    assert "CRM_WEIGHTS_HOME" in crm("weights", "--help").out
    for command in ("fetch", "convert"):
        told = " ".join(crm("weights", command, "--help").out.replace("│", " ").split())
        assert "release, or miniature" in told


def test_files_of_another_size_are_answered_with_the_option_for_it(crm: Crm, home: Path, raw: Path) -> None:
    answer = crm("weights", "convert", raw)
    assert answer.code == 6 and "--architecture" in answer.error


def test_weights_can_be_converted_into_any_folder_and_used_by_its_path(
    tmp_path: Path, crm: Crm, home: Path, raw: Path
) -> None:
    sources = [raw / name for name in PUBLISHED_FILES]
    made = crm("weights", "convert", *sources, "-o", tmp_path / "mine", *MINIATURE)
    assert made.code == 0 and made.out.startswith("mine: ready, miniature")
    assert not home.exists()
    assert crm("weights", "verify", tmp_path / "mine").out == made.out
    assert crm("weights", "verify", tmp_path / "nowhere").code == 6


def test_the_towers_can_come_from_files_of_their_own(tmp_path: Path, crm: Crm, home: Path, raw: Path) -> None:
    crm("weights", "convert", raw, *MINIATURE)
    whole = find("published")
    files = pickles.published()
    torch.save(pickles.clip_of(files), tmp_path / "clip.pth")
    torch.save(pickles.vae_of(files), tmp_path / "vae.pth")
    bare = tmp_path / "bare"
    pickles.write_published(bare, towers=())
    assert crm("weights", "convert", bare, *MINIATURE).code == 6
    towers = ("--clip", tmp_path / "clip.pth", "--vae", tmp_path / "vae.pth")
    assert crm("weights", "convert", bare, *MINIATURE, *towers).code == 0
    assert find("published").digest == whole.digest


def test_the_list_marks_what_auto_takes(crm: Crm, home: Path, converted: Path) -> None:
    lines = crm("weights", "list").out.splitlines()
    assert lines[0].startswith("* embedded: ready, small, ")
    assert lines[1] == "  published: not fetched; run `crm weights fetch`"
    shutil.copytree(converted, home / "published")
    lines = crm("weights", "list").out.splitlines()
    assert lines[0].startswith("  embedded: ready, small, ")
    assert lines[1].startswith("* published: ready, miniature, ")


def test_the_list_is_given_whatever_is_wrong_with_the_hub(shell: Shell) -> None:
    answer = shell.where(HF_ENDPOINT="nonsense").crm("weights", "list")
    assert answer.code == 0 and "published: not fetched" in answer.out


def test_an_unknown_precision_is_refused(crm: Crm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("convert", BOTTLE, "-o", tmp_path / "out", "--weights", "embedded")
    answer = crm(*words, "--precision", "float8")
    assert answer.code == 2 and "--precision float8" in answer.error
    monkeypatch.setenv("CRM_PRECISION", "float7")
    assert "--precision float7" in crm(*words).error
    assert not (tmp_path / "out").exists()


def test_a_log_hears_of_bytes_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    with meter.metering() as tell:
        for step in range(181):
            now = float(step)
            tell("CRM.pth", step * 10_000_000, 2_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "CRM.pth: 0.60 of 2.00 GB (30%)",
        "CRM.pth: 1.20 of 2.00 GB (60%)",
        "CRM.pth: 1.80 of 2.00 GB (90%)",
    ]


def test_a_terminal_shows_a_bar_for_each_file() -> None:
    code = (
        "from crm_cli.cli import meter\n"
        "meter.DELAY_S = 0\n"
        "with meter.metering() as tell:\n"
        "    for name, size in (('one', 1000), ('two', 2000), ('three', 2000)):\n"
        "        for done in range(0, size + 1, 100): tell(name, done, size)\n"
    )
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    own = {**os.environ, "PYTHONPATH": str(HERE.parent), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower, env=own) as process:
        os.close(follower)
        seen = b""
        # Linux raises when the other side is closed.
        with suppress(OSError):
            while data := os.read(leader, 1 << 16):
                seen += data
    os.close(leader)
    assert process.returncode == 0
    assert b"one: 100%" in seen and b"1.00k/1.00k" in seen
    assert b"two: 100%" in seen and b"2.00k/2.00k" in seen
    assert b"three: 100%" in seen and seen.count(b"\n") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_that_is_ended_by_a_scheduler_leaves_nothing_behind(
    published: Path, tmp_path: Path, number: signal.Signals
) -> None:
    home = tmp_path / "home"
    # Stops itself in the middle: right after the first part has been written.
    code = f"""
import os, sys
from crm_cli.models import convert
real = convert.write_part
def once(*given, **more):
    done = real(*given, **more)
    os.kill(os.getpid(), {int(number)})
    return done
convert.write_part = once
sys.argv = ["crm", "weights", "convert", {str(published)!r}, "--architecture", "miniature"]
from crm_cli.cli.app import main
main()
"""
    environment_here = {**os.environ, "CRM_WEIGHTS_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment_here, capture_output=True, text=True)
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in home.rglob("*") if path.is_file() and path.name != ".lock"] == []
