from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinate_box import TEXTURE_PX, coordinate_box

from crm_cli.errors import PhotoError
from crm_cli.mesh import bake as bakery
from crm_cli.mesh.bake import bake, draw_charts, fill_from_nearest, uv_usage
from crm_cli.mesh.raster import TorchRaster, WarpRaster
from crm_cli.mesh.unwrap import unwrap
from crm_cli.records import Mesh, UnwrappedMesh
from crm_cli.toolbox import accelerators


@pytest.fixture(params=[TorchRaster, WarpRaster], ids=lambda tool: tool.name)
def raster(request):
    return request.param()


@pytest.fixture(params=["cpu", *accelerators()[:1]])
def device(request):
    return request.param


def position_as_colour(points):
    return (points + 1) / 2


def flat(*charts):
    """Two triangles a chart (left, bottom, right, top), in texture coordinates; all show one square."""
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float32)
    uv = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in charts]
    halves = np.array([[0, 1, 2], [0, 2, 3]])
    return UnwrappedMesh(
        mesh=Mesh(vertices=square, faces=np.tile(halves, (len(charts), 1))),
        uv=np.array(uv, dtype=np.float32).reshape(-1, 2),
        uv_faces=np.concatenate([halves + 4 * chart for chart in range(len(charts))]),
    )


def test_each_texel_has_the_colour_of_its_own_point_of_the_surface(raster, device):
    box = coordinate_box()  # its texture was painted by formula, without a rasteriser
    baked = bake(box.unwrapped, position_as_colour, raster, size_px=TEXTURE_PX, device=device)
    covered = draw_charts(box.unwrapped, raster, size_px=TEXTURE_PX).covered.numpy()
    assert covered.sum() == 6 * 96**2
    difference = baked.texture.astype(int) - box.texture.astype(int)
    assert np.abs(difference[covered]).max() <= 1
    assert np.abs(difference[covered]).mean() < 0.03  # a value halfway between two codes may round either way


def test_a_texels_centre_is_half_a_texel_from_its_edge(raster):
    ramp = bake(flat((0, 0, 1, 1)), lambda points: points, raster, size_px=6).texture
    centres = np.round((np.arange(6) + 0.5) / 6 * 255)
    assert np.array_equal(ramp[..., 0], np.tile(centres, (6, 1)))
    assert np.array_equal(ramp[..., 1], np.tile(centres[::-1, None], (1, 6)))  # row 0 is v = 1


def test_no_mip_level_mixes_in_a_background(raster):
    islands = flat((0.03, 0.06, 0.2, 0.11), (0.55, 0.5, 0.9, 0.97))
    bright = bake(islands, lambda points: 0.6 + 0.4 * points, raster, size_px=128).texture
    assert draw_charts(islands, raster, size_px=128).covered.float().mean() < 0.2
    level = bright.astype(float)
    for _ in range(4):
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    assert level.shape == (8, 8, 3)
    assert level.min() >= 153


class Counted:
    """Colours that waver over the surface, and how many points were asked for."""

    def __init__(self):
        self.points = 0

    def __call__(self, points):
        self.points += len(points)
        return 0.5 + 0.5 * torch.sin(3 * points)


@pytest.mark.parametrize(
    ("finest", "share"), [(1.5, 1.0), (2.0, 0.27), (3.9, 0.27), (4.0, 0.08), (99.0, 0.08)]
)
def test_detail_coarser_than_texels_is_asked_for_at_fewer_points(raster, device, finest, share):
    box = unwrap(coordinate_box().unwrapped.mesh, method="box", size_px=TEXTURE_PX, padding_px=4)
    texel = 1 / bakery.texels_per_unit(box, size_px=TEXTURE_PX)
    everywhere, now_and_then = Counted(), Counted()
    exact = bake(box, everywhere, raster, size_px=TEXTURE_PX, device=device)
    near = bake(box, now_and_then, raster, size_px=TEXTURE_PX, device=device, finest=(finest + 1e-3) * texel)
    covered = draw_charts(box, raster, size_px=TEXTURE_PX).covered.numpy()
    assert everywhere.points == covered.sum()
    assert now_and_then.points == pytest.approx(share * everywhere.points, rel=0.2)
    # At the rim of a chart colours are carried on from within, over less than a square of 3 codes a texel.
    off = np.abs(near.texture.astype(int) - exact.texture)[covered]
    assert off.max() <= 3 * 4
    assert off.mean() < 0.5


