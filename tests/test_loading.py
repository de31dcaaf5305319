"""The strict way of weights into a network, and out of one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniature import networks, write
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from crm_cli.errors import EnvironmentProblem, ExitCode, OutputError, StoppedEarly
from crm_cli.models import loading, weights
from crm_cli.models.architectures import ARCHITECTURES

METADATA = {"preset": "tiny", "seed": "7", "commit": "abc", "steps": "10", "held_out": '{"iou": 0.9}'}


def network(seed: int = 0, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    return module


def test_what_is_saved_loads_equal_up_to_half_precision(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    digest = loading.save(source, tmp_path / "a.safetensors", METADATA)
    loading.load(target, [tmp_path / "a.safetensors"])
    assert digest == weights.digest_of(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()[loading.METADATA_KEY]) == METADATA
    for (name, loaded), original in zip(
        target.state_dict().items(), source.state_dict().values(), strict=True
    ):
        assert loaded.dtype == original.dtype, name
        expected = original.half().to(original.dtype) if original.is_floating_point() else original
        assert torch.equal(loaded, expected), name


def test_the_same_network_gives_the_same_bytes_whatever_the_order_of_its_metadata(tmp_path: Path) -> None:
    loading.save(network(), tmp_path / "a", METADATA)
    loading.save(network(), tmp_path / "b", dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_precision_is_on_disk(tmp_path: Path) -> None:
    loading.save(nn.Linear(100, 100), tmp_path / "a", {})
    assert 2 * 10_100 < (tmp_path / "a").stat().st_size < 2 * 10_100 + 1000


def test_a_file_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    loading.save(network(width=6), tmp_path / "a", {})
    with pytest.raises(EnvironmentProblem, match=r"0\.weight is \[6, 3\], not \[5, 3\].* 3 more") as caught:
        loading.load(network(), [tmp_path / "a"])
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
    loading.save(saved, tmp_path / "a", {})
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(EnvironmentProblem, match=message):
        loading.load(loaded, [tmp_path / "a"])
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "a"
    loading.save(network(), file, METADATA)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        loading.load(network(), [file])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"gone\.safetensors.*E_WEIGHTS_MISSING"):
        loading.load(network(), [tmp_path / "gone.safetensors"])


def test_a_diverged_network_is_not_saved(tmp_path: Path) -> None:
    module = network()
    with torch.no_grad():
        module[0].bias[0] = 1e6
    with pytest.raises(StoppedEarly, match=r"0\.bias: not finite in float16.*E_TRAIN_DIVERGED"):
        loading.save(module, tmp_path / "a", {})
    assert not list(tmp_path.iterdir())


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fault", "error"), [(full, OutputError), (interrupt, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[int], None],
    error: type[BaseException],
) -> None:
    file = tmp_path / "a"
    loading.save(network(0), file, {})
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", fault)
    with pytest.raises(error):
        loading.save(network(1), file, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("architecture", ["small", "miniature"])
def test_every_part_opens_whole_and_ready_for_inference(tmp_path: Path, architecture: str) -> None:
    found = write(tmp_path / "mini") if architecture == "miniature" else weights.find("embedded")
    assert set(found.parts) == set(ARCHITECTURES[architecture].parts) == set(weights.PARTS[architecture])
    for part in found.parts:
        network = loading.open_part(found, part)
        tensors = [*network.parameters(), *network.buffers()]
        assert not network.training
        assert all(
            not t.requires_grad and t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_of_a_network_is_missing_from_its_weights(name: str) -> None:
    for part in ARCHITECTURES[name].parts:
        with torch.device("meta"):
            network = ARCHITECTURES[name].build(part)
        # Whatever is not in the state dict would stay on the meta device.
        assert len([*network.parameters(), *network.buffers()]) == len(network.state_dict()), part
    assert ARCHITECTURES[name].parts.keys() == set(weights.PARTS[name])


def test_a_network_on_the_meta_device_becomes_real(tmp_path: Path) -> None:
    source = network()
    loading.save(source, tmp_path / "a", {})
    with torch.device("meta"):
        target = network(1)
    loading.load(target, [tmp_path / "a"])
    assert torch.equal(target[0].weight, source[0].weight.half().float())
    assert target[0].weight.requires_grad and isinstance(target[0].weight, nn.Parameter)
    assert target[1].num_batches_tracked.dtype == torch.int64
    target(torch.ones(2, 3)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_takes_the_precision_it_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = network(0), network(1)
    loading.save(source, tmp_path / "a", {})
    loading.load(target, [tmp_path / "a"], dtype=dtype)
    assert target[0].weight.dtype == target[1].running_mean.dtype == dtype
    assert target[1].num_batches_tracked.dtype == torch.int64, "a count stays whole"
    assert torch.equal(target[0].weight, source[0].weight.half().to(dtype))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_weights_in_the_right_precision_are_mapped_and_not_copied(tmp_path: Path) -> None:
    big = 64 << 20
    with torch.device("meta"):
        target = nn.Linear(big // 2 // 1024, 1024, bias=False)
    save_file({"weight": torch.ones(target.weight.shape, dtype=torch.float16)}, tmp_path / "a")
    before = anonymous_memory()
    loading.load(target, [tmp_path / "a"], dtype=torch.float16)
    assert target.weight.sum(dtype=torch.float64) == big // 2
    assert anonymous_memory() - before < big // 2


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def test_several_files_fill_one_network(tmp_path: Path) -> None:
    state = network().state_dict()
    halves = {"a": list(state)[:3], "b": list(state)[3:]}
    for name, keys in halves.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    target = network(1)
    loading.load(target, [tmp_path / "a", tmp_path / "b"])
    assert all(torch.equal(tensor, state[key]) for key, tensor in target.state_dict().items())
    with pytest.raises(EnvironmentProblem, match=rf"{tmp_path / 'a'}: .*is missing.*E_WEIGHTS_WRONG"):
        loading.load(target, [tmp_path / "a"])
    save_file({"1.strange": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(EnvironmentProblem, match=rf"{tmp_path / 'c'}: .*1\.strange is unknown"):
        loading.load(target, [tmp_path / "a", tmp_path / "b", tmp_path / "c"])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    save_file(state, tmp_path / "a")
    save_file({"0.bias": torch.ones(5)}, tmp_path / "b")
    with pytest.raises(EnvironmentProblem, match=rf"{tmp_path / 'b'}: .*0\.bias is in a as well"):
        loading.load(network(1), [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("is_listed", [True, False])
def test_weights_that_were_replaced_are_not_mixed_with_those_that_were_found(
    tmp_path: Path, is_listed: bool
) -> None:
    def fill(folder: Path, seed: int) -> None:
        folder.mkdir()
        if is_listed:
            write(folder, networks(seed))
        else:
            for name in weights.NAMES:
                loading.save(ARCHITECTURES["small"].build(name), folder / f"{name}.safetensors", {})

    folder = tmp_path / "set"
    fill(folder, 0)
    found = weights.find(str(folder))
    before = loading.open_part(found, "rgb")
    kept = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    folder.rename(tmp_path / "old")
    fill(folder, 1)
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(EnvironmentProblem, match=r"its ccm has been replaced"):
        loading.open_part(found, "ccm")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.state_dict().items())
    assert loading.open_part(weights.find(str(folder)), "ccm")


def test_whole_numbers_are_not_taken_for_values(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 3).long(), "bias": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(EnvironmentProblem, match=r"weight is \[2, 3\] of whole numbers, not \[2, 3\]"):
        loading.load(nn.Linear(3, 2), [tmp_path / "a"])


def header(entry: dict[str, object], *, values: int = 8) -> bytes:
    text = json.dumps({"weight": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(values)


@pytest.mark.parametrize(
    "data",
    [
        (1 << 62).to_bytes(8, "little") + b"{}" + bytes(100),
        (200_000_000).to_bytes(8, "little") + b"{" + b" " * 1000,
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}),
        header({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}),
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, values=16),
        header({"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}),
        header({"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}),
        b"\x02\0\0\0\0\0\0\0\xff\xff",
    ],
    ids=[
        "endless header",
        "oversized header",
        "ends late",
        "too short",
        "left over",
        "huge",
        "type",
        "no text",
    ],
)
def test_a_header_that_lies_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(EnvironmentProblem, match=r"not a whole weights file.*E_WEIGHTS_BROKEN") as caught:
        loading.load(nn.Linear(2, 1, bias=False), [tmp_path / "a"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 and caught.value.remedy
