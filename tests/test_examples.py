"""Examples agree with themselves: pictures, depths, distances and colours tell of one product."""

import numpy as np
import pytest
import torch

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, RIGHT, TOP, VIEWS
from crm_cli.learn.camera import Posed, aim, draw_pose, pose
from crm_cli.learn.examples import ARRAYS, Example, damage, draw_posed, make_example, outer_surface, six_views
from crm_cli.learn.materials import Material, solid
from crm_cli.learn.parts import Part, assemble
from crm_cli.learn.products import make_product
from crm_cli.learn.shapes import box, ellipsoid
from crm_cli.learn.solid import Solid
from crm_cli.mesh.raster import TorchRaster, WarpRaster

RASTER = WarpRaster()
SIZE = 64
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [make_example(np.random.default_rng(seed), RASTER) for seed in range(12)]


def posed_product(seed: int) -> Posed:
    return draw_posed(np.random.default_rng(seed))


def solid_of(posed: Posed) -> Solid:
    return Solid(posed.vertices, posed.faces, posed.product.part)


def test_distances_to_a_box_and_a_ball_are_exact() -> None:
    cube, ball = box((1.0, 0.6, 0.8)), ellipsoid((0.5, 0.5, 0.5), sides=96, rings=48).moved((0.3, 0, 0))
    product = assemble("known", [Part(cube, Material(solid(RED))), Part(ball, Material(solid(BLUE)))])
    places = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
    over = np.abs(places) - [0.5, 0.3, 0.4]
    to_cube = np.linalg.norm(np.maximum(over, 0), axis=1) + np.minimum(over.max(axis=1), 0)
    to_ball = np.linalg.norm(places - [0.3, 0, 0], axis=1) - 0.5
    expected = np.minimum(to_cube, to_ball).clip(-0.3, 0.3)
    measured = Solid(product.vertices, product.faces, product.part).signed_distance(places)
    # The ball's facets lie up to 0.5 · (1 − cos 1.9°) inside it.
    np.testing.assert_allclose(measured, expected, atol=1e-3)
    clear = np.abs(expected) > 1e-3
    np.testing.assert_array_equal(measured[clear] < 0, expected[clear] < 0)


def test_signs_are_right_below_vertices_and_edges() -> None:
    cube = box((1.0, 1.0, 1.0))
    measure = Solid(cube.vertices.astype(np.float32), cube.faces, np.zeros(len(cube.faces), np.int64))
    # Rays straight up from these meet the diagonal or the middle vertex of the top.
    grid = np.array([[x, y, z] for x in (-0.25, 0, 0.25) for y in (-0.25, 0, 0.25) for z in (-0.7, 0.1, 0.7)])
    np.testing.assert_array_equal(measure.signed_distance(grid) < 0, np.abs(grid[:, 2]) < 0.5)


@pytest.mark.parametrize("seed", range(20, 32))
def test_depth_lies_on_the_surface(seed: int) -> None:
    posed = posed_product(seed)
    views, depth = six_views(posed, RASTER, size_px=SIZE)
    for number, view in enumerate(VIEWS):
        row, column = np.nonzero(views[number, 3] == 255)
        u, v = (2 * (column + 0.5) / SIZE - 1), (2 * (row + 0.5) / SIZE - 1)
        near = depth[number, row, column].astype(np.float64)
        places = np.outer(u, view.right) - np.outer(v, view.up) + np.outer(near, view.toward)
        # A pixel is 1/32 wide: averaging its samples may cut a corner by a fraction of that.
        assert np.abs(solid_of(posed).signed_distance(places)).max(initial=0) < 0.03


def test_opposite_views_mirror_each_other(examples: list[Example]) -> None:
    for example in examples:
        alpha = example.views[:, 3]
        np.testing.assert_array_equal(alpha[FRONT], alpha[BACK][:, ::-1])
        np.testing.assert_array_equal(alpha[LEFT], alpha[RIGHT][:, ::-1])
        np.testing.assert_array_equal(alpha[BOTTOM], alpha[TOP][::-1])


def test_solid_things_have_no_pinholes() -> None:
    for family in ("book", "can", "jar", "fruit", "sofa"):
        rng = np.random.default_rng(3)
        views, _ = six_views(pose(make_product(rng, family), draw_pose(rng)), RASTER, size_px=SIZE)
        covered = np.pad(views[:, 3] > 0, ((0, 0), (1, 1), (1, 1)))
        around = covered[:, :-2, 1:-1] & covered[:, 2:, 1:-1] & covered[:, 1:-1, :-2] & covered[:, 1:-1, 2:]
        assert not (around & ~covered[:, 1:-1, 1:-1]).any()


def test_the_front_silhouette_is_centred_and_fills_four_fifths(examples: list[Example]) -> None:
    for example in examples:
        rows, columns = (np.flatnonzero(example.views[FRONT, 3].any(axis=k)) for k in (1, 0))
        sides = [rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1]
        assert 0.8 * SIZE <= max(sides) <= 0.8 * SIZE + 2
        for line in (rows, columns):
            assert abs(line[0] + line[-1] - (SIZE - 1)) <= 1


def test_the_photo_shows_what_the_front_view_shows(examples: list[Example]) -> None:
    overlaps = []
    for example in examples:
        photo, front = example.photo[3] > 127, example.views[FRONT, 3] > 127
        overlaps.append((photo & front).sum() / (photo | front).sum())
    # Perspective and a damaged matte change the outline, not the product.
    assert np.median(overlaps) > 0.8


