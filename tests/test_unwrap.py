from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from crm_cli.errors import PhotoError
from crm_cli.mesh.bake import fill_from_nearest
from crm_cli.mesh.charts import box_charts, lay_flat
from crm_cli.mesh.topology import groups
from crm_cli.mesh.unwrap import Method, unwrap
from crm_cli.preset import load_preset
from crm_cli.records import Mesh, UnwrappedMesh

SIZE, PADDING = 256, 4


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def together(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        faces=np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]),
    )


def bumpy() -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions=4)
    x, y, z = ball.vertices.T
    radius = 0.7 + 0.1 * np.sin(9 * x + 1) * np.sin(8 * y) * np.sin(7 * z + 2)
    return Mesh(
        vertices=(ball.vertices * radius[:, None]).astype(np.float32), faces=ball.faces.astype(np.int64)
    )


def grid_tube(points: NDArray[np.float64]) -> Mesh:
    """A closed tube of rings [N M 3] with fans at both ends."""
    rings, sides, _ = points.shape
    here = np.arange((rings - 1) * sides).reshape(rings - 1, sides)
    beside = np.roll(here, -1, axis=1)
    walls = [np.stack([here, beside, beside + sides], -1), np.stack([here, beside + sides, here + sides], -1)]
    first, last = np.arange(sides), np.arange(sides) + (rings - 1) * sides
    caps = [
        np.stack([np.roll(first, -1), first, np.full(sides, rings * sides)], -1),
        np.stack([last, np.roll(last, -1), np.full(sides, rings * sides + 1)], -1),
    ]
    vertices = np.concatenate([points.reshape(-1, 3), points[[0, -1]].mean(axis=1)])
    return Mesh(
        vertices=vertices.astype(np.float32),
        faces=np.concatenate([part.reshape(-1, 3) for part in walls + caps]),
    )


def spiral_ramp(turns: float = 3.0) -> Mesh:
    """A flat ribbon that winds up around z and lies over itself `turns` times."""
    angle = np.linspace(0, 2 * np.pi * turns, round(60 * turns))[:, None]
    across = np.concatenate([np.linspace(0.3, 0.8, 6), np.linspace(0.8, 0.3, 6)])
    lift = np.repeat([0.0, 0.05], 6)
    height = -0.6 + 0.2 * angle / np.pi + lift
    return grid_tube(np.stack([across * np.cos(angle), across * np.sin(angle), height], -1))


SOLIDS: dict[str, Mesh] = {
    "cube": mesh_of(trimesh.creation.box(extents=(1, 1, 1))),
    "bumpy": bumpy(),
    "torus": mesh_of(trimesh.creation.torus(0.6, 0.2, major_sections=96, minor_sections=48)),
    "thin sheets": together(
        *(
            mesh_of(trimesh.creation.box(extents=(1, 1, 0.01)).apply_translation((0, 0, z)))
            for z in (-0.1, 0, 0.1)
        )
    ),
    "ramp": spiral_ramp(),
    "twins": together(
        mesh_of(trimesh.creation.icosphere(subdivisions=3, radius=0.25).apply_translation((-0.5, 0, 0))),
        mesh_of(trimesh.creation.icosphere(subdivisions=3, radius=0.25).apply_translation((0.5, 0, 0))),
    ),
}


def corners_px(unwrapped: UnwrappedMesh, size: int) -> NDArray[np.float64]:
    return unwrapped.uv.astype(np.float64)[unwrapped.uv_faces] * size