def test_charts_too_narrow_for_a_coarser_grid_are_asked_for_texel_by_texel(raster):
    # One texel wide, between the centres of the squares of two and of four.
    narrow = flat((0.1, 1.1 / 64, 0.9, 1.9 / 64), (0.1, 0.5, 0.9, 0.9))
    exact = bake(narrow, Counted(), raster, size_px=64)
    near = bake(narrow, Counted(), raster, size_px=64, finest=1.0)
    row = 64 - 2
    assert np.array_equal(near.texture[row], exact.texture[row])


def test_neighbouring_charts_lend_each_other_no_colour(raster):
    # Four texels apart, as near as charts ever are; the left one shows z = 0, the right one z = 1.
    charts = flat((0.0, 0.0, 30 / 64, 1.0), (34 / 64, 0.0, 1.0, 1.0))
    square = charts.mesh.vertices
    vertices = np.concatenate([square, square + np.float32([0, 0, 1])])
    faces = charts.mesh.faces + np.array([[0], [0], [4], [4]])
    pair = replace(charts, mesh=Mesh(vertices=vertices, faces=faces))

    def colour_at(points):
        return torch.stack([1 - points[:, 2], torch.zeros(len(points)), points[:, 2]], dim=1)

    texture = bake(pair, colour_at, raster, size_px=64, finest=1.0).texture
    assert (texture[:, :32] == (255, 0, 0)).all()
    assert (texture[:, 32:] == (0, 0, 255)).all()


@pytest.mark.parametrize("size_px", [63, 66])
def test_sides_that_no_step_divides_are_asked_for_texel_by_texel(raster, size_px):
    colours = Counted()
    bake(flat((0, 0, 1, 1)), colours, raster, size_px=size_px, finest=1.0)
    assert colours.points == {63: 63**2, 66: 33**2}[size_px]


def test_uncovered_texels_take_the_nearest_colour():
    generator = np.random.default_rng(3)
    covered = generator.random((24, 24)) < 0.03
    texture = generator.integers(1, 256, (24, 24, 3)).astype(np.uint8)
    filled = fill_from_nearest(texture, covered)
    assert np.array_equal(filled[covered], texture[covered])
    inside = np.argwhere(covered)
    for row, column in np.argwhere(~covered):
        away = np.hypot(*(inside - (row, column)).T)
        nearest = inside[away <= 1.02 * away.min()]
        assert (texture[nearest[:, 0], nearest[:, 1]] == filled[row, column]).all(axis=1).any()


def test_colours_are_rounded_and_clipped(raster):
    def colour_at(points):
        return torch.tensor([100.6 / 255, 1.7, -0.2]).expand(len(points), 3)

    assert (bake(flat((0, 0, 1, 1)), colour_at, raster, size_px=4).texture == (101, 255, 0)).all()


def test_points_are_asked_for_together(raster):
    asked = []

    def colour_at(points):
        asked.append(len(points))
        return points

    bake(flat((0, 0, 1, 1)), colour_at, raster, size_px=32)
    assert asked == [1024]


def test_a_texture_without_a_covered_texel_fails_the_photo(raster):
    with pytest.raises(PhotoError, match="no charts") as failure:
        bake(flat((0.51, 0.51, 0.52, 0.52)), position_as_colour, raster, size_px=4)
    assert failure.value.kind == "quality"


# 33 texels: the diagonal that two triangles of a chart share runs through texel centres.
@pytest.mark.parametrize("size_px", [32, 33])
@pytest.mark.parametrize(
    ("charts", "coverage", "overlap"),
    [
        ([(0, 0, 1, 1)], 1, 0),
        ([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 1, 0),
        ([(0, 0, 0.5, 1), (0.25, 0, 0.75, 1)], 3 / 4, 1 / 3),
        ([(0, 0, 0.5, 1), (0, 0, 0.5, 1)], 1 / 2, 1),
        ([(0, 0, 0.5, 1)] * 3, 1 / 2, 1),
        ([(0.501, 0.501, 0.502, 0.502)], 0, 0),
    ],
)
def test_usage_counts_overlap_but_not_shared_edges(raster, size_px, charts, coverage, overlap):
    usage = uv_usage(flat(*charts), raster, size_px=size_px)
    rounding = 0 if size_px == 32 else 1.5 / size_px
    assert usage.coverage == pytest.approx(coverage, abs=rounding)
    assert usage.overlap == pytest.approx(overlap, abs=rounding if 0 < overlap < 1 else 0)
