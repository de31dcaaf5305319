"""What nvdiffrast 0.4 does with triangles, in numpy: the contract that its adaptor is tested against.

Read from its documentation and sources (NVlabs/nvdiffrast; rasterize.cu, torch_rasterize.cpp,
TriangleSetup.inl, FineRaster.inl). Only the instance mode with one image, and no derivatives. Which of two
neighbours owns a centre on their common edge is left to the rule of our own rasterisers.
"""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
import torch

SUBPIXELS = 16
DEEPEST = 2**32 - 1 - 2 * (2200 << 3)
"""Depths are whole numbers between the two clip planes."""


class RasterizeCudaContext:
    def __init__(self, device=None):
        self.device = device


def rasterize(glctx, pos, tri, resolution, ranges=None, grad_db=True):
    """Return (u, v, z/w, triangle + 1), float32 [1 H W 4], and a second tensor of that shape."""
    assert isinstance(glctx, RasterizeCudaContext)
    assert grad_db is True or grad_db is False
    assert ranges is None
    assert pos.dtype == torch.float32 and pos.is_contiguous()
    assert tri.dtype == torch.int32 and tri.is_contiguous()
    assert pos.ndim == 3 and len(pos) == 1 and pos.shape[1] > 0 and pos.shape[2] == 4
    assert tri.ndim == 2 and len(tri) > 0 and tri.shape[1] == 3
    height, width = (int(side) for side in resolution)
    assert height > 0 and width > 0
    # Row 0 has the lowest y.
    x = (np.arange(width, dtype=np.float32) * 2 + 1) / width - 1
    y = (np.arange(height, dtype=np.float32) * 2 + 1) / height - 1
    nearest = np.full((height, width), DEEPEST, np.int64)
    out = np.zeros((height, width, 4), np.float32)
    for number, corners in enumerate(pos[0].numpy()[tri.numpy()]):
        inside, depth = _covered(corners, height, width)
        # A face at the depth of what is there takes its place.
        wins = inside & (depth <= nearest)
        nearest[wins] = depth[wins]
        out[wins] = _shade(corners, number, x, y)[wins]
    return torch.from_numpy(out)[None], torch.zeros(1, height, width, 4)


def _covered(corners, height, width):
    """Where a triangle [3 4] covers pixel centres, and how deep: whole-number edges, both windings."""
    (x, y, z), w = corners[:, :3].T.astype(np.float64), corners[:, 3].astype(np.float64)
    across = np.rint(x / w * width * SUBPIXELS / 2).astype(np.int64)
    along = np.rint(y / w * height * SUBPIXELS / 2).astype(np.int64)
    column = (2 * np.arange(width)[None, :] + 1 - width) * SUBPIXELS // 2
    row = (2 * np.arange(height)[:, None] + 1 - height) * SUBPIXELS // 2
    weights, inside = [], np.ones((height, width), bool)
    winding = np.sign(_edge(across, along, 0, 1, across[2], along[2]))
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        weight = _edge(across, along, a, b, column, row) * winding
        down, right = (along[b] - along[a]) * winding, (across[b] - across[a]) * winding
        inside &= weight >= (0 if down > 0 or (down == 0 and right > 0) else 1)
        weights.append(weight)
    area = max(int(sum(weights)[0, 0]), 1)
    ratio = sum(weight * value for weight, value in zip(weights, z / w, strict=True)) / area
    return inside & (np.abs(ratio) <= 1) & (winding != 0), np.rint((ratio + 1) / 2 * DEEPEST).astype(np.int64)


def _edge(across, along, a, b, column, row):
    return (across[b] - across[a]) * (row - along[a]) - (along[b] - along[a]) * (column - across[a])


def _shade(corners, number, x, y):
    """What is written for the pixels of a triangle; from the corners as given, not as rounded."""
    moved = [(c[0] - x[None, :] * c[3], c[1] - y[:, None] * c[3]) for c in corners]
    area = [
        moved[k - 2][0] * moved[k - 1][1] - moved[k - 2][1] * moved[k - 1][0] for k in range(3)
    ]  # twice the area opposite corner k  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        total = area[0] + area[1] + area[2]
        u, v = (np.clip(np.nan_to_num(part / total), 0, 1) for part in area[:2])
        z, w = (sum(c[k] * part for c, part in zip(corners, area, strict=True)) for k in (2, 3))
        ratio = z / w
    scale = 1 / np.maximum(u + v, 1)
    return np.stack((u * scale, v * scale, np.clip(ratio, -1, 1), np.full_like(u, number + 1)), axis=-1)


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import nvdiffrast.torch` find this module."""
    package = types.ModuleType("nvdiffrast")
    package.__spec__ = importlib.machinery.ModuleSpec("nvdiffrast", None, is_package=True)
    package.torch = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", package.torch)
