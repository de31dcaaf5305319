"""The strict way of weights into a network, and out of one.

Weights are safetensors files: half precision or the published one on disk, the precision asked for in
memory. They either fill every parameter of a network and have nothing left over, or they are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, OutputError, StoppedEarly
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.weights import METADATA_KEY, WeightsSet, blaming, remedy_for, require_unchanged

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""What safetensors calls the formats that weights are stored in."""

SHOWN_MISMATCHES = 3
"""A wrong file has hundreds; the first few tell which network it belongs to."""


def open_part(
    weights: WeightsSet,
    part: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build and fill one network of a set, ready for inference.

    dtype: What it computes in; None: single precision.
    """
    module = ARCHITECTURES[weights.architecture].unfilled(part)
    load(module, [file.path for file in weights.files_of(part)], device=device, dtype=dtype)
    # Only now: what has been mapped stays, whatever happens to the folder afterwards.
    require_unchanged(weights, part)
    return module.eval().requires_grad_(False)


def require_fit(weights: WeightsSet) -> None:
    """Raise EnvironmentProblem unless every part fits its network; only headers are read."""
    for part in weights.parts:
        module = ARCHITECTURES[weights.architecture].unfilled(part)
        files = [file.path for file in weights.files_of(part)]
        with contextlib.ExitStack() as stack:
            _check_fit(module.state_dict(), _open_files(stack, files, "cpu"), files[0])


def load(
    module: nn.Module,
    files: Sequence[Path],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Fill every parameter and buffer of a network from its files, or raise EnvironmentProblem.

    Tensors are mapped from disk, go to the device one by one and become the network's own: it may be
    built on the meta device, and host memory never holds more than one tensor beside it.

    Args:
        module: Left as it was where its files are refused.
        files: Together they hold its state dict.
        device: Where the network is afterwards.
        dtype: Of its floating-point tensors afterwards; None: what they are before.
    """
    wanted = module.state_dict()
    state = {}
    with contextlib.ExitStack() as stack:
        holders = _open_files(stack, files, str(device))
        _check_fit(wanted, holders, files[0])
        for name, tensor in wanted.items():
            with blaming(holders[name].file):
                given = holders[name].tensors.get_tensor(name)
            is_cast = dtype is not None and tensor.is_floating_point()
            state[name] = given.to(dtype if is_cast else tensor.dtype)
    module.load_state_dict(state, assign=True)


def fits(module: nn.Module, files: Sequence[Path]) -> bool:
    """Whether files hold just what a network wants; only headers are read."""
    with contextlib.ExitStack() as stack:
        holders = _open_files(stack, files, "cpu")
        try:
            _check_fit(module.state_dict(), holders, files[0])
        except EnvironmentProblem:
            return False
    return True


def stored_types(files: Sequence[Path]) -> dict[str, torch.dtype]:
    """Number format of each tensor in files, by name; only headers are read."""
    with contextlib.ExitStack() as stack:
        return {
            name: TYPES[holder.tensors.get_slice(name).get_dtype()]
            for name, holder in _open_files(stack, files, "cpu").items()
        }


class _Holder(NamedTuple):
    """Where a tensor is read from."""

    file: Path
    tensors: Any  # safetensors.safe_open, which has no types


def _open_files(stack: contextlib.ExitStack, files: Sequence[Path], device: str) -> dict[str, _Holder]:
    """The holder of each tensor; files stay open as long as the stack."""
    holders: dict[str, _Holder] = {}
    for file in files:
        with blaming(file):
            tensors = stack.enter_context(safetensors.safe_open(file, "pt", device=device))
        for name in tensors.keys():  # noqa: SIM118 not a mapping
            if name in holders:
                raise _misfit(file, f"{name} is in {holders[name].file.name} as well")
            holders[name] = _Holder(file, tensors)
    return holders


def _check_fit(wanted: Mapping[str, Tensor], holders: Mapping[str, _Holder], first: Path) -> None:
    """Raise unless the files hold just the wanted tensors in their shapes; only headers are read."""
    given = {}
    for name, holder in holders.items():
        piece = holder.tensors.get_slice(name)
        given[name] = form(piece.get_shape(), is_floating="F" in piece.get_dtype())
    wrong = mismatches(
        {name: form(tensor.shape, is_floating=tensor.is_floating_point()) for name, tensor in wanted.items()},
        given,
    )
    if wrong:
        raise _misfit(
            next((holders[name].file for name in wrong if name in holders), first), shortened(wrong)
        )


def _misfit(file: Path, cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{file}: belongs to another network: {cause}", code="E_WEIGHTS_WRONG", remedy=remedy_for(file)
    )


def form(shape: Sequence[int], *, is_floating: bool) -> str:
    """What has to agree between a tensor in a file and one in a network, as a message shows it."""
    return f"{list(shape)}" + ("" if is_floating else " of whole numbers")


def mismatches(wanted: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each tensor that is missing, unknown or of another form; see `form`."""
    found = {name: f"{name} is missing" for name in wanted if name not in given}
    found |= {name: f"{name} is unknown" for name in given if name not in wanted}
    found |= {
        name: f"{name} is {given[name]}, not {wanted[name]}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    }
    return found


def shortened(wrong: Mapping[str, str]) -> str:
    """The first few mismatches, and how many more there are."""
    more = len(wrong) - SHOWN_MISMATCHES
    return "; ".join([*wrong.values()][:SHOWN_MISMATCHES]) + (f"; {more} more" if more > 0 else "")


def save(module: nn.Module, file: Path, metadata: Mapping[str, str]) -> str:
    """Write a network in half precision, in which it must be finite; return the file's digest.

    The same network and metadata give the same bytes. The file appears whole or not at all.
    """
    tensors = {name: _halved(tensor) for name, tensor in module.state_dict().items()}
    require_finite(tensors)
    stored = {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    data: bytes = safetensors.torch.save(tensors, stored)
    try:
        _write_whole(file, data)
    except OSError as error:
        raise OutputError(
            f"{file}: {error.strerror}", code="E_OUTPUT", remedy="free space or fix rights"
        ) from error
    return hashlib.sha256(data).hexdigest()


def _halved(tensor: Tensor) -> Tensor:
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).contiguous()


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise StoppedEarly where a trained network has values that its number format does not hold."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise StoppedEarly(
                f"{name}: not finite in {kind}: the training has diverged, nothing is written",
                code="E_TRAIN_DIVERGED",
                remedy="train into another --out folder with a lower --learning-rate",
            )


def _write_whole(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}-{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
