"""The shapes that need no network fill the photo's silhouette and are always closed."""

import math
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from torch import Tensor

from crm_cli.models.field import Field, surface
from crm_cli.models.solids import MAX_HALF_DEPTH, fallback_solid, inflated, is_turned, revolved
from crm_cli.records import Crop, Cutout, Mesh

SIZE = 128


def cut_out(inside: Callable[[Tensor, Tensor], Tensor]) -> Cutout:
    """A silhouette given as a function of column u and row v; red to the left, green below."""
    u = (2 * torch.arange(4 * SIZE) + 1) / (4 * SIZE) - 1
    fine = inside(u.expand(4 * SIZE, -1), u[:, None].expand(-1, 4 * SIZE)).float()
    alpha = torch.nn.functional.avg_pool2d(fine[None], 4)
    share = (torch.arange(SIZE) + 0.5) / SIZE
    rgb = torch.stack((1 - share.expand(SIZE, -1), share[:, None].expand(-1, SIZE), torch.zeros(SIZE, SIZE)))
    return Cutout(
        rgb=rgb * (alpha > 0),
        alpha=alpha,
        crop=Crop(centre_x=0, centre_y=0, side_px=SIZE),
        photo=PurePosixPath("thing.png"),
        digest="",
        matting="alpha",
    )


def disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) < 0.8


def bottle(u: Tensor, v: Tensor) -> Tensor:
    return ((u - 0.1).abs() < torch.where(v < -0.3, 0.15, 0.4)) & (v.abs() < 0.9)


def chair(u: Tensor, v: Tensor) -> Tensor:
    seat = (u.abs() < 0.5) & (v.abs() < 0.1)
    legs = ((u.abs() - 0.42).abs() < 0.06) & (v > 0) & (v < 0.9)
    back = (u.abs() < 0.5) & (v > -0.9) & (v < 0)
    return seat | legs | back


def mug(u: Tensor, v: Tensor) -> Tensor:
    handle = ((torch.hypot(u - 0.3, v) - 0.35).abs() < 0.07) & (u > 0.3)
    return ((u + 0.2).abs() < 0.5) & (v.abs() < 0.7) | handle


def carton(u: Tensor, v: Tensor) -> Tensor:
    return (u.abs() < 0.5) & (v.abs() < 0.8)


OUTLINES = {"disc": disc, "bottle": bottle, "chair": chair, "mug": mug, "carton": carton}


def is_closed(mesh: Mesh) -> bool:
    ahead = np.concatenate([mesh.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    return sorted(map(tuple, ahead)) == sorted(map(tuple, ahead[:, ::-1])) and len(
        np.unique(ahead, axis=0)
    ) == len(ahead)


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def front_overlap(field: Field, cutout: Cutout) -> float:
    """IoU of the field's front silhouette, seen along many lines of sight, with the cut-out."""
    u = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    y = torch.linspace(-1, 1, 101)
    z, x, along = torch.meshgrid(-u, -u, y, indexing="ij")
    points = torch.stack((x, along, z), -1).view(-1, 3)
    seen = (field.geometry(points)[0] < 0).view(SIZE, SIZE, -1).any(-1)
    wanted = cutout.alpha[0] > 0.5
    return float((seen & wanted).sum() / (seen | wanted).sum())


@pytest.mark.parametrize("name", OUTLINES)
def test_the_front_silhouette_is_the_photos(name: str) -> None:
    cutout = cut_out(OUTLINES[name])
    assert front_overlap(fallback_solid(cutout), cutout) > 0.97


@pytest.mark.parametrize("name", OUTLINES)
def test_a_solid_is_closed_and_stays_inside_the_world(name: str) -> None:
    mesh = surface(fallback_solid(cut_out(OUTLINES[name])), 64)
    assert is_closed(mesh)
    assert volume(mesh) > 0
    assert abs(mesh.vertices).max() < 1


def test_only_upright_symmetric_outlines_without_gaps_are_turned() -> None:
    assert {name for name, inside in OUTLINES.items() if is_turned(cut_out(inside))} == {"disc", "bottle"}


def test_a_turned_disc_is_a_ball() -> None:
    mesh = surface(revolved(cut_out(disc)), 48)
    assert abs(np.linalg.norm(mesh.vertices, axis=1) - 0.8).max() < 0.02
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)


def test_a_turned_shape_stands_on_its_own_axis() -> None:
    field = revolved(cut_out(bottle))
    # The bottle's axis lies at u = 0.1, so at x = -0.1; its body is 0.4 wide and as deep.
    inside = torch.tensor([[-0.1, 0.38, -0.5], [-0.1, -0.38, -0.5], [-0.48, 0, -0.5], [-0.1, 0.13, 0.6]])
    outside = torch.tensor([[-0.1, 0.42, -0.5], [-0.52, 0, -0.5], [0.35, 0, -0.5], [-0.1, 0.17, 0.6]])
    assert bool((field.geometry(inside)[0] < 0).all())
    assert bool((field.geometry(outside)[0] > 0).all())


def test_a_cushion_is_thick_where_it_is_wide_and_never_thicker_than_its_cap() -> None:
    field = inflated(cut_out(chair))

    def half_depth(x: float, z: float) -> float:
        y = torch.linspace(0, 1, 1001)
        sdf, _ = field.geometry(torch.stack((torch.full_like(y, x), y, torch.full_like(y, z)), 1))
        return float((sdf < 0).sum()) / 1000

    back, leg = half_depth(0, 0.4), half_depth(0.42, -0.5)
    # A long strip 0.12 wide has the half-depth √(3 / 2) · 0.06.
    assert leg == pytest.approx(math.sqrt(1.5) * 0.06, rel=0.2)
    assert 3 * leg < back < MAX_HALF_DEPTH
    assert half_depth(0, -0.5) == 0, "nothing hangs between the legs"


def test_a_solid_wears_the_photo_in_front_and_its_mirror_image_behind() -> None:
    field = inflated(cut_out(disc))
    colours = field.colour(torch.tensor([[0.5, 0.3, 0.25], [0.5, -0.3, 0.25]]))
    # x = 0.5 is u = -0.5, a quarter from the left edge; z = 0.25 is 0.375 from the top.
    expected = torch.tensor([0.75, 0.375, 0]).expand(2, 3)
    torch.testing.assert_close(colours, expected, atol=0.01, rtol=0)


def test_the_rim_takes_the_edges_colour_and_no_background() -> None:
    cutout = cut_out(disc)
    rim = fallback_solid(cutout).colour(torch.tensor([[0.81, 0.0, 0.0], [-0.81, 0.0, 0.0]]))
    torch.testing.assert_close(rim[:, 0], torch.tensor([0.9, 0.1]), atol=0.02, rtol=0)
