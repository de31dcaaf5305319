"""A lighter mesh under the same texture: sound, with its seams, its colours and its outline."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import interpolate, project
from crm_cli.frame import VIEWS
from crm_cli.mesh import lods
from crm_cli.mesh.bake import bake, uv_usage
from crm_cli.mesh.clean import clean
from crm_cli.mesh.inspect import shape_of
from crm_cli.mesh.likeness import silhouette_iou
from crm_cli.mesh.lods import MAX_DRIFT, coarser
from crm_cli.mesh.raster import WarpRaster, render_silhouette
from crm_cli.mesh.topology import following, half_edges
from crm_cli.mesh.unwrap import Method, unwrap
from crm_cli.models.field import surface
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

SIZE_PX = 512


class Mug:
    """A hollow cup with a handle: thin walls, a hole, and charts that meet in tight places."""

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = points.unbind(1)
        around = (x**2 + y**2).sqrt()
        cup = torch.maximum(around - 0.45, z.abs() - 0.6)
        hollow = torch.maximum(around - 0.38, -0.5 - z)
        ring = (((x - 0.5) ** 2 + z**2).sqrt() - 0.3) ** 2 + y**2
        handle = torch.maximum(ring.sqrt() - 0.06, 0.42 - around)
        return torch.minimum(torch.maximum(cup, -hollow), handle), torch.zeros_like(points)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        return None

    def colour(self, points: Tensor) -> Tensor:
        return (points + 1) / 2


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def fine_cube() -> Mesh:
    solid = trimesh.creation.box(extents=(1, 1, 1))
    for _ in range(4):
        solid = solid.subdivide()
    return mesh_of(solid)


SOLIDS: dict[str, Callable[[], Mesh]] = {
    "cube": fine_cube,
    "sphere": lambda: mesh_of(trimesh.creation.icosphere(subdivisions=5, radius=0.8)),
    "torus": lambda: mesh_of(trimesh.creation.torus(0.6, 0.2, major_sections=96, minor_sections=48)),
    "mug": lambda: clean(surface(Mug(), 64), faces=12000, smooth=3),
}


@pytest.fixture(scope="module")
def raster() -> WarpRaster:
    return WarpRaster()


@pytest.fixture(
    scope="module",
    params=[*((name, "box") for name in SOLIDS), ("torus", "xatlas")],
    ids=lambda pair: "-".join(pair),
)
def pair(request: pytest.FixtureRequest) -> tuple[UnwrappedMesh, UnwrappedMesh]:
    """A mesh and what a quarter of its faces make of it."""
    name, method = request.param
    return quartered(SOLIDS[name](), method)


def quartered(mesh: Mesh, method: Method) -> tuple[UnwrappedMesh, UnwrappedMesh]:
    fine = unwrap(mesh, method=method, size_px=SIZE_PX, padding_px=4)
    return fine, coarser(fine, len(mesh.faces) // 4)


def wedges(unwrapped: UnwrappedMesh) -> set[tuple[float, ...]]:
    """Every vertex with every place it has in the texture."""
    rows = np.concatenate(
        [unwrapped.mesh.vertices[unwrapped.mesh.faces], unwrapped.uv[unwrapped.uv_faces]], axis=2
    )
    return set(map(tuple, rows.reshape(-1, 5).tolist()))


def turns(unwrapped: UnwrappedMesh) -> NDArray[np.float64]:
    """Twice the signed area of every face in the texture."""
    a, b, c = (unwrapped.uv.astype(np.float64)[unwrapped.uv_faces[:, i]] for i in range(3))
    result: NDArray[np.float64] = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return result


def test_a_quarter_of_the_faces_is_a_sound_surface_of_the_same_kind(
    pair: tuple[UnwrappedMesh, UnwrappedMesh],
) -> None:
    fine, coarse = pair
    before, after = shape_of(fine.mesh), shape_of(coarse.mesh)
    assert after.faces == before.faces // 4
    assert after.is_sound
    assert (after.euler, after.components, after.degenerate_faces) == (before.euler, before.components, 0)
    assert after.volume == pytest.approx(before.volume, rel=0.01)
    assert len(np.unique(coarse.mesh.faces)) == len(coarse.mesh.vertices)
    assert len(np.unique(coarse.uv_faces)) == len(coarse.uv)


def test_every_vertex_keeps_its_place_in_the_texture(pair: tuple[UnwrappedMesh, UnwrappedMesh]) -> None:
    fine, coarse = pair
    assert wedges(coarse) <= wedges(fine)


def test_no_chart_turns_over_or_covers_another(
    pair: tuple[UnwrappedMesh, UnwrappedMesh], raster: WarpRaster
) -> None:
    fine, coarse = pair
    # The packer may mirror a chart as a whole.
    direction = {
        place: sign
        for face, sign in zip(fine.uv_faces, np.sign(turns(fine)), strict=True)
        for place in map(tuple, fine.uv[face].tolist())
    }
    for face, sign in zip(coarse.uv_faces, np.sign(turns(coarse)), strict=True):
        assert {direction[place] for place in map(tuple, coarse.uv[face].tolist())} == {sign}
    assert uv_usage(coarse, raster, size_px=1024).overlap < 1e-5
    covered = [uv_usage(mesh, raster, size_px=1024).coverage for mesh in pair]
    assert covered[1] == pytest.approx(covered[0], rel=0.01)


def rims(unwrapped: UnwrappedMesh) -> NDArray[np.float64]:
    """Both ends of every edge of every chart's rim, [N 2 2] in the texture."""
    edges = half_edges(unwrapped.mesh.faces)
    corner = unwrapped.uv_faces.ravel()
    is_seam = corner != corner[following(edges.opposite)]
    is_seam |= np.roll(unwrapped.uv_faces, -1, axis=1).ravel() != corner[edges.opposite]
    half_edge = np.flatnonzero(is_seam)
    return unwrapped.uv.astype(np.float64)[
        np.stack([corner[half_edge], corner[following(half_edge)]], axis=1)
    ]


