"""Weights that a training begins with, and the set that it ends with."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from in_process import Crm
from miniature import networks, write
from test_course import checkpoint, course_of, interrupted
from tiny_course import rendered

from crm_cli.errors import CrmError, EnvironmentProblem, OutputError, StoppedEarly, UsageError
from crm_cli.export.provenance import read_label
from crm_cli.learn import course as course_module
from crm_cli.learn import latent, shipping
from crm_cli.learn.beginning import find_start, open_start
from crm_cli.learn.checkpoint import averaged
from crm_cli.learn.course import Course, open_task, run_course, ship
from crm_cli.learn.latent import LatentSettings, LatentTask
from crm_cli.learn.shipping import ship_set
from crm_cli.learn.train import TrainSettings
from crm_cli.models import combine
from crm_cli.models.combine import require_place
from crm_cli.models.loading import require_fit, save, stored_types
from crm_cli.models.weights import WeightsSet, find, verify

SETTINGS = TrainSettings(steps=2, batch=1, learning_rate=1e-3, warmup=1, save_every=1, log_every=1)
LATENT = ("rgb", "ccm")


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "VAE_PX", 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("data"), size_px=32)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> WeightsSet:
    """A set of the published structure, its denoisers in half precision as the published ones are."""
    parts = networks()
    for stage in LATENT:
        parts[stage].half()
    return write(tmp_path_factory.mktemp("weights") / "mini", parts)


def latent_course(network: str, data: Path, folder: Path, mini: WeightsSet, *, fresh: bool = False) -> Course:
    start = open_start(str(mini.directory), network, is_fresh=fresh)
    plain = course_of(network, data, folder)
    return Course(
        network=network,
        data=data,
        folder=folder,
        examples=plain.examples,
        held_out=plain.held_out,
        commit=plain.commit,
        start=start,
    )


def test_embedded_weights_go_on_from_where_they_are() -> None:
    start = open_start("embedded", "ccm")
    assert (start.architecture, start.is_latent) == ("small", False)
    network = open_task("ccm", seed=5, start=start).network
    [file] = find("embedded").files_of("ccm")
    stored = safetensors.torch.load_file(file.path)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float()), name
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_file_alone_says_what_it_is_a_network_of(tmp_path: Path) -> None:
    [file] = find("embedded").files_of("reconstruction")
    start = open_start(str(file.path), "reconstruction")
    assert (start.architecture, start.weights, start.files) == ("small", None, (file.path,))
    assert start.digest == file.sha256
    with pytest.raises(EnvironmentProblem, match="the reconstruction network of small, not rgb") as caught:
        open_start(str(file.path), "rgb")
    assert caught.value.code == "E_WEIGHTS_WRONG" and "rgb" in caught.value.remedy


@pytest.mark.parametrize("network", ["rgb", "ccm", "reconstruction"])
def test_a_set_of_the_published_structure_fills_its_networks(network: str, mini: WeightsSet) -> None:
    start = open_start(str(mini.directory), network)
    assert (start.architecture, start.is_latent) == ("miniature", True)
    task = open_task(network, seed=0, start=start)
    assert task.name == network
    given = networks()[network].state_dict()
    for name, tensor in task.network.state_dict().items():
        wanted = given[name].half().float() if network in LATENT else given[name]
        assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted), name


def test_a_file_of_a_denoiser_finds_its_towers_in_its_folder_or_among_the_published(
    mini: WeightsSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = mini.files_of("rgb")
    beside = open_start(str(file.path), "rgb")
    assert beside.weights is not None and beside.weights.directory == mini.directory
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes(file.path.read_bytes())
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path / "home"))
    with pytest.raises(EnvironmentProblem, match="crm weights fetch"):
        open_start(str(alone), "rgb")
    write(tmp_path / "home" / "published", networks(seed=1))
    found = open_start(str(alone), "rgb")
    assert found.weights is not None and found.weights.name == "published" and found.files == (alone,)
    assert found.digest == file.sha256 != beside.digest == mini.digest


def test_a_fresh_network_takes_only_what_stays_frozen(mini: WeightsSet) -> None:
    start = open_start(str(mini.directory), "rgb", is_fresh=True)
    one, again, other = (open_task("rgb", seed, start=start).network.state_dict() for seed in (1, 1, 2))
    name = "input_blocks.0.0.weight"
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], networks()["rgb"].state_dict()[name])
    assert one["out.2.weight"].eq(0).all()


def test_the_second_stage_reads_towers_of_its_own_where_it_has_them(mini: WeightsSet, tmp_path: Path) -> None:
    own = write(tmp_path / "own", {**networks(), "ccm.vae": networks(seed=1)["vae"]})
    tensors = [
        open_start(str(own.directory), stage).frozen("vae", "cpu").state_dict()["encoder.conv_in.weight"]
        for stage in LATENT
    ]
    assert not torch.equal(*tensors)


@pytest.mark.parametrize(
    ("choice", "network", "kind", "code"),
    [
        ("publishd", "rgb", EnvironmentProblem, "E_WEIGHTS_MISSING"),
        ("./nothing/here", "rgb", EnvironmentProblem, "E_WEIGHTS_MISSING"),
        ("raw.pth", "rgb", EnvironmentProblem, "E_WEIGHTS_RAW"),
        ("text.safetensors", "rgb", EnvironmentProblem, "E_WEIGHTS_BROKEN"),
        ("other.safetensors", "rgb", EnvironmentProblem, "E_WEIGHTS_WRONG"),
        ("embedded", "vae", UsageError, "E_TRAIN_NETWORK"),
    ],
)
def test_what_nothing_can_start_with_is_refused_with_a_remedy(
    choice: str,
    network: str,
    kind: type[CrmError],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw.pth").write_bytes(b"PK\x03\x04")
    Path("text.safetensors").write_text("no weights at all")
    save(torch.nn.Linear(2, 2), Path("other.safetensors"), {})
    with pytest.raises(kind) as caught:
        open_start(choice, network)
    assert caught.value.code == code and caught.value.remedy
    assert "--weights" not in str(caught.value)


def test_a_set_whose_bytes_have_changed_is_refused(tmp_path: Path) -> None:
    found = write(tmp_path / "mini")
    [file] = found.files_of("vae")
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        open_start(str(tmp_path / "mini"), "rgb")


def test_options_that_do_not_go_together_are_refused(mini: WeightsSet, tmp_path: Path) -> None:
    assert find_start(None, "rgb") is None
    with pytest.raises(UsageError, match="--fresh") as caught:
        find_start(None, "rgb", is_fresh=True)
    assert "--start" in caught.value.remedy
    with pytest.raises(UsageError, match="--first"):
        find_start(str(mini.directory), "ccm", first=tmp_path / "rgb.safetensors")
    started = find_start("embedded", "ccm", first=tmp_path / "rgb.safetensors")
    assert started is not None and not started.is_latent


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("network", LATENT)
def test_a_resumed_fine_tuning_gives_the_bytes_of_an_uninterrupted_one(
    network: str, data: Path, tmp_path: Path, mini: WeightsSet
) -> None:
    straight = latent_course(network, data, tmp_path / "straight", mini)
    list(run_course(straight, SETTINGS))
    resumed = latent_course(network, data, tmp_path / "resumed", mini)
    interrupted(run_course(resumed, SETTINGS), 2)
    assert checkpoint(resumed) != checkpoint(straight)
    assert [line.step for line in run_course(resumed, SETTINGS)] == [2]
    assert checkpoint(resumed) == checkpoint(straight)


@pytest.mark.usefixtures("small_pictures")
def test_a_run_goes_on_with_the_network_it_began_with(data: Path, tmp_path: Path, mini: WeightsSet) -> None:
    course = latent_course("rgb", data, tmp_path / "run", mini)
    interrupted(run_course(course, SETTINGS), 2)
    with pytest.raises(UsageError, match=r"--start \w+, not without --start") as caught:
        list(run_course(course_of("rgb", data, tmp_path / "run"), SETTINGS))
    assert caught.value.code == "E_TRAIN_SETTINGS"


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("network", LATENT)
def test_what_is_shipped_is_the_set_with_one_network_replaced(
    network: str, data: Path, tmp_path: Path, mini: WeightsSet
) -> None:
    course = latent_course(network, data, tmp_path / "run", mini)
    list(run_course(course, SETTINGS))
    scores = ship(course, SETTINGS, tmp_path / "mine")
    assert set(scores) == {"noise"} and np.isfinite(scores["noise"])

    mine = find(str(tmp_path / "mine"))
    verify(mine)
    require_fit(mine)
    assert mine.architecture == "miniature" and mine.digest != mini.digest
    for part in mini.parts:
        assert (mine.digest_of(part) == mini.digest_of(part)) == (part != network)
    files = [file.path for file in mine.files_of(network)]
    average = averaged(course.folder / "checkpoint.safetensors")
    stored = {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}
    assert set(stored_types(files).values()) == {torch.float16}
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in average.items())
    listed = json.loads((mine.directory / "weights.json").read_text())
    assert listed["trained"]["network"] == network and listed["trained"]["start"] == mini.digest
    assert json.loads(listed["trained"]["held_out"]) == scores
    # A start that was fine-tuned is one to start from.
    assert open_start(str(mine.directory), network).weights == mine


def test_the_reconstruction_of_a_set_goes_on_learning_too(
    data: Path, tmp_path: Path, mini: WeightsSet
) -> None:
    course = latent_course("reconstruction", data, tmp_path / "run", mini)
    list(run_course(course, replace(SETTINGS, steps=1)))
    ship(course, SETTINGS, tmp_path / "mine")
    mine = find(str(tmp_path / "mine"))
    assert [part for part in mini.parts if mine.digest_of(part) != mini.digest_of(part)] == ["reconstruction"]
    files = [file.path for file in mine.files_of("reconstruction")]
    assert set(stored_types(files).values()) == {torch.float32}


def test_a_network_that_is_not_finite_is_not_shipped(mini: WeightsSet, tmp_path: Path) -> None:
    start = open_start(str(mini.directory), "rgb")
    network = open_task("rgb", seed=0, start=start).network
    with torch.no_grad():
        network.get_parameter("out.2.weight").fill_(1e6)  # finite in single precision alone
    with pytest.raises(StoppedEarly, match=r"out\.2\.weight: not finite in float16"):
        ship_set(start, network, tmp_path / "mine", {})
    assert list(tmp_path.iterdir()) == []


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"), [(combine, "sync"), (shipping, "write_part"), (combine, "write_list")]
)
def test_a_shipping_that_fails_leaves_nothing(
    module: ModuleType, name: str, mini: WeightsSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = open_start(str(mini.directory), "rgb")
    monkeypatch.setattr(module, name, full_disk)
    with pytest.raises(OutputError, match="No space left"):
        ship_set(start, networks()["rgb"], tmp_path / "mine", {})
    assert list(tmp_path.iterdir()) == []


def test_files_that_change_while_they_are_copied_are_not_shipped(
    mini: WeightsSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = open_start(str(mini.directory), "rgb")
    monkeypatch.setattr(combine, "digest_of", lambda _: "0" * 64)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        ship_set(start, networks()["rgb"], tmp_path / "mine", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(OutputError, match=r"a\.jpg"):
        require_place(tmp_path / "photos")
    require_place(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("small_pictures")
def test_the_command_follows_the_weights_it_starts_with(
    crm: Crm, data: Path, tmp_path: Path, mini: WeightsSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--data", data, "--examples", "4", "--held-out", "8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").touch()
    words = ("train", "rgb", "--start", mini.directory, *few, "--steps", "1", "--batch", "1")
    told = crm(*words, "-o", tmp_path / "run", "--ship", tmp_path / "taken")
    assert told.code == 5 and "letter.txt" in told.err and not (tmp_path / "run").exists()
    given: list[object] = []
    monkeypatch.setattr(course_module, "train", lambda *words, **_: given.extend(words) or iter(()))
    told = crm(*words, "-o", tmp_path / "run", "--recompute", "--hide", "0.1", "--photos", "0")
    assert told.code == 0, told.err
    [settings] = [one for one in given if isinstance(one, TrainSettings)]
    assert (settings.learning_rate, settings.weight_decay) == (5e-5, 1e-2)
    [task] = [one for one in given if isinstance(one, LatentTask)]
    assert vars(task)["_settings"] == LatentSettings(hidden=0.1, photos=0.0, is_recomputed=True)
    told = crm("train", "rgb", "--start", tmp_path / "gone", *few, "-o", tmp_path / "other")
    assert told.code == 6 and "gone" in told.err


@pytest.mark.slow
def test_photos_are_converted_with_what_was_just_fine_tuned(
    crm: Crm, data: Path, tmp_path: Path, mini: WeightsSet
) -> None:
    mine = mini.directory
    for network in LATENT:  # the second one starts with the set that the first one has shipped
        words = ("train", network, "--start", mine, "--data", data, "--examples", "4", "--held-out", "8")
        mine = tmp_path / f"after-{network}"
        told = crm(*words, "--steps", "2", "--batch", "1", "-o", tmp_path / network, "--ship", mine)
        assert told.code == 0 and f"{mine}: noise" in told.out, told.err
    photo = Path(__file__).parent / "photos" / "kitchen" / "mug.jpg"
    quick = (
        "--set",
        "rgb.steps=2",
        "--set",
        "ccm.steps=2",
        "--set",
        "reconstruction.grid=32",
        "--format",
        "glb",
    )
    told = crm("convert", photo, "-o", tmp_path / "out", "--weights", mine, "--jobs", "1", *quick)
    assert told.code == 0, told.err
    said = read_label(tmp_path / "out" / "mug.glb").provenance
    assert (said.weights, said.weights_sha256) == ("after-ccm", find(str(mine)).digest)