def test_photos_are_black_where_there_is_nothing(examples: list[Example]) -> None:
    for example in examples:
        assert not example.photo[:3, example.photo[3] == 0].any()
        assert not example.views[:, :3].transpose(0, 2, 3, 1)[example.views[:, 3] == 0].any()


def test_surface_places_lie_on_the_surface_and_never_inside(examples: list[Example]) -> None:
    posed = posed_product(41)
    surface, _ = outer_surface(np.random.default_rng(0), posed, solid_of(posed))
    # Half precision moves a place by up to 5e-4.
    assert np.abs(solid_of(posed).signed_distance(surface)).max() < 3.5e-3


def test_surface_colours_are_those_of_the_part_that_shows() -> None:
    inner = Part(ellipsoid((0.3, 0.3, 0.3)), Material(solid(RED)))
    outer = Part(box((1, 1, 1)), Material(solid(BLUE)))
    posed = pose(assemble("hidden", [inner, outer]), np.eye(3))
    _, rgb = outer_surface(np.random.default_rng(0), posed, solid_of(posed))
    np.testing.assert_array_equal(rgb, np.tile(np.uint8([0, 0, 255]), (len(rgb), 1)))


def test_front_colours_are_the_front_parts() -> None:
    near = Part(box((1, 0.2, 1)).moved((0, 0.4, 0)), Material(solid(RED)))
    far = Part(box((1, 0.2, 1)).moved((0, -0.4, 0)), Material(solid(BLUE)))
    views, depth = six_views(pose(assemble("two", [near, far]), np.eye(3)), RASTER, size_px=SIZE)
    middle = (slice(None), slice(0, 3), SIZE // 2, SIZE // 2)
    front, back = views[middle][FRONT].astype(int), views[middle][BACK].astype(int)
    assert front[0] > 200 and not front[1:].any()
    assert back[2] > 200 and not back[:2].any()
    assert depth[FRONT, SIZE // 2, SIZE // 2] == pytest.approx(0.5 * 1.6, abs=1e-3)
    assert depth[BACK, SIZE // 2, SIZE // 2] == pytest.approx(0.5 * 1.6, abs=1e-3)


def test_the_camera_places_the_silhouette_as_the_cutouts_do() -> None:
    posed = posed_product(5)
    placed = aim(posed.vertices, fov_deg=30, size_px=100, fill=0.8).place(posed.vertices)[:, :2]
    low, high = placed.min(axis=0), placed.max(axis=0)
    assert (high - low).max() == pytest.approx(80, abs=1e-2)
    np.testing.assert_allclose((low + high) / 2, 50, atol=1e-2)


def test_near_things_look_larger() -> None:
    ends = np.float32([[0, 0.5, 0.3], [0, -0.5, 0.3], [0.5, 0, -0.3], [-0.5, 0, -0.3]])
    placed = aim(ends, fov_deg=40, size_px=100, fill=0.8).place(ends)
    assert placed[0, 1] < placed[1, 1]  # the same height, higher up in the picture because it is nearer
    assert placed[0, 2] > placed[1, 2]
    assert placed[2, 0] < placed[3, 0]  # +x is on the left


def test_a_deep_product_is_pressed_into_the_world() -> None:
    long = Part(box((0.2, 2.0, 0.2)), Material(solid(RED)))
    vertices = pose(assemble("long", [long]), np.eye(3)).vertices
    np.testing.assert_allclose(np.ptp(vertices, axis=0), [1.6, 1.9, 1.6], rtol=1e-6)


def test_mattes_change_only_at_their_border() -> None:
    clean = np.zeros((SIZE, SIZE), np.float32)
    clean[16:48, 16:48] = 1
    for seed in range(40):
        damaged = damage(np.random.default_rng(seed), clean)
        inside, outside = (
            damaged[26:38, 26:38],
            np.delete(np.delete(damaged, range(14, 50), 0), range(14, 50), 1),
        )
        assert not outside.any()
        assert inside.mean() > 0.3


def test_a_matte_that_is_nowhere_solid_can_be_damaged() -> None:
    faint = np.full((SIZE, SIZE), 0.3, np.float32)
    # One in thirty is bitten.
    assert all(damage(np.random.default_rng(seed), faint).max() <= 1 for seed in range(300))


def test_a_subject_of_which_nothing_shows_has_a_surface_all_the_same() -> None:
    class Hidden:
        def signed_distance(self, places: np.ndarray, *, reach: float = 0.3) -> np.ndarray:
            raise AssertionError("not asked")

        def shows(self, places: np.ndarray, normals: np.ndarray) -> np.ndarray:
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
            return np.zeros(len(places), bool)

    posed = posed_product(41)
    surface, _ = outer_surface(np.random.default_rng(0), posed, Hidden())
    assert np.abs(surface).max() <= 1 and len(np.unique(surface, axis=0)) > 1000


def test_one_seed_gives_the_same_bytes(examples: list[Example]) -> None:
    again = make_example(np.random.default_rng(4), RASTER)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(examples[4], name))


def test_any_rasteriser_gives_the_same_views() -> None:
    posed = posed_product(9)
    fast, definition = (six_views(posed, raster, size_px=32) for raster in (RASTER, TorchRaster()))
    np.testing.assert_array_equal(fast[0], definition[0])
    np.testing.assert_array_equal(fast[1], definition[1])


def test_distances_are_those_of_the_product(examples: list[Example]) -> None:
    for example in examples[:6]:
        assert np.isfinite(example.sdf).all()
        assert np.abs(example.sdf).max() <= 0.3 + 1e-3
        assert 0.05 < (example.sdf < 0).mean() < 0.7
        assert torch.from_numpy(example.points).abs().max() <= 1