def hits(corners: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs (face, texel) where a texel's centre lies inside a triangle, by testing every one."""
    low = np.ceil(corners.min(axis=1) - 0.5).astype(np.int64)
    count = np.maximum(np.floor(corners.max(axis=1) - 0.5).astype(np.int64) - low + 1, 0)
    total = count.prod(axis=1)
    face = np.repeat(np.arange(len(corners)), total)
    rank = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
    texel = low[face] + np.stack([rank % count[face, 0], rank // count[face, 0]], axis=1)
    centre = texel + 0.5
    sides = []
    for i in range(3):
        a, b = corners[face, i], corners[face, (i + 1) % 3]
        sides.append((b - a)[:, 0] * (centre - a)[:, 1] - (b - a)[:, 1] * (centre - a)[:, 0])
    side = np.stack(sides, axis=1)
    inside = (side > 1e-4).all(axis=1) | (side < -1e-4).all(axis=1)  # edges belong to both sides
    return face[inside], (texel[:, 1] * size + texel[:, 0])[inside]


def charts_of(unwrapped: UnwrappedMesh) -> NDArray[np.int64]:
    """Faces [F] by chart, from what the texture coordinates connect."""
    corner = unwrapped.uv_faces
    _, labels = groups(
        len(unwrapped.uv),
        np.concatenate([corner[:, 0], corner[:, 1]]),
        np.concatenate([corner[:, 1], corner[:, 2]]),
    )
    return np.unique(labels[corner[:, 0]], return_inverse=True)[1]


def areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2


@pytest.mark.parametrize("name", SOLIDS)
def test_no_texel_belongs_to_two_faces(name: str) -> None:
    unwrapped = unwrap(SOLIDS[name], method="box", size_px=SIZE, padding_px=PADDING)
    _, texels = hits(corners_px(unwrapped, 2 * SIZE), 2 * SIZE)
    assert len(np.unique(texels)) == len(texels)
    assert len(texels) > 0.3 * (2 * SIZE) ** 2


@pytest.mark.parametrize("name", SOLIDS)
def test_charts_keep_their_distance(name: str) -> None:
    unwrapped = unwrap(SOLIDS[name], method="box", size_px=SIZE, padding_px=PADDING)
    chart = charts_of(unwrapped)
    face, texel = hits(corners_px(unwrapped, SIZE), SIZE)
    owner = np.full(SIZE * SIZE, -1)
    owner[texel] = chart[face]
    owner = owner.reshape(SIZE, SIZE)
    for one in np.unique(chart)[:12]:
        away = distance_transform_edt(owner != one)
        others = (owner >= 0) & (owner != one)
        assert away[others].min(initial=np.inf) >= PADDING


@pytest.mark.parametrize("name", SOLIDS)
def test_texels_are_alike_in_size_on_all_charts(name: str) -> None:
    mesh = SOLIDS[name]
    unwrapped = unwrap(mesh, method="box", size_px=SIZE, padding_px=PADDING)
    chart = charts_of(unwrapped)
    true = np.bincount(chart, areas(mesh.vertices.astype(np.float64)[mesh.faces]))
    flat = np.pad(corners_px(unwrapped, SIZE), ((0, 0), (0, 0), (0, 1)))
    density = np.sqrt(np.bincount(chart, areas(flat)) / true)
    # A chart of less than a few texels is rounded up to whole ones, which harms nobody.
    counts = true > 1e-3 * true.sum()
    assert density[counts].max() < 2 * density[counts].min()


@pytest.mark.parametrize("name", SOLIDS)
def test_nearly_all_of_a_surface_has_a_third_of_the_usual_density_or_more(name: str) -> None:
    mesh = SOLIDS[name]
    unwrapped = unwrap(mesh, method="box", size_px=SIZE, padding_px=PADDING)
    true = areas(mesh.vertices.astype(np.float64)[mesh.faces])
    flat = areas(np.pad(corners_px(unwrapped, SIZE), ((0, 0), (0, 0), (0, 1))))
    density = np.sqrt(flat / true)
    order = np.argsort(density)
    share = np.cumsum(true[order]) / true.sum()
    low, high = (density[order][np.searchsorted(share, at)] for at in (0.01, 0.99))
    assert high < 3 * low


def test_charts_that_lean_away_are_enlarged() -> None:
    # Every axis sees an octahedron's sides at a slant, and a box's straight.
    octahedron = trimesh.Trimesh(
        0.6 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]),
        [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]],
    ).subdivide()
    box = trimesh.creation.box(extents=(0.7, 0.7, 0.7)).apply_translation((1.2, 0, 0))
    mesh = together(mesh_of(octahedron), mesh_of(box))
    unwrapped = unwrap(mesh, method="box", size_px=SIZE, padding_px=PADDING)
    chart = charts_of(unwrapped)
    true = np.bincount(chart, areas(mesh.vertices.astype(np.float64)[mesh.faces]))
    flat = np.bincount(chart, areas(np.pad(corners_px(unwrapped, SIZE), ((0, 0), (0, 0), (0, 1)))))
    assert np.sqrt(flat / true).max() < 1.1 * np.sqrt(flat / true).min()


