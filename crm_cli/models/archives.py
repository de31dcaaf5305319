"""Checkpoint files, read without being run.

A checkpoint is a pickle, and a pickle is a program. What is read here has been looked through first: it
may build tensors and name them, and nothing else. Conversion is the only caller; a run reads safetensors.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from crm_cli.errors import EnvironmentProblem

ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
"""All that a pickle of named tensors refers to."""

# fmt: off
ALLOWED_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "NEWTRUE", "NEWFALSE", "NONE",
}
# fmt: on
"""All that torch.save writes for them (pickle protocol 2)."""

OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch's files before 1.6 begin: a pickle of the number 0x1950a86a20f9469cfc6c."""

MAX_PICKLE_BYTES = 1 << 24
"""Of the part that names the tensors: 0.4 MB in the published files."""

REMEDY = "use the published files; `crm weights fetch` gets them"


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, mapped from disk; EnvironmentProblem for anything else.

    Takes safetensors and torch's zip format; one level `state_dict` around the tensors is looked through.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except FileNotFoundError as error:
        raise _refusal(file, "no such file", "E_WEIGHTS_MISSING") from error
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror or error}", "E_WEIGHTS_MISSING") from error
    if file.suffix == ".incomplete":
        raise _refusal(file, "only part of a download", "E_WEIGHTS_BROKEN")
    if head.startswith(b"PK\x03\x04"):
        return _read_archive(file)
    if file.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(file)
    if head.startswith(b"version https://git-lfs"):
        raise _refusal(
            file, "stands for the file in a Git repository, and is not the file", "E_WEIGHTS_BROKEN"
        )
    raise _refusal(
        file,
        "neither safetensors nor a checkpoint in torch's zip format (older formats are not read)",
        "E_WEIGHTS_BROKEN",
    )


def read_old_checkpoint(file: Path) -> dict[str, Tensor]:
    """The same, from torch's format before 1.6 as well: by torch's own unpickler, which builds tensors alone.

    For files that a user names and that no fetch converts.
    """
    try:
        with file.open("rb") as stream:
            is_old = stream.read(len(OLD_MAGIC)) == OLD_MAGIC
        if is_old:
            loaded = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 see above
            return _tensors_of(loaded, file)
    except OSError:
        pass  # what is wrong with it is told below
    # A damaged pickle of harmless parts can fail in any way.
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise _refusal(file, f"damaged ({type(error).__name__}: {reason})", "E_WEIGHTS_BROKEN") from error
    return read_checkpoint(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _refusal(file, f"not a whole weights file ({error})", "E_WEIGHTS_BROKEN") from error


def _read_archive(file: Path) -> dict[str, Tensor]:
    try:
        pickled = _pickled(file)
    # Encrypted and unknown records, and whatever torch's reader stumbles over, are RuntimeErrors.
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        reason = str(error).split("\n")[0][:200]
        raise _refusal(file, f"not a whole file ({reason})", "E_WEIGHTS_BROKEN") from error
    _look_through(file, pickled)
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # noqa: TID251 looked through
    # A damaged pickle of harmless parts can still fail in any way.
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise _refusal(file, f"damaged ({type(error).__name__}: {reason})", "E_WEIGHTS_BROKEN") from error
    return _tensors_of(loaded, file)


def _pickled(file: Path) -> bytes:
    """The pickle inside an archive in which two readers cannot see different things."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        stems = {name.split("/")[0] for name in names}
        if len(names) < len(members) or len(stems) != 1 or min(m.header_offset for m in members) != 0:
            raise zipfile.BadZipFile("not laid out as torch does")
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise zipfile.BadZipFile("compressed, as torch never does")
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise zipfile.BadZipFile("its records are larger than itself")
        name = f"{stems.pop()}/data.pkl"
        if name not in names:
            raise zipfile.BadZipFile("no data.pkl")
        if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise zipfile.BadZipFile("its data.pkl is larger than names of tensors are")
        pickled = archive.read(name)
    if pickled != _as_torch_reads_it(file):
        raise zipfile.BadZipFile("not laid out as torch does")
    return pickled


def _as_torch_reads_it(file: Path) -> bytes:
    """The pickle that torch.load finds: it looks for records and compares names in its own way."""
    with file.open("rb") as stream:
        pickled: bytes = torch._C.PyTorchFileReader(stream).get_record("data.pkl")
    return pickled


def _look_through(file: Path, pickled: bytes) -> None:
    """Raise unless a pickle does nothing but build tensors; it is not run."""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL" and argument not in ALLOWED_GLOBALS:
                cause = f"would run {str(argument).replace(' ', '.')!r}, which no tensor needs"
                raise _refusal(file, cause, "E_WEIGHTS_UNSAFE")
            if opcode.name not in ALLOWED_OPCODES:
                cause = f"holds {opcode.name}, which torch does not write for tensors"
                raise _refusal(file, cause, "E_WEIGHTS_UNSAFE")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise _refusal(file, f"damaged ({error})", "E_WEIGHTS_BROKEN") from error


def _tensors_of(loaded: object, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        cause = f"holds {type(loaded).__name__}, not named tensors"
        raise _refusal(file, cause, "E_WEIGHTS_WRONG")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            cause = f"holds more than named tensors: {str(name)[:80]} is {type(value).__name__}"
            raise _refusal(file, cause, "E_WEIGHTS_WRONG")
    return {name: value.detach() for name, value in loaded.items()}


def _refusal(file: Path, cause: str, code: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{file}: {cause}", code=code, remedy=REMEDY)
