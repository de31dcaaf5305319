"""Scores of shapes whose truth is known: exact views are as good as it gets, and every harm costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from known import best_f_score, known, on_ball, on_block
from torch import Tensor
from traced import ball, block, trace, union

from crm_cli.frame import FRONT
from crm_cli.learn.evaluate import (
    NO_DEPTH,
    Chain,
    Score,
    by_family,
    compare_on,
    figures,
    summary,
    view_errors,
)
from crm_cli.learn.fit import F_SCORE_AT, Fit
from crm_cli.learn.unseen import Unseen, held, unseen
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models.field import Field
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.reconstruction import SMALL, Reconstruction
from crm_cli.preset import Override, load_preset
from crm_cli.records import SixViews
from crm_cli.toolbox import Toolbox, open_toolbox

PRESET = load_preset("tiny", [Override("reconstruction.grid", "64", "test")]).preset


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


def seen(views: SixViews, truth: Any) -> Unseen:
    """A subject of one shape from its six exact views and what is known of it."""
    rgba = torch.cat([views.rgb, views.alpha], dim=1)[FRONT]
    photo, cutout = held(((rgba * (rgba[3:] > 0)) * 255).round().byte().numpy(), 0)
    return Unseen(
        seed=0,
        family="shape",
        photo=photo,
        cutout=cutout,
        views=views,
        surface=truth.surface,
        surface_rgb=truth.surface_rgb,
        inside=truth.inside,
    )


BALL = seen(trace(ball(0.7), 64), known(on_ball(0.7), ball(0.7)))
SLAB = seen(trace(block(0.7, 0.1, 0.5), 64), known(on_block(0.7, 0.1, 0.5), block(0.7, 0.1, 0.5)))


@dataclass
class Moved:
    """Another field, somewhere else."""

    field: Field
    shift: tuple[float, float, float]

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.geometry(points - points.new_tensor(self.shift))

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        return None

    def colour(self, points: Tensor) -> Tensor:
        return self.field.colour(points)


@dataclass
class Nothing(Moved):
    """A field without a surface."""

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(len(points)), torch.zeros_like(points)


@dataclass
class Reconstructing:
    """Stands for the reconstruction network."""

    answer: Callable[[SixViews], Any]

    def field(self, views: SixViews, **_: Any) -> Any:
        return self.answer(views)


def hull() -> Reconstruction:
    """A fresh network: its residuals are zero, and what is left is the depth hull of the views."""
    return Reconstruction(SMALL).eval().requires_grad_(False)


def score(toolbox: Toolbox, one: Unseen, network: Any) -> Score:
    """Of the true views, reconstructed by a network."""
    tools = replace(toolbox, networks={**toolbox.networks, "reconstruction": network})
    [found] = compare_on(one, [Chain(tools, PRESET)], lambda subject: subject.views)
    return found


@pytest.mark.parametrize(("one", "area"), [(BALL, 4 * math.pi * 0.7**2), (SLAB, 3.76)], ids=["ball", "slab"])
def test_exact_views_of_a_convex_shape_become_a_finished_asset_that_fits(
    toolbox: Toolbox, one: Unseen, area: float
) -> None:
    found = score(toolbox, one, hull())
    assert (found.outline_iou, found.depth_l1, found.is_low) == (1, 0, False)
    assert found.silhouette_iou > 0.94
    assert found.made.f_score == pytest.approx(best_f_score(area), abs=0.01)
    assert found.made.chamfer < 0.015
    assert found.made.volume_iou > 0.93
    assert found.made.colour < 6  # views of 64 px, on a texture of 128


def test_a_surface_at_the_wrong_depth_is_told_from_right_views(toolbox: Toolbox) -> None:
    network = hull()
    moved = Reconstructing(lambda views: Moved(network.field(views), (0, 0.1, 0)))
    found = score(toolbox, SLAB, moved)
    assert (found.outline_iou, found.depth_l1) == (1, 0)
    assert found.made.chamfer > 0.06
    assert found.made.f_score < 0.4
    assert found.made.volume_iou == pytest.approx(1 / 3, abs=0.05)


def test_a_slab_beats_the_solids_that_its_outline_suggests_and_a_ball_is_one_of_them(
    toolbox: Toolbox,
) -> None:
    slab, round_one = (score(toolbox, one, hull()) for one in (SLAB, BALL))
    assert slab.made.f_score > max(slab.inflated.f_score, slab.revolved.f_score) + 0.3
    assert slab.made.volume_iou > max(slab.inflated.volume_iou, slab.revolved.volume_iou) + 0.3
    assert round_one.revolved.f_score == pytest.approx(round_one.made.f_score, abs=0.02)
    assert round_one.revolved.volume_iou > 0.95


def test_an_empty_field_scores_as_the_solid_that_a_user_gets(toolbox: Toolbox) -> None:
    found = score(toolbox, SLAB, Reconstructing(lambda views: Nothing(hull().field(views), (0, 0, 0))))
    assert found.is_low
    assert found.grade == "review"
    # Cleaning smooths it a little.
    assert found.made.f_score == pytest.approx(found.inflated.f_score, abs=0.05)
    assert found.made.chamfer == pytest.approx(found.inflated.chamfer, abs=0.01)


def test_an_outline_unlike_the_photos_is_of_low_confidence(toolbox: Toolbox) -> None:
    network = hull()
    found = score(toolbox, SLAB, Reconstructing(lambda views: Moved(network.field(views), (0.4, 0, 0))))
    assert found.is_low
    assert found.silhouette_iou > 0.9  # of the solid in its place


def test_imagined_views_are_measured_against_the_true_ones(toolbox: Toolbox) -> None:
    one = unseen(6, WarpRaster())
    chain = Chain(toolbox, load_preset("tiny").preset)
    [found] = compare_on(one, [chain])
    assert 0.4 < found.outline_iou < 1
    assert 0 < found.depth_l1 < 0.5
    assert found.silhouette_iou > 0.7
    assert 0 < found.made.f_score < 1
    assert compare_on(one, [chain, chain]) == [found, found]


def test_enlarged_views_are_compared_by_what_a_pixel_covers_of_the_object() -> None:
    """Views of four times the size with the same content have the same depth."""
    truth = trace(union(ball(0.5), block(0.7, 0.2, 0.2)), 64)
    truth = replace(truth, alpha=(truth.alpha * 255).round() / 255)
    large = SixViews(
        **{
            name: getattr(truth, name).repeat_interleave(4, -1).repeat_interleave(4, -2)
            for name in ("rgb", "ccm", "alpha")
        }
    )
    # A quarter of every pixel is background, whose maps hold no depth.
    large.alpha[..., ::4], large.ccm[..., ::4] = 0, 0.5
    outline_iou, depth_l1 = view_errors(large, truth)
    assert 0.9 < outline_iou < 1  # pixels that were covered by little more than half are lost
    assert depth_l1 < 1e-6


def test_outlines_that_share_nothing_have_no_depth_to_compare() -> None:
    empty = replace(BALL.views, alpha=torch.zeros_like(BALL.views.alpha))
    assert view_errors(empty, BALL.views) == (0, NO_DEPTH)


def made_up(family: str, value: float, *, seed: int = 0) -> Score:
    one = Fit(chamfer=value, f_score=value, volume_iou=value, colour=value)
    return Score(
        seed=seed,
        family=family,
        outline_iou=value,
        depth_l1=value,
        silhouette_iou=value,
        made=one,
        inflated=replace(one, f_score=value / 2),
        revolved=one,
        is_low=value < 0.2,
        grade="pass",
    )


def test_a_summary_holds_the_median_of_every_figure_and_the_share_of_low_confidence() -> None:
    told = summary([made_up("mug", value) for value in (0.9, 0.1, 0.123456)])
    assert told.pop("is_low") == pytest.approx(2 / 3, abs=1e-4)
    assert told.pop("inflated.f_score") == 0.0617
    assert len(told) == 3 + 3 * len(fields(Fit)) - 1
    assert set(told.values()) == {0.1235}


def test_figures_tell_ours_from_the_solids() -> None:
    told = figures(made_up("mug", 0.4))
    assert (told["f_score"], told["inflated.f_score"], told["revolved.f_score"]) == (0.4, 0.2, 0.4)


def test_families_come_apart_in_order_of_their_names() -> None:
    scores = [made_up("mug", 0.2), made_up("chair", 0.5), made_up("mug", 0.4)]
    assert list(by_family(scores).items()) == [("chair", scores[1:2]), ("mug", scores[::2])]


def test_a_score_survives_a_file() -> None:
    one = made_up("mug", 0.123456789)
    assert Score.from_json(json.loads(json.dumps(one.as_json()))) == one


def test_a_score_holds_plain_numbers_alone(toolbox: Toolbox) -> None:
    found = score(toolbox, SLAB, hull())
    assert Score.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_subjects_truth_lies_on_its_product() -> None:
    one = unseen(5, WarpRaster())
    again = unseen(5, WarpRaster())
    np.testing.assert_array_equal(one.surface, again.surface)
    # Every place is within half a pixel of the outlines of front and back, and at the depth of one of them
    # where it is seen: the views and the places are of one product in one pose.
    size_px = one.views.alpha.shape[-1]
    row, column = (((1 - one.surface[:, axis]) * size_px / 2).astype(int) for axis in (2, 0))
    depth = 2 * one.views.ccm[FRONT, 1].numpy() - 1
    covered = one.views.alpha[FRONT, 0].numpy() == 1
    whole = covered[row, column]
    assert whole.mean() > 0.8
    ahead = (one.surface[:, 1] - depth[row, column])[whole]
    assert np.quantile(ahead, 0.99) < F_SCORE_AT  # nothing lies before what the front sees
    assert (np.abs(ahead) < F_SCORE_AT).mean() > 0.2
    # What is inside projects into the outline.
    middle = one.inside.reshape((64,) * 3).any(axis=1).T[::-1, ::-1]  # [z x], as the front shows it
    assert (middle & (one.views.alpha[FRONT, 0].numpy() > 0.5)).sum() > 0.95 * middle.sum()
