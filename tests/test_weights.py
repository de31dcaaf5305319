import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from crm_cli.errors import EnvironmentProblem, ExitCode, OutputError
from crm_cli.models import weights

METADATA = {"preset": "tiny", "seed": "7", "commit": "abc", "steps": "10", "held_out": '{"iou": 0.9}'}


def network(seed: int = 0, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    return module


def test_what_is_saved_loads_equal_up_to_half_precision(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    digest = weights.save(source, tmp_path / "a.safetensors", METADATA)
    weights.load(target, [tmp_path / "a.safetensors"])
    assert digest == weights.digest_of(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()[weights.METADATA_KEY]) == METADATA
    for (name, loaded), original in zip(
        target.state_dict().items(), source.state_dict().values(), strict=True
    ):
        assert loaded.dtype == original.dtype, name
        expected = original.half().to(original.dtype) if original.is_floating_point() else original
        assert torch.equal(loaded, expected), name


def test_the_same_network_gives_the_same_bytes_whatever_the_order_of_its_metadata(tmp_path: Path) -> None:
    weights.save(network(), tmp_path / "a", METADATA)
    weights.save(network(), tmp_path / "b", dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_precision_is_on_disk(tmp_path: Path) -> None:
    weights.save(nn.Linear(100, 100), tmp_path / "a", {})
    assert 2 * 10_100 < (tmp_path / "a").stat().st_size < 2 * 10_100 + 1000


def test_a_file_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    weights.save(network(width=6), tmp_path / "a", {})
    with pytest.raises(EnvironmentProblem, match=r"0\.weight is \[6, 3\], not \[5, 3\].* 3 more") as caught:
        weights.load(network(), [tmp_path / "a"])
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert str(tmp_path / "a") in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        (nn.Linear(3, 5, bias=False), nn.Linear(3, 5), "bias is missing"),
        (nn.Linear(3, 5), nn.Linear(3, 5, bias=False), "bias is unknown"),
    ],
)
def test_a_missing_or_left_over_tensor_is_refused(
    tmp_path: Path, saved: nn.Module, loaded: nn.Module, message: str
) -> None:
    weights.save(saved, tmp_path / "a", {})
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(EnvironmentProblem, match=message):
        weights.load(loaded, [tmp_path / "a"])
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "a"
    weights.save(network(), file, METADATA)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        weights.load(network(), [file])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"gone\.safetensors.*E_WEIGHTS_MISSING"):
        weights.load(network(), [tmp_path / "gone.safetensors"])


def test_a_diverged_network_is_not_saved(tmp_path: Path) -> None:
    module = network()
    with torch.no_grad():
        module[0].bias[0] = 1e6
    with pytest.raises(ValueError, match=r"0\.bias"):
        weights.save(module, tmp_path / "a", {})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    weights.save(network(0), file, {})
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        weights.save(network(1), file, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def make_set(folder: Path, *, seed: int = 0) -> None:
    for name in weights.NAMES:
        weights.save(network(seed), folder / f"{name}.safetensors", {})


def test_a_folder_of_weights_is_found_and_its_digest_follows_its_contents(tmp_path: Path) -> None:
    make_set(tmp_path)
    found = weights.find(str(tmp_path))
    assert list(found.parts) == ["rgb", "ccm", "reconstruction"]
    assert found.digest == weights.find(str(tmp_path)).digest
    weights.save(network(1), tmp_path / "ccm.safetensors", {})
    assert found.digest != weights.find(str(tmp_path)).digest


def test_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "ccm.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match=r"no ccm\.safetensors") as caught:
        weights.find(str(tmp_path))
    assert "weights=embedded" in caught.value.remedy


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that the machine of the tests happens to have."""
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("choice", ["auto", "embedded"])
def test_the_embedded_set_is_the_one_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    make_set(tmp_path)
    monkeypatch.setattr(weights, "DIRECTORY", tmp_path)
    found = weights.find(choice)
    assert found.name == "embedded"
    assert [file.path for file in found.files_of("rgb")] == [tmp_path / "rgb.safetensors"]


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
