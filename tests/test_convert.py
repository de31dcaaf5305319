"""From published checkpoints to a folder of weights: everything in it, or nothing there."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pickles import CCM, CRM, RGB, Published, clip_of, published, vae_of, write_published
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crm_cli.errors import CrmError, EnvironmentProblem, ExitCode, OutputError, UsageError
from crm_cli.models import convert as conversion
from crm_cli.models import hub, shards, weights
from crm_cli.models.checkpoints import CLIP, VAE, Tensors, from_published, read_checkpoint
from crm_cli.models.loading import open_part
from crm_cli.models.weights import WeightsSet, find, verify


def convert(sources: list[Path], folder: Path, **options: object) -> WeightsSet:
    return conversion.convert(sources, folder, architecture="miniature", **options)  # type: ignore[arg-type]


def stored(found: WeightsSet, part: str) -> Tensors:
    return {name: t for file in found.files_of(part) for name, t in load_file(file.path).items()}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_published(folder)
    return folder


@pytest.fixture(scope="module")
def files() -> Published:
    return published()


def test_every_part_is_stored_value_for_value_in_its_published_precision(
    source: Path, files: Published, tmp_path: Path
) -> None:
    found = convert([source], tmp_path / "out")
    assert found.architecture == "miniature" and found.directory == tmp_path / "out"
    assert list(found.parts) == list(weights.LATENT_NAMES)
    for part, file in (("rgb", RGB), ("ccm", CCM), ("vision", RGB), ("vae", CCM), ("reconstruction", CRM)):
        expected = from_published(part, files[file], architecture="miniature")
        assert same(stored(found, part), expected), part
    assert {tensor.dtype for tensor in stored(found, "rgb").values()} == {torch.float16}
    assert {tensor.dtype for tensor in stored(found, "vision").values()} == {torch.float32}
    # The tower's sums may be added up in another order where its matrices lie elsewhere in memory.
    contexts = from_published("contexts", files[RGB], architecture="miniature")["tokens"]
    torch.testing.assert_close(stored(found, "contexts")["tokens"], contexts)


def test_every_converted_part_opens_as_its_network(source: Path, files: Published, tmp_path: Path) -> None:
    found = convert([source], tmp_path / "out")
    for part in found.parts:
        network = open_part(found, part, dtype=torch.bfloat16)
        assert not network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, stored(found, part)[name].bfloat16()), (part, name)


def test_the_list_names_sizes_and_digests_of_what_was_read_and_written(source: Path, tmp_path: Path) -> None:
    found = convert([source], tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert listed["format"] == 1 and listed["architecture"] == "miniature"
    assert listed["source"] == {
        name: {"bytes": (source / name).stat().st_size, "sha256": weights.digest_of(source / name)}
        for name in (CRM, RGB, CCM)
    }
    for file in (file for files in found.parts.values() for file in files):
        assert file.bytes == file.path.stat().st_size and file.sha256 == weights.digest_of(file.path)
    assert sorted(contents(tmp_path / "out")) == sorted(
        [
            "weights.json",
            ".checked.json",
            *(file.path.name for files in found.parts.values() for file in files),
        ]
    )


def test_the_same_checkpoints_give_the_same_bytes_in_whatever_order_they_are_named(
    source: Path, tmp_path: Path
) -> None:
    one = convert([source], tmp_path / "a")
    other = convert([source / CCM, source / CRM, source / RGB], tmp_path / "b")
    assert one.digest == other.digest
    for name, data in contents(tmp_path / "a").items():
        assert name in ("weights.json", ".checked.json") or data == (tmp_path / "b" / name).read_bytes()


def test_a_checkpoint_is_known_by_what_is_in_it_and_not_by_its_name(source: Path, tmp_path: Path) -> None:
    given = [tmp_path / "a" / "unet-10000", tmp_path / "b" / "unet-10000", tmp_path / "crm"]
    for file, name in zip(given, (CCM, RGB, CRM), strict=True):
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, file)
    found = convert(given, tmp_path / "out")
    assert found.digest == convert([source], tmp_path / "again").digest
    listed = json.loads((tmp_path / "out" / "weights.json").read_text())["source"]
    assert list(listed) == [str(given[0]), str(given[1]), "crm"]


@pytest.mark.parametrize(
    "variant",
    [
        {"prefix": "module."},
        {"extras": True},
        {"older_attention": True},
        {"towers": (RGB,)},
        {"towers": (CCM,)},
    ],
    ids=str,
)
def test_a_variant_of_the_files_becomes_the_same_weights(
    source: Path, tmp_path: Path, variant: dict[str, object]
) -> None:
    given = write_published(tmp_path / "in", **variant)
    assert convert(given, tmp_path / "out").digest == convert([source], tmp_path / "plain").digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_files_of_one_precision_stay_in_it(tmp_path: Path, dtype: torch.dtype) -> None:
    found = convert(write_published(tmp_path / "in", dtype=dtype), tmp_path / "out")
    for part in found.parts:
        expected = torch.float32 if part == "contexts" else dtype
        assert {tensor.dtype for tensor in stored(found, part).values()} == {expected}, part


def test_safetensors_are_as_good_as_pickles(source: Path, files: Published, tmp_path: Path) -> None:
    for name, tensors in files.items():
        copies = {key: tensor.clone() for key, tensor in tensors.items()}
        save_file(copies, (tmp_path / name).with_suffix(".safetensors"))
    assert convert([tmp_path], tmp_path / "out").digest == convert([source], tmp_path / "plain").digest


# Towers.


@pytest.mark.parametrize(
    ("differing", "part"),
    [
        (f"{CLIP}visual.conv1", "ccm.vision"),
        (f"{CLIP}ln_final", "ccm.contexts"),
        (f"{VAE}decoder.conv_out", "ccm.vae"),
    ],
)
def test_towers_that_differ_are_both_kept(tmp_path: Path, differing: str, part: str) -> None:
    found = convert(write_published(tmp_path / "in", differing=[differing]), tmp_path / "out")
    assert list(found.parts) == [*weights.LATENT_NAMES, part]
    assert not same(stored(found, part), stored(found, part.removeprefix("ccm.")))
    network = open_part(found, part)
    assert all(torch.equal(t, stored(found, part)[name]) for name, t in network.state_dict().items())


def test_towers_of_another_precision_are_both_kept(tmp_path: Path) -> None:
    def halve(files: Published) -> None:
        for name in [name for name in files[RGB] if name.startswith(VAE)]:
            files[CCM][name] = files[CCM][name].half()
            files[RGB][name] = files[CCM][name].float()

    found = convert(write_published(tmp_path / "in", change=halve), tmp_path / "out")
    assert {tensor.dtype for tensor in stored(found, "vae").values()} == {torch.float32}
    assert {tensor.dtype for tensor in stored(found, "ccm.vae").values()} == {torch.float16}


def test_a_difference_in_what_is_never_read_is_none(source: Path, tmp_path: Path) -> None:
    unused = [f"{CLIP}visual.transformer.resblocks.2.", f"{CLIP}visual.proj", f"{CLIP}text_projection"]
    given = write_published(tmp_path / "in", differing=unused)
    assert convert(given, tmp_path / "out").digest == convert([source], tmp_path / "plain").digest


def test_denoisers_without_towers_take_them_from_files_of_their_own(
    source: Path, files: Published, tmp_path: Path
) -> None:
    given = write_published(tmp_path / "in", lowered=True)
    torch.save(clip_of(files), tmp_path / "open_clip_pytorch_model.bin")
    save_file(vae_of(files, "first_stage_model."), tmp_path / "sd.safetensors")
    found = convert(
        given,
        tmp_path / "out",
        clip=tmp_path / "open_clip_pytorch_model.bin",
        vae=tmp_path / "sd.safetensors",
    )
    assert found.digest == convert([source], tmp_path / "plain").digest
    listed = json.loads((tmp_path / "out" / "weights.json").read_text())["source"]
    assert list(listed) == [CRM, RGB, CCM, "open_clip_pytorch_model.bin", "sd.safetensors"]


def test_a_tower_that_is_named_goes_before_those_in_the_checkpoints(source: Path, tmp_path: Path) -> None:
    other = published(seed=7)
    torch.save(clip_of(other), tmp_path / "clip.bin")
    found = convert([source], tmp_path / "out", clip=tmp_path / "clip.bin")
    assert same(stored(found, "vision"), from_published("vision", other[RGB], architecture="miniature"))


@pytest.mark.parametrize("tower", ["clip", "vae"])
def test_a_tower_that_is_nowhere_is_asked_for(files: Published, tmp_path: Path, tower: str) -> None:
    given = write_published(tmp_path / "in", lowered=True)
    torch.save(clip_of(files), tmp_path / "clip")
    torch.save(vae_of(files), tmp_path / "vae")
    there = {"clip", "vae"} - {tower}
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_MISSING") as caught:
        convert(given, tmp_path / "out", **{name: tmp_path / name for name in there})
    assert f"--{tower} FILE" in caught.value.remedy
    assert not (tmp_path / "out").exists()


# What is refused, and that nothing is left of it.


def remove(name: str, key: str) -> Callable[[Published], None]:
    def change(files: Published) -> None:
        del files[name][key]

    return change


def put(name: str, key: str, *shape: int) -> Callable[[Published], None]:
    def change(files: Published) -> None:
        files[name][key] = torch.ones(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(CRM, "weightMlp.2.bias"), rf"{CRM}: its reconstruction .* weightMlp\.2\.bias is missing"),
        (put(CRM, "sdfMlp.fc1.bias", 17), rf"{CRM}: .*sdfMlp\.fc1\.bias is \[17\], not \[16\]"),
        (put(CRM, "unet2.unet.conv_in.scale", 1), rf"{CRM}: .*conv_in\.scale is unknown"),
        (put(RGB, "model.diffusion_model.out.2.bias", 5), rf"{RGB}: .*out\.2\.bias is \[5\], not \[4\]"),
        (put(RGB, "ema.decay", 1), rf"{RGB}: .*ema\.decay is unknown"),
        (remove(CCM, f"{VAE}quant_conv.bias"), rf"{CCM}: its vae .*quant_conv\.bias is missing"),
        (
            remove(RGB, f"{CLIP}positional_embedding"),
            rf"{RGB}: .*text tower.*positional_embedding is missing",
        ),
        (put(RGB, f"{CLIP}visual.ln_pre.bias", 3), rf"{RGB}: .*ln_pre\.bias is \[3\], not \[32\]"),
        (
            put(CCM, "model.diffusion_model.input_blocks.0.0.weight", 32, 9, 3, 3),
            rf"{CCM}: .*\[32, 9, 3, 3\]",
        ),
        (lambda files: files[CRM].clear(), rf"{CRM}: neither a denoiser nor a reconstruction"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_file_and_tensor(
    tmp_path: Path, change: Callable[[Published], None], message: str
) -> None:
    given = write_published(tmp_path / "in", change=change)
    with pytest.raises(EnvironmentProblem, match=rf"{message}.*E_WEIGHTS_WRONG") as caught:
        convert(given, tmp_path / "out")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_precision_that_nobody_publishes_is_refused_by_tensor(files: Published, tmp_path: Path) -> None:
    for name, tensors in files.items():
        dtype = torch.float8_e4m3fn if name == CRM else torch.float32
        save_file(
            {key: t.to(dtype) for key, t in tensors.items()}, (tmp_path / name).with_suffix(".safetensors")
        )
    with pytest.raises(EnvironmentProblem, match=r"CRM\.safetensors: .* as float8_e4m3fn.*E_WEIGHTS_WRONG"):
        convert([tmp_path], tmp_path / "out")


def test_another_noise_schedule_is_worth_a_warning_by_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def flatten(files: Published) -> None:
        files[CCM]["alphas_cumprod"].fill_(0.5)

    convert(write_published(tmp_path / "in", extras=True, change=flatten), tmp_path / "out")
    [record] = caplog.records
    assert f"{CCM}: its noise schedule" in record.getMessage()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_no_training_should_leave_are_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    def spoil(files: Published) -> None:
        files[CRM]["sdfMlp.fc1.bias"][3] = value

    convert(write_published(tmp_path / "in", change=spoil), tmp_path / "out")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "reconstruction: sdfMlp.fc1.bias: not finite" in record.getMessage()


def cut(folder: Path) -> None:
    data = (folder / CCM).read_bytes()
    (folder / CCM).write_bytes(data[: len(data) // 2])


def half_download(folder: Path) -> None:
    (folder / CCM).rename(folder / f"{CCM}.a1b2.incomplete")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / CCM).unlink(), rf"no {CCM}.*E_WEIGHTS_MISSING"),
        (cut, rf"{CCM}: not a whole file.*E_WEIGHTS_BROKEN"),
        (half_download, rf"{CCM}\.a1b2\.incomplete: only part of a download.*E_WEIGHTS_MISSING"),
        (lambda folder: shutil.copyfile(folder / RGB, folder / CCM), rf"{RGB} and .*{CCM}: both are"),
    ],
)
def test_what_is_not_three_whole_checkpoints_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    write_published(tmp_path / "in")
    harm(tmp_path / "in")
    with pytest.raises(CrmError, match=message) as caught:
        convert([tmp_path / "in"], tmp_path / "out")
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_checkpoint_that_was_not_named_is_missed_by_its_published_name(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentProblem, match=rf"none of them is {RGB}.*E_WEIGHTS_MISSING"):
        convert([source / CRM, source / CCM], tmp_path / "out")


@pytest.mark.parametrize("architecture", ["small", "large"])
def test_only_published_structures_can_be_converted_to(
    source: Path, tmp_path: Path, architecture: str
) -> None:
    with pytest.raises(UsageError, match=f"{architecture}: not the architecture") as caught:
        conversion.convert([source], tmp_path / "out", architecture=architecture)
    assert "release" in caught.value.remedy


def test_the_real_size_is_not_taken_for_granted(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"\d+ more.*E_WEIGHTS_WRONG"):
        conversion.convert([source], tmp_path / "out")


# Onto the disk.


def test_large_parts_are_split_and_put_together_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert([source], tmp_path / "whole")
    monkeypatch.setattr(shards, "SHARD_BYTES", 500_000)
    split = convert([source], tmp_path / "split")
    assert len(split.files_of("rgb")) > 3 and len(split.files_of("contexts")) == 1
    names = [file.path.name for file in split.files_of("rgb")]
    assert names[0] == f"rgb-00001-of-{len(names):05}.safetensors" and len(set(names)) == len(names)
    for part in whole.parts:
        assert same(stored(whole, part), stored(split, part))
        for file in split.files_of(part):
            with safe_open(file.path, "pt") as opened:
                tensors = list(opened.keys())
            assert file.bytes < 500_000 + 20_000 or len(tensors) == 1
        sizes = [file.bytes for file in split.files_of(part)]
        assert all(one + other > 500_000 for one, other in pairwise(sizes)), "no more files than it takes"


def test_the_files_are_what_the_library_itself_would_write(files: Published, tmp_path: Path) -> None:
    tensors = from_published("rgb", files[RGB], architecture="miniature")
    tensors |= {
        "wide": torch.ones(3, dtype=torch.float64),
        "whole": torch.tensor(7),
        "none": torch.ones(0, 4),
        "strided": torch.arange(6.0)[::2],
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    reported: list[int] = []
    [written] = shards.write_part(tmp_path, "a", tensors, reported.append)
    library = tmp_path / "library"
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        library,
    )
    assert same(load_file(written.path), load_file(library))
    assert reported[-1] == shards.bytes_of(tensors) and reported == sorted(reported)
    assert library.stat().st_size == written.bytes


def test_progress_goes_from_the_sources_over_the_parts_to_the_end(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert([source], tmp_path / "out", progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(name for name, _, _ in told)) == [CRM, RGB, CCM, *weights.LATENT_NAMES]
    done = [done for _, done, _ in told]
    assert done == sorted(done) and {of for _, _, of in told} == {done[-1]}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_a_checkpoint_goes_to_disk_without_ever_being_in_memory(tmp_path: Path) -> None:
    storage = torch.ones(48 << 20, dtype=torch.float16)
    torch.save({str(n): piece for n, piece in enumerate(storage.split(1 << 20))}, tmp_path / "a.pth")
    del storage
    before, most = anonymous_memory_mb(), 0.0

    def watch(_: int) -> None:
        nonlocal most
        most = max(most, anonymous_memory_mb() - before)

    tensors = read_checkpoint(tmp_path / "a.pth")
    shards.write_part(tmp_path, "a", tensors, watch)
    assert most < 48, "half of what the checkpoint holds"


def anonymous_memory_mb() -> float:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def test_a_set_that_is_there_is_replaced_as_a_whole(source: Path, tmp_path: Path) -> None:
    before = convert([source], tmp_path / "out")
    after = convert(write_published(tmp_path / "in", seed=5), tmp_path / "out")
    assert before.digest != after.digest == find(str(tmp_path / "out")).digest
    verify(after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_link_to_a_larger_disk_stays_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    convert([source], tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "weights.json").is_file()


@pytest.mark.parametrize("name", ["notes.txt", CRM, "sub", "model-00001-of-00002.safetensors"])
def test_a_folder_of_something_else_is_not_replaced(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    convert([source], out)
    (out / name).mkdir() if name == "sub" else (out / name).write_text("mine")
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(OutputError, match=rf"holds {name}.*E_WEIGHTS_FOLDER") as caught:
        convert([source], out)
    assert caught.value.exit_code == ExitCode.OUTPUT
    assert sorted(path.name for path in out.iterdir()) == before


def test_a_disk_that_is_mounted_there_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OutputError, match=r"disk: the root of a disk.*E_WEIGHTS_FOLDER"):
        convert([tmp_path / "nothing"], tmp_path / "disk")


def test_a_home_that_does_not_exist_is_no_bug(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="E_OUTPUT"):
        convert([source], Path("~no-such-user/../../dev/null/weights"))


def test_a_file_in_the_place_of_the_folder_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError):
        convert([source], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_disk_that_is_too_small_is_found_out_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 5_000_000

    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: Usage())
    monkeypatch.setattr(conversion, "digest_of", lambda *_: pytest.fail("it went on"))
    with pytest.raises(OutputError, match=r"5\.0 MB free"):
        convert([source], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("has_older", [False, True])
@pytest.mark.parametrize("place", ["sync", "write_whole", "_sync_folder", "_swap"])
@pytest.mark.parametrize(("fault", "error"), [(full_disk, OutputError), (interrupt, KeyboardInterrupt)])
def test_whatever_ends_a_conversion_leaves_what_was_there_and_nothing_else(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    error: type[BaseException],
    place: str,
    has_older: bool,
) -> None:
    older = convert([source], tmp_path / "out").digest if has_older else None
    given = write_published(tmp_path / "in", seed=5)
    monkeypatch.setattr(shards, place, fault)
    with pytest.raises(error):
        convert(given, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"][: 1 + has_older]
    if has_older:
        verify(find(str(tmp_path / "out")))
        assert find(str(tmp_path / "out")).digest == older


def test_a_swap_that_fails_half_way_is_taken_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = convert([source], tmp_path / "out").digest
    rename = Path.rename

    def fail_on_the_new(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new)
    with pytest.raises(OutputError, match=r"out.*E_OUTPUT"):
        convert([source], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert find(str(tmp_path / "out")).digest == older


KILLED = """
import os, signal, sys
from pathlib import Path
from crm_cli.models import convert, shards

