"""Triangles on a grid of pixels: plain torch (the definition), warp (fast) and nvdiffrast.

Corners are rounded to 1/4096 of a pixel and edges are tested in whole numbers, so that coverage is
exact: neighbours share no pixel and leave no gap, and torch and warp agree to the last pixel on any
device. 1/4096 is about what float32 resolves at column 2048.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from crm_cli.fragments import Fragments, Raster, interpolate, project
from crm_cli.installed import why_not_importable
from crm_cli.mesh.subpixels import CENTRE, EMPTY, LAST_FACE, SUBPIXEL_BITS, SUBPIXELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from crm_cli.frame import View
    from crm_cli.records import Mesh

REACH_PX = 1 << 17
"""Corners further out than this are refused: edge tests would leave 64 bits."""

CHUNK = 1 << 18
"""Candidate pixels looked at together by the torch rasteriser: about 60 MB of temporaries."""


def _snap(positions: Tensor) -> Tensor:
    """Round pixel positions to sub-pixels. positions: [V 3]; returns int64 [V 2]."""
    _expect_within_reach(positions)
    return (positions[:, :2].double() * SUBPIXELS).round().long()


def _expect_within_reach(positions: Tensor) -> None:
    """Refuse positions [V 3] that edge tests cannot hold."""
    if not bool((positions[:, :2].abs() <= REACH_PX).all()):
        raise ValueError(f"positions must be finite and within ±{REACH_PX} px of the grid's corner")


class TorchRaster:
    """The definition: all pixels of all bounding boxes, the nearest by a scattered maximum."""

    name: ClassVar[str] = "torch"

    @staticmethod
    def why_not(device: str) -> str | None:
        """Work everywhere."""
        return None

    def rasterize(self, positions: Tensor, faces: Tensor, *, height: int, width: int) -> Fragments:
        """Find the nearest triangle at every pixel centre; see `Raster`."""
        corners = _snap(positions.detach())[faces]  # [F 3 2]
        depths = positions.detach()[:, 2][faces].double()  # [F 3]
        edges, least = _edges(corners)
        keys = torch.full((height * width,), EMPTY, dtype=torch.int64, device=positions.device)
        for face, row, column in _candidates(corners, height, width):
            weights = _weigh(edges[face], row, column)
            is_inside = (weights >= least[face]).all(dim=1)
            face, pixel = face[is_inside], (row * width + column)[is_inside]
            key = _pack(_depth(weights[is_inside], depths[face]), face)
            keys.scatter_reduce_(0, pixel, key, "amax")
        return _resolve(keys, edges, depths, height, width)


def _edges(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Turn triangles into edge functions that are positive inside, whatever the winding.

    corners: int64 [F 3 2], sub-pixels. Returns factors int64 [F 3 3] of (x, y, 1), row k for the edge
    opposite corner k, and the least value that is inside, int64 [F 3]. An edge owns the centres on it
    (least value 0, not 1) if it runs downwards, or level to the right: the triangle on its other side
    runs along it the opposite way. A triangle without area owns nothing.
    """
    start = corners.roll(-1, dims=1)
    along_x, along_y = (corners.roll(-2, dims=1) - start).unbind(-1)  # [F 3]
    start_x, start_y = start.unbind(-1)
    constant = along_y * start_x - along_x * start_y
    winding = constant.sum(dim=1, keepdim=True).sign()  # their sum is twice the signed area
    along_x, along_y, constant = along_x * winding, along_y * winding, constant * winding
    owns = (along_y > 0) | ((along_y == 0) & (along_x > 0))
    return torch.stack((-along_y, along_x, constant), dim=-1), (~owns).long()


