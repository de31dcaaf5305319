"""The photo on the surface, judged texel by texel where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import interpolate
from crm_cli.mesh.bake import bake, draw_charts, texels_per_unit
from crm_cli.mesh.camera import Aim
from crm_cli.mesh.projection import cut_square, facing, project_photo, vertex_facing
from crm_cli.mesh.raster import WarpRaster
from crm_cli.mesh.unwrap import unwrap
from crm_cli.records import Crop, Mesh, TexturedMesh
from crm_cli.toolbox import accelerators

RASTER = WarpRaster()
TEXTURE_PX = 256
CANVAS_PX = 256


@pytest.fixture(params=["cpu", *accelerators()[:1]])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Painted(NamedTuple):
    """A finished texture, and for each of its N covered texels where it is and what it says."""

    textured: TexturedMesh
    points: NDArray[np.float32]
    facing: NDArray[np.float32]
    colours: NDArray[np.float32]
    seen: NDArray[np.float32]


def ball(radius: float = 0.7) -> Mesh:
    solid = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def blocks(*boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Mesh:
    """Boxes by extents and centre, in small triangles."""
    parts = []
    for extents, centre in boxes:
        part = trimesh.creation.box(extents)
        part.apply_translation(centre)
        parts.append(part.subdivide_to_size(0.12))
    solid = trimesh.util.concatenate(parts)
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def outline(mesh: Mesh) -> NDArray[np.float32]:
    placed = Aim().place(torch.from_numpy(mesh.vertices), CANVAS_PX)
    seen = RASTER.rasterize(placed, torch.from_numpy(mesh.faces), height=CANVAS_PX, width=CANVAS_PX)
    return seen.covered.float().numpy()


def paint(
    mesh: Mesh,
    photo: NDArray[np.uint8],
    imagined: Callable[[Tensor], Tensor],
    *,
    alpha: NDArray[np.float32] | None = None,
    crop: Crop | None = None,
    device: str = "cpu",
    finest: float = 0.0,
) -> Painted:
    """Lay a photo, by default one that is all canvas, on a mesh with imagined colours."""
    unwrapped = unwrap(mesh, method="box", size_px=TEXTURE_PX, padding_px=4)
    side = len(photo)
    projection = project_photo(
        mesh,
        photo,
        outline(mesh) if alpha is None else alpha,
        crop or Crop(centre_x=side / 2, centre_y=side / 2, side_px=side),
        Aim(),
        RASTER,
        texels_per_unit=texels_per_unit(unwrapped, size_px=TEXTURE_PX),
    )
    textured = bake(
        unwrapped, imagined, RASTER, size_px=TEXTURE_PX, device=device, photo=projection, finest=finest
    )
    assert textured.seen is not None
    fragments = draw_charts(unwrapped, RASTER, size_px=TEXTURE_PX)
    covered = fragments.covered.numpy()
    points = interpolate(torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces), fragments)
    return Painted(
        textured=textured,
        points=points[fragments.covered].numpy(),
        facing=facing(mesh)[fragments.face.numpy()[covered]],
        colours=textured.texture[covered] / np.float32(255),
        seen=textured.seen[covered],
    )


def ramp(side: int) -> NDArray[np.uint8]:
    """A photo whose red grows to the right and whose green grows downwards; it has no blue."""
    steps = np.round((np.arange(side) + 0.5) / side * 255)
    photo = np.zeros((side, side, 3), np.uint8)
    photo[..., 0], photo[..., 1] = steps[None, :], steps[:, None]
    return photo


def plain(colour: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    return lambda points: points.new_tensor(colour).expand(len(points), 3)


def uniform(colour: tuple[int, int, int], side: int = 128) -> NDArray[np.uint8]:
    return np.tile(np.array(colour, np.uint8), (side, side, 1))


def as_the_ramp(points: Tensor) -> Tensor:
    """The colours that an upright camera of the whole canvas would see of points as `ramp`."""
    return torch.stack(
        [(1 - points[:, 0]) / 2, (1 - points[:, 2]) / 2, torch.zeros_like(points[:, 0])], dim=1
    )


@pytest.mark.parametrize("finest", [0.0, 1.0])
def test_imagined_colours_that_are_the_photos_stay_as_they_are(finest: float) -> None:
    painted = paint(ball(), ramp(512), as_the_ramp, finest=finest)
    off = np.abs(painted.colours - as_the_ramp(torch.from_numpy(painted.points)).numpy()).max(axis=1)
    assert 0.1 < (painted.seen == 0).mean() < 0.9
    # Two codes: of the photo, and of the texture. A texel is 1 code wide, and a square of them 4.
    assert off.max() < (6 if finest else 2) / 255
    assert off.mean() < 0.7 / 255


@pytest.mark.parametrize("side", [300, 1500])
def test_what_the_photo_sees_has_the_photos_colour_in_its_place(side: int, device: str) -> None:
    painted = paint(ball(), ramp(side), plain((0, 0, 1)), device=device)
    sure = painted.seen == 1
    assert sure.sum() > 0.2 * len(sure)
    expected = (1 - painted.points[sure][:, [0, 2]]) / 2
    # Two codes: one for rounding, one for the step between the photo's own pixels.
    assert np.abs(painted.colours[sure, :2] - expected).max() < 2.5 / 255
    assert painted.colours[sure, 2].max() < 1.5 / 255


def test_the_cut_outs_square_says_where_in_the_photo_the_subject_is() -> None:
    photo = np.zeros((400, 600, 3), np.uint8)
    photo[40:340, 250:550] = ramp(300)
    painted = paint(ball(), photo, plain((0, 0, 1)), crop=Crop(centre_x=400.0, centre_y=190.0, side_px=300.0))
    sure = painted.seen == 1
    expected = (1 - painted.points[sure][:, [0, 2]]) / 2
    assert np.abs(painted.colours[sure, :2] - expected).max() < 2.5 / 255


def test_nothing_lands_on_what_looks_away_or_along_the_line_of_sight() -> None:
    painted = paint(ball(), ramp(300), plain((0, 0, 1)))
    assert painted.seen[painted.facing < 0.2].max() == 0
    assert painted.seen[painted.points[:, 1] < 0].max() == 0
    # Levelled by a tenth at most, but no photo, which has no blue.
    assert painted.colours[painted.points[:, 1] < 0, 2].min() > 0.89


def test_nothing_lands_behind_what_stands_in_front() -> None:
    wall, post = ((1.4, 0.3, 1.4), (0, -0.4, 0)), ((0.4, 0.3, 0.6), (0, 0.5, 0))
    painted = paint(blocks(wall, post), ramp(300), plain((0, 0, 1)))
    x, y, z = painted.points.T
    is_wall = np.abs(y + 0.25) < 1e-3
    is_shadow = is_wall & (np.abs(x) < 0.2) & (np.abs(z) < 0.3)
    assert is_shadow.sum() > 100
    assert painted.seen[is_shadow].max() == 0
    assert painted.colours[is_shadow, 2].min() > 0.89
    # Beside it a soft margin, a pixel and a half of the views; further out everything.
    beside = is_wall & ~((np.abs(x) < 0.24) & (np.abs(z) < 0.34)) & (np.abs(x) < 0.65) & (np.abs(z) < 0.65)
    assert painted.seen[beside].min() == 1
    front_of_post = (y > 0.649) & (np.abs(x) < 0.17) & (np.abs(z) < 0.27)
    assert painted.seen[front_of_post].min() == 1


def test_a_box_keeps_its_sides_free_of_the_front() -> None:
    painted = paint(blocks(((1.0, 1.0, 1.0), (0, 0, 0))), ramp(300), plain((0, 0, 1)))
    assert painted.seen[painted.points[:, 1] < 0.499].max() == 0
    inside = (painted.points[:, 1] > 0.499) & (np.abs(painted.points[:, [0, 2]]).max(axis=1) < 0.44)
    assert painted.seen[inside].min() == 1


def test_no_background_shows_at_the_outline() -> None:
    mesh = ball()
    smaller = outline(ball(0.66))  # as if the surface had come out too large
    photo = uniform((255, 0, 255), CANVAS_PX)
    photo[smaller > 0.5] = (0, 160, 0)
    # A soft edge, as lenses make it: half a pixel of both.
    for axis in (0, 1):
        photo = ((photo.astype(int) + np.roll(photo, 1, axis) + np.roll(photo, -1, axis)) / 3).astype(
            np.uint8
        )
    painted = paint(mesh, photo, plain((0, 160 / 255, 0)), alpha=smaller)
    assert painted.seen.max() == 1
    assert painted.colours[:, [0, 2]].max() < 3 / 255
    beyond = (np.linalg.norm(painted.points[:, [0, 2]], axis=1) > 0.67) & (painted.facing > 0.25)
    assert beyond.sum() > 20
    assert painted.seen[beyond].max() == 0, "what lies outside the matte was not seen, whatever its colour"


def test_what_transparency_hides_is_never_seen() -> None:
    mesh = ball()
    alpha = outline(mesh)
    photo = uniform((0, 255, 0), CANVAS_PX)
    photo[alpha > 0.5] = (200, 100, 50)
    painted = paint(mesh, photo, plain((200 / 255, 100 / 255, 50 / 255)), alpha=alpha)
    assert np.abs(painted.colours - np.array([200, 100, 50]) / 255).max() < 2 / 255


def test_imagined_colours_meet_the_photos_and_fade_back_to_their_own() -> None:
    painted = paint(ball(), uniform((140, 120, 100)), plain((0.49, 0.42, 0.35)))
    photo, imagined = np.array([140, 120, 100]) / 255, np.array([0.49, 0.42, 0.35])
    step = np.abs(photo - imagined).max()
    towards = painted.points[:, 1] / np.linalg.norm(painted.points, axis=1)
    border = (painted.seen == 0) & (towards > 0.05)
    assert border.sum() > 100
    assert np.abs(painted.colours[border] - photo).max() < 0.6 * step
    assert np.abs(painted.colours[towards < -0.9] - imagined).max() < 0.1 * step + 1 / 255


def test_another_print_is_not_carried_round() -> None:
    """Where what was imagined has nothing in common with the photo, levelling stays small."""
    painted = paint(ball(), uniform((255, 255, 255)), plain((0, 0, 0)))
    assert painted.colours[painted.seen == 0].max() < 0.11


def test_the_share_of_what_was_seen_is_one_of_area_not_of_texels() -> None:
    painted = paint(ball(), ramp(300), plain((0, 0, 1)))
    # A cap's area goes with its height: seen from a cosine of 0.2 to 0.45 on, half at 0.325.
    assert painted.textured.seen_share == pytest.approx((1 - 0.325) / 2, abs=0.02)
    cube = paint(blocks(((1.0, 1.0, 1.0), (0, 0, 0))), ramp(300), plain((0, 0, 1)))
    assert cube.textured.seen_share == pytest.approx(1 / 6, abs=0.01)
    flat = paint(blocks(((1.4, 0.2, 1.4), (0, 0, 0))), ramp(300), plain((0, 0, 1)))
    assert flat.textured.seen_share == pytest.approx(1.96 / (2 * 1.96 + 4 * 0.28), abs=0.02)


def test_texels_beside_the_charts_say_what_the_nearest_one_says() -> None:
    painted = paint(ball(), ramp(300), plain((0, 0, 1)))
    texture, seen = painted.textured.texture, painted.textured.seen
    assert seen is not None
    # Without blue a texel shows the photo, wherever it lies.
    assert (texture[seen == 1, 2] <= 1).all()
    assert (texture[seen == 0, 2] > 220).all()


def test_a_large_photo_is_averaged_in_linear_light() -> None:
    board = np.indices((1200, 1200)).sum(axis=0) % 2 * 255
    photo = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    square = cut_square(photo, Crop(centre_x=600, centre_y=600, side_px=1000), 100)
    # Half the light of white has the code 188, not 128.
    assert np.abs(square * 255 - 187.5).max() < 1


def test_beyond_the_photo_its_border_goes_on() -> None:
    square = cut_square(uniform((255, 128, 0), 100), Crop(centre_x=50, centre_y=0, side_px=100), 50)
    np.testing.assert_allclose(square * 255, np.tile([255, 128, 0], (50, 50, 1)), atol=0.6)


def test_a_photo_that_is_all_subject_is_laid_on_up_to_its_frame() -> None:
    painted = paint(
        blocks(((2.0, 0.2, 2.0), (0, 0, 0))), ramp(300), plain((0, 0, 1)), alpha=np.ones((64, 64), np.float32)
    )
    front = (painted.points[:, 1] > 0.099) & (np.abs(painted.points[:, [0, 2]]).max(axis=1) < 0.98)
    assert painted.seen[front].min() == 1


def test_what_faces_the_camera_is_measured_alike_on_faces_and_vertices() -> None:
    mesh = ball(1.0)
    np.testing.assert_allclose(vertex_facing(mesh), mesh.vertices[:, 1], atol=0.01)
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    np.testing.assert_allclose(facing(mesh), middles[:, 1] / np.linalg.norm(middles, axis=1), atol=0.01)
