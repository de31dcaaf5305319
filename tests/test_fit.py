"""Figures of surfaces whose truth is known: the right one is as good as it gets, and every harm costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from known import Known, best_f_score, known, on_ball, on_block
from numpy.typing import NDArray
from traced import ball, block, coordinates, union

from crm_cli.learn import fit as module
from crm_cli.learn.fit import CELLS, Fit, Places, Spots, fit, fit_asset, fit_solid, occupied, spread
from crm_cli.learn.shapes import box, ellipsoid
from crm_cli.learn.solid import Solid
from crm_cli.mesh.bake import bake
from crm_cli.mesh.likeness import ciede2000, to_lab
from crm_cli.mesh.raster import WarpRaster
from crm_cli.mesh.unwrap import unwrap
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.records import Mesh, TexturedMesh

SLAB = 0.7, 0.1, 0.5
TRUE_SLAB = known(on_block(*SLAB), block(*SLAB))


def slab(shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    shape = box(tuple(2 * half for half in SLAB)).moved(shift)
    return Mesh(vertices=shape.vertices.astype(np.float32), faces=shape.faces)


def true_colours(_: Spots, places: Places) -> NDArray[np.float64]:
    return coordinates(torch.from_numpy(places)).double().numpy()


def test_the_true_surface_scores_as_well_as_places_allow() -> None:
    found = fit(slab(), TRUE_SLAB, true_colours)
    assert found.f_score == pytest.approx(best_f_score(3.76), abs=1e-3)
    assert found.chamfer < 0.01
    assert found.volume_iou > 0.98
    assert found.colour < 1


def test_a_large_thin_surface_can_score_well_too() -> None:
    """Nine boards, a shelf: a surface of 11."""
    heights = np.linspace(-0.6, 0.6, 9)
    boards = [box((1.2, 1.0, 0.03)).moved((0, 0, z)) for z in heights]
    starts = np.arange(9) * len(boards[0].vertices)
    mesh = Mesh(
        vertices=np.concatenate([b.vertices for b in boards]).astype(np.float32),
        faces=np.concatenate([b.faces + start for b, start in zip(boards, starts, strict=True)]),
    )
    shape = union(*[block(0.6, 0.5, 0.015, (0, 0, float(z))) for z in heights])
    places = torch.from_numpy(spread(mesh.vertices, mesh.faces, module.POINTS)[::-1].copy())
    moved = places + 1e-3 * torch.randn(places.shape, generator=torch.Generator().manual_seed(1))
    assert fit(mesh, known(moved, shape), true_colours).f_score > 0.98


def test_a_shift_costs_chamfer_its_own_length_and_then_all_of_the_f_score() -> None:
    found = {shift: fit(slab((0, shift, 0)), TRUE_SLAB, true_colours) for shift in (0.0, 0.02, 0.06, 0.1)}
    # Almost all of the slab's surface looks along y: every point moves away from its partner.
    assert found[0.1].chamfer - found[0.0].chamfer == pytest.approx(0.08, abs=0.02)
    assert found[0.0].f_score >= found[0.02].f_score > found[0.06].f_score + 0.5
    assert found[0.06].f_score > found[0.1].f_score
    # Half of its thickness off, a third of the union is shared.
    assert found[0.1].volume_iou == pytest.approx(1 / 3, abs=0.04)


def test_what_is_missing_and_what_is_invented_both_cost() -> None:
    half = box((0.7, 0.2, 1.0)).moved((0.35, 0, 0))
    missing = fit(Mesh(vertices=half.vertices.astype(np.float32), faces=half.faces), TRUE_SLAB, true_colours)
    wide = box((1.4, 0.2, 1.9))
    invented = fit(Mesh(vertices=wide.vertices.astype(np.float32), faces=wide.faces), TRUE_SLAB, true_colours)
    for found in (missing, invented):
        assert 0.5 < found.f_score < 0.75
        assert found.volume_iou == pytest.approx(0.5, abs=0.04)


def test_colours_are_compared_where_the_true_surface_is() -> None:
    red, blue = np.array([[0.8, 0.1, 0.1]]), np.array([[0.1, 0.1, 0.8]])
    truth = replace(TRUE_SLAB, surface_rgb=np.repeat(red, module.POINTS, axis=0))
    far = float(ciede2000(to_lab(red), to_lab(blue))[0])

    def half_blue(_: Spots, places: Places) -> NDArray[np.float64]:
        return np.where(places[:, :1] > 0, blue, red)

    assert fit(slab(), truth, half_blue).colour == pytest.approx(far / 2, rel=0.03)


def test_an_assets_colours_are_read_where_its_texture_has_them() -> None:
    unwrapped = unwrap(slab(), method="box", size_px=256, padding_px=2)
    textured = bake(unwrapped, coordinates, WarpRaster(), size_px=256, device="cpu")
    right = fit_asset(textured, TRUE_SLAB)
    assert right.colour < 1.5
    flipped = TexturedMesh(unwrapped=unwrapped, texture=textured.texture[::-1].copy())
    assert fit_asset(flipped, TRUE_SLAB).colour > right.colour + 5
    assert replace(right, colour=0) == replace(fit(slab(), TRUE_SLAB, true_colours), colour=0)


class Ball:
    """A field that is a grey ball."""

    def geometry(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ball(0.7)(points), torch.zeros_like(points)

    def cube_weights(self, corners: torch.Tensor) -> CubeWeights | None:
        return None

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return coordinates(points)


def test_a_solid_is_measured_as_its_field_has_it() -> None:
    found = fit_solid(Ball(), known(on_ball(0.7), ball(0.7)))
    assert found.f_score == pytest.approx(best_f_score(4 * np.pi * 0.49), abs=1e-3)
    assert found.chamfer < 0.015
    assert found.volume_iou > 0.97
    assert found.colour < 1


def test_what_a_solid_encloses_is_asked_at_the_middle_of_cells() -> None:
    shape = ellipsoid((0.5, 0.5, 0.5), sides=96, rings=48)
    filled = occupied(Solid(shape.vertices.astype(np.float32), shape.faces, np.zeros(len(shape.faces), int)))
    assert filled.sum() * (2 / CELLS) ** 3 == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.01)
    grid = filled.reshape((CELLS,) * 3)
    for axis in range(3):
        np.testing.assert_array_equal(grid, np.flip(grid, axis))


def test_points_are_spread_evenly_over_large_and_small_triangles() -> None:
    corners = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.6, 0], [0, 0, 0.5], [0.2, 0, 0.5], [0, 0.2, 0.5]])
    points = spread(corners, np.arange(6).reshape(2, 3), 4096)
    large = points[:, 2] < 0.25
    assert large.mean() == pytest.approx(0.9, abs=0.02)
    np.testing.assert_allclose(points[large].mean(0), (0.2, 0.2, 0), atol=0.01)


def test_surfaces_that_share_nothing_score_nothing() -> None:
    far = Known(
        surface=(on_ball(0.05) + 0.9).numpy(),
        surface_rgb=np.zeros((module.POINTS, 3)),
        inside=np.zeros(CELLS**3, bool),
    )
    found = fit(slab(), far, true_colours)
    assert isinstance(found, Fit)
    assert (found.f_score, found.volume_iou) == (0, 0)
