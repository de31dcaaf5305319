"""Texture coordinates: charts laid flat and packed into one square."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crm_cli.errors import PhotoError
from crm_cli.mesh.charts import Flat, Floats, box_charts, lay_flat
from crm_cli.mesh.inspect import corners
from crm_cli.mesh.topology import ALONE, Indices, half_edges
from crm_cli.records import Mesh, UnwrappedMesh

Method = Literal["box", "xatlas"]

MAX_STRETCH = 3.0
"""Charts that lean away from their axis are enlarged to even texel density, by this much at most.

Only small ones lean so far; a bound of 1.6 left some with less than half of the others' density.
"""

LEAST_PADDING = 4
"""A texture too small for more padding gets less, down to this: bilinear sampling at two mip levels."""

PADDING_CELLS = 4
"""Charts are packed on a grid of which so many cells are the padding: twice as many take twice as long, and
make charts 1 % wider."""

PACK_TRIES = 8

FILL, CHART_FILL = 0.65, 0.24
"""Shares of the texture to ask for: of charts with their padding, and of a surface that xatlas has yet to
cut. Nine in ten fit at once; xatlas fills 0.66 to 0.78 with charts of products, less with long ones."""

LEAST_ROOM = 0.1
"""Share of the texture to ask for where padding would leave less."""

NEXT_TRY = 0.97
"""What does not fit is made smaller by as much as it is too large, and by this: it is packed anew."""

UNPLACED = np.uint32(0xFFFFFFFF)


def unwrap(mesh: Mesh, *, method: Method, size_px: int, padding_px: int) -> UnwrappedMesh:
    """Give every corner of a mesh its place in a square texture; no two faces share a texel.

    Args:
        mesh: A closed manifold surface.
        method: `box` sees the surface along the six axes and takes a fraction of a second; `xatlas`
            bends charts to lower distortion and takes ten to a hundred times as long.
        size_px: Side of the texture.
        padding_px: Texels kept free around each chart; two charts are at least twice as far apart. Where
            the texture is too small for that, less is kept free, down to LEAST_PADDING.

    Raises:
        PhotoError: E_UV_INPUT, E_UV_FOLD, E_UV_CROWDED or E_UV_RANGE.
    """
    _check_mesh(mesh)
    try:
        result = (_unwrap_box if method == "box" else _unwrap_xatlas)(mesh, size_px, padding_px)
    except PhotoError as error:
        if error.code != "E_UV_CROWDED" or padding_px <= LEAST_PADDING:
            raise
        less = max(LEAST_PADDING, padding_px // 2)
        return unwrap(mesh, method=method, size_px=size_px, padding_px=less)
    if not (np.isfinite(result.uv).all() and result.uv.min() >= 0 and result.uv.max() <= 1):
        raise _poor("texture coordinates left the texture", "E_UV_RANGE")
    return result


def _poor(cause: str, code: str) -> PhotoError:
    return PhotoError(cause, code=code, kind="quality", remedy="try another seed")


def _check_mesh(mesh: Mesh) -> None:
    """Refuse what makes xatlas crash or run without end."""
    if not len(mesh.faces):
        raise _poor("there is no surface to unwrap", "E_UV_INPUT")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise _poor("a face names a vertex that does not exist", "E_UV_INPUT")
    extent = float(np.ptp(mesh.vertices, axis=0).max())
    # xatlas merges vertices nearer than about 1e-7 and squares lengths in float32.
    if not 1e-3 < extent < 1e3:
        raise _poor("the surface is {extent:.3g} wide or not finite", "E_UV_INPUT")


def _unwrap_box(mesh: Mesh, size_px: int, padding_px: int) -> UnwrappedMesh:
    """Unwrap along the six axes."""
    points = mesh.vertices.astype(np.float64)
    charts = box_charts(points, mesh.faces)
    flat = lay_flat(points, mesh.faces, charts)
    grown = _enlargement(points, mesh.faces, flat, charts.count)[flat.chart][:, None]
    order = np.argsort(charts.chart, kind="stable")
    # In texels rather than in world units: xatlas drops faces of less area than 1.2e-7.
    place = flat.place * grown * size_px
    pieces = _pieces(place, flat, charts.chart, order)

    def add_to(atlas: Any) -> None:
        for piece in pieces:
            atlas.add_uv_mesh(piece.place, piece.faces)

    grid = _Grid.of(size_px, padding_px)
    atlas, scale = _packed(add_to, grid, density=_density(place, flat, charts.count, grid))
    placed = [_placed(atlas, index, piece.place) for index, piece in enumerate(pieces)]
    starts = np.cumsum([0] + [len(uv) for _, uv in placed])
    uv_faces = np.zeros_like(mesh.faces)
    uv_faces[order] = np.concatenate(
        [faces + start for (faces, _), start in zip(placed, starts, strict=False)]
    )
    uv = np.concatenate([uv for _, uv in placed]) * scale
    return UnwrappedMesh(mesh=mesh, uv=uv.astype(np.float32), uv_faces=uv_faces)


def _unwrap_xatlas(mesh: Mesh, size_px: int, padding_px: int) -> UnwrappedMesh:
    """Let xatlas cut, flatten and pack."""

    def add_to(atlas: Any) -> None:
        atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32))

    grid = _Grid.of(size_px, padding_px)
    a, b, c = corners(mesh.vertices, mesh.faces)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    density = grid.side * np.sqrt(CHART_FILL / max(area, np.finfo(np.float64).tiny))
    atlas, scale = _packed(add_to, grid, density=density)
    _, faces, uv = atlas.get_mesh(0)
    return UnwrappedMesh(mesh=mesh, uv=(uv * scale).astype(np.float32), uv_faces=faces.astype(np.int64))


def _enlargement(points: Floats, faces: Indices, flat: Flat, count: int) -> Floats:
    """Give the factor [count] by which each chart grows to make up for what it leans away."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    true_area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    corner = flat.corner.reshape(-1, 3)
    p, q, r = (flat.place[corner[:, i]] for i in range(3))
    flat_area = (q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0]
    chart = flat.chart[corner[:, 0]]
    shown = np.maximum(np.bincount(chart, flat_area, count), np.finfo(np.float32).tiny)
    return np.sqrt(np.clip(np.bincount(chart, true_area, count) / shown, 1, MAX_STRETCH**2))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Piece:
    """One chart as xatlas takes it."""

    place: NDArray[np.float32]
    faces: NDArray[np.uint32]


