"""Which weights there are, and whether they are whole."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pickles import write_published
from safetensors import safe_open
from safetensors.torch import save_file

from crm_cli.errors import EnvironmentProblem, ExitCode, UsageError
from crm_cli.models import checked, shards, weights
from crm_cli.models.convert import convert


@pytest.fixture(autouse=True)
def weights_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of what the machine of the tests happens to have."""
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder, its denoisers in several files each; nobody changes it."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 1_000_000)
        convert(write_published(folder / "in"), folder / "out", architecture="miniature")
    return folder / "out"


@pytest.fixture
def published(converted: Path, weights_home: Path) -> Path:
    """The same where `crm weights fetch` would leave it."""
    return Path(shutil.copytree(converted, weights_home / "published"))


def make_set(folder: Path, *, seed: int = 0) -> None:
    for name in weights.NAMES:
        write_tensor(folder / f"{name}.safetensors", seed=seed)


def write_tensor(file: Path, *, seed: int) -> None:
    save_file({"weight": torch.full((5,), float(seed))}, file)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CRM_WEIGHTS_HOME": "/a", "XDG_DATA_HOME": "/b"}, "/a"),
        ({"CRM_WEIGHTS_HOME": "~/a"}, "/home/me/a"),
        ({"CRM_WEIGHTS_HOME": "", "XDG_DATA_HOME": "/b"}, "/b/crm/weights"),
        ({"XDG_DATA_HOME": ""}, "/home/me/.local/share/crm/weights"),
    ],
)
def test_converted_weights_live_where_the_variables_say(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("CRM_WEIGHTS_HOME")
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert weights.home() == Path(expected)


def test_a_user_without_a_home_still_finds_the_embedded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CRM_WEIGHTS_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert weights.home() == Path("/.local/share/crm/weights")
    assert weights.find("auto").name == "embedded"
    with pytest.raises(EnvironmentProblem, match="no such folder"):
        weights.find("~stranger/weights")


def test_a_folder_of_weights_is_found_and_its_digest_follows_its_contents(tmp_path: Path) -> None:
    make_set(tmp_path)
    found = weights.find(str(tmp_path))
    assert list(found.parts) == ["rgb", "ccm", "reconstruction"] and found.architecture == "small"
    assert found.digest == weights.find(str(tmp_path)).digest
    write_tensor(tmp_path / "ccm.safetensors", seed=1)
    changed = weights.find(str(tmp_path))
    assert found.digest != changed.digest
    assert found.digest_of("rgb", "ccm") != changed.digest_of("rgb", "ccm")
    assert (
        found.digest_of("rgb") == changed.digest_of("rgb") == weights.digest_of(tmp_path / "rgb.safetensors")
    )


def test_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "ccm.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match=r"no ccm\.safetensors.*E_WEIGHTS_MISSING") as caught:
        weights.find(str(tmp_path))
    assert "use --weights embedded" in caught.value.remedy


@pytest.mark.parametrize("choice", ["auto", "embedded"])
def test_the_embedded_set_is_the_one_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    make_set(tmp_path)
    monkeypatch.setattr(weights, "DIRECTORY", tmp_path)
    found = weights.find(choice)
    assert found.name == weights.name_of(choice) == "embedded"
    assert [file.path for file in found.files_of("rgb")] == [tmp_path / "rgb.safetensors"]


def test_photos_finished_with_the_embedded_set_stay_finished() -> None:
    found = weights.find("embedded")
    digests = {
        name: hashlib.sha256((weights.DIRECTORY / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in weights.NAMES
    }
    assert found.digest_of("reconstruction") == digests["reconstruction"]
    both = (digests["rgb"] + digests["ccm"]).encode()
    assert found.digest_of("rgb", "ccm") == hashlib.sha256(both).hexdigest()
    lines = "".join(f"{name} {digests[name]}\n" for name in weights.NAMES).encode()
    assert found.digest == hashlib.sha256(lines).hexdigest()


@pytest.mark.parametrize("choice", ["auto", "published"])
def test_published_weights_go_before_embedded_ones(published: Path, choice: str) -> None:
    found = weights.find(choice)
    assert found.name == weights.name_of(choice) == "published"
    assert found.directory == published and found.architecture == "miniature"
    assert set(found.parts) == set(weights.PARTS["miniature"])
    assert found.bytes == sum(file.stat().st_size for file in published.glob("*.safetensors"))


def test_without_published_weights_their_name_says_how_to_get_them() -> None:
    assert weights.find("auto").name == "embedded"
    with pytest.raises(EnvironmentProblem, match=r"no such folder.*E_WEIGHTS_MISSING") as caught:
        weights.find("published")
    assert "crm weights fetch" in caught.value.remedy


def test_a_folder_is_called_by_its_name(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.find(str(converted)).name == weights.find(f"{converted}/").name == "out"
    monkeypatch.chdir(converted)
    assert weights.find(".").name == weights.name_of(".") == "out"


def test_large_files_are_found_without_being_read(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "digest_of", lambda *_: pytest.fail("a file was read"))
    for file in published.glob("*.safetensors"):
        size = file.stat().st_size
        file.write_bytes(b"")
        os.truncate(file, size)
    assert weights.find("auto").digest


LOOK = """
import sys
from crm_cli.models.weights import find
print(find("auto").name, "torch" in sys.modules)
"""


def test_finding_weights_imports_no_torch(published: Path) -> None:
    told = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["published", "False"]


def lose_a_file(folder: Path) -> None:
    sorted(folder.glob("rgb-*"))[1].unlink()


def cut_a_file(folder: Path) -> None:
    file = sorted(folder.glob("vae-*"))[0]
    file.write_bytes(file.read_bytes()[:-1])


def lengthen_a_file(folder: Path) -> None:
    with sorted(folder.glob("vae-*"))[0].open("ab") as stream:
        stream.write(b"\0")


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name(f".{folder.name}-77-0123abcd.old"))


def lose_the_disk(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "not mounted")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_a_file, r"rgb-00002-of-\d+\.safetensors: no such file.*E_WEIGHTS_BROKEN"),
        (cut_a_file, r"vae-00001-of-\d+\.safetensors: \d+ bytes, not \d+.*E_WEIGHTS_BROKEN"),
        (lengthen_a_file, r"vae-00001-of-\d+\.safetensors: \d+ bytes, not \d+.*E_WEIGHTS_BROKEN"),
        (lambda folder: (folder / "weights.json").unlink(), r"no weights\.json.*E_WEIGHTS_BROKEN"),
        (lose_everything, r"no weights\.json.*E_WEIGHTS_BROKEN"),
        (move_away, r"its conversion was killed.*E_WEIGHTS_BROKEN"),
        (lose_the_disk, r"leads nowhere.*E_WEIGHTS_BROKEN"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "published"])
def test_broken_published_weights_are_an_error_and_never_a_step_down(
    published: Path, choice: str, harm: Callable[[Path], None], message: str
) -> None:
    harm(published)
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        weights.find(choice)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "crm weights fetch" in caught.value.remedy and "use --weights embedded" in caught.value.remedy


@pytest.mark.parametrize("is_home", [True, False])
def test_a_folder_that_nobody_may_look_into_is_an_error_and_never_a_step_down(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_home: bool
) -> None:
    closed = published if is_home else tmp_path / "closed"

    def refuse(path: Path, *_: object, **__: object) -> os.stat_result:
        if closed in (path, *path.parents):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.stat(path)  # noqa: PTH116 the original of what is replaced

    monkeypatch.setattr(Path, "lstat", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(EnvironmentProblem, match=rf"{closed}.*: Permission denied"):
        weights.find("auto" if is_home else str(closed))


def change(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest | values


def without(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest | {"parts": {k: v for k, v in manifest["parts"].items() if k != part}}


def elsewhere(manifest: dict[str, Any]) -> object:
    manifest["parts"]["vae"]["files"][0]["name"] = "../rgb.safetensors"
    return manifest


def misname(manifest: dict[str, Any]) -> object:
    manifest["parts"]["ema"] = manifest["parts"]["vae"]
    return manifest


def empty_the_second(manifest: dict[str, Any]) -> object:
    manifest["parts"]["ccm.vae"] = {"files": []}
    return manifest


def endless(manifest: dict[str, Any]) -> object:
    manifest["parts"]["vae"]["files"][0]["bytes"] = float("inf")
    return manifest


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (misname, "ema is no part of miniature"),
        (empty_the_second, r"no files of ccm\.vae"),
        (endless, "of the wrong kind"),
        (change(format=2), "format 2 needs a newer crm; this one reads 1"),
        (change(format=99), "format 99 needs a newer crm"),
        (change(format="one"), "format one"),
        (change(architecture="enormous"), "architecture enormous"),
        (change(parts={}), "no files of rgb"),
        (change(parts=[]), "of the wrong kind"),
        (without("contexts"), "no files of contexts"),
        (elsewhere, r"\.\./rgb\.safetensors is not beside it"),
        (lambda manifest: {}, "not a list of weights: it has no format"),
        (lambda manifest: [manifest], "of the wrong kind"),
        (lambda manifest: change(parts=manifest["parts"] | {"vae": {"files": [{}]}})(manifest), "no name"),
    ],
)
def test_a_list_that_is_none_is_refused(
    published: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = published / "weights.json"
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))
    with pytest.raises(EnvironmentProblem, match=rf"weights\.json: .*{message}.*E_WEIGHTS_BROKEN") as caught:
        weights.find("auto")
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_list_that_is_no_json_is_refused_in_one_line(published: Path, text: bytes) -> None:
    (published / "weights.json").write_bytes(text)
    with pytest.raises(
        EnvironmentProblem, match=r"weights\.json: not a list of weights: no JSON \[E_WEIGHTS_BROKEN"
    ) as caught:
        weights.find("auto")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [".", "CRM.pth"])
