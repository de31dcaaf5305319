"""Checkpoint files: read without being run."""

import copy
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from pickles import CCM, CRM, RGB, published
from safetensors.torch import save_file
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, ExitCode
from crm_cli.models.archives import read_checkpoint
from crm_cli.models.checkpoints import UNET


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_comes_back_value_for_value_though_its_tensors_share_a_storage(tmp_path: Path) -> None:
    files = published()
    denoiser = [tensor for name, tensor in files[RGB].items() if name.startswith(UNET)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in denoiser}) == 1
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
        assert same(read_checkpoint(tmp_path / name), tensors)
    save_file({name: tensor.clone() for name, tensor in files[CCM].items()}, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), files[CCM])


def test_transposed_and_expanded_views_parameters_and_other_types_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors: dict[str, Tensor] = {"t": base.T, "slice": base[1:, ::2], "wide": torch.ones(1).expand(5)}
    tensors |= {"parameter": nn.Parameter(base), "bf": base.bfloat16(), "d": base.double(), "i": base.long()}
    torch.save(tensors, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert same(read, tensors)
    assert [tensor.dtype for tensor in read.values()] == [tensor.dtype for tensor in tensors.values()]
    assert not any(tensor.requires_grad for tensor in read.values())


def test_one_level_around_the_tensors_is_looked_through(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3, "global_step": 7}, tmp_path / "a.ckpt")
    assert list(read_checkpoint(tmp_path / "a.ckpt")) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds list, not named tensors"),
        (torch.ones(1), "holds Tensor, not named tensors"),
        ({"a": torch.ones(1), "epoch": 3}, "epoch is int"),
        ({"a": {"b": torch.ones(1)}}, "a is dict"),
        ({3: torch.ones(1)}, "3 is Tensor"),
        ({"state_dict": [torch.ones(1)]}, "state_dict is list"),
    ],
)
def test_anything_but_named_tensors_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(EnvironmentProblem, match=rf"{message}.*E_WEIGHTS_WRONG"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("kept", [0, 3, 30, 1000, -1, -100, -100_000])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "a.pth"
    torch.save(published()[CRM], file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN") as caught:
        read_checkpoint(file)
    assert str(file) in caught.value.cause and "\n" not in str(caught.value) and caught.value.remedy


def legacy(file: Path) -> None:
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (legacy, "older formats are not read"),
        (lambda file: file.write_bytes(b"<!DOCTYPE html><html>Sign in</html>"), "older formats are not read"),
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:71f\n"),
            "not the file",
        ),
        (lambda file: file.write_bytes(b"\xff" * 7 + b"\x7f{"), "not a whole weights file"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "a.pth")
    with pytest.raises(EnvironmentProblem, match=f"{message}.*E_WEIGHTS_BROKEN"):
        read_checkpoint(tmp_path / "a.pth")


def test_half_a_download_and_no_file_are_told_apart(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth.incomplete")
    with pytest.raises(EnvironmentProblem, match=r"part of a download.*E_WEIGHTS_BROKEN"):
        read_checkpoint(tmp_path / "a.pth.incomplete")
    for missing in (tmp_path / "b.pth", tmp_path):
        with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_MISSING"):
            read_checkpoint(missing)


# Pickles that do more than name tensors. Each would create the canary, were it run.

CANARY = "canary"


def word(text: str) -> bytes:
    """A text as a pickle holds it."""
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


TOUCH = f"touch {CANARY}"
PYTHON = f"__import__('pathlib').Path('{CANARY}').touch()"
HARMLESS = b"\x80\x02ccollections\nOrderedDict\n)R(" + word("weight")

ATTACKS = {
    "a shell": b"\x80\x02cos\nsystem\n" + word(TOUCH) + b"\x85R.",
    "its other name": b"\x80\x02cposix\nsystem\n" + word(TOUCH) + b"\x85R.",
    "code as text": b"\x80\x02cbuiltins\neval\n" + word(PYTHON) + b"\x85R.",
    "by protocol 4": b"\x80\x04" + short("os") + short("system") + b"\x93" + short(TOUCH) + b"\x85R.",
    "by protocol 0": f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
    "as an object": b"\x80\x02(cos\nsystem\n" + word(TOUCH) + b"o.",
    "as a new object": b"\x80\x02csubprocess\nPopen\n(" + word("touch") + word(CANARY) + b"l\x85\x81.",
    "through an attribute": b"\x80\x02cbuiltins\ngetattr\ncos\n__dict__\n"
    + word("get")
    + b"\x86R"
    + word("system")
    + b"\x85R"
    + word(TOUCH)
    + b"\x85R.",
    "among tensors": HARMLESS + b"cos\nsystem\n" + word(TOUCH) + b"\x85Ru.",
    "as a state": b"\x80\x02ccollections\nOrderedDict\n)R}" + word("_metadata") + b"cos\nsystem\n"
    + word(TOUCH) + b"\x85Rsb.",
    "a pickle in a pickle": b"\x80\x02ctorch.storage\n_load_from_bytes\nc_codecs\nencode\n"
    + word("\x80\x02cos\nsystem\n(X" + struct.pack("<I", len(TOUCH)).decode() + TOUCH + "tR.")
    + word("latin1")
    + b"\x86R\x85R.",
    "from a package of ours": b"\x80\x02ctorch.serialization\nos.system\n" + word(TOUCH) + b"\x85R.",
}  # fmt: skip


def archive(file: Path, pickled: bytes, *, method: int = zipfile.ZIP_STORED, name: str = "data.pkl") -> None:
    with zipfile.ZipFile(file, "w", method) as stream:
        stream.writestr(f"a/{name}", pickled)
        stream.writestr("a/version", "3\n")
        stream.writestr("a/data/0", bytes(64))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_would_run_something_is_refused_before_anything_reads_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    archive(workplace / "a.pth", ATTACKS[attack])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_UNSAFE") as caught:
        read_checkpoint(workplace / "a.pth")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT and "a.pth" in caught.value.cause
    assert not (workplace / CANARY).exists()


@pytest.mark.parametrize(
    "attack", ["a shell", "by protocol 0", "by protocol 4", "among tensors", "as an object"]
)
def test_the_attacks_above_do_work_on_a_reader_without_care(workplace: Path, attack: str) -> None:
    import pickle  # noqa: TID251 what the reader must never do

    pickle.loads(ATTACKS[attack])
    assert (workplace / CANARY).exists()


@pytest.mark.parametrize("attack", ["a shell", "by protocol 0", "by protocol 4"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_bare_pickle_is_not_read_at_all(workplace: Path, attack: str, name: str) -> None:
    (workplace / name).write_bytes(ATTACKS[attack])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        read_checkpoint(workplace / name)
    assert not (workplace / CANARY).exists()


TENSOR = (
    b"\x80\x02}" + word("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + word("storage")
    + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + b"K\x10tQ%s%s\x85%s\x85"
    b"\x89ccollections\nOrderedDict\n)RtRs."
)  # fmt: skip
"""One tensor of 16 floats: offset, size and stride are filled in."""


def test_the_hand_written_pickle_is_one_that_is_read(tmp_path: Path) -> None:
    archive(tmp_path / "a.pth", TENSOR % (b"K\x04", b"K\x03", b"K\x02"))
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["w"], torch.zeros(3))


@pytest.mark.parametrize(
    "numbers",
    [
        (b"K\x00", b"K\xff", b"K\x01"),
        (b"K\xff", b"K\x03", b"K\x01"),
        (b"J\xff\xff\xff\xff", b"K\x03", b"K\x01"),
        (b"K\x00", b"K\x03", b"J\xff\xff\xff\xff"),
        (b"K\x00", b"J\xff\xff\xff\x7f", b"K\x01"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    tmp_path: Path, numbers: tuple[bytes, bytes, bytes]
) -> None:
    archive(tmp_path / "a.pth", TENSOR % numbers)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        read_checkpoint(tmp_path / "a.pth")


def twice(file: Path) -> None:
    archive(file, TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
    with zipfile.ZipFile(file, "a") as stream, pytest.warns(UserWarning, match="Duplicate name"):
        stream.writestr("a/data.pkl", ATTACKS["a shell"])


def behind_another(file: Path) -> None:
    archive(file, ATTACKS["a shell"])
    data = file.read_bytes()
    archive(file, TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
    file.write_bytes(data + file.read_bytes())


def two_stems(file: Path) -> None:
    archive(file, TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
    with zipfile.ZipFile(file, "a") as stream:
        stream.writestr("b/data.pkl", ATTACKS["a shell"])


def counted_twice(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as stream:
        stream.writestr("a/data.pkl", TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
        stream.writestr("a/data/0", bytes(1 << 20))
        again = copy.copy(stream.getinfo("a/data/0"))
        again.filename = "a/data/1"
        stream.filelist.append(again)


def by_another_case(file: Path) -> None:
    # torch takes letters of both cases for the same, and finds one of the two.
    with zipfile.ZipFile(file, "w") as stream:
        stream.writestr("a/DATA.PKL", ATTACKS["a shell"])
        stream.writestr("a/data.pkl", TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
        stream.writestr("a/version", "3\n")
        stream.writestr("a/data/0", bytes(64))


def by_another_list(file: Path) -> None:
    """Two lists of records: Python takes the one that lies last, torch the one that the end points to."""
    archive(file, TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
    data = file.read_bytes()
    start = data.index(b"PK\1\2")
    records, seen = data[:start], data[start : data.index(b"PK\5\6")]
    archive(file, ATTACKS["a shell"])
    hidden = file.read_bytes()
    hidden = hidden[: hidden.index(b"PK\3\4", 4)]
    entry = seen[: seen.index(b"PK\1\2", 4)]
    other = bytearray(entry)
    other[16:28] = hidden[14:26]  # checksum and both sizes
    other[42:46] = len(records).to_bytes(4, "little")
    other += seen[len(entry) :]
    records += hidden

    def end_of(entries: bytes, place: int) -> bytes:
        numbers = (44, 45, 45, 0, 0, 3, 3, len(entries), place)
        return entries + b"PK\6\6" + struct.pack("<QHHIIQQQQ", *numbers)

    records += end_of(bytes(other), len(records))
    pointed_to = len(records) - 56
    records += end_of(seen, len(records)) + b"PK\6\7" + struct.pack("<IQI", 0, pointed_to, 1)
    file.write_bytes(
        records + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 65535, 65535, -1 % 2**32, -1 % 2**32, 0)
    )


def encrypted(file: Path) -> None:
    archive(file, TENSOR % (b"K\x00", b"K\x03", b"K\x01"))
    data = bytearray(file.read_bytes())
    for place in (6, data.index(b"PK\1\2") + 8):
        data[place] |= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (by_another_case, "not laid out as torch does"),
        (by_another_list, "not laid out as torch does"),
        (encrypted, "encrypted"),
        (counted_twice, "its records are larger than itself"),
        (lambda file: archive(file, bytes(1 << 20), method=zipfile.ZIP_DEFLATED), "compressed"),
        (lambda file: archive(file, bytes((1 << 24) + 1)), "larger than names of tensors"),
        (lambda file: archive(file, TENSOR, name="other.pkl"), r"no data\.pkl"),
        (twice, "not laid out as torch does"),
        (behind_another, "not laid out as torch does"),
        (two_stems, "not laid out as torch does"),
    ],
)
def test_an_archive_that_another_reader_may_read_otherwise_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], message: str
) -> None:
    write(workplace / "a.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(EnvironmentProblem, match=f"{message}.*E_WEIGHTS_BROKEN"):
        read_checkpoint(workplace / "a.pth")
    assert not (workplace / CANARY).exists()


def test_a_checkpoint_that_was_saved_on_a_gpu_is_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(OrderedDict(weight=torch.arange(6.0).reshape(2, 3)), tmp_path / "CRM.pth")
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "CRM.pth") as archive:
        assert b"cuda:0" in archive.read("CRM/data.pkl")
    read = read_checkpoint(tmp_path / "CRM.pth")
    assert read["weight"].device.type == "cpu"
    assert read["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