def bleeding(name: str, *, size_px: int, padding_px: int, levels: int) -> NDArray[np.float64]:
    """By how many code values, of 255, each texel of a chart is off when its texture is halved so often.

    Every chart has a colour as unlike its neighbours' as colours can be.
    """
    unwrapped = unwrap(SOLIDS[name], method="box", size_px=size_px, padding_px=padding_px)
    chart = charts_of(unwrapped)
    face, texel = hits(corners_px(unwrapped, size_px), size_px)
    colours = np.random.default_rng(5).choice(np.array([0, 255], np.uint8), (chart.max() + 1, 3))
    texture = np.zeros((size_px * size_px, 3), np.uint8)
    covered = np.zeros(size_px * size_px, np.bool_)
    texture[texel], covered[texel] = colours[chart[face]], True
    covered = covered.reshape(size_px, size_px)
    sharp = fill_from_nearest(texture.reshape(size_px, size_px, 3), covered).astype(np.float64)
    side = 2**levels
    blocks = sharp.reshape(size_px // side, side, size_px // side, side, 3).mean(axis=(1, 3))
    apart = np.abs(blocks.repeat(side, axis=0).repeat(side, axis=1) - sharp).mean(axis=2)
    result: NDArray[np.float64] = apart[covered]
    return result


@pytest.mark.parametrize("name", ["bumpy", "torus", "ramp", "twins"])
def test_the_usual_padding_keeps_colours_apart_at_the_fourth_mip_level(name: str) -> None:
    settings = load_preset("default").preset
    size_px, padding_px = settings.texture.size_px, settings.unwrap.padding_px
    assert bleeding(name, size_px=size_px, padding_px=padding_px, levels=3).max() == 0
    off = bleeding(name, size_px=size_px, padding_px=padding_px, levels=4)
    assert off.mean() < 0.1
    assert (off > 16).mean() < 0.005


def test_padding_of_a_mip_texel_bleeds_nothing_and_none_bleeds_much() -> None:
    assert bleeding("torus", size_px=1024, padding_px=16, levels=4).max() == 0
    assert bleeding("torus", size_px=1024, padding_px=1, levels=4).mean() > 0.2


def test_a_texture_too_small_for_its_padding_gets_less() -> None:
    crowd = together(
        *(
            mesh_of(trimesh.creation.icosphere(subdivisions=1, radius=0.08).apply_translation((x, y, z)))
            for x in (-0.5, 0, 0.5)
            for y in (-0.5, 0, 0.5)
            for z in (-0.5, 0.5)
        )
    )
    wide = unwrap(crowd, method="box", size_px=256, padding_px=32)
    _, texels = hits(corners_px(wide, 256), 256)
    assert len(np.unique(texels)) == len(texels) > 1000


def test_charts_of_known_area_and_rim_mostly_fit_at_the_first_try(monkeypatch: pytest.MonkeyPatch) -> None:
    import xatlas

    sides: list[int] = []

    class Counted(xatlas.Atlas):  # type: ignore[misc]  # xatlas is not typed
        def generate(self, *options: object) -> None:
            super().generate(*options)
            sides.append(max(self.width, self.height))

    monkeypatch.setattr(xatlas, "Atlas", Counted)
    for solid in SOLIDS.values():
        unwrap(solid, method="box", size_px=1024, padding_px=8)
    assert len(sides) <= len(SOLIDS) + 2
    # Nor are they made much smaller than they could be.
    assert np.median(sides) > 0.9 * 512


@pytest.mark.parametrize("size_px", [130, 250, 1000])
def test_a_texture_of_any_size_is_filled_and_keeps_its_charts_apart(size_px: int) -> None:
    unwrapped = unwrap(SOLIDS["torus"], method="box", size_px=size_px, padding_px=9)
    assert np.ptp(unwrapped.uv, axis=0).max() > 1 - 2 * 9 / size_px
    chart = charts_of(unwrapped)
    face, texel = hits(corners_px(unwrapped, size_px), size_px)
    owner = np.full(size_px * size_px, -1)
    owner[texel] = chart[face]
    owner = owner.reshape(size_px, size_px)
    for one in np.unique(chart):
        away = distance_transform_edt(owner != one)
        assert away[(owner >= 0) & (owner != one)].min(initial=np.inf) >= 9


def test_a_cube_has_six_square_charts() -> None:
    unwrapped = unwrap(SOLIDS["cube"], method="box", size_px=SIZE, padding_px=PADDING)
    assert len(unwrapped.uv) == 24
    corners = np.pad(corners_px(unwrapped, SIZE), ((0, 0), (0, 0), (0, 1)))
    edges = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    assert np.sort(edges, axis=1) / edges.min() == pytest.approx(np.tile([1, 1, 2**0.5], (12, 1)), rel=1e-2)


@pytest.mark.parametrize("method", ["box", "xatlas"])
def test_every_corner_keeps_its_face_and_vertex(method: Method) -> None:
    mesh = SOLIDS["twins"]
    unwrapped = unwrap(mesh, method=method, size_px=SIZE, padding_px=PADDING)
    assert unwrapped.mesh is mesh
    assert unwrapped.uv.dtype == np.float32
    assert ((unwrapped.uv >= 0) & (unwrapped.uv <= 1)).all()
    owner = np.full(len(unwrapped.uv), -1)
    owner[unwrapped.uv_faces] = mesh.faces
    assert (owner[unwrapped.uv_faces] == mesh.faces).all()
    flat = np.pad(corners_px(unwrapped, SIZE), ((0, 0), (0, 0), (0, 1)))
    ratio = areas(flat) / areas(mesh.vertices.astype(np.float64)[mesh.faces])
    assert ratio.max() < 5 * ratio.min()


def test_xatlas_lays_nothing_upon_itself() -> None:
    unwrapped = unwrap(SOLIDS["twins"], method="xatlas", size_px=SIZE, padding_px=PADDING)
    _, texels = hits(corners_px(unwrapped, SIZE), SIZE)
    assert len(np.unique(texels)) == len(texels)


@pytest.mark.parametrize("name", SOLIDS)
def test_every_face_of_a_chart_looks_along_its_axis(name: str) -> None:
    mesh = SOLIDS[name]
    points = mesh.vertices.astype(np.float64)
    charts = box_charts(points, mesh.faces)
    corner = lay_flat(points, mesh.faces, charts)
    p, q, r = (corner.place[corner.corner.reshape(-1, 3)[:, i]] for i in range(3))
    assert ((q - p)[:, 0] * (r - p)[:, 1] > (q - p)[:, 1] * (r - p)[:, 0]).all()


def test_a_ramp_that_lies_over_itself_is_cut() -> None:
    mesh = spiral_ramp(turns=4.0)
    charts = box_charts(mesh.vertices.astype(np.float64), mesh.faces)
    upper = charts.axis == 2
    # Each piece of the upper side winds once at most.
    assert len(np.unique(charts.chart[upper])) >= 4


def test_the_same_mesh_gets_the_same_coordinates() -> None:
    one, two = (unwrap(SOLIDS["ramp"], method="box", size_px=SIZE, padding_px=PADDING) for _ in range(2))
    assert (one.uv == two.uv).all()
    assert (one.uv_faces == two.uv_faces).all()


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(vertices=np.zeros((0, 3), np.float32), faces=np.zeros((0, 3), np.int64)),
        Mesh(vertices=np.full((3, 3), np.nan, np.float32), faces=np.array([[0, 1, 2]])),
        Mesh(vertices=np.eye(3, dtype=np.float32), faces=np.array([[0, 1, 3]])),
        Mesh(vertices=1e6 * np.eye(3, dtype=np.float32), faces=np.array([[0, 1, 2]])),
        Mesh(vertices=1e-6 * np.eye(3, dtype=np.float32), faces=np.array([[0, 1, 2]])),
    ],
    ids=["nothing", "not finite", "no such vertex", "huge", "tiny"],
)
@pytest.mark.parametrize("method", ["box", "xatlas"])
def test_what_would_hang_or_crash_xatlas_is_refused(method: Method, mesh: Mesh) -> None:
    with pytest.raises(PhotoError) as caught:
        unwrap(mesh, method=method, size_px=SIZE, padding_px=PADDING)
    assert (caught.value.code, caught.value.kind) == ("E_UV_INPUT", "quality")