def test_published_checkpoints_must_be_converted_first(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "my downloads"
    folder.mkdir()
    (folder / "CRM.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_RAW") as caught:
        weights.find(str(folder / place))
    # As a shell takes it.
    assert f"crm weights convert '{folder / place}'" in caught.value.remedy


@pytest.mark.parametrize("name", ["notes.txt", "README"])
def test_a_file_of_something_else_is_not_taken_for_a_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Buy milk.")
    with pytest.raises(EnvironmentProblem, match=rf"{name}: a file, and no published.*E_WEIGHTS_MISSING"):
        weights.find(str(tmp_path / name))


def test_a_checkpoint_of_any_name_is_known_by_how_it_begins(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "new")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("new", "old"):
        with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_RAW"):
            weights.find(str(tmp_path / name))


@pytest.mark.parametrize(
    ("choice", "remedy"),
    [
        ("publish", "did you mean published?"),
        ("Embeded", "did you mean embedded?"),
        ("nonsense", "there are auto, embedded, published, or the path of a folder"),
        ("some/where", "use --weights embedded, or check the path"),
    ],
)
def test_a_name_that_nobody_knows_is_answered_with_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_MISSING") as caught:
        weights.find(choice)
    assert choice in caught.value.cause and caught.value.remedy == remedy


def test_no_name_at_all_is_not_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--weights: empty"):
        weights.find("")


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0.0 MB"), (999_900_000, "999.9 MB"), (7_000_000_000, "7.0 GB")]
)
def test_a_size_is_told_in_the_unit_that_suits_it(size: int, words: str) -> None:
    assert weights.in_words(size) == words


