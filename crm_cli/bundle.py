"""Tensors and what else belongs to them as one string of bytes: safetensors with a note in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

NOTE = "crm"
"""All metadata is one JSON string: safetensors writes several keys in an order of its own each time."""


def bundled(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> bytes:
    """Pack tensors, from wherever they are, and a note that JSON can hold."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(safetensors.torch.save(here, {NOTE: json.dumps(note)}))


def unbundled(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Unpack what `bundled` has packed; raises ValueError, KeyError or SafetensorError for anything else."""
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    # The header is JSON behind eight bytes of length (safetensors, format).
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    note: dict[str, Any] = json.loads(header["__metadata__"][NOTE])
    return tensors, note