def test_rims_stay_within_the_padding(pair: tuple[UnwrappedMesh, UnwrappedMesh]) -> None:
    from scipy.spatial import cKDTree

    fine, coarse = pair
    shares = np.linspace(0, 1, 65)[:, None, None]
    before, after = (
        ((1 - shares) * ends[:, 0] + shares * ends[:, 1]).reshape(-1, 2) for ends in map(rims, (fine, coarse))
    )
    for here, there in ((after, before), (before, after)):
        assert cKDTree(there).query(here)[0].max() < MAX_DRIFT + 0.5 / 1024


def pictures(textured: TexturedMesh, raster: WarpRaster) -> list[NDArray[np.float64]]:
    """What the six views show of a mesh through its texture: [S S 3], NaN where there is nothing."""
    vertices, faces = torch.from_numpy(textured.mesh.vertices), torch.from_numpy(textured.mesh.faces)
    shown = []
    for view in VIEWS:
        hit = raster.rasterize(project(vertices, view, 256), faces, height=256, width=256)
        uv = interpolate(
            torch.from_numpy(textured.unwrapped.uv), torch.from_numpy(textured.unwrapped.uv_faces), hit
        ).numpy()
        texel = np.clip((uv * [1, -1] + [0, 1]) * SIZE_PX, 0, SIZE_PX - 1).astype(int)
        colour = textured.texture[texel[..., 1], texel[..., 0]].astype(np.float64)
        colour[~hit.covered.numpy()] = np.nan
        shown.append(colour)
    return shown


def test_the_original_texture_shows_the_same_colours_in_the_same_places(
    pair: tuple[UnwrappedMesh, UnwrappedMesh], raster: WarpRaster
) -> None:
    fine, coarse = pair
    painted = bake(fine, lambda points: (points + 1) / 2, raster, size_px=SIZE_PX)
    under = TexturedMesh(unwrapped=coarse, texture=painted.texture)
    for before, after in zip(pictures(painted, raster), pictures(under, raster), strict=True):
        apart = np.abs(before - after)
        # A code value is 1/127 of the object's half: 6 are three pixels of these pictures.
        assert np.nanmean(apart) < 1
        assert np.nanquantile(apart, 0.99) < 6


def test_outlines_stay(pair: tuple[UnwrappedMesh, UnwrappedMesh], raster: WarpRaster) -> None:
    for view in VIEWS:
        before, after = (render_silhouette(mesh.mesh, raster, view, 256) for mesh in pair)
        assert silhouette_iou(before, after) >= 0.99


def test_flat_sides_need_no_more_than_twelve_triangles() -> None:
    fine = unwrap(fine_cube(), method="box", size_px=SIZE_PX, padding_px=4)
    least = coarser(fine, 1)
    assert len(least.mesh.faces) == 12
    assert shape_of(least.mesh).is_sound
    assert shape_of(least.mesh).volume == pytest.approx(1)


@pytest.mark.parametrize("name", ["sphere", "torus", "mug"])
def test_asked_for_the_impossible_it_stops_before_the_shape_goes(name: str, raster: WarpRaster) -> None:
    fine = unwrap(SOLIDS[name](), method="box", size_px=SIZE_PX, padding_px=4)
    least = coarser(fine, 4)
    assert 100 < len(least.mesh.faces) < len(fine.mesh.faces) / 8
    assert shape_of(least.mesh).is_sound
    assert shape_of(least.mesh).euler == shape_of(fine.mesh).euler
    assert uv_usage(least, raster, size_px=1024).overlap < 1e-4
    for view in VIEWS:
        before, after = (render_silhouette(mesh.mesh, raster, view, 256) for mesh in (fine, least))
        assert silhouette_iou(before, after) >= 0.95


def test_a_mesh_within_its_budget_stays_as_it_is() -> None:
    fine = unwrap(SOLIDS["torus"](), method="box", size_px=SIZE_PX, padding_px=4)
    same = coarser(fine, len(fine.mesh.faces))
    assert np.array_equal(same.mesh.vertices[same.mesh.faces], fine.mesh.vertices[fine.mesh.faces])
    assert np.array_equal(same.uv[same.uv_faces], fine.uv[fine.uv_faces])


def test_levels_that_would_paint_a_texel_twice_keep_more_faces(
    raster: WarpRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    solid = mesh_of(trimesh.creation.icosphere(subdivisions=3, radius=0.8))
    ball = unwrap(solid, method="box", size_px=256, padding_px=4)
    asked: list[int] = []

    def clumsy(unwrapped: UnwrappedMesh, faces: int) -> UnwrappedMesh:
        asked.append(faces)
        if faces >= enough:
            return unwrapped
        doubled = np.concatenate([unwrapped.uv_faces[:1], unwrapped.uv_faces[:-1]])  # two faces in one place
        return replace(unwrapped, uv_faces=doubled)

    monkeypatch.setattr(lods, "coarser", clumsy)
    enough = 120
    assert lods.coarser_apart(ball, 100, raster, size_px=256) is ball
    assert asked == [100, 105, 120]
    enough = 1000
    assert lods.coarser_apart(ball, 100, raster, size_px=256) is ball
    assert asked[3:] == [100, 105, 120, 150, 200]