def test_both_diffusions_share_what_is_there_once(converted: Path) -> None:
    found = weights.find(str(converted))
    assert found.files_of("ccm.vae") == found.files_of("vae")
    second = replace(found, parts={**found.parts, "ccm.vae": found.files_of("vision")})
    assert second.files_of("ccm.vae") == found.files_of("vision") and second.digest != found.digest
    with pytest.raises(KeyError):
        found.files_of("ema")


def test_what_is_known_is_told_with_its_state(published: Path) -> None:
    embedded, converted = weights.known()
    assert (embedded.name, embedded.is_default) == ("embedded", False)
    assert (converted.name, converted.is_default, converted.directory) == ("published", True, published)
    assert embedded.weights == weights.find("embedded") and converted.weights == weights.find("published")
    cut_a_file(published)
    embedded, converted = weights.known()
    assert embedded.weights is not None and converted.weights is None and converted.is_default
    assert converted.problem is not None and converted.problem.code == "E_WEIGHTS_BROKEN"
    shutil.rmtree(published)
    embedded, converted = weights.known()
    assert embedded.is_default and not converted.is_default
    assert converted.problem is not None and converted.problem.code == "E_WEIGHTS_MISSING"


# Every byte.


def test_a_whole_set_is_read_to_the_end(converted: Path) -> None:
    found = weights.find(str(converted))
    told: list[tuple[str, int, int]] = []
    weights.verify(found, lambda *step: told.append(step))
    weights.verify(weights.find("embedded"))
    assert list(dict.fromkeys(part for part, _, _ in told)) == list(found.parts)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (found.bytes, found.bytes)


@pytest.mark.parametrize("part", ["rgb", "contexts", "reconstruction"])
@pytest.mark.parametrize("place", [0, 9, -1], ids=["length", "header", "values"])
def test_one_wrong_bit_in_a_file_is_found_and_the_file_named(published: Path, part: str, place: int) -> None:
    found = weights.find("auto")
    file = found.files_of(part)[-1].path
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)
    with pytest.raises(EnvironmentProblem, match=rf"{file.name}: .*changed.*E_WEIGHTS_BROKEN") as caught:
        weights.verify(weights.find("auto"))
    assert "crm weights fetch" in caught.value.remedy


