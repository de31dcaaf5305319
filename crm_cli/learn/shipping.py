"""A trained network of the published structure, in a whole set of weights that can be used at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from crm_cli.errors import EnvironmentProblem
from crm_cli.learn.beginning import Start
from crm_cli.models.loading import stored_types
from crm_cli.models.shards import (
    appearing,
    require_replaceable,
    require_writable,
    sync,
    write_list,
    write_part,
)
from crm_cli.models.weights import WeightsFile, WeightsSet, digest_of, expanded, find

COPIED_BYTES = 1 << 24
"""At a time."""


def require_place(folder: Path) -> None:
    """Raise OutputError where a set could not be shipped to; days of training should not end there."""
    require_replaceable(_place(folder))
    require_writable(_place(folder))


def _place(folder: Path) -> Path:
    return expanded(str(folder)).resolve()


def ship_set(start: Start, network: nn.Module, folder: Path, metadata: Mapping[str, Any]) -> WeightsSet:
    """Write the set that a training began from, with the trained network in the place of its own.

    What was frozen is copied byte for byte. The network is stored in the precision in which the set had it;
    ValueError where it is not finite there.

    Args:
        start: of a network of the published structure.
        network: trained.
        folder: replaced, if it holds weights already; `crm convert --weights` reads it.
        metadata: goes into the folder's list.
    """
    weights = start.weights
    assert weights is not None
    types = stored_types(start.files)
    tensors = {name: tensor.detach().cpu().to(types[name]) for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name}: not finite in {kind}; training has diverged")
    folder = _place(folder)
    require_replaceable(folder)
    listed = {
        "architecture": weights.architecture,
        "source": {weights.name: {"bytes": weights.bytes, "sha256": weights.digest}},
        "trained": dict(metadata),
    }
    with appearing(folder) as place:
        parts: dict[str, Sequence[WeightsFile]] = {}
        for part, files in weights.parts.items():
            if part == start.network:
                parts[part] = write_part(place, part, tensors, lambda _: None)
            else:
                parts[part] = [_copied(file, place) for file in files]
        write_list(place, listed, parts)
    return find(str(folder))


def _copied(file: WeightsFile, place: Path) -> WeightsFile:
    """Copy a file of a set into a new one."""
    copy = place / file.path.name
    with file.path.open("rb") as source, copy.open("xb") as target:
        shutil.copyfileobj(source, target, COPIED_BYTES)
        sync(target)
    if digest_of(copy) != file.sha256:
        raise EnvironmentProblem(
            f"{file.path}: its contents have changed since it was written",
            code="E_WEIGHTS_BROKEN",
            remedy="run `crm weights verify`",
        )
    return WeightsFile(path=copy, bytes=file.bytes, sha256=file.sha256)
