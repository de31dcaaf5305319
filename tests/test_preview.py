import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinate_box import HIGH, LOW, coordinate_box

from crm_cli.export import preview
from crm_cli.export.preview import IMAGINED, corner_normals, render_previews, sample
from crm_cli.fragments import interpolate
from crm_cli.mesh.raster import TorchRaster
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh
from crm_cli.srgb import to_linear

SIZE = 96


@pytest.fixture(scope="module")
def pictures():
    return [
        np.asarray(p.picture) for p in render_previews(coordinate_box(), TorchRaster(), size_px=SIZE, turns=4)
    ]


def ball(colour, rings=40):
    """A sphere of one colour."""
    polar, turn = np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)
    x, y = np.sin(polar)[:, None] * np.cos(turn), np.sin(polar)[:, None] * np.sin(turn)
    points = np.stack([x, y, np.broadcast_to(np.cos(polar)[:, None], x.shape)], axis=-1)
    index = np.arange(2 * rings * rings).reshape(rings, 2 * rings)
    after = np.roll(index, -1, axis=1)
    a, b, c, d = index[:-1], index[1:], after[1:], after[:-1]
    faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    mesh = Mesh(vertices=points.reshape(-1, 3).astype(np.float32), faces=faces)
    unwrapped = UnwrappedMesh(mesh=mesh, uv=np.full((1, 2), 0.5, np.float32), uv_faces=np.zeros_like(faces))
    return TexturedMesh(unwrapped=unwrapped, texture=np.full((4, 4, 3), colour, np.uint8))


def photograph(textured):
    """Its front."""
    return np.asarray(render_previews(textured, TorchRaster(), size_px=SIZE, turns=1)[0].picture)


def linear(picture):
    """Linear light of the opaque pixels' middle column and row, [S 3] each."""
    rgb = to_linear(torch.from_numpy(picture[..., :3].astype(np.float32) / 255)).numpy()
    return rgb[:, SIZE // 2], rgb[int(SIZE * 0.55)]


@pytest.mark.parametrize(
    ("turn", "across", "falls_to_the_right"),
    [(0, 0, True), (1, 1, False), (2, 0, False), (3, 1, True)],
    ids=["front", "left", "back", "right"],
)
def test_the_front_comes_first_then_the_left(pictures, turn, across, falls_to_the_right):
    # Red grows with x, green with y, blue with z; light has no colour, so their shares show the place.
    column, row = linear(pictures[turn])
    inside = pictures[turn][int(SIZE * 0.55), :, 3] == 255
    share = (row / row.sum(axis=-1, keepdims=True).clip(1e-3))[inside][:, across]
    assert (share[-1] < share[0]) == falls_to_the_right
    below, above = column[int(SIZE * 0.85)], column[int(SIZE * 0.25)]
    assert above[2] / above.sum() > below[2] / below.sum()


def test_a_pixel_shows_the_texture_where_its_sight_line_meets_the_surface(pictures):
    box = preview._Model.of(coordinate_box())
    camera = preview._camera(0.0)
    positions = preview._frame(
        [preview._look(box.points, preview._camera(t * math.pi / 2)) for t in range(4)], SIZE
    )[0]
    found = TorchRaster().rasterize(positions, box.faces, height=SIZE, width=SIZE)
    points = interpolate(box.points, box.faces, preview._in_perspective(found, positions[:, 2], box.faces))
    seen = preview._look(points[found.covered], camera)
    expected = interpolate(preview._look(box.points, camera), box.faces, found)[found.covered]
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)
    # ... and so the front's colours are those of its own points, but for the light's strength.
    is_front = found.covered & ((points[..., 1] - float(HIGH[1] - LOW[1]) / 2).abs() < 1e-3)
    world = points + torch.from_numpy((LOW + HIGH) / 2).float()
    albedo = to_linear((world + 1) / 2)[is_front].numpy()
    shown = to_linear(torch.from_numpy(pictures[0][..., :3].astype(np.float32) / 255))[is_front].numpy()
    gain = shown.sum(axis=-1) / albedo.sum(axis=-1)
    difference = np.abs(shown / gain[:, None] - albedo)
    assert np.quantile(difference, 0.95) < 0.015  # the rest are edge pixels, blended with another side


def test_the_object_fills_its_share_of_the_picture_and_the_rest_is_transparent(pictures):
    spans = []
    for picture in pictures:
        row, column = np.nonzero(picture[..., 3])
        spans += [np.ptp(row) + 1, 2 * max(abs(column - (SIZE - 1) / 2)) + 1]
        assert (picture[0, :, 3] == 0).all() and (picture[:, 0, 3] == 0).all()
        assert not picture[picture[..., 3] == 0].any()
    assert max(spans) == pytest.approx(preview.FILL * SIZE, abs=1.5)


