"""A sound asset passes; each way to damage it is caught by a reason of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
import torch

from crm_cli import inspection
from crm_cli.frame import LEFT, TOP
from crm_cli.inspection import is_good_enough, judge, measure, rank
from crm_cli.pipeline import Bake, Imagine, Prepare, Reconstruct, Unwrap
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import (
    Checks,
    Cutout,
    Job,
    LimitCheck,
    Publication,
    Reason,
    SixViews,
    TexturedMesh,
    Verdict,
)
from crm_cli.toolbox import Toolbox, open_toolbox

PHOTOS = Path(__file__).parent / "photos"


def preset_with(*assignments: str) -> Preset:
    return load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset


PRESET = preset_with("reconstruction.grid=64")


class Made(NamedTuple):
    cutout: Cutout
    views: SixViews
    textured: TexturedMesh


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


def make(toolbox: Toolbox, name: str) -> Made:
    path = PurePosixPath(name)
    job = Job(root=PHOTOS, path=path, stem=path, id="0123", scratch=PHOTOS, max_mpixels=64)
    _, cutout = Prepare(toolbox, PRESET)(job)
    [views] = Imagine(toolbox, PRESET)([cutout])
    drawn = Reconstruct(toolbox, PRESET)(views, cutout)
    unwrapped = Unwrap(toolbox, PRESET)(drawn)
    return Made(cutout, views, Bake(toolbox, PRESET)(unwrapped, drawn.field, views))


@pytest.fixture(scope="module")
def carton(toolbox: Toolbox) -> Made:
    return make(toolbox, "kitchen/carton.jpg")


@pytest.fixture(scope="module")
def bear(toolbox: Toolbox) -> Made:
    return make(toolbox, "toys/bear.jpg")


def checks_of(made: Made, toolbox: Toolbox) -> Checks:
    return measure(made.textured, made.cutout, made.views, toolbox.raster, confidence="ok")


def judged(made: Made, toolbox: Toolbox) -> Verdict:
    return judge(checks_of(made, toolbox), PRESET)


def with_vertices(made: Made, change: tuple[float, float, float]) -> Made:
    """The asset scaled along each axis."""
    mesh = made.textured.mesh
    scaled = replace(mesh, vertices=mesh.vertices * np.float32(change))
    return made._replace(
        textured=replace(made.textured, unwrapped=replace(made.textured.unwrapped, mesh=scaled))
    )


def with_faces(made: Made, chosen: slice) -> Made:
    """The asset with some of its faces only."""
    unwrapped = made.textured.unwrapped
    mesh = replace(unwrapped.mesh, faces=unwrapped.mesh.faces[chosen])
    cut = replace(unwrapped, mesh=mesh, uv_faces=unwrapped.uv_faces[chosen])
    return made._replace(textured=replace(made.textured, unwrapped=cut))


@pytest.mark.parametrize("name", ["carton", "bear"])
def test_an_asset_of_a_good_photo_passes(name: str, toolbox: Toolbox, request: pytest.FixtureRequest) -> None:
    verdict = judged(request.getfixturevalue(name), toolbox)
    assert (verdict.grade, verdict.reasons) == ("pass", ())
    assert verdict.score > 0.75


def test_another_photos_mesh_has_another_outline_and_fails(
    carton: Made, bear: Made, toolbox: Toolbox
) -> None:
    swapped = judged(carton._replace(textured=bear.textured), toolbox)
    assert swapped.grade == "fail"
    assert {"likeness.silhouette", "likeness.colour"} <= set(swapped.codes)


def test_a_flattened_mesh_is_a_slab_and_nothing_else_is_wrong_with_its_front(
    carton: Made, toolbox: Toolbox
) -> None:
    flat = with_vertices(carton, (1, 0.2, 1))
    verdict = judged(flat, toolbox)
    assert verdict.grade == "fail"
    assert set(verdict.codes) == {"shape.slab", "geometry.views"}
    [slab] = [reason for reason in verdict.reasons if reason.code == "shape.slab"]
    assert slab.found == pytest.approx(0.2 * checks_of(carton, toolbox).thickness, abs=0.05)
    assert slab.limit == PRESET.checks.review_thickness
    assert "as deep as the views promise, where 75% are expected" in slab.sentence


def test_a_recoloured_texture_is_far_from_the_photo_and_nothing_else(carton: Made, toolbox: Toolbox) -> None:
    turned = np.ascontiguousarray(np.roll(carton.textured.texture, 1, axis=2))
    verdict = judged(carton._replace(textured=replace(carton.textured, texture=turned)), toolbox)
    assert verdict.codes == ("likeness.colour",)
    assert verdict.grade == "fail"


def test_a_hole_opens_the_surface_and_fails(carton: Made, toolbox: Toolbox) -> None:
    verdict = judged(with_faces(carton, slice(1, None)), toolbox)
    assert (verdict.grade, verdict.codes) == ("fail", ("geometry.open",))


def test_faces_turned_inwards_fail(carton: Made, toolbox: Toolbox) -> None:
    unwrapped = carton.textured.unwrapped
    mesh = replace(unwrapped.mesh, faces=np.ascontiguousarray(unwrapped.mesh.faces[:, ::-1]))
    turned = replace(unwrapped, mesh=mesh, uv_faces=np.ascontiguousarray(unwrapped.uv_faces[:, ::-1]))
    verdict = judged(carton._replace(textured=replace(carton.textured, unwrapped=turned)), toolbox)
    assert (verdict.grade, verdict.codes) == ("fail", ("geometry.inverted",))


def test_charts_on_top_of_each_other_are_looked_at(carton: Made, toolbox: Toolbox) -> None:
    unwrapped = carton.textured.unwrapped
    folded = replace(unwrapped, uv=np.where(unwrapped.uv > 0.5, 1 - unwrapped.uv, unwrapped.uv))
    verdict = judged(carton._replace(textured=replace(carton.textured, unwrapped=folded)), toolbox)
    assert "texture.overlap" in verdict.codes


GOOD = Checks(
    vertices=8, faces=12, is_closed=True, is_manifold=True, is_oriented=True, volume=1.0, euler=2,
    components=1, degenerate_faces=0, uv_overlap=0.0, uv_coverage=0.5, silhouette_iou=0.98, confidence="ok",
    colour_distance=2.0, views_iou=0.95, thickness=1.0, seen_share=0.4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code", "grade"),
    [
        ({"is_manifold": False}, "geometry.manifold", "fail"),
        ({"volume": -1.0}, "geometry.inverted", "fail"),
        ({"degenerate_faces": 1}, "geometry.degenerate", "review"),
        ({"components": 9}, "geometry.parts", "review"),
        ({"faces": 1_000_000}, "budget.triangles", "review"),
        ({"silhouette_iou": 0.89}, "likeness.silhouette", "review"),
        ({"silhouette_iou": 0.5}, "likeness.silhouette", "fail"),
        ({"colour_distance": 60.0}, "likeness.colour", "fail"),
        ({"thickness": 0.3}, "shape.slab", "fail"),
        ({"views_iou": 0.1}, "geometry.views", "fail"),
        ({"seen_share": 0.01}, "photo.seen", "review"),
        ({"confidence": "low"}, "confidence.low", "review"),
    ],
)
def test_each_measure_that_does_not_do_is_one_reason_with_its_numbers(
    changes: dict[str, float], code: str, grade: str
) -> None:
    verdict = judge(replace(GOOD, **changes), PRESET)
    [reason] = verdict.reasons
    assert (verdict.grade, reason.code, reason.severity) == (grade, code, grade)
    assert reason.found != reason.limit
    assert reason.sentence and "{" not in reason.sentence


def test_what_nobody_measured_speaks_against_nobody() -> None:
    assert judge(replace(GOOD, seen_share=0.0), PRESET).reasons == ()


def test_a_solid_in_the_networks_place_need_not_look_like_their_views() -> None:
    solid = replace(GOOD, confidence="low", thickness=0.2, views_iou=0.1)
    assert judge(solid, PRESET).codes == ("confidence.low",)


def test_a_card_with_a_knob_is_a_card_and_a_chair_without_legs_is_none() -> None:
    views = np.zeros((6, 32, 32), np.bool_)
    views[:, 4:28, 4:28] = True
    card, legless = views.copy(), views.copy()
    card[LEFT] = card[TOP] = False
    card[LEFT, 4:28, 15:17] = card[TOP, 15:17, 4:28] = True
    card[LEFT, 15:17, 4:28] = card[TOP, 4:28, 15:17] = True  # the knob reaches as far as the solid
    legless[LEFT, 12:, 6:26] = False
    assert inspection.thickness(views, views) == 1
    assert inspection.thickness(card, views) < 0.65
    assert inspection.thickness(legless, views) > 0.95


def test_a_photo_that_may_show_something_else_is_a_reason_to_look(carton: Made) -> None:
    cut = "the subject touches the frame: what lies outside is missing"
    warned = replace(carton.cutout, warnings=(f"{cut} [W_MATTE_FRAME]", "soft [W_MATTE_SMALL]", "no code"))
    [reason] = inspection.doubts(warned)
    assert (reason.code, reason.severity, reason.sentence) == ("photo.subject", "review", cut)
    assert inspection.doubts(carton.cutout) == []


def test_limits_are_settings() -> None:
    strict = preset_with("checks.review_colour_distance=1", "checks.fail_colour_distance=1.5")
    assert judge(GOOD, PRESET).grade == "pass"
    assert judge(GOOD, strict).grade == "fail"


def test_reasons_of_others_count_and_failures_come_first() -> None:
    large = Reason(
        code="limits.bytes", severity="fail", found=9.0, limit=5.0, sentence="9 MB, where 5 may be"
    )
    small = replace(large, code="limits.texture", severity="review")
    verdict = judge(replace(GOOD, degenerate_faces=1), PRESET, [small, large])
    assert verdict.grade == "fail"
    assert verdict.codes == ("limits.bytes", "limits.texture", "geometry.degenerate")
    assert judge(GOOD, PRESET, [large, large]).codes == ("limits.bytes",), "one for each file"


def test_a_better_grade_beats_a_better_score_which_decides_among_equals() -> None:
    passed, passed_well, reviewed, failed = (
        Verdict(grade="pass", score=0.3),
        Verdict(grade="pass", score=0.9),
        Verdict(grade="review", score=0.95),
        Verdict(grade="fail", score=1.0),
    )
    assert sorted([passed_well, failed, passed, reviewed], key=rank) == [
        failed,
        reviewed,
        passed,
        passed_well,
    ]
    assert is_good_enough(passed_well, preset_with("checks.enough_score=0.9"))
    assert not is_good_enough(passed_well, preset_with("checks.enough_score=0.91"))
    assert not is_good_enough(reviewed, preset_with("checks.enough_score=0"))


def test_every_measure_that_gets_worse_lowers_the_score() -> None:
    best = inspection.score(GOOD)
    for worse in ({"silhouette_iou": 0.9}, {"colour_distance": 9.0}, {"views_iou": 0.5}):
        assert 0 <= inspection.score(replace(GOOD, **worse)) < best
    assert inspection.score(replace(GOOD, colour_distance=80.0)) == 0


def test_the_drawn_front_is_the_texture_where_it_faces_us(carton: Made, toolbox: Toolbox) -> None:
    plain = np.empty_like(carton.textured.texture)
    plain[:] = (200, 100, 50)
    front = inspection.draw_front(replace(carton.textured, texture=plain), toolbox.raster)
    solid = front[3] == 1
    assert solid.float().mean() > 0.2
    expected = torch.tensor([200.0, 100.0, 50.0])[:, None] / 255
    torch.testing.assert_close(front[:3, solid], expected.expand(3, int(solid.sum())), atol=1e-4, rtol=0)


def test_a_limit_that_the_files_break_is_a_reason_and_one_that_was_mended_is_none() -> None:
    def check(limit: str, *, is_kept: bool = False) -> LimitCheck:
        return LimitCheck(limit=limit, file="a.glb", allowed=100, found=120, is_kept=is_kept, mended="…")

    checks = (check("file_bytes"), check("aspect"), check("lods"), check("triangles", is_kept=True))
    reasons = inspection.broken_limits(Publication(checks=checks, mended=("…",)))
    assert [(reason.code, reason.severity) for reason in reasons] == [
        ("limits.file_bytes", "fail"),
        ("limits.aspect", "review"),
        ("limits.lods", "review"),
    ]
    assert (reasons[0].found, reasons[0].limit) == (120, 100)
    assert "a.glb" in reasons[0].sentence and "120" in reasons[0].sentence
