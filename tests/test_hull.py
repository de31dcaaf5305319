"""The depth hull of exact views is the shape itself wherever six views can see it."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from traced import Shape, ball, block, coordinates, ring, trace, union

from crm_cli.frame import BACK, FRONT, TOP, VIEWS
from crm_cli.models import flexicubes
from crm_cli.models.hull import Hull, away_from_border, silhouette_distance
from crm_cli.records import SixViews

SHAPES = {
    "ball": ball(),
    "block": block(0.6, 0.4, 0.8),
    "ring": ring(),
    "chair": union(
        block(0.5, 0.5, 0.08),
        block(0.5, 0.07, 0.4, centre=(0, -0.43, 0.4)),
        *(block(0.07, 0.07, 0.4, centre=(x, y, -0.4)) for x in (-0.42, 0.42) for y in (-0.42, 0.42)),
    ),
}


@cache
def views_of(name: str, size: int) -> SixViews:
    return trace(SHAPES[name], size)


def overlap(hull: Hull, shape: Shape) -> float:
    # Random points: a regular grid would lie on the flat faces of boxes, where inside is a coin's toss.
    points = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, true = hull.sdf(points) < 0, shape(points) < 0
    return float((ours & true).sum() / (ours | true).sum())


def surface_points(shape: Shape, count: int = 2000) -> torch.Tensor:
    points = torch.rand(20 * count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    points.requires_grad_(True)
    for _ in range(6):
        sdf = shape(points)
        (slope,) = torch.autograd.grad(sdf.sum(), points)
        points = (points - sdf[:, None] * slope).detach().requires_grad_(True)
    return points.detach()[shape(points).abs() < 1e-3][:count]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("size", "least"), [(64, 0.88), (96, 0.92)])
def test_the_hull_of_exact_views_is_the_shape(name: str, size: int, least: float) -> None:
    assert overlap(Hull(views_of(name, size)), SHAPES[name]) > least


def test_the_hull_is_zero_on_the_surface_to_a_fraction_of_a_pixel() -> None:
    sdf = Hull(views_of("ball", 128)).sdf(surface_points(SHAPES["ball"]))
    pixel = 2 / 128
    assert float(sdf.abs().mean()) < 0.25 * pixel
    assert float(sdf.abs().quantile(0.99)) < pixel


def test_gaps_are_depths_in_front_of_each_view() -> None:
    gaps = Hull(trace(block(0.5, 0.5, 0.5), 64)).gaps(torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.9, 0.0]])).T
    # Inside: never less than the distance to the nearest silhouette, 0.2 from z = 0.5 in the side views.
    expected = torch.tensor([[-0.2, -0.2, -0.3, -0.2, -0.2, -0.2], [0.4, 0.4, 0.4, -0.5, 0.4, 0.4]])
    torch.testing.assert_close(gaps, expected, atol=2 / 64, rtol=0)


def test_a_silhouette_distance_is_exact_for_a_disc_with_soft_edges() -> None:
    u = (2 * np.arange(128) + 1) / 128 - 1
    distance = np.hypot(u, u[:, None]) - 0.6
    alpha = np.clip(0.5 - distance * 64, 0, 1).astype(np.float32)
    error = abs(silhouette_distance(alpha) - distance)
    assert error[abs(distance) < 0.2].max() < 0.3 * 2 / 128


def test_doubt_undoes_a_view_that_carves_the_object_away() -> None:
    shape, views = SHAPES["ball"], views_of("ball", 64)
    alpha = views.alpha.clone()
    alpha[TOP, :, :, 32:] = 0
    broken = Hull(dataclasses.replace(views, alpha=alpha))
    points = flexicubes.grid(24)
    inside = shape(points) < -0.1
    assert float((broken.sdf(points)[inside] < 0).float().mean()) < 0.6
    doubt = torch.zeros(6, 1)
    doubt[TOP] = 2.0
    assert bool((broken.sdf(points, doubt=doubt)[inside] < 0).all())


def test_an_empty_view_says_nothing_and_six_empty_views_say_empty() -> None:
    views = views_of("ball", 64)
    alpha = views.alpha.clone()
    alpha[BACK] = 0
    assert float(Hull(dataclasses.replace(views, alpha=alpha)).sdf(torch.zeros(1, 3))) < -0.3
    assert float(Hull(dataclasses.replace(views, alpha=0 * alpha)).sdf(torch.zeros(1, 3))) > 0


def test_map_pixels_mixed_with_the_background_do_not_carve() -> None:
    shape, views = SHAPES["block"], views_of("block", 128)
    ccm = views.ccm.clone()
    edge = silhouette_distance(views.alpha[FRONT, 0].numpy()) > -0.04
    ccm[FRONT, :, torch.from_numpy(edge)] = 0.5
    assert overlap(Hull(dataclasses.replace(views, ccm=ccm)), shape) > 0.97


@pytest.mark.parametrize("size", [64, 128])
def test_a_surface_point_gets_its_own_colour_back(size: int) -> None:
    for name in "ball", "block":
        points = surface_points(SHAPES[name])
        error = (Hull(views_of(name, size)).colour(points) - coordinates(points)).abs()
        assert float(error.mean()) < 0.7 / size
        assert float(error.quantile(0.99)) < 3 / size


def test_no_background_bleeds_over_the_silhouette() -> None:
    shape = ball()
    white = trace(shape, 128, colour=lambda p: torch.ones_like(p))
    # The rim of a photo is blended with what was behind it.
    rim = torch.nn.functional.avg_pool2d(white.alpha, 3, 1, 1)
    views = SixViews(rgb=white.rgb * rim, ccm=white.ccm, alpha=white.alpha)
    assert float(Hull(views).colour(surface_points(shape)).min()) > 0.98


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_colours_are_taken_away_from_the_border_or_where_all_is_border(size: int) -> None:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(size).normal(size=(size, size)), size / 60)
    mask = noise > np.quantile(noise, 0.6)
    mask[size // 2 - 1 : size // 2 + 1] = True  # a thread across the picture
    margin_px = round(size / 128 - 0.25)
    core = ndimage.binary_erosion(mask, iterations=margin_px, border_value=1) if margin_px else mask
    far = ndimage.distance_transform_edt(~core) > 1.5 * margin_px + 1
    assert core.any()
    assert (away_from_border(mask) == (core | (mask & far))).all()
    assert away_from_border(np.ones((size, size), np.bool_)).all(), "the picture's edge is no border"


def test_opposite_views_are_told_apart() -> None:
    front_red = trace(
        ball(), 64, colour=lambda p: torch.stack([p[:, 1] > 0, p[:, 1] < 0, 0 * p[:, 1]], 1).float()
    )
    colours = Hull(front_red).colour(torch.tensor([[0.0, 0.7, 0.0], [0.0, -0.7, 0.0]]))
    torch.testing.assert_close(colours, torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), atol=1e-3, rtol=0)
    assert VIEWS[FRONT].toward == (0, 1, 0)
