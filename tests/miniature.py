"""A set of weights of the published structure at no cost, with random values and nothing at zero."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from crm_cli.models.architectures import MINIATURE
from crm_cli.models.weights import FORMAT, MANIFEST, WeightsSet, find


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """Every part by name, in single precision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {part: MINIATURE.build(part).eval().requires_grad_(False) for part in MINIATURE.parts}
        for network in parts.values():
            for tensor in network.state_dict().values():
                if not tensor.any():
                    tensor.normal_(0, 0.05)
    return parts


def write(folder: Path, parts: dict[str, nn.Module] | None = None) -> WeightsSet:
    """Write parts as a converted folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for part, network in (parts or networks()).items():
        file = folder / f"{part}-00001-of-00001.safetensors"
        safetensors.torch.save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
        data = file.read_bytes()
        entry = {"name": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        listed[part] = {"files": [entry]}
    manifest = {"format": FORMAT, "architecture": MINIATURE.name, "source": {}, "parts": listed}
    (folder / MANIFEST).write_text(json.dumps(manifest), "ascii")
    return find(str(folder))
