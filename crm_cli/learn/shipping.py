"""A trained network of the published structure, in a whole set of weights that can be used at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crm_cli.learn.beginning import Start
from crm_cli.models.combine import require_place, said_of, write_set
from crm_cli.models.loading import require_finite, stored_types
from crm_cli.models.shards import write_part
from crm_cli.models.weights import WeightsSet


def ship_set(start: Start, network: nn.Module, folder: Path, metadata: Mapping[str, Any]) -> WeightsSet:
    """Write the set that a training began from, with the trained network in the place of its own.

    What was frozen is copied byte for byte. The network is stored in the precision in which the set had it,
    in which it must be finite.

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
    require_finite(tensors)
    return write_set(
        weights,
        require_place(folder),
        {"source": {weights.name: said_of(weights)}, "trained": dict(metadata)},
        writers={start.network: lambda place: write_part(place, start.network, tensors, lambda _: None)},
    )
