"""Ablations differ from what they are compared with in what they say, and in nothing else."""

from __future__ import annotations

import argparse
import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import ablation_table
import ablations
import numpy as np
import pytest
import torch
from ablation_table import BEGIN, END, difference, filled
from PIL import Image
from torch import Tensor, nn

from crm_cli.frame import VIEWS
from crm_cli.learn import ablations as module
from crm_cli.learn.ablations import (
    COMPARED,
    PLAIN,
    STABILITY,
    VARIANTS,
    AblationTask,
    Variant,
    outlines_alone,
    without_maps,
)
from crm_cli.learn.data import Shards, write_shard
from crm_cli.learn.examples import draw_posed, make_example
from crm_cli.learn.solid import Solid
from crm_cli.learn.tasks import records_of
from crm_cli.learn.transformer import PlaneTransformer, TransformerConfig
from crm_cli.learn.turned import TurnedShards, draw_turn, in_world, retake, retake_all
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import agree
from crm_cli.models.reconstruction import Reconstruction, network_input
from crm_cli.preset import load_preset, presets_folder
from crm_cli.records import Mesh, SixViews

COUNT = 4
SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few products in small pictures: to learn from, held out, and both once more by turned cameras."""
    folder = tmp_path_factory.mktemp("data")
    for name, first in (("train", 0), ("held-out", ablations.HELD_OUT)):
        (folder / name).mkdir()
        file = folder / name / f"{first:07d}.npz"
        write_shard(file, range(first, first + COUNT), WarpRaster(), SIZE)
        list(retake_all(folder / f"turned-{name}", COUNT, first_seed=first, size_px=SIZE))
    return folder


def examples(data: Path, variant: Variant) -> Shards | TurnedShards:
    return ablations.examples(data, "train", COUNT, is_turned=variant.is_turned)


def parameters(task: AblationTask) -> dict[str, Tensor]:
    return dict(task.network.named_parameters())


compared = pytest.mark.parametrize("variant", COMPARED, ids=lambda variant: variant.name)


def test_every_name_is_of_one_variant_and_compared_with_a_measure() -> None:
    assert len(VARIANTS) == len(COMPARED) + len(STABILITY)
    for variant in VARIANTS.values():
        assert ablation_table.measure_of(variant) in ("unet", "hull")


@compared
def test_a_variant_differs_from_its_measure_in_one_thing(variant: Variant) -> None:
    measure = VARIANTS[variant.against]
    told = {"name", "against", "changes", "claim"}
    # Turned cameras need their examples, their look at them and a network that reads three coordinates.
    one_thing = {"no-ccm": 1, "transformer": 1, "turned-views": 3, "turned-transformer": 1, "hull-no-ccm": 1}
    differing = [
        f.name
        for f in fields(Variant)
        if f.name not in told and getattr(variant, f.name) != getattr(measure, f.name)
    ]
    assert len(differing) == one_thing.get(variant.name, 0), differing
    assert variant.settings(seed=3) == measure.settings(seed=3)


@compared
def test_a_variant_begins_with_the_parameters_of_its_measure(variant: Variant) -> None:
    mine, theirs = (parameters(AblationTask(one, seed=5)) for one in (variant, VARIANTS[variant.against]))
    if "transformer" in variant.name:
        sizes = [sum(p.numel() for k, p in some.items() if k.startswith("unet2")) for some in (mine, theirs)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.2)
    else:
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@compared
def test_a_variant_learns_from_one_batch(variant: Variant, data: Path) -> None:
    task = AblationTask(variant, seed=0)
    batch = examples(data, variant).batch(np.arange(2))
    optimiser = torch.optim.Adam(task.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss, terms = task.loss(batch, torch.Generator().manual_seed(1))
        assert math.isfinite(loss.item()) and terms.keys() == {"distance", "occupancy", "colour"}
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_one_place_in_so_many_is_learnt_from(data: Path) -> None:
    task = AblationTask(VARIANTS["unet"], seed=0)
    batch = dict(examples(data, task.variant).batch(np.arange(1)))

    def loss(moved: slice) -> float:
        spoilt = batch["sdf"].clone()
        spoilt[:, moved] = -spoilt[:, moved]
        with torch.no_grad():
            return task.loss({**batch, "sdf": spoilt}, torch.Generator().manual_seed(0))[0].item()

    plain = loss(slice(0))
    assert loss(slice(1, None, module.EVERY)) == plain != loss(slice(0, None, module.EVERY))


@compared
def test_a_network_reads_what_its_variant_leaves_it_and_nothing_else(variant: Variant, data: Path) -> None:
    """Depth changes the answer exactly where coordinate maps are read."""
    task = AblationTask(variant, seed=0)
    with torch.no_grad():
        for head in (task.network.sdfMlp, task.network.rgbMlp):
            nn.init.normal_(head.fc3.weight, std=0.1)
    batch = dict(examples(data, variant).batch(np.arange(1)))
    other = {**batch, "depth": batch["depth"] - 0.2 * (batch["depth"] != 0)}
    points = torch.rand(256, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.7
    with torch.no_grad():
        answers = [task.network.field(task.exact(one)[0]).geometry(points)[0] for one in (batch, other)]
    assert torch.equal(*answers) is (variant.name in ("no-ccm", "hull-no-ccm"))


def test_exact_views_are_those_of_the_example(data: Path) -> None:
    task = AblationTask(VARIANTS["unet"], seed=0)
    batch = examples(data, task.variant).batch(np.arange(1))
    [views] = task.exact(batch)
    solid = views.alpha[:, 0] > agree.SOLID
    assert torch.allclose(agree.depth_of(views.ccm)[solid], batch["depth"][0][solid], atol=1e-5)


def test_untrained_weights_of_the_grid_are_neutral(data: Path) -> None:
    task = AblationTask(VARIANTS["unet"], seed=0)
    field = task.network.field(task.exact(examples(data, task.variant).batch(np.arange(1)))[0])
    weights = field.cube_weights(torch.rand(3, 8, 3))
    assert weights is not None
    for name in ("alpha", "beta", "gamma"):
        values = getattr(weights, name)
        assert torch.allclose(values, values.flatten()[0].expand_as(values))


def ball_views(radius: float) -> SixViews:
    """A ball, orthographically: analytic outline and depth."""
    axis = agree.centres(64)
    square = axis[None] ** 2 + axis[:, None] ** 2
    alpha = (square < radius**2).float().expand(6, 1, -1, -1)
    depth = (radius**2 - square).clamp_min(0).sqrt().expand(6, -1, -1)
    return SixViews(rgb=torch.full((6, 3, 64, 64), 0.3), alpha=alpha, ccm=agree.maps_of(depth, alpha))


def test_without_maps_nothing_is_left_in_them() -> None:
    views = without_maps(ball_views(0.6))
    assert (views.ccm == 0.5).all()
    assert torch.equal(views.rgb, ball_views(0.6).rgb) and torch.equal(views.alpha, ball_views(0.6).alpha)


def test_outlines_alone_say_where_three_cylinders_meet() -> None:
    """The visual hull of a ball: in the middle of a view the outline of another one ends it, at radius r."""
    radius = 0.6
    found = agree.depth_of(outlines_alone(ball_views(radius)).ccm)
    exact = agree.depth_of(ball_views(radius).ccm)
    assert (found[:, 32, 32] - radius).abs().max() < 0.05
    # Along the view's own diagonal the hull's corner lies further out than the ball: x² + z² < r² for both.
    at = int((0.4 + 1) * 32)
    wanted = math.sqrt(radius**2 - 0.4**2)
    assert (found[:, at, at] - wanted).abs().max() < 0.06
    assert (found[:, at, at] - exact[:, at, at]).min() > 0.1


def test_a_turn_is_a_rotation_and_no_direction_is_preferred() -> None:
    turns = np.stack([draw_turn(np.random.default_rng(seed)) for seed in range(400)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.eye(3)[None].repeat(400, 0), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    # Of a uniform rotation every entry has mean 0 and mean square 1/3.
    assert np.abs(turns.mean(0)).max() < 0.12
    assert np.abs((turns**2).mean(0) - 1 / 3).max() < 0.08


def test_cameras_that_were_not_turned_see_the_example() -> None:
    example = make_example(np.random.default_rng(11), WarpRaster(), size_px=SIZE, has_field=False)
    same = retake(11, WarpRaster(), size_px=SIZE, turn=np.eye(3))
    assert np.array_equal(same.views, example.views)
    assert np.array_equal(same.depth, example.depth)


@pytest.mark.parametrize("seed", [19, 35])  # the second one is shrunk to fit into its pictures
def test_maps_of_turned_cameras_lie_on_the_product_in_the_world(seed: int) -> None:
    seen = retake(seed, WarpRaster())
    rgba, depth = (torch.from_numpy(one)[None].float() for one in (seen.views, seen.depth))
    [own] = records_of(rgba / 255, depth)
    views = in_world(own, torch.from_numpy(seen.turn))
    covered = views.alpha[:, 0] > 0.99
    places = (2 * views.ccm - 1).permute(0, 2, 3, 1)[covered].numpy()
    posed = draw_posed(np.random.default_rng(seed))
    solid = Solid(posed.vertices, posed.faces, posed.product.part)
    assert np.median(np.abs(solid.signed_distance(places))) < 0.01
    assert len(places) > 500
    # Left in the cameras' own frame they would lie beside it.
    astray = (2 * own.ccm - 1).permute(0, 2, 3, 1)[covered].numpy()
    assert np.median(np.abs(solid.signed_distance(astray))) > 0.03


def test_turned_examples_change_views_alone_and_refuse_other_products(data: Path) -> None:
    plain = Shards(data / "train")
    turned = TurnedShards(plain, Shards(data / "turned-train"))
    indices = np.array([2, 0])
    before, after = plain.batch(indices), turned.batch(indices)
    assert after.keys() == before.keys() | {"turn"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"views", "depth"}
    with pytest.raises(ValueError, match="different seeds"):
        TurnedShards(plain, Shards(data / "turned-held-out")).batch(indices)
    with pytest.raises(ValueError, match="seen again 3 times"):
        TurnedShards(plain, Shards(data / "turned-train", 3))


def test_unmasked_maps_stand_where_masked_ones_do() -> None:
    """With maps in which only the kept coordinate is not zero, masking changes nothing."""
    views = ball_views(0.5)
    masked = Reconstruction(PLAIN)
    unmasked = module.UnmaskedReconstruction(PLAIN)
    unmasked.load_state_dict(masked.state_dict())
    ccm = torch.zeros_like(views.ccm)
    for index, view in enumerate(VIEWS):
        ccm[index, view.depth_axis] = views.ccm[index, view.depth_axis]
    kept = SixViews(rgb=views.rgb, alpha=views.alpha, ccm=ccm)
    points = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        assert torch.equal(*(network.field(kept).geometry(points)[0] for network in (masked, unmasked)))
        answers = [network.field(views).geometry(points)[0] for network in (masked, unmasked)]
    assert not torch.allclose(*answers)
    assert network_input(views, PLAIN.plane_px).shape == (12, 32, 96)


def test_a_transformer_gives_planes_of_the_unets_shape_and_looks_everywhere() -> None:
    config = replace(PLAIN, plane_px=8)
    network = PlaneTransformer(config, TransformerConfig(patch_px=4, width=16, blocks=2, heads=2))
    x = torch.randn(2, 12, 8, 24, requires_grad=True)
    planes = network(x)
    assert planes.shape == (2, 16, 8, 24)
    planes[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0] != 0).all() and (x.grad[1] == 0).all()


def test_a_patch_is_written_where_it_was_read() -> None:
    """Without blocks, and with weights that copy, the picture comes back."""
    config = replace(PLAIN, plane_px=8, unet=replace(PLAIN.unet, out_channels=16))
    network = PlaneTransformer(config, TransformerConfig(patch_px=4, width=256, blocks=0, heads=1))
    with torch.no_grad():
        for layer in (network.read, network.write):
            layer.weight.copy_(torch.eye(256))
            layer.bias.zero_()
        network.position.zero_()
        network.norm = nn.Identity()  # type: ignore[assignment]
        x = torch.randn(1, 12, 8, 24)
        planes = network(x)
    assert torch.allclose(planes[:, :12], x, atol=1e-6)


def options(data: Path, out: Path) -> argparse.Namespace:
    given = ["-o", str(out), "--data", str(data), "--samples", "16", "--examples", str(COUNT)]
    (out / "runs").mkdir(parents=True)
    return ablations.parsed([*given, "--held-out", str(COUNT), "--scored", "0", "--seeds", "0"])


def test_a_run_measures_before_its_first_step_and_after_its_last(data: Path, tmp_path: Path) -> None:
    found = ablations.run(VARIANTS["unet"], 0, options(data, tmp_path))
    assert [point["samples"] for point in found.curve] == [0, 8, 16]
    assert found.curve[-1]["colour"] < found.curve[0]["colour"]
    assert found.samples == 16 and found.cpu_s > 0


def test_two_runs_with_one_seed_give_one_curve_and_another_seed_another(data: Path, tmp_path: Path) -> None:
    small = replace(VARIANTS["unet"], config=replace(PLAIN, plane_px=16))
    curves = [
        ablations.run(small, seed, options(data, tmp_path / str(place))).curve
        for place, seed in enumerate((0, 0, 1))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_what_is_there_is_not_asked_for_again(data: Path, tmp_path: Path) -> None:
    given = options(data, tmp_path)
    given.all, given.seeds = True, [0, 1]
    (tmp_path / "runs" / "no-ccm-1.json").write_text("{}")
    wanted = list(ablations.todo(given))
    assert ("no-ccm", 1) not in wanted and ("no-ccm", 0) in wanted
    # Batches and learning rates are tried with one seed.
    assert {name for name, seed in wanted if seed == 1} <= {variant.name for variant in COMPARED}
    assert len(wanted) == 2 * len(COMPARED) - 1 + len(STABILITY)


def test_closeness_is_exact_for_a_surface_moved_by_a_known_way() -> None:
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([[a, b, c] for a, b, c, _ in sides] + [[a, c, d] for a, _, c, d in sides])
    solid = Solid(corners, faces, np.zeros(12, np.int64))
    true = ablations.spread(corners, faces, 2048)
    for grown in (0.0, 0.03):
        moved = Mesh(vertices=corners * np.float32(1 + 2 * grown), faces=faces)
        found = ablations.closeness(moved, solid, true)
        assert found["chamfer"] == pytest.approx(grown, abs=0.006)
        assert found["f0.04"] > 0.95
        assert (found["f0.02"] > 0.95) is (grown == 0)


def made_up(name: str, seed: int, f_scores: list[float], last: float = 0.02) -> dict[str, object]:
    point = {"samples": 0, "distance": 0.1, "occupancy": 0.5, "colour": 0.2}
    return {
        "variant": name,
        "seed": seed,
        "parameters": 2000,
        "plane_parameters": 1000,
        "samples": 100,
        "cpu_s": 3.0,
        "curve": [point, {**point, "samples": 100, "distance": last}],
        "scores": {"true": [[0.1, f] for f in f_scores], "imagined": []},
    }


def test_a_difference_is_told_on_the_same_objects_with_its_uncertainty() -> None:
    runs = {
        "unet": [made_up("unet", 0, [0.5, 0.6, 0.9]), made_up("unet", 1, [0.7, 0.6, 0.9])],
        "no-ccm": [made_up("no-ccm", 0, [0.4, 0.4, 0.8])],
    }
    # -0.2, -0.2 and -0.1: mean -0.1667, standard deviation 0.0577, error of the mean 0.0333
    assert difference(VARIANTS["no-ccm"], runs, "true") == "-0.167 ± 0.067"
    assert difference(VARIANTS["unet"], runs, "true") == ""
    assert difference(VARIANTS["no-ccm"], runs, "imagined") == ""


def test_a_run_that_ends_worse_than_it_began_has_diverged() -> None:
    name = STABILITY[0].name
    for last, wanted in ((0.02, "0.550"), (0.2, "2.350 (diverged)"), (math.nan, "not finite")):
        text = ablation_table.stability({name: [made_up(name, 0, [], last)]})
        assert f"| {wanted} |" in text


def test_the_table_is_written_into_its_page_and_words_around_it_stay(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("unet", "no-ccm", "hull"):
        for seed in (0, 1):
            text = json.dumps(made_up(name, seed, [0.5, 0.75 + 0.1 * seed]))
            (tmp_path / "runs" / f"{name}-{seed}.json").write_text(text)
    row = {"object": 0, "family": "chair", "grid": 40, "cpu_s": 0.1, "faces": 1234, "chamfer": 0.01}
    rows = [
        {**row, "views": views, "f0.01": 0.2, "f0.02": 0.4, "f0.04": 0.8} for views in ("true", "imagined")
    ]
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "0.json").write_text(json.dumps(rows))
    page = tmp_path / "ablations.md"
    page.write_text(f"Before.\n\n{BEGIN}old{END}\nAfter.\n")
    ablation_table.write_all(tmp_path, tmp_path)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "old" not in text
    assert "| 0.650 ± 0.025 |" in text  # F-score of `unet`, two seeds
    assert "| 40, true views |" in text and "| 1,234 |" in text
    picture = Image.open(tmp_path / "ablations.png").convert("RGB")
    assert picture.size == (1260, 420)
    assert len(picture.getcolors(100_000) or ()) > 4
    lines = (tmp_path / "ablations.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 * 2 and lines[1] == "unet,0,0,0.1,0.5,0.2,1.35000"
    ablation_table.write_all(tmp_path, tmp_path)
    assert page.read_text() == text


def test_the_committed_page_says_what_the_committed_curves_do() -> None:
    here = Path(__file__).parent
    with (here / "ablations.csv").open() as file:
        points = list(csv.DictReader(file))
    page = (here / "ablations.md").read_text("utf-8").splitlines()
    for variant in VARIANTS.values():
        own = [point for point in points if point["variant"] == variant.name]
        ends = [float(point["loss"]) for point in own if int(point["samples"]) == max_samples(own)]
        assert len(ends) == (2 if variant in COMPARED else 1), variant.name
        mean = f"{sum(ends) / len(ends):.3f}"
        assert any(f"| {mean} " in line for line in page), (variant.name, mean)


def max_samples(points: list[dict[str, str]]) -> int:
    return max(int(point["samples"]) for point in points)


def test_a_page_without_a_table_gets_one() -> None:
    assert filled("", "x") == f"{BEGIN}\n\nx\n\n{END}\n"


@pytest.mark.parametrize("grid", ablations.GRIDS)
def test_a_preset_of_a_grid_changes_the_grid_alone(grid: int) -> None:
    file = presets_folder() / "ablations" / f"grid-{grid}.yaml"
    plain, changed = load_preset().preset, load_preset(str(file)).preset
    assert changed.reconstruction.grid == grid
    assert replace(changed, reconstruction=plain.reconstruction) == plain
