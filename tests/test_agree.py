"""Views of a ball, whose outline and depth are known exactly, damaged and mended again."""

from pathlib import PurePosixPath

import pytest
import torch
from torch.nn import functional

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, RIGHT, TOP, VIEWS
from crm_cli.models import agree
from crm_cli.records import Crop, Cutout, SixViews

SIZE = 64
RADIUS = 0.7


def ball_views(size_px: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    grid = agree.centres(size_px)
    squared = grid[:, None] ** 2 + grid[None, :] ** 2
    alpha = (squared < RADIUS**2).float().expand(6, 1, size_px, size_px).clone()
    depth = (RADIUS**2 - squared).clamp_min(0).sqrt().expand(6, size_px, size_px).clone()
    return alpha, depth


def cutout_of(alpha: torch.Tensor, rgb: torch.Tensor | None = None) -> Cutout:
    colour = torch.full((3, *alpha.shape[1:]), 0.25) if rgb is None else rgb
    return Cutout(
        rgb=colour * (alpha > 0),
        alpha=alpha,
        crop=Crop(centre_x=0, centre_y=0, side_px=1),
        photo=PurePosixPath("ball.png"),
        digest="0" * 64,
        matting="alpha",
    )


def hull_of(alpha: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Voxels that no view calls empty, [x y z]: six look-ups written out, independent of the module."""
    size = depth.shape[-1]
    axis = agree.centres(size)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1)
    inside = torch.ones(size, size, size, dtype=torch.bool)
    for index, view in enumerate(VIEWS):
        u = points @ torch.tensor(view.right, dtype=torch.float32)
        v = -(points @ torch.tensor(view.up, dtype=torch.float32))
        column, row = (((t + 1) / 2 * size - 0.5).round().long() for t in (u, v))
        near = points @ torch.tensor(view.toward, dtype=torch.float32)
        inside &= (alpha[index, 0][row, column] > 0.5) & (near <= depth[index][row, column] + 1e-6)
    return inside


def front_outline(voxels: torch.Tensor) -> torch.Tensor:
    """[row, column] of the front view: z falls down the rows, x falls along the columns."""
    return voxels.any(dim=1).flip(0, 1).T


def test_coordinate_maps_of_a_ball_lie_on_the_ball() -> None:
    alpha, depth = ball_views()
    maps = agree.maps_of(depth, alpha)
    world = maps * 2 - 1
    radius = world.square().sum(1).sqrt()
    assert torch.allclose(radius[alpha[:, 0] > 0.5], torch.tensor(RADIUS), atol=1e-5)
    assert torch.equal(maps[(alpha < 0.5).expand_as(maps)].unique(), torch.tensor([0.5]))


def test_depth_read_from_coordinate_maps_is_the_depth_they_were_made_of() -> None:
    alpha, depth = ball_views()
    inside = alpha[:, 0] > 0.5
    assert torch.allclose(agree.depth_of(agree.maps_of(depth, alpha))[inside], depth[inside], atol=1e-6)


def test_opposite_outlines_mirror_each_other_and_the_front_is_the_photo() -> None:
    torch.manual_seed(0)
    agreed = agree.agree_outlines(torch.rand(6, 1, SIZE, SIZE), (torch.rand(1, SIZE, SIZE) > 0.5).float())
    assert torch.equal(agreed[BACK], agreed[FRONT].flip(-1))
    assert torch.equal(agreed[RIGHT], agreed[LEFT].flip(-1))
    assert torch.equal(agreed[BOTTOM], agreed[TOP].flip(-2))


def test_side_views_show_nothing_at_heights_where_the_photo_shows_nothing() -> None:
    photo = torch.zeros(1, SIZE, SIZE)
    photo[:, 20:40, 10:30] = 1
    agreed = agree.agree_outlines(torch.ones(6, 1, SIZE, SIZE), photo)
    assert agreed[LEFT, 0].any(1).nonzero().flatten().tolist() == list(range(20, 40))
    assert agreed[TOP, 0].any(0).nonzero().flatten().tolist() == list(range(10, 30))


def test_outlines_of_many_objects_are_agreed_as_those_of_one() -> None:
    alpha, photo = torch.rand(3, 6, 1, SIZE, SIZE), (torch.rand(3, 1, SIZE, SIZE) > 0.5).float()
    together = agree.agree_outlines(alpha, photo)
    alone = [agree.agree_outlines(a, p) for a, p in zip(alpha, photo, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def test_views_that_agree_already_are_left_alone_where_they_matter() -> None:
    alpha, depth = ball_views()
    kept_alpha, kept_depth = agree.keep_photo(alpha, depth)
    before, after = hull_of(alpha, depth), hull_of(kept_alpha, kept_depth)
    assert (before & ~after).sum() == 0
    assert (
        after.sum() < before.sum() * 1.03
    )  # a wall is kept at the very rim, where the ball has no thickness


@pytest.mark.parametrize("broken", [LEFT, RIGHT, TOP, BOTTOM, BACK])
def test_a_view_that_lost_half_of_the_object_does_not_cut_it_off(broken: int) -> None:
    alpha, depth = ball_views()
    alpha[broken, :, : SIZE // 2] = 0
    damaged = front_outline(hull_of(alpha, depth))
    wanted = alpha[FRONT, 0] > 0.5
    if broken in (LEFT, RIGHT, BACK):  # top and bottom lose depth, not outline
        assert (damaged & wanted).sum() < 0.7 * wanted.sum()
    mended = front_outline(hull_of(*agree.keep_photo(alpha, depth)))
    assert torch.equal(mended, wanted)


def test_what_one_view_draws_faintly_becomes_solid() -> None:
    alpha, _ = ball_views()
    faint = alpha.clone()
    for view in (LEFT, RIGHT):
        faint[view, :, : SIZE // 2] *= 0.3
    far = torch.ones(6, SIZE, SIZE)
    wanted = alpha[FRONT, 0] > 0.5
    assert front_outline(hull_of(faint, far))[: SIZE // 2].sum() == 0
    assert torch.equal(front_outline(hull_of(agree.show_photo(faint), far)), wanted)


def test_a_faint_part_becomes_solid_where_it_is_likeliest_and_no_deeper_than_it_is_wide() -> None:
    alpha = torch.zeros(6, 1, SIZE, SIZE)
    alpha[[FRONT, BACK], 0, 10:54, 30:34] = 1  # a pole, four pixels wide
    alpha[[TOP, BOTTOM]] = 1
    grid = agree.centres(SIZE)
    likely = 0.3 * torch.exp(-(((grid - 0.25) / 0.3) ** 2))
    alpha[LEFT, 0, 10:54] = likely  # its columns grow with y
    alpha[RIGHT] = agree.mirror(alpha[LEFT], LEFT)
    shown = agree.show_photo(alpha)
    y = grid[shown[LEFT, 0, 32] > 0.5]
    assert y.mean().item() == pytest.approx(0.25, abs=2 / SIZE)
    assert 2 <= len(y) <= 8
    assert torch.equal(shown[RIGHT], shown[LEFT].flip(-1))


def test_outlines_that_hide_nothing_of_the_photo_are_left_alone() -> None:
    alpha, _ = ball_views()
    assert torch.equal(agree.show_photo(alpha), alpha)


def test_steps_of_voxels_vanish_from_depth_while_edges_stay() -> None:
    alpha, depth = ball_views()
    voxel = 2 / SIZE
    stepped = (depth / voxel).round() * voxel
    in_the_middle = (agree.centres(SIZE)[:, None] ** 2 + agree.centres(SIZE) ** 2) < (0.7 * RADIUS) ** 2
    steady = agree.steady(stepped, alpha)
    before, after = ((d - depth).abs()[:, in_the_middle].mean() for d in (stepped, steady))
    assert after < 0.6 * before
    cliff = torch.where(agree.centres(SIZE) > 0, 0.5, 0.0).expand(6, SIZE, SIZE)
    assert torch.allclose(agree.steady(cliff, alpha), cliff, atol=1e-6)


def test_a_wall_that_is_put_back_is_thin() -> None:
    alpha, depth = ball_views()
    alpha[LEFT, :, : SIZE // 2] = 0
    put_back = hull_of(*agree.keep_photo(alpha, depth)) & ~hull_of(alpha, depth)
    thickness = put_back.sum(1)[:, 40:]  # well above the middle, where nothing was left
    assert 1 <= thickness[thickness > 0].float().median() <= 5


def test_front_and_back_depth_that_cross_leave_a_wall_instead_of_a_hole() -> None:
    alpha, depth = ball_views()
    depth[FRONT] = -0.2
    depth[BACK] = -0.2
    assert not hull_of(alpha, depth).any()
    mended = front_outline(hull_of(*agree.keep_photo(alpha, depth)))
    assert torch.equal(mended, alpha[FRONT, 0] > 0.5)


def test_spreading_keeps_the_object_and_leaves_no_background() -> None:
    alpha, _ = ball_views()
    colour = torch.where(alpha > 0.5, torch.tensor(0.9), torch.tensor(-7.0)).expand(6, 3, SIZE, SIZE)
    assert torch.allclose(agree.spread(colour, alpha > 0.5), torch.tensor(0.9), atol=1e-5)


def test_spreading_gives_the_same_wherever_it_is_wanted() -> None:
    alpha, _ = ball_views()
    solid, near = alpha > 0.5, functional.max_pool2d(alpha, 9, stride=1, padding=4) > 0
    colour = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    everywhere, here = agree.spread(colour, solid), agree.spread(colour, solid, wanted=near)
    assert torch.equal(here[near.expand_as(here)], everywhere[near.expand_as(here)])
    assert not here[:, :, 0, 0].any()
    assert everywhere[:, :, 0, 0].all()


def test_a_surface_beyond_an_outline_is_painted_in_the_objects_colour() -> None:
    alpha, depth = ball_views()
    rgb = torch.where(alpha > 0.5, torch.tensor(0.9), torch.tensor(0.1)).expand(6, 3, SIZE, SIZE)
    wider = functional.max_pool2d(alpha, 5, stride=1, padding=2)
    seen = agree.seen_on(SixViews(rgb=rgb, ccm=agree.maps_of(depth, alpha), alpha=alpha), depth, wider)
    is_wider = (wider > 0.5).expand_as(rgb)
    assert is_wider.sum() > 1.05 * (alpha > 0.5).expand_as(rgb).sum()
    assert torch.allclose(seen.rgb[is_wider], torch.tensor(0.9), atol=1e-5)
    assert torch.equal(seen.ccm, agree.maps_of(depth, wider))


def test_lifted_views_carry_the_photo_in_front_and_their_maps_lie_on_the_ball() -> None:
    alpha, depth = ball_views()
    photo_alpha, _ = ball_views(256)
    stripes = torch.linspace(0, 1, 256).expand(3, 256, 256)
    cutout = cutout_of(photo_alpha[FRONT], stripes)
    views = agree.lift(torch.full((6, 3, SIZE, SIZE), 0.5), alpha, depth, cutout, size_px=256, use_photo=True)
    inside = photo_alpha[FRONT, 0] > 0.5
    assert torch.allclose(views.rgb[FRONT][:, inside], stripes[:, inside], atol=1e-5)
    assert torch.equal(views.alpha[BACK], views.alpha[FRONT].flip(-1))
    well_inside = inside & (agree.centres(256)[:, None] ** 2 + agree.centres(256) ** 2 < (0.8 * RADIUS) ** 2)
    radius = (views.ccm * 2 - 1).square().sum(1).sqrt()[:, well_inside]
    assert (radius - RADIUS).abs().max() < 0.01


def test_a_cutout_is_scaled_without_dark_fringes() -> None:
    alpha = torch.zeros(1, 256, 256)
    alpha[:, 50:201, 50:201] = 1
    placed = agree.place_photo(cutout_of(alpha), SIZE)
    assert torch.allclose(placed[:3][:, placed[3] > 0], torch.tensor(0.25), atol=1e-4)
    assert (placed[:3][:, placed[3] == 0] == 0).all()


def test_the_hull_of_outlines_is_as_deep_as_carving_voxel_by_voxel() -> None:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(6, 1, 4, 4, generator=generator) + 0.25
    alpha = torch.nn.functional.interpolate(blobs, size=(16, 16), mode="bilinear")
    voxels = hull_of(alpha, torch.ones(6, 16, 16))
    depth = agree.hull_depth(alpha[None])[0]
    axis = agree.centres(16)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    assert 50 < voxels.sum() < 3000
    for index, view in enumerate(VIEWS):
        u, v, near = (
            (a[0] * x + a[1] * y + a[2] * z)[voxels] for a in (view.right, [-c for c in view.up], view.toward)
        )
        column, row = (((t + 1) * 8 - 0.5).round().long() for t in (u, v))
        wanted = torch.full((256,), -1.0).scatter_reduce(0, row * 16 + column, near, "amax").view(16, 16)
        assert torch.allclose(depth[index], wanted, atol=1e-6), view.name


def test_the_hull_of_a_ball_is_nowhere_behind_the_ball() -> None:
    alpha, depth = ball_views()
    hull = agree.hull_depth(alpha[None])[0]
    inside = alpha[:, 0] > 0.5
    assert (hull - depth)[inside].min() > -1.5 / SIZE * 2
    assert (hull[~inside] == -1).all()
