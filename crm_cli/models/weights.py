"""Where weights are, and their strict way into a network.

A weights file is safetensors: half precision on disk, the network's own precision in memory. It either
fills every parameter of the network and has nothing left over, or it is refused. Finding and hashing the
files needs no torch: whoever plans a run asks for their digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crm_cli.errors import EnvironmentProblem, OutputError

if TYPE_CHECKING:
    from torch import Tensor, nn

DIRECTORY = Path(__file__).parent.parent / "weights"
"""The weights that ship with the package."""

NAMES = ("rgb", "ccm", "reconstruction")
"""The networks of one set, in the order of work; each is a file NAME.safetensors."""

METADATA_KEY = "crm"
"""All metadata is one JSON string: safetensors writes several keys in an order of its own each time."""

SHOWN_MISMATCHES = 3
"""A wrong file has hundreds; the first few tell which network it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInfo:
    """What is known of a loaded file."""

    file: Path
    digest: str
    """SHA-256 of the file's bytes, hexadecimal."""
    metadata: Mapping[str, str]
    """As given to `save`: preset, seed, commit, steps, held-out metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSet:
    """The files of one whole system; all of them exist."""

    name: str
    files: Mapping[str, Path]
    """One for each of NAMES."""
    digest: str
    """Of names and contents of all files."""


def find(choice: str) -> WeightsSet:
    """The weights a preset asks for.

    choice: `embedded`, what ships with the package; `auto`, the best on this machine, which is the
    same; or the path of a folder that holds one file for each of NAMES.
    """
    is_embedded = choice in ("auto", "embedded")
    directory = DIRECTORY if is_embedded else Path(choice).expanduser()
    files = {name: directory / f"{name}.safetensors" for name in NAMES}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise EnvironmentProblem(
            f"{directory}: no {', '.join(missing)}",
            code="E_WEIGHTS_MISSING",
            remedy="reinstall crm-cli"
            if is_embedded
            else "use --set weights=embedded, or complete the folder",
        )
    digests = "".join(f"{name} {digest_of(file)}\n" for name, file in files.items())
    return WeightsSet(
        name=name_of(choice),
        files=files,
        digest=hashlib.sha256(digests.encode()).hexdigest(),
    )


def name_of(choice: str) -> str:
    """What a preset's weights are called in files and reports: a folder by its name, not its path."""
    return "embedded" if choice in ("auto", "embedded") else Path(choice).name


def digest_of(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load(module: nn.Module, file: Path) -> WeightsInfo:
    """Fill every parameter and buffer of a network from a file, or raise EnvironmentProblem."""
    import safetensors.torch

    try:
        data = file.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
        metadata = _metadata(data)
    except FileNotFoundError as error:
        raise _refusal(file, "no such file", "E_WEIGHTS_MISSING") from error
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror}", "E_WEIGHTS_MISSING") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise _refusal(file, f"not a whole weights file ({error})", "E_WEIGHTS_BROKEN") from error
    mismatches = _mismatches(module.state_dict(), tensors)
    if mismatches:
        shown = "; ".join(mismatches[:SHOWN_MISMATCHES])
        more = len(mismatches) - SHOWN_MISMATCHES
        raise _refusal(
            file,
            f"belongs to another network: {shown}" + (f"; {more} more" if more > 0 else ""),
            "E_WEIGHTS_WRONG",
        )
    module.load_state_dict(tensors)
    return WeightsInfo(file=file, digest=hashlib.sha256(data).hexdigest(), metadata=metadata)


def _refusal(file: Path, cause: str, code: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{file}: {cause}", code=code, remedy="reinstall crm-cli, or use --set weights=embedded"
    )


def _metadata(data: bytes) -> dict[str, str]:
    """What `save` stored; the header is JSON behind eight bytes of length (safetensors, format)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    stored = header.get("__metadata__", {}).get(METADATA_KEY, "{}")
    return {str(key): str(value) for key, value in json.loads(stored).items()}


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    found = [f"{name} is missing" for name in wanted if name not in given]
    found += [f"{name} is unknown" for name in given if name not in wanted]
    found += [
        f"{name} is {list(given[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return found


def save(module: nn.Module, file: Path, metadata: Mapping[str, str]) -> str:
    """Write a network in half precision; return the file's digest.

    The same network and metadata give the same bytes. The file appears whole or not at all.
    """
    import safetensors.torch

    tensors = {name: _halved(name, tensor) for name, tensor in module.state_dict().items()}
    stored = {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    data: bytes = safetensors.torch.save(tensors, stored)
    try:
        _write_whole(file, data)
    except OSError as error:
        raise OutputError(
            f"{file}: {error.strerror}", code="E_OUTPUT", remedy="free space or fix rights"
        ) from error
    return hashlib.sha256(data).hexdigest()


def _halved(name: str, tensor: Tensor) -> Tensor:
    import torch

    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    if not half.isfinite().all():
        raise ValueError(f"{name}: not finite in half precision; training has diverged")
    return half


def _write_whole(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}-{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