def _pieces(place: Floats, flat: Flat, chart_of_face: Indices, order: Indices) -> list[_Piece]:
    """Separate the charts; order [F] sorts faces by chart.

    One mesh each: charts that overlap within one mesh would be taken for one chart.
    """
    # Flat vertices are sorted by chart: each chart is a run.
    bounds = np.searchsorted(flat.chart, np.arange(int(flat.chart[-1]) + 2))
    face_bounds = np.searchsorted(chart_of_face[order], np.arange(len(bounds)))
    corners = flat.corner.reshape(-1, 3)[order]
    pieces = []
    for chart in range(len(bounds) - 1):
        low, high = int(bounds[chart]), int(bounds[chart + 1])
        uv = place[low:high] - place[low:high].min(axis=0)
        faces = corners[face_bounds[chart] : face_bounds[chart + 1]] - low
        pieces.append(_Piece(place=uv.astype(np.float32), faces=faces.astype(np.uint32)))
    return pieces


def _placed(atlas: Any, index: int, place: NDArray[np.float32]) -> tuple[Indices, NDArray[np.float32]]:
    """Give the faces and coordinates of one piece, in texels.

    Vertices of faces that xatlas found too small to place follow the rest of their chart, which was
    turned, scaled and moved as a whole.
    """
    original, faces, uv = atlas.get_mesh(index)
    is_placed = atlas.get_mesh_vertex_assignment(index)[1] != UNPLACED
    if not is_placed.all() and is_placed.any():
        source = np.column_stack([place[original], np.ones(len(original))])
        affine = np.linalg.lstsq(source[is_placed], uv[is_placed], rcond=None)[0]
        uv[~is_placed] = np.clip((source @ affine)[~is_placed], 0, 1)
    return faces.astype(np.int64), uv


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """What charts are packed on: whole texels, or squares of them where the padding is wide."""

    side: int
    padding: int

    @classmethod
    def of(cls, size_px: int, padding_px: int) -> _Grid:
        """Take the coarsest cells of which PADDING_CELLS fit into the padding."""
        cell_px = max(1, padding_px // PADDING_CELLS)
        return cls(side=size_px // cell_px, padding=-(-padding_px // cell_px))


def _density(place: Floats, flat: Flat, count: int, grid: _Grid) -> float:
    """How many cells a unit of the charts [W 2] should take, so that they fit with their padding.

    Padding by p adds p along the rim of a chart and the corners of a circle: A + R p + π p², which is to be
    the share FILL of the grid.
    """
    corner = flat.corner.reshape(-1, 3)
    p, q, r = (place[corner[:, i]] for i in range(3))
    area = ((q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0]).sum() / 2
    edges = half_edges(corner)
    rim = edges.opposite == ALONE
    length = np.linalg.norm(place[edges.end[rim]] - place[edges.start[rim]], axis=1).sum()
    around = grid.padding + 0.5  # charts end within cells
    room = max(FILL * grid.side**2 - count * np.pi * around**2, LEAST_ROOM * grid.side**2)
    half = length * around / 2
    return float((np.sqrt(half**2 + area * room) - half) / area)


def _packed(add_to: Callable[[Any], None], grid: _Grid, *, density: float) -> tuple[Any, NDArray[np.float32]]:
    """Pack into a square, smaller each time until charts fit: shrunk to fit, their padding would shrink too.

    density: cells that a unit should take at first. Returns the atlas and the factor [2] from its
    coordinates, which xatlas divides by the rectangle it filled, to the square's.
    """
    import xatlas

    options = xatlas.PackOptions()
    options.padding = grid.padding
    # To the axes: products have straight sides, and boxes along the grid's leave less between them.
    options.bilinear = options.rotate_charts = options.rotate_charts_to_axis = True
    for _ in range(PACK_TRIES):
        atlas = xatlas.Atlas()
        add_to(atlas)
        options.texels_per_unit = density
        atlas.generate(xatlas.ChartOptions(), options)
        longest = max(atlas.width, atlas.height)
        if longest <= grid.side:
            return atlas, np.array([atlas.width, atlas.height], np.float32) / np.float32(longest)
        density *= NEXT_TRY * grid.side / longest
    raise _poor("the padding between charts leaves too little of the texture", "E_UV_CROWDED")