write = shards._serialised

def die(tensors):
    for number, data in enumerate(write(tensors)):
        if number == 9 and "out.0.weight" in tensors:
            os.kill(os.getpid(), signal.SIGKILL)
        yield data

shards._serialised = die
convert.convert([Path(sys.argv[1])], Path(sys.argv[2]), architecture="miniature")
"""


def test_a_killed_conversion_leaves_no_set_and_the_next_one_removes_its_debris(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    [debris] = tmp_path.iterdir()
    assert debris.name.startswith(".out-") and debris.suffix == ".part"
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_MISSING"):
        find(str(out))
    verify(convert([source], out))
    assert list(tmp_path.iterdir()) == [out]


def test_a_conversion_killed_in_the_swap_is_made_good_by_the_next(source: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "out", tmp_path / ".out-77-0123abcd.old"
    digest = convert([source], out).digest
    out.rename(moved)
    broken = tmp_path / "in"
    write_published(broken, change=remove(CRM, "weightMlp.2.bias"))
    with pytest.raises(EnvironmentProblem):
        convert([broken], out)
    with shards.appearing(tmp_path / "out") as place:
        assert not moved.exists() and find(str(out)).digest == digest
        place.rmdir() if not any(place.iterdir()) else None


def test_a_conversion_at_work_is_not_debris(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with shards.appearing(out) as place:
        (place / "half").write_text("written")
        convert([source], out)
        assert (place / "half").read_text() == "written"


def test_two_conversions_that_end_at_once_both_end_well(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert([source], out)
    rename = Path.rename
    others: list[threading.Thread] = []
    failures: list[BaseException] = []

    def convert_meanwhile() -> None:
        try:
            convert([source], out)
        except BaseException as error:
            failures.append(error)

    def let_another_in(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if not others:
            others.append(threading.Thread(target=convert_meanwhile))
            others[0].start()
            # Long enough for the other to come here, were it not kept waiting.
            others[0].join(2)
        return moved

    monkeypatch.setattr(Path, "rename", let_another_in)
    verify(convert([source], out))
    others[0].join()
    assert failures == []
    assert list(tmp_path.iterdir()) == [out]
    verify(find(str(out)))


def test_a_disk_that_locks_only_files_open_for_writing_is_swept_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = shards.fcntl.flock

    def lock_like_nfs(file: Any, operation: int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        if shards.fcntl.fcntl(descriptor, shards.fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(descriptor, operation)

    debris = tmp_path / ".out-77-0123abcd.part"
    debris.mkdir()
    (debris / shards.LOCK).touch()
    monkeypatch.setattr(shards.fcntl, "flock", lock_like_nfs)
    verify(convert([source], tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_another_user_writes_is_not_debris(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / ".out-77-0123abcd.part"
    other.mkdir()
    (other / shards.LOCK).touch()
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path == other / shards.LOCK and mode != "rb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", refuse)
    verify(convert([source], tmp_path / "out"))
    assert other.is_dir()


def test_folders_of_like_names_are_nobodys_debris(source: Path, tmp_path: Path) -> None:
    kept = [
        tmp_path / name
        for name in (".out-2-0123abcd.part", ".ou-77-0123abcd.part", ".out-x.part", "out-1.old")
    ]
    for folder in kept:
        folder.mkdir()
    kept[0].rename(tmp_path / ".out.2-77-0123abcd.part")
    convert([source], tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1 + len(kept)


def test_the_child_above_would_convert_were_it_not_killed(source: Path, tmp_path: Path) -> None:
    unharmed = textwrap.dedent(KILLED).replace("signal.SIGKILL", "0")
    subprocess.run([sys.executable, "-c", unharmed, source, tmp_path / "out"], check=True)
    verify(find(str(tmp_path / "out")))
