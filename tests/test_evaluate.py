"""Scores of shapes whose truth is known: exact views are as good as it gets, and every harm costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from traced import ball, block, trace, union

from crm_cli.frame import FRONT
from crm_cli.learn import evaluate as module
from crm_cli.learn.evaluate import F_SCORE_AT, Score, by_family, evaluate, summary
from crm_cli.learn.examples import ARRAYS, make_example
from crm_cli.learn.train import Batch
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import agree
from crm_cli.models.field import Field
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.reconstruction import SMALL, Reconstruction
from crm_cli.preset import load_preset
from crm_cli.records import Mesh, SixViews
from crm_cli.toolbox import Toolbox, open_toolbox

PRESET = load_preset("tiny").preset


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


@pytest.fixture(scope="module")
def products() -> list[tuple[str, Batch]]:
    """Three rendered training examples as the evaluation gets them."""
    batches = []
    for seed in (0, 1, 2):
        example = make_example(np.random.default_rng(seed), WarpRaster(), size_px=64)
        arrays = {name: torch.from_numpy(np.asarray(getattr(example, name))[None]) for name in ARRAYS}
        batches.append((example.family, arrays))
    return batches


def exact(views: SixViews, surface: Tensor) -> list[tuple[str, Batch]]:
    """An example of one shape from its six exact views and points on its surface."""
    rgba = torch.cat([views.rgb, views.alpha], dim=1)
    rgba = (rgba * (views.alpha > 0) * 255).round().byte()
    depth = agree.depth_of(views.ccm) * (views.alpha[:, 0] > agree.SOLID)
    batch = {"photo": rgba[None, FRONT], "views": rgba[None], "depth": depth[None], "surface": surface[None]}
    return [("shape", batch)]


def on_ball(radius: float) -> Tensor:
    directions = torch.randn(2048, 3, generator=torch.Generator().manual_seed(0))
    return radius * directions / directions.norm(dim=1, keepdim=True)


def on_block(x: float, y: float, z: float) -> Tensor:
    """Points on a block's six sides, as many on each as its area asks for."""
    random = torch.Generator().manual_seed(0)
    half = torch.tensor((x, y, z))
    side = torch.multinomial(torch.tensor((y * z, x * z, x * y)), 2048, replacement=True, generator=random)
    points = (torch.rand(2048, 3, generator=random) * 2 - 1) * half
    sign = torch.randint(0, 2, (2048,), generator=random) * 2.0 - 1
    points[torch.arange(2048), side] = sign * half[side]
    return points


BALL = exact(trace(ball(0.7), 64), on_ball(0.7))
SLAB = exact(trace(block(0.7, 0.1, 0.5), 64), on_block(0.7, 0.1, 0.5))


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
class Reconstructing:
    """Stands for the reconstruction network."""

    answer: Callable[[SixViews], Any]

    def field(self, views: SixViews) -> Any:
        return self.answer(views)


def hull() -> Reconstruction:
    """A fresh network: its residuals are zero, and what is left is the depth hull of the views."""
    return Reconstruction(SMALL).eval().requires_grad_(False)


def with_reconstruction(toolbox: Toolbox, network: Any) -> Toolbox:
    return replace(toolbox, networks={**toolbox.networks, "reconstruction": network})


def score(toolbox: Toolbox, batches: list[tuple[str, Batch]], network: Any) -> list[Score]:
    return list(evaluate(with_reconstruction(toolbox, network), PRESET, batches, use_true_views=True))


def best_f_score(area: float) -> float:
    """What a perfect surface scores: a random point near each of 4096 and 2048 is a matter of chance."""
    precision, recall = (1 - math.exp(-math.pi * F_SCORE_AT**2 * points / area) for points in (2048, 4096))
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("batches", "area"), [(BALL, 4 * math.pi * 0.7**2), (SLAB, 3.76)], ids=["ball", "slab"]
)
def test_exact_views_of_a_convex_shape_score_as_well_as_points_allow(
    toolbox: Toolbox, batches: list[tuple[str, Batch]], area: float
) -> None:
    [result] = score(toolbox, batches, hull())
    assert (result.outline_iou, result.depth_l1) == (1, 0)
    assert result.silhouette_iou > 0.94
    assert result.f_score == pytest.approx(best_f_score(area), abs=0.03)
    assert result.chamfer < 0.025