def test_outlines_are_soft_and_keep_their_colour():
    picture = photograph(ball((200, 40, 40)))
    alpha = picture[..., 3]
    assert picture.shape == (SIZE, SIZE, 4)
    assert set(np.unique(alpha)) == {0, 128, 255}
    edge = picture[(alpha > 0) & (alpha < 255)].astype(int)
    assert (edge[:, 0] > 2.5 * edge[:, 1]).all()  # no dark or grey fringe


def test_a_white_ball_is_white_towards_the_key_light_and_shaded_away_from_it():
    light = photograph(ball((255, 255, 255)))[..., 0].astype(int)
    middle, lit, shaded = (
        light[SIZE // 2, SIZE // 2],
        light[SIZE // 4, SIZE * 3 // 8],
        light[SIZE * 3 // 4, SIZE * 5 // 8],
    )
    assert lit > middle > shaded + 20
    assert 225 <= middle <= 250
    assert shaded > 150


def test_boxes_keep_their_edges_and_balls_have_none():
    box = coordinate_box().mesh
    corners = box.vertices[box.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.allclose(corner_normals(box), flat[:, None], atol=1e-6)
    mesh = ball((0, 0, 0)).mesh
    radial = mesh.vertices[mesh.faces]
    has_area = (
        np.linalg.norm(np.cross(radial[:, 1] - radial[:, 0], radial[:, 2] - radial[:, 0]), axis=1) > 1e-6
    )
    assert np.abs(corner_normals(mesh)[has_area] - radial[has_area]).max() < 0.06


def test_sampling_is_linear_between_texel_centres_and_row_0_is_the_top():
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    columns = torch.arange(4.0).expand(4, 4)
    v = torch.linspace(1 - 0.5 / 4, 0.5 / 4, 7)
    uv = torch.stack((v.flip(0), v), dim=-1)[None]
    read = sample(torch.stack((columns, rows))[None], uv)[0]
    steps = torch.linspace(0, 3, 7)
    torch.testing.assert_close(read, torch.stack((steps, steps), dim=-1))
    beyond = sample(torch.stack((columns, rows))[None], torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))[0]
    torch.testing.assert_close(beyond, torch.tensor([[0.0, 0.0], [3.0, 3.0]]))


def test_what_was_imagined_is_marked_and_what_was_seen_is_left():
    shown = ball((10, 200, 90))
    assert render_previews(shown, TorchRaster(), size_px=SIZE, turns=1)[0].seen is None
    pictures = {}
    for share in (0.0, 0.5, 1.0):
        textured = replace(shown, seen=np.full((4, 4), share, np.float32))
        (preview_,) = render_previews(textured, TorchRaster(), size_px=SIZE, turns=1)
        assert preview_.seen.size == (SIZE // 2, SIZE // 2)
        assert np.array_equal(np.asarray(preview_.picture), photograph(shown))
        pictures[share] = np.asarray(preview_.seen)[SIZE // 4, SIZE // 4, :3]
    violet = photograph(ball(IMAGINED))[SIZE // 2, SIZE // 2, :3]
    assert pictures[0.0] == pytest.approx(violet, abs=2)
    assert pictures[1.0] == pytest.approx(photograph(shown)[SIZE // 2, SIZE // 2, :3], abs=2)
    light = [to_linear(torch.from_numpy(pictures[share] / np.float32(255))) for share in (0, 0.5, 1)]
    torch.testing.assert_close(light[1], (light[0] + light[2]) / 2, atol=5e-3, rtol=0)


def test_a_texture_is_decoded_code_by_code_as_any_picture_is():
    texture = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    decoded = to_linear(torch.from_numpy(texture).float() / 255).permute(2, 0, 1)[None]
    assert torch.equal(preview._albedo(texture), decoded)


def test_a_pixel_is_the_mean_of_the_samples_that_hit_it():
    film = preview._Film(2)
    light = torch.linspace(0.1, 0.5, 5)[:, None].repeat(1, 3)
    film.expose(torch.tensor([[True, True], [False, False]]), light[:2])
    film.expose(torch.tensor([[True, False], [False, True]]), light[2:4])
    picture = np.asarray(film.develop()).astype(int)
    codes = [round(float(code)) for code in preview._to_srgb(torch.tensor([0.2, 0.2, 0.4])) * 255]
    assert picture[0, 0].tolist() == [codes[0]] * 3 + [255]
    assert picture[0, 1].tolist() == [codes[1]] * 3 + [128]
    assert not picture[1, 0].any()
    assert picture[1, 1].tolist() == [codes[2]] * 3 + [128]
    half = np.asarray(film.halved().develop()).astype(int)
    mean = preview._to_srgb(torch.tensor((0.1 + 0.3 + 0.2 + 0.4) / 4)) * 255
    assert half.tolist() == [[[round(float(mean))] * 3 + [128]]]


def test_upright_and_level_edges_have_as_many_shades_as_there_are_places_in_a_pixel():
    front = np.asarray(preview.render_front(coordinate_box(), TorchRaster(), size_px=45))[..., 3]
    # An edge of the box runs through the middle of a pixel, both ways.
    assert {0, 128, 255} == set(front[22].tolist()) | set(front[:, 22].tolist())