def _weigh(edges: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Evaluate edge functions [N 3 3] at pixel centres [N]: int64 [N 3], which sum to twice the area."""
    x, y = column * SUBPIXELS + CENTRE, row * SUBPIXELS + CENTRE
    return edges[..., 0] * x[:, None] + edges[..., 1] * y[:, None] + edges[..., 2]


def _candidates(corners: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (face, row, column), int64 [N] each, of all pixels in bounding boxes, chunk by chunk."""
    # Shifting right rounds down, also below zero.
    first = ((corners.amin(dim=1) + CENTRE - 1) >> SUBPIXEL_BITS).clamp(min=0)  # [F 2]
    stop = torch.minimum((corners.amax(dim=1) + CENTRE) >> SUBPIXEL_BITS, corners.new_tensor((width, height)))
    size = (stop - first).clamp(min=0)
    end = (size[:, 0] * size[:, 1]).cumsum(0)
    total = int(end[-1]) if len(end) else 0
    for start in range(0, total, CHUNK):
        index = torch.arange(start, min(start + CHUNK, total), device=corners.device)
        face = torch.searchsorted(end, index, right=True)
        across = size[face, 0]
        offset = index - (end[face] - across * size[face, 1])
        yield face, first[face, 1] + offset // across, first[face, 0] + offset % across


def _depth(weights: Tensor, depths: Tensor) -> Tensor:
    """Interpolate depth: weights int64 [N 3], depths float64 [N 3]; returns float32 [N]."""
    return ((weights * depths).sum(dim=1) / weights.sum(dim=1)).float()


def _pack(depth: Tensor, face: Tensor) -> Tensor:
    """Make keys whose maximum is the nearest face and, at equal depth, the lowest index."""
    bits = (depth + 0.0).view(torch.int32)  # adding zero turns -0 into +0
    ordered = torch.where(bits < 0, bits ^ LAST_FACE, bits)  # negative floats order backwards
    return (ordered.long() << 32) | (LAST_FACE - face)


def _resolve(keys: Tensor, edges: Tensor, depths: Tensor, height: int, width: int) -> Fragments:
    """Turn the winning keys [H*W] into fragments."""
    pixel = (keys != EMPTY).nonzero()[:, 0]
    hit = LAST_FACE - (keys[pixel] & LAST_FACE)
    weights = _weigh(edges[hit], pixel // width, pixel % width)
    face = torch.full_like(keys, -1)
    face[pixel] = hit
    barycentric = torch.zeros((height * width, 3), device=keys.device)
    barycentric[pixel] = (weights / weights.sum(dim=1, keepdim=True).double()).float()
    depth = torch.zeros(height * width, device=keys.device)
    depth[pixel] = _depth(weights, depths[hit])
    return Fragments(
        face=face.view(height, width),
        barycentric=barycentric.view(height, width, 3),
        depth=depth.view(height, width),
    )


class WarpRaster:
    """The same in two warp kernels: a thread a triangle, then a thread a pixel, or a row. The default.

    On the CPU warp launches run on one core; a worker process each is the way to use more. The first
    call on a machine compiles for a few seconds; the result is kept on disk.
    """

    name: ClassVar[str] = "warp"

    def __init__(self) -> None:
        self._kernels = _kernels()

    @staticmethod
    def why_not(device: str) -> str | None:
        """Need the warp-lang package, and the CPU or CUDA."""
        if device.split(":")[0] not in ("cpu", "cuda"):
            return "needs the CPU or CUDA"
        return None if find_spec("warp") else "not installed: pip install warp-lang"

    def rasterize(self, positions: Tensor, faces: Tensor, *, height: int, width: int) -> Fragments:
        """Find the nearest triangle at every pixel centre; see `Raster`."""
        device = positions.device
        corners, faces = _snap(positions.detach()), faces.contiguous()
        depths = positions.detach()[:, 2].float().contiguous()
        keys = torch.full((height, width), EMPTY, dtype=torch.int64, device=device)
        fragments = Fragments(
            face=torch.full((height, width), -1, dtype=torch.int64, device=device),
            barycentric=torch.zeros((height, width, 3), device=device),
            depth=torch.zeros((height, width), device=device),
        )
        _launch(self._kernels.draw, len(faces), (corners, depths, faces, keys))
        found = (fragments.face, fragments.barycentric, fragments.depth)
        kernel, threads = (
            (self._kernels.resolve_row, height)
            if device.type == "cpu"
            else (self._kernels.resolve, (height, width))
        )
        _launch(kernel, threads, (corners, depths, faces, keys, *found))
        return fragments


def _launch(kernel: Any, threads: int | tuple[int, int], tensors: tuple[Tensor, ...]) -> None:
    """Run a warp kernel over tensors of one device, in torch's stream of that device."""
    import warp as wp

    device = tensors[0].device
    stream = wp.stream_from_torch(device) if device.type == "cuda" else None
    arrays = [wp.from_torch(tensor, return_ctype=True) for tensor in tensors]
    wp.launch(kernel, dim=threads, inputs=arrays, device=wp.device_from_torch(device), stream=stream)


def _cache_folder() -> Path:
    """Choose where compiled kernels are kept: this user's cache, or a temporary folder of this process."""
    # No home is a RuntimeError: containers may run under a user that has none.
    with contextlib.suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crm" / "warp"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    passing = Path(tempfile.mkdtemp(prefix="crm-warp-"))
    atexit.register(shutil.rmtree, passing, ignore_errors=True)
    return passing


@contextlib.contextmanager
def _mute_native_code() -> Iterator[None]:
    """Silence what native code writes to stderr: warp warns there on every machine without a GPU.

    What goes wrong comes as an exception, and passes. Must not be held for long: other threads write to
    the same stderr.
    """
    try:
        kept = os.dup(2)
    except OSError:  # a service may run without stderr
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@functools.cache
def _kernels() -> ModuleType:
    """Import warp quietly, and with it the kernels; it compiles them at their first launch.

    Processes that compile at once do not disturb each other: warp builds in a folder of its own and
    renames it into the cache.
    """
    import warp as wp

    # Its banner belongs to no one's output; the first setting is the older releases' name for it.
    wp.config.quiet = True
    wp.config.log_level = logging.ERROR
    if wp.config.kernel_cache_dir is None and "WARP_CACHE_PATH" not in os.environ:
        wp.config.kernel_cache_dir = str(_cache_folder())
    with _mute_native_code():
        wp.init()

    from crm_cli.mesh import kernels

    return kernels


class NvdiffrastRaster:
    """The rasteriser of the published CRM, for those whose licence allows it.

    Written against nvdiffrast 0.4. It rounds corners to 1/16 pixel: centres near an edge may go to
    another face than with the other two. More than 2^24 faces it refuses, with an error of its own.
    """

    name: ClassVar[str] = "nvdiffrast"

    def __init__(self) -> None:
        import nvdiffrast.torch

        self._library = nvdiffrast.torch
        self._contexts: dict[torch.device, Any] = {}

    @staticmethod
    def why_not(device: str) -> str | None:
        """Need CUDA and a build of nvdiffrast that loads."""
        if device.split(":")[0] != "cuda":
            return "needs CUDA"
        return why_not_importable("nvdiffrast.torch", remedy="run `crm doctor` for the build command")

    def rasterize(self, positions: Tensor, faces: Tensor, *, height: int, width: int) -> Fragments:
        """Find the nearest triangle at every pixel centre; see `Raster`."""
        _expect_within_reach(positions)
        if not len(faces):  # which it refuses
            return _read_nvdiffrast(positions.new_zeros(height, width, 4), positions, faces)
        device = _cuda_for(positions)
        if device not in self._contexts:
            self._contexts[device] = self._library.RasterizeCudaContext(device=device)
        # Of equal depths the face drawn last stays, and the lowest index is to stay.
        found, _ = self._library.rasterize(
            self._contexts[device],
            _clip_space(positions.detach(), height, width)[None].to(device),
            faces.flip(0).int().to(device),
            resolution=[height, width],
            grad_db=False,
        )
        return _read_nvdiffrast(found[0].to(positions.device), positions, faces)


def _cuda_for(tensor: Tensor) -> torch.device:
    """The CUDA device that draws what lies here: its own, or the current one."""
    return tensor.device if tensor.is_cuda else torch.device("cuda")


def _read_nvdiffrast(found: Tensor, positions: Tensor, faces: Tensor) -> Fragments:
    """Turn what it found for faces drawn last to first into fragments.

    found: [H W 4], weights of the first two corners, z/w, and the number of the face as drawn, counted
    from 1, or 0. The depth is blended from ours: its own is scaled to the clip planes.
    """
    u, v, _, number = found.unbind(-1)
    covered = number > 0
    face = torch.where(covered, len(faces) - number.long(), -1)
    barycentric = torch.stack((u, v, (1 - u - v).clamp(min=0)), dim=-1) * covered[..., None]
    fragments = Fragments(face=face, barycentric=barycentric, depth=torch.zeros_like(u))
    depth = interpolate(positions.detach()[:, 2:], faces, fragments)[..., 0]
    return replace(fragments, depth=depth)


def _clip_space(positions: Tensor, height: int, width: int) -> Tensor:
    """Turn pixel positions [V 3] into OpenGL clip coordinates, float32 [V 4].

    Its first row is at y = -1, ours at y = 0, so that y keeps its direction; nearer is smaller there.
    """
    x, y, depth = positions.double().unbind(-1)
    middle, reach = (depth.max() + depth.min()) / 2, (depth.max() - depth.min()) / 2
    # 0.99 keeps the nearest and the farthest corner off the clip planes.
    z = (middle - depth) / reach.clamp(min=1e-6) * 0.99
    return torch.stack((x * (2 / width) - 1, y * (2 / height) - 1, z, torch.ones_like(z)), dim=-1).float()


def render_silhouette(mesh: Mesh, raster: Raster, view: View, size_px: int) -> NDArray[np.bool_]:
    """Show where a mesh covers a view's picture: bool [S S]."""
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    fragments = raster.rasterize(project(vertices, view, size_px), faces, height=size_px, width=size_px)
    covered: NDArray[np.bool_] = fragments.covered.numpy()
    return covered


RASTERS: tuple[type[WarpRaster] | type[TorchRaster] | type[NvdiffrastRaster], ...] = (
    WarpRaster,
    TorchRaster,
    NvdiffrastRaster,
)
"""Best first; nvdiffrast last, because its licence forbids commercial use and none may pick it unasked."""

__all__ = [
    "RASTERS", "Fragments", "NvdiffrastRaster", "Raster", "TorchRaster", "WarpRaster",
    "interpolate", "project", "render_silhouette",
]  # fmt: skip
