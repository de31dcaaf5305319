"""Networks that were trained alone become whole sets, byte for byte, or the reason is told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from in_process import Crm
from miniature import networks, write

from crm_cli.errors import CrmError, EnvironmentProblem, OutputError
from crm_cli.models.combine import combine
from crm_cli.models.denoiser import SMALL_RGB, MultiViewUNet
from crm_cli.models.loading import open_part, require_fit, save
from crm_cli.models.weights import DIRECTORY, MANIFEST, SECOND, WeightsSet, digest_of, find, verify


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights in miniature; the second diffusion has an autoencoder of its own."""
    home = tmp_path_factory.mktemp("home")
    write(home / "published", {**networks(), f"{SECOND}vae": networks(7)["vae"]})
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(home))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What trainings have shipped: networks of the published structure, and one of the small ones."""
    folder = tmp_path_factory.mktemp("trained")
    for part in ("rgb", "reconstruction"):
        save(networks(1)[part], folder / f"my {part}.safetensors", {"network": part})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save(MultiViewUNet(SMALL_RGB), folder / "small.safetensors", {"network": "rgb"})
    return folder


def digests(weights: WeightsSet) -> dict[str, list[str]]:
    return {part: [file.sha256 for file in files] for part, files in weights.parts.items()}


def test_networks_of_the_published_structure_take_their_places_in_the_published_set(
    trained: Path, tmp_path: Path
) -> None:
    files = [trained / "my reconstruction.safetensors", trained / "my rgb.safetensors"]
    told: list[tuple[str, int, int]] = []
    made = combine(files, tmp_path / "mine", progress=lambda *words: told.append(words))
    given = {file.stem.removeprefix("my "): [digest_of(file)] for file in files}
    assert digests(made) == digests(find("published")) | given
    assert made.directory == tmp_path / "mine" and made.architecture == "miniature"
    verify(made)
    require_fit(made)
    found, wanted = (
        network.state_dict()
        for network in (open_part(made, "reconstruction"), networks(1)["reconstruction"].half().float())
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert told[-1][1:] == (made.bytes, made.bytes)
    sources = json.loads((made.directory / MANIFEST).read_text())["source"]
    assert sources["published"]["sha256"] == find("published").digest
    assert {sources[file.name]["sha256"] for file in files} == {digest for [digest] in given.values()}


def test_a_small_network_joins_the_embedded_ones(trained: Path, tmp_path: Path) -> None:
    made = combine([trained / "small.safetensors"], tmp_path / "mine")
    assert made.architecture == "small"
    given = {"rgb": [digest_of(trained / "small.safetensors")]}
    assert digests(made) == digests(find("embedded")) | given
    require_fit(made)


def test_a_set_that_was_combined_is_combined_further_and_replaced(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    once = digests(combine([trained / "my rgb.safetensors"], mine))
    twice = digests(combine([trained / "my reconstruction.safetensors"], mine, base=str(mine)))
    assert twice == once | {"reconstruction": [digest_of(trained / "my reconstruction.safetensors")]}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("names", "base", "told"),
    [
        (["my rgb", "copy"], None, "both are the rgb network [E_WEIGHTS_TWICE]"),
        (["my rgb", "small"], None, "built like small, and "),
        (["my rgb"], "embedded", "--with embedded: built like small, and the files like miniature"),
        (["nothing"], None, "no network that crm trains [E_WEIGHTS_WRONG]"),
        (["gone"], None, "gone.safetensors: no such file [E_WEIGHTS_MISSING]; give a file that `crm train"),
        (["broken"], None, "broken.safetensors: not a whole weights file"),
        (["my rgb"], "elsewhere", "elsewhere: no such weights, nor a folder of this name"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    names: list[str], base: str | None, told: str, trained: Path, tmp_path: Path
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for file in trained.iterdir():
        (shelf / file.name).write_bytes(file.read_bytes())
    (shelf / "copy.safetensors").write_bytes((trained / "my rgb.safetensors").read_bytes())
    save(torch.nn.Linear(2, 2), shelf / "nothing.safetensors", {})
    (shelf / "broken.safetensors").write_bytes((trained / "my rgb.safetensors").read_bytes()[:-1])
    with pytest.raises(CrmError) as caught:
        combine([shelf / f"{name}.safetensors" for name in names], tmp_path / "mine", base=base)
    assert told in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["shelf"]


def test_who_lacks_the_set_that_has_the_others_is_told_where_it_may_come_from(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path / "empty"))
    with pytest.raises(EnvironmentProblem, match="--with FOLDER"):
        combine([trained / "my rgb.safetensors"], tmp_path / "mine")


def test_a_folder_of_something_else_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(OutputError, match=r"a\.jpg"):
        combine([trained / "small.safetensors"], tmp_path)


@pytest.mark.parametrize("is_folder", [False, True])
def test_who_gives_networks_alone_is_told_the_command_that_makes_a_set_of_them(
    is_folder: bool, trained: Path, tmp_path: Path, crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my new" / "rgb.safetensors"
    file.parent.mkdir()
    file.write_bytes((trained / "small.safetensors").read_bytes())
    told = r"my new: no ccm\.safetensors, reconstruction\.safetensors" if is_folder else "a network alone"
    with pytest.raises(EnvironmentProblem, match=told) as caught:
        find(str(file.parent if is_folder else file))
    [command] = caught.value.remedy.split("`")[1::2]
    monkeypatch.chdir(tmp_path)
    done = crm(*shlex.split(command)[1:])
    assert done.code == 0 and done.out.startswith("FOLDER: ready, small"), done.err
    assert find("FOLDER").files_of("rgb")[0].sha256 == digest_of(file)


def test_the_package_s_own_folder_is_never_one_of_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from crm_cli.models import weights

    monkeypatch.setattr(weights, "NAMES", (*weights.NAMES, "fourth"))
    with pytest.raises(EnvironmentProblem, match="reinstall crm-cli"):
        find("embedded")
    assert (DIRECTORY / "rgb.safetensors").exists()