def test_a_file_without_a_list_is_found_broken_by_its_header(tmp_path: Path) -> None:
    make_set(tmp_path)
    file = tmp_path / "ccm.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        EnvironmentProblem, match=r"ccm\.safetensors: not a whole weights file.*E_WEIGHTS_BROKEN"
    ):
        weights.verify(weights.find(str(tmp_path)))


def test_a_file_that_vanishes_is_named(published: Path) -> None:
    found = weights.find("auto")
    lose_a_file(published)
    with pytest.raises(EnvironmentProblem, match=r"rgb-00002.*E_WEIGHTS_BROKEN"):
        weights.verify(found)


# Once.


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files, from now on, as they are hashed."""
    names: list[str] = []
    real = weights.digest_of

    def digest_of(file: Path, *rest: Any) -> str:
        names.append(file.name)
        return real(file, *rest)

    monkeypatch.setattr(weights, "digest_of", digest_of)
    return names


def names_of(found: weights.WeightsSet) -> list[str]:
    return [file.path.name for files in found.parts.values() for file in files]


def test_what_a_conversion_has_just_written_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_published(tmp_path / "in"), tmp_path / "out", architecture="miniature")
    names = read_files(monkeypatch)
    weights.require_intact(weights.find(str(tmp_path / "out")))
    assert names == []


@pytest.mark.parametrize("is_verified", [False, True])
def test_a_copied_set_is_read_once_and_afterwards_only_where_it_is_touched(
    published: Path, monkeypatch: pytest.MonkeyPatch, is_verified: bool
) -> None:
    found = weights.find("published")
    names = read_files(monkeypatch)
    weights.verify(found) if is_verified else weights.require_intact(found)
    assert names == names_of(found)
    names.clear()
    weights.require_intact(found)
    assert names == []
    touched = found.files_of("vae")[0].path
    os.utime(touched, ns=(0, 0))
    weights.require_intact(found)
    assert names == [touched.name]


def test_a_file_that_was_replaced_by_one_of_the_same_time_is_read(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights.find("published")
    weights.require_intact(found)
    file = found.files_of("vae")[0].path
    twin = Path(shutil.copy2(file, file.with_name("twin")))
    twin.replace(file)
    names = read_files(monkeypatch)
    weights.require_intact(found)
    assert names == [file.name]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b'{"x": 1}'])
def test_notes_that_are_none_are_made_anew(
    published: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    (published / checked.NOTES).write_bytes(text)
    found = weights.find("published")
    names = read_files(monkeypatch)
    weights.require_intact(found)
    weights.require_intact(found)
    assert names == names_of(found)


def test_a_long_look_is_announced_and_one_that_cannot_be_noted_explained(
    published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = weights.find("published")
    weights.require_intact(found)
    assert caplog.messages == []
    monkeypatch.setattr(weights, "NOTICED_BYTES", 1)
    weights.require_intact(found)
    assert caplog.messages == []
    (published / checked.NOTES).unlink()
    (published / checked.NOTES).mkdir()
    weights.require_intact(found)
    first, second = caplog.messages
    assert f"checking {found.bytes / 1e6:.1f} MB of weights once" in first
    assert f"crm weights verify {published}" in second
    assert not [file for file in published.iterdir() if file.suffix == ".part"]


def test_a_set_without_a_list_needs_no_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path)
    found = weights.find(str(tmp_path))
    names = read_files(monkeypatch)
    weights.require_intact(found)
    assert names == []
    weights.verify(found)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        f"{name}.safetensors" for name in weights.NAMES
    )


@pytest.mark.parametrize("name", weights.NAMES)
def test_shipped_weights_are_trained_and_say_from_what(name: str) -> None:
    with safe_open(weights.DIRECTORY / f"{name}.safetensors", "pt") as opened:
        metadata = json.loads(opened.metadata()[weights.METADATA_KEY])
        # What starts at zero is trained last: an untrained file would still be full of zeros there.
        silent = [key for key in opened.keys() if not opened.get_tensor(key).any()]  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    assert settings["steps"] > 0 and "seed" in settings
    assert metadata["preset"] == "small" and len(metadata["commit"]) >= 7
    assert all(score > 0 for score in json.loads(metadata["held_out"]).values())
    assert not silent


def test_the_shipped_weights_fit_into_a_package() -> None:
    assert weights.find("embedded").bytes < 32 << 20