def test_a_shift_costs_chamfer_its_own_length_and_then_all_of_the_f_score(toolbox: Toolbox) -> None:
    network = hull()
    at: dict[float, Score] = {}
    for shift in (0.0, 0.02, 0.1, 0.3):
        [at[shift]] = score(
            toolbox, SLAB, Reconstructing(lambda v, s=shift: Moved(network.field(v), (0, s, 0)))
        )
    assert at[0].f_score >= at[0.02].f_score > at[0.1].f_score > at[0.3].f_score
    # Almost all of the slab's surface looks along y: every point moves away from its partner.
    assert at[0.1].chamfer > 0.06
    assert at[0.3].f_score < 0.15
    assert at[0.1].outline_iou == 1  # the views themselves are right


def test_a_slab_beats_the_solid_that_its_outline_alone_suggests_and_a_ball_is_that_solid(
    toolbox: Toolbox,
) -> None:
    [slab], [round_one] = (score(toolbox, batches, hull()) for batches in (SLAB, BALL))
    assert slab.f_score > slab.baseline_f_score + 0.2
    assert slab.chamfer < slab.baseline_chamfer / 2
    assert round_one.f_score == pytest.approx(round_one.baseline_f_score, abs=0.02)


def test_rendered_products_with_their_true_views_beat_a_shifted_surface(
    toolbox: Toolbox, products: list[tuple[str, Batch]]
) -> None:
    network = hull()
    right = score(toolbox, products, network)
    wrong = score(toolbox, products, Reconstructing(lambda views: Moved(network.field(views), (0.1, 0, 0))))
    for (family, _), good, bad in zip(products, right, wrong, strict=True):
        assert good.family == bad.family == family
        assert (good.outline_iou, good.depth_l1) == (1, 0)
        assert good.f_score > 0.7
        assert good.f_score > bad.f_score + 0.1
        assert good.chamfer < bad.chamfer


def test_imagined_views_are_measured_against_the_true_ones(
    toolbox: Toolbox, products: list[tuple[str, Batch]]
) -> None:
    results = list(evaluate(toolbox, PRESET, products))
    for result in results:
        assert 0.4 < result.outline_iou < 1
        assert 0 < result.depth_l1 < 0.5
        assert 0.7 < result.silhouette_iou <= 1
    assert list(evaluate(toolbox, PRESET, products)) == results


def test_enlarged_views_are_compared_by_what_a_pixel_covers_of_the_object(
    toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(module, "Imagine", lambda *_: lambda cutouts: [large])
    [result] = evaluate(with_reconstruction(toolbox, hull()), PRESET, exact(truth, on_block(0.7, 0.2, 0.2)))
    assert 0.9 < result.outline_iou < 1  # pixels that were covered by little more than half are lost
    assert result.depth_l1 < 1e-6


def test_points_are_spread_evenly_over_large_and_small_triangles(
    toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.6, 0], [0, 0, 0.5], [0.2, 0, 0.5], [0, 0.2, 0.5]])
    mesh = Mesh(vertices=corners.astype(np.float32), faces=np.arange(6).reshape(2, 3))
    monkeypatch.setattr(module, "surface", lambda *_, **__: mesh)
    points = module._surface_points(hull().field(trace(ball(), 16)), toolbox)[1]
    large = points[:, 2] < 0.25
    assert large.mean() == pytest.approx(0.9, abs=0.02)
    np.testing.assert_allclose(points[large].mean(0), (0.2, 0.2, 0), atol=0.01)


def test_an_empty_field_scores_as_the_solid_that_the_pipeline_would_take(toolbox: Toolbox) -> None:
    @dataclass
    class Nothing(Moved):
        def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones(len(points)), torch.zeros_like(points)

    network = hull()
    [result] = score(toolbox, SLAB, Reconstructing(lambda views: Nothing(network.field(views), (0, 0, 0))))
    assert (result.f_score, result.chamfer) == (result.baseline_f_score, result.baseline_chamfer)


def made_up(family: str, value: float) -> Score:
    return Score(family=family, **{f.name: value for f in fields(Score) if f.name != "family"})


def test_a_summary_holds_the_median_of_every_figure() -> None:
    told = summary([made_up("mug", value) for value in (0.9, 0.1, 0.123456)])
    assert told == {f.name: 0.1235 for f in fields(Score) if f.name != "family"}


def test_families_are_summed_up_on_their_own_in_order_of_their_names() -> None:
    scores = [made_up("mug", 0.2), made_up("chair", 0.5), made_up("mug", 0.4)]
    told = by_family(scores)
    assert list(told) == ["chair", "mug"]
    assert told["chair"] == summary(scores[1:2])
    assert told["mug"]["f_score"] == pytest.approx(0.3)
