"""Stations one by one, on shapes whose six views are known exactly, and one photo through all of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from miniature import write
from PIL import Image
from torch import Generator, Tensor
from traced import Shape, ball, block, coordinates, ring, trace, union

from crm_cli import __version__, cache, pipeline
from crm_cli.errors import PhotoError
from crm_cli.fragments import interpolate
from crm_cli.frame import BACK, FRONT
from crm_cli.mesh.bake import draw_charts
from crm_cli.models import agree
from crm_cli.models.field import Field, surface
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.reconstruction import SMALL, PlaneField, Reconstruction
from crm_cli.pipeline import (
    Bake,
    Imagine,
    Line,
    Prepare,
    Reconstruct,
    Stopwatch,
    Surface,
    Unwrap,
    silhouette_iou,
)
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import Asset, Camera, Crop, Cutout, Job, Mesh, Photo, SixViews
from crm_cli.toolbox import Toolbox, open_toolbox

PHOTOS = Path(__file__).parent / "photos"
STAGES = ["prepare", "imagine", "reconstruct", "unwrap", "bake", "deliver"]


def preset_with(*assignments: str) -> Preset:
    return load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset


PRESET = preset_with()


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


@pytest.fixture(scope="module")
def line(toolbox: Toolbox) -> Line:
    return Line(toolbox, PRESET)


def cutout_of(views: SixViews, digest: str = "0" * 64) -> Cutout:
    """The cut-out of a photo that was taken straight from the front."""
    alpha = views.alpha[FRONT]
    return Cutout(
        rgb=views.rgb[FRONT] * (alpha > 0),
        alpha=alpha,
        crop=Crop(centre_x=len(alpha[0]) / 2, centre_y=len(alpha[0]) / 2, side_px=len(alpha[0])),
        photo=PurePosixPath("shape.png"),
        digest=digest,
        matting="alpha",
    )


def photo_of(cutout: Cutout) -> Photo:
    """The photo that a cut-out of views is all of."""
    rgb = (cutout.rgb.permute(1, 2, 0) * 255).round().byte().numpy()
    alpha = (cutout.alpha[0] * 255).round().byte().numpy()
    return Photo(path=cutout.photo, rgb=rgb, alpha=alpha, digest=cutout.digest)


CHAIR = trace(union(block(0.5, 0.1, 0.7), block(0.5, 0.5, 0.1, (0, 0.3, 0))), 64)
POLE = trace(block(0.15, 0.15, 0.7), 64)
CUTOUTS = [
    cutout_of(views, str(digit) * 64)
    for digit, views in enumerate((CHAIR, trace(ball(0.6, (0.1, 0, 0.1)), 64), trace(ring(), 64)))
]


def test_drawing_leaves_the_global_generator_alone(toolbox: Toolbox) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Imagine(toolbox, PRESET)(CUTOUTS[:1])
    assert torch.equal(torch.get_rng_state(), before)


def test_prepare_reads_one_photo_and_frames_its_subject(toolbox: Toolbox, tmp_path: Path) -> None:
    photo, cutout = Prepare(toolbox, PRESET)(job_for(PHOTOS, "bottle.png", tmp_path))
    digest = hashlib.sha256((PHOTOS / "bottle.png").read_bytes()).hexdigest()
    assert photo.digest == cutout.digest == digest
    assert (photo.path, cutout.matting) == (PurePosixPath("bottle.png"), "alpha")
    assert cutout.rgb.shape[-1] == PRESET.cutout.size_px
    rows, columns = (int((cutout.alpha[0] > 0.5).any(axis).sum()) for axis in (1, 0))
    assert max(rows, columns) == pytest.approx(PRESET.cutout.fill * PRESET.cutout.size_px, abs=1)


def arrays(views: SixViews) -> list[Tensor]:
    return [views.rgb, views.ccm, views.alpha]


def test_neighbours_and_order_do_not_change_what_is_imagined(toolbox: Toolbox) -> None:
    imagine = Imagine(toolbox, PRESET)
    one, two, three = CUTOUTS
    beside = imagine([one, two])
    for batch, place in (([one, three], 0), ([three, one], 1)):
        assert all(map(torch.equal, arrays(imagine(batch)[place]), arrays(beside[0])))


def test_alone_or_among_others_a_photo_differs_by_rounding_alone(toolbox: Toolbox) -> None:
    imagine = Imagine(toolbox, PRESET)
    together = imagine(CUTOUTS)
    # torch picks its kernels by the size of the batch, so the last bit may differ, but no more.
    for cutout, views in zip(CUTOUTS, together, strict=True):
        for alone, among in zip(arrays(imagine([cutout])[0]), arrays(views), strict=True):
            torch.testing.assert_close(alone, among, rtol=0, atol=5e-6)


def test_another_seed_and_another_digest_imagine_other_sides_behind_the_same_front(toolbox: Toolbox) -> None:
    views = Imagine(toolbox, PRESET)(CUTOUTS[:1])[0]
    for other in (
        Imagine(toolbox, preset_with("seed=1"))(CUTOUTS[:1])[0],
        Imagine(toolbox, PRESET)([replace(CUTOUTS[0], digest="f" * 64)])[0],
    ):
        assert torch.equal(other.rgb[FRONT], views.rgb[FRONT])
        assert not torch.equal(other.rgb[1:], views.rgb[1:])


def test_the_front_is_the_photo_and_every_outline_is_its_opposites_mirror_image(toolbox: Toolbox) -> None:
    for cutout, views in zip(CUTOUTS, Imagine(toolbox, PRESET)(CUTOUTS), strict=True):
        solid = cutout.alpha[0] > 0.9
        torch.testing.assert_close(views.rgb[FRONT][:, solid], cutout.rgb[:, solid], atol=0.06, rtol=0)
        assert torch.equal(views.alpha[FRONT], cutout.alpha)
        assert torch.equal(views.alpha[BACK], agree.mirror(cutout.alpha, FRONT))


def test_guidance_one_is_off(toolbox: Toolbox) -> None:
    plain = Imagine(toolbox, PRESET)(CUTOUTS[:1])[0]
    nearly = Imagine(toolbox, preset_with("rgb.guidance=1.000001"))(CUTOUTS[:1])[0]
    torch.testing.assert_close(nearly.rgb, plain.rgb, atol=1e-4, rtol=0)
    guided = Imagine(toolbox, preset_with("rgb.guidance=3"))(CUTOUTS[:1])[0]
    assert (guided.rgb - plain.rgb).abs().max() > 1e-3


@dataclass
class Answer:
    """Stands for the reconstruction network: every photo gets this shape."""

    shape: Shape

    def field(self, views: SixViews, *, generator: Generator | None = None) -> Answer:
        return self

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.shape(points), torch.zeros_like(points)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        return None

    def colour(self, points: Tensor) -> Tensor:
        return coordinates(points)


def answering(toolbox: Toolbox, shape: Shape) -> Toolbox:
    return replace(toolbox, networks={**toolbox.networks, "reconstruction": Answer(shape)})


def front_outline(mesh: Mesh) -> tuple[float, float]:
    """Width and height of what a viewer in front sees."""
    return tuple(np.ptp(mesh.vertices, axis=0)[[0, 2]])


def finished(toolbox: Toolbox, preset: Preset, views: SixViews, cutout: Cutout) -> Surface:
    """The surface that a line settles on, after cleaning and a look at the photo."""
    drawn = Reconstruct(toolbox, preset)(views, cutout)
    return Line(toolbox, preset).finish(drawn, cutout)[0]


def test_exact_views_become_their_shape_with_full_confidence(toolbox: Toolbox) -> None:
    drawn = finished(toolbox, PRESET, CHAIR, cutout_of(CHAIR))
    assert (drawn.confidence, drawn.warnings) == ("ok", ())
    assert silhouette_iou(drawn.mesh, cutout_of(CHAIR), toolbox) > 0.95
    np.testing.assert_allclose(drawn.mesh.vertices.min(0), (-0.5, -0.2, -0.7), atol=0.06)
    np.testing.assert_allclose(drawn.mesh.vertices.max(0), (0.5, 0.8, 0.7), atol=0.06)


def test_views_of_another_object_fall_back_to_a_solid_behind_the_photo(toolbox: Toolbox) -> None:
    drawn = finished(toolbox, PRESET, CHAIR, cutout_of(POLE))
    assert drawn.confidence == "low"
    [warning] = drawn.warnings
    assert warning.startswith("low confidence: the outline matches the photo's by ") and "% only" in warning
    assert front_outline(drawn.mesh) == pytest.approx((0.3, 1.4), abs=0.07)
    assert silhouette_iou(drawn.mesh, cutout_of(POLE), toolbox) > 0.85


def test_an_empty_field_falls_back_to_a_solid_behind_the_photo(toolbox: Toolbox) -> None:
    nothing = answering(toolbox, lambda points: torch.ones(len(points)))
    drawn = Reconstruct(nothing, PRESET)(POLE, cutout_of(POLE))
    assert drawn.confidence == "low"
    assert drawn.warnings == (
        "low confidence: the reconstruction is empty; the asset is a simple solid behind the photo",
    )
    assert front_outline(drawn.mesh) == pytest.approx((0.3, 1.4), abs=0.07)


def test_the_preset_says_how_much_an_outline_must_match(toolbox: Toolbox) -> None:
    # A pole half as wide as the photo's: the outlines share one half.
    half = answering(toolbox, block(0.15, 0.15, 0.7))
    photo = cutout_of(trace(block(0.3, 0.15, 0.7), 64))
    for least, confidence in ((0.4, "ok"), (0.6, "low")):
        drawn = finished(half, preset_with(f"checks.min_silhouette_iou={least}"), CHAIR, photo)
        assert drawn.confidence == confidence


def test_a_surface_that_cannot_be_unwrapped_falls_back_to_a_solid(
    toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crm_cli.mesh import clean

    mend = clean.clean
    calls = []

    def torn_once(mesh: Mesh, *, faces: int, smooth: int) -> Mesh:
        calls.append(mesh)
        if len(calls) == 1:
            raise PhotoError("the surface stays open", code="E_MESH_OPEN", kind="quality")
        return mend(mesh, faces=faces, smooth=smooth)

    monkeypatch.setattr(clean, "clean", torn_once)
    drawn = finished(toolbox, PRESET, POLE, cutout_of(POLE))
    assert drawn.confidence == "low"
    assert "the surface stays open" in drawn.warnings[0]


def test_a_photo_without_a_subject_is_a_photo_error_also_for_the_solid(toolbox: Toolbox) -> None:
    nothing = answering(toolbox, lambda points: torch.ones(len(points)))
    empty = replace(cutout_of(POLE), alpha=torch.zeros(1, 64, 64))
    with pytest.raises(PhotoError, match="empty"):
        Reconstruct(nothing, PRESET)(POLE, empty)


def baked(toolbox: Toolbox, views: SixViews, *assignments: str) -> tuple[Tensor, Tensor]:
    """Send exact views through field, surface and bake; returns texels' places and colours, both [N 3].

    The network is fresh: its residuals are zero, and what is left is the views' own hull and colours.
    """
    preset = preset_with("texture.size_px=256", "mesh.smooth=0", *assignments)
    field = Reconstruction(SMALL).field(views)
    with torch.no_grad():
        drawn = Surface(mesh=surface(field, 48), field=field, confidence="ok")
    unwrapped = Unwrap(toolbox, preset)(drawn)
    cutout = cutout_of(views)
    texture = Bake(toolbox, preset)(unwrapped, field, views, photo_of(cutout), cutout).texture
    fragments = draw_charts(unwrapped, toolbox.raster, size_px=256)
    vertices, faces = torch.from_numpy(unwrapped.mesh.vertices), torch.from_numpy(unwrapped.mesh.faces)
    covered = fragments.covered
    return interpolate(vertices, faces, fragments)[covered], torch.from_numpy(texture)[covered] / 255


@pytest.mark.parametrize(
    "shape", [ball(0.7, (0.1, -0.05, 0.08)), block(0.7, 0.4, 0.55)], ids=["ball", "block"]
)
def test_a_textured_object_comes_back_with_its_colours(toolbox: Toolbox, shape: Shape) -> None:
    points, colours = baked(toolbox, trace(shape, 128, colour=coordinates))
    error = (colours - coordinates(points)).abs().amax(1)
    assert len(points) > 0.2 * 256**2
    # A colour step of one cell of the grid is 1/48.
    assert error.mean() < 0.01
    assert error.quantile(0.99) < 0.05


def front_red_others_blue(views: SixViews) -> SixViews:
    """As if the networks had imagined every side wrong and only the photo were right."""
    rgb = torch.zeros_like(views.rgb)
    rgb[:, 2] = 1
    rgb[FRONT] = rgb[FRONT].flip(0)
    return replace(views, rgb=torch.where(views.alpha > 0.5, rgb, torch.full_like(rgb, 0.5)))


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_photo_paints_what_it_sees_also_where_it_sees_it_obliquely(
    toolbox: Toolbox, is_trusted: bool
) -> None:
    views = front_red_others_blue(trace(ball(0.7), 128))
    points, colours = baked(
        toolbox, views, f"views.use_photo={str(is_trusted).lower()}", "texture.photo=false"
    )
    red = colours[:, 0]
    cosine = points[:, 1] / points.norm(dim=1)
    assert red[cosine < -0.2].max() < 0.05
    assert red[cosine > 0.95].mean() > 0.85
    # At 60 degrees from the front, views beside it see the ball better.
    oblique = red[(cosine > 0.45) & (cosine < 0.55)].mean()
    assert oblique > 0.8 if is_trusted else oblique < 0.4


@pytest.mark.parametrize(
    ("assignment", "outline", "is_seen", "warnings"),
    [
        ("texture.photo=true", CHAIR, True, 0),
        ("texture.photo=true", POLE, False, 1),
        ("texture.photo=false", CHAIR, False, 0),
        ("texture.photo=false", POLE, False, 0),
    ],
    ids=["fits", "does not fit", "off", "off and does not fit"],
)
def test_the_photo_is_laid_on_where_it_is_wanted_and_fits(
    toolbox: Toolbox, assignment: str, outline: SixViews, is_seen: bool, warnings: int
) -> None:
    preset = preset_with(assignment)
    field = Reconstruction(SMALL).field(CHAIR)
    with torch.no_grad():
        mesh = surface(field, 32)
    cutout = cutout_of(outline)
    unwrapped = Unwrap(toolbox, preset)(Surface(mesh=mesh, field=field, confidence="ok"))
    textured = Bake(toolbox, preset)(unwrapped, field, CHAIR, photo_of(cutout), cutout)
    assert (textured.seen is not None, textured.seen_share > 0.1) == (is_seen, is_seen)
    assert len(textured.warnings) == warnings
    assert textured.camera is not None, "whether or not it is used, the camera is recorded"


def test_colours_under_transparency_and_those_on_white_are_told_apart(toolbox: Toolbox) -> None:
    """A matte of its own judges the photo as viewers show it, on white; one's alpha hides other colours."""
    cutout = cutout_of(trace(ball(0.7), 64))
    half = replace(
        photo_of(cutout), rgb=np.zeros((64, 64, 3), np.uint8), alpha=np.full((64, 64), 128, np.uint8)
    )
    field = Reconstruction(SMALL).field(trace(ball(0.7), 64))
    with torch.no_grad():
        drawn = Surface(mesh=surface(field, 32), field=field, confidence="ok")
    unwrapped = Unwrap(toolbox, PRESET)(drawn)
    for matting, code in (("alpha", 0), ("grabcut", 127)):
        shown = replace(cutout, matting=matting)
        textured = Bake(toolbox, PRESET)(unwrapped, field, CHAIR, half, shown)
        assert textured.seen is not None
        assert np.abs(textured.texture[textured.seen == 1].astype(int) - code).max() <= 1


def test_a_solid_behind_the_photo_is_painted_by_the_photo_alone(toolbox: Toolbox) -> None:
    nothing = answering(toolbox, lambda points: torch.ones(len(points)))
    photo = replace(cutout_of(POLE), rgb=torch.tensor((0.2, 0.6, 0.4))[:, None, None].expand(3, 64, 64))
    drawn = Reconstruct(nothing, PRESET)(CHAIR, photo)
    unwrapped = Unwrap(toolbox, PRESET)(drawn)
    texture = Bake(toolbox, PRESET)(unwrapped, drawn.field, CHAIR, photo_of(photo), photo).texture
    assert np.abs(texture.reshape(-1, 3) - np.array([51, 153, 102])).max() <= 1


def test_a_stopwatch_names_stages_as_they_begin_and_adds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now)
    heard: list[str] = []
    waited = 0.0
    watch = Stopwatch(heard.append, lambda: waited)
    assert watch.stop() == {}
    watch.begin("prepare")
    assert heard == ["prepare"]
    now += 1.25
    watch.begin("imagine")
    now += 0.5
    assert watch.stop() == {"prepare": 1.25, "imagine": 0.5}
    now += 9
    assert watch.stop() == {"prepare": 1.25, "imagine": 0.5}
    assert heard == ["prepare", "imagine"]
    watch.begin("bake")
    now, waited = now + 3, 2.0  # for others, of which the stage knows nothing
    assert watch.stop() == {"prepare": 1.25, "imagine": 0.5, "bake": 1.0, "queue": 2.0}


def job_for(root: Path, name: str, scratch: Path) -> Job:
    path = PurePosixPath(name)
    return Job(root=root, path=path, stem=path.with_suffix(""), id="0123", scratch=scratch, max_mpixels=64)


def converted(line: Line, root: Path, scratch: Path, name: str = "bottle.png") -> tuple[Asset, list[str]]:
    scratch.mkdir()
    stages: list[str] = []
    return line.convert(job_for(root, name, scratch), stages.append), stages


def test_checks_are_of_what_was_written_and_a_broken_limit_is_a_reason(
    toolbox: Toolbox, tmp_path: Path
) -> None:
    limits = ("export.formats=glb", "limits.triangles=1200", "limits.file_bytes=9000")
    asset, _ = converted(Line(toolbox, preset_with(*limits)), PHOTOS, tmp_path / "out")
    written = trimesh.load(tmp_path / "out" / "bottle.glb", force="mesh", process=False)
    assert asset.checks.faces == len(written.faces) <= 1200
    assert asset.publication.mended[0].endswith("→1200 to keep 1200 triangles")
    assert asset.verdict is not None and asset.verdict.grade == "fail"
    assert "limits.file_bytes" in asset.verdict.codes and "limits.triangles" not in asset.verdict.codes
    assert set(asset.publication.warnings) <= set(asset.warnings)


def contents(folder: Path, names: Sequence[PurePosixPath]) -> dict[str, bytes]:
    return {name.name: (folder / name).read_bytes() for name in names}


def test_the_same_photo_makes_the_same_bytes_wherever_it_lies_and_whatever_came_before(
    line: Line, tmp_path: Path
) -> None:
    for folder in ("one", "two/sub"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copyfile(PHOTOS / "bottle.png", tmp_path / folder / "bottle.png")
    one, stages = converted(line, tmp_path / "one", tmp_path / "a")
    two, _ = converted(line, tmp_path / "two", tmp_path / "b", "sub/bottle.png")
    assert stages == STAGES and list(one.seconds) == STAGES
    first = contents(tmp_path / "a", [file.path for file in one.files])
    assert first == contents(tmp_path / "b", [file.path for file in two.files])
    assert set(first) == {f"bottle.{suffix}" for suffix in ("glb", "obj", "mtl", "png", "usdc")}
    for file in one.files:
        assert (file.size, file.sha256) == (
            len(first[file.path.name]),
            hashlib.sha256(first[file.path.name]).hexdigest(),
        )
    assert {file.path.parent for file in two.files} == {PurePosixPath("sub")}
    check_asset(one, first["bottle.glb"], tmp_path)


def check_asset(asset: Asset, glb: bytes, root: Path) -> None:
    """What the record and the file say of themselves, counted by another library."""
    mesh = trimesh.load(trimesh.util.wrap_as_stream(glb), file_type="glb", force="mesh", process=False)
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(digits_vertex=7)
    assert (asset.checks.faces, asset.checks.vertices) == (len(mesh.faces), len(merged.vertices))
    assert asset.checks.euler == merged.euler_number
    assert asset.checks.is_closed and asset.checks.is_manifold and asset.checks.is_oriented
    assert asset.checks.confidence == "ok" and asset.checks.silhouette_iou > 0.9
    assert asset.checks.uv_overlap == 0 and asset.checks.uv_coverage > 0.15
    assert 0.15 < asset.checks.seen_share < 0.5

    assert str(root).encode() not in glb and b"bottle.png" not in glb
    said = json.dumps(json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])["asset"])
    for value in (
        __version__,
        hashlib.sha256((PHOTOS / "bottle.png").read_bytes()).hexdigest(),
        preset_with("matting.method=alpha").fingerprint(),
        '"seed": "0"',
        '"weights": "embedded"',
    ):
        assert value in said
    told = json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])["asset"]["extras"]["camera"]
    assert asset.camera == Camera(**json.loads(told))
    check_place(asset.camera)


def check_place(camera: Camera) -> None:
    """The asset's box lies on the photo's subject, as the photo's own alpha shows it."""
    alpha = np.asarray(Image.open(PHOTOS / "bottle.png"))[..., 3] > 127
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    # Within one of the 32 cells of the grid it was cut from.
    found = (camera.left, camera.top, camera.right, camera.bottom)
    assert found == pytest.approx(box, abs=2 * camera.px_per_unit / 32)
    assert (camera.photo_width_px, camera.photo_height_px) == alpha.shape[::-1]
    assert camera.silhouette_iou > 0.9 and not camera.is_refined


@pytest.fixture(scope="module")
def published_line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    weights = write(tmp_path_factory.mktemp("weights") / "mini")
    settings = [f"weights={weights.directory}", "rgb.steps=2", "ccm.steps=2", "reconstruction.grid=32"]
    overrides = [Override.from_assignment(text) for text in settings]
    preset = load_preset("tiny", overrides, architecture=weights.architecture).preset
    return Line(open_toolbox(preset, device="cpu", threads=1, precision="float32"), preset)


def test_networks_of_the_published_structure_make_an_asset(published_line: Line, tmp_path: Path) -> None:
    stages: list[str] = []
    steps: list[tuple[int, int]] = []
    job = job_for(PHOTOS, "bottle.png", tmp_path)
    asset = published_line.convert(job, stages.append, lambda done, of: steps.append((done, of)))
    assert stages == STAGES
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert asset.checks.is_closed and asset.checks.is_oriented and asset.checks.volume > 0
    # The sphere that the untrained network starts from, of radius 0.5, dented at random.
    assert asset.checks.volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.6)
    assert asset.checks.confidence == "ok", "no solid stands in for what these networks draw"
    # And on that sphere a bottle's photo would lie beside its place.
    assert asset.checks.seen_share == 0
    assert any("W_PHOTO_ASTRAY" in warning for warning in asset.warnings)
    assert asset.camera is not None and asset.camera.silhouette_iou < 0.7
    assert b'"weights": "mini"' in (tmp_path / "bottle.glb").read_bytes().replace(b'":"', b'": "')


class Unasked:
    """Stands for the networks' part where nobody may ask them again."""

    def __call__(self, *_: object) -> None:
        raise AssertionError("the networks were asked again")


def digests(asset: Asset) -> dict[str, str]:
    return {file.path.name: file.sha256 for file in asset.files}


def test_kept_views_give_the_same_asset_without_asking_the_networks(
    toolbox: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converted(line: Line, name: str, *, is_kept: bool) -> tuple[Asset, list[str]]:
        stages: list[str] = []
        job = job_for(PHOTOS, "bottle.png", tmp_path / name)
        return line.convert(
            replace(job, cache=tmp_path / "cache" if is_kept else None), stages.append
        ), stages

    plain, _ = converted(Line(toolbox, PRESET), "plain", is_kept=False)
    first, stages = converted(Line(toolbox, PRESET), "first", is_kept=True)
    assert "imagine" in stages
    again = Line(toolbox, PRESET)
    monkeypatch.setattr(again._seeded[0], "imagine", Unasked())
    second, stages = converted(again, "second", is_kept=True)
    assert "imagine" not in stages
    assert digests(plain) == digests(first) == digests(second)
    larger = Line(toolbox, preset_with("texture.size_px=256"))
    monkeypatch.setattr(larger._seeded[0], "imagine", Unasked())
    third, _ = converted(larger, "third", is_kept=True)
    assert digests(third) != digests(first)


def keeping(scratch: Path, cache: Path, seeds: int) -> Job:
    """A job whose views are kept, in a folder for each seed."""
    scratch.mkdir()
    folders = [cache / str(number) for number in range(seeds)]
    return replace(job_for(PHOTOS, "bottle.png", scratch), cache=folders[0], other_caches=tuple(folders[1:]))


def test_the_best_of_several_seeds_is_the_asset_that_its_seed_makes_alone(
    toolbox: Toolbox, tmp_path: Path
) -> None:
    several = preset_with("checks.best_of=3", "checks.enough_score=1")
    stages: list[str] = []
    best = Line(toolbox, several).convert(keeping(tmp_path / "best", tmp_path / "cache", 3), stages.append)
    again = ["imagine", *STAGES[2:]]
    assert stages == [*STAGES, *again, *again]
    alone = {}
    for seed in range(3):
        preset = preset_with(f"seed={seed}", "checks.enough_score=1")
        made, _ = converted(Line(toolbox, preset), PHOTOS, tmp_path / str(seed))
        assert made.seed == seed and made.verdict is not None
        alone[seed] = made
        # The views kept under each seed are those that it alone draws.
        kept = cache.read(tmp_path / "cache" / str(seed), photo=made.photo)
        assert kept is not None
        [views] = Imagine(toolbox, preset)([kept.cutout])
        assert all(map(torch.equal, arrays(kept.views), arrays(views)))
    scores = {seed: made.verdict.score for seed, made in alone.items() if made.verdict}
    assert len(set(scores.values())) == 3
    assert best.seed == max(scores, key=lambda seed: scores[seed])
    winner = alone[best.seed]
    assert (best.verdict, best.checks) == (winner.verdict, winner.checks)
    one, other = (
        contents(folder, [file.path for file in winner.files])
        for folder in (tmp_path / "best", tmp_path / str(best.seed))
    )
    assert one == other, "what is written of the best does not tell that others were tried"


def test_kept_views_of_several_seeds_give_the_same_best_without_asking_the_networks(
    toolbox: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = preset_with("checks.best_of=2", "checks.enough_score=1")
    first = Line(toolbox, preset).convert(keeping(tmp_path / "a", tmp_path / "cache", 2), lambda _: None)
    again = Line(toolbox, preset)
    for seeded in again._seeded:
        monkeypatch.setattr(seeded, "imagine", Unasked())
    stages: list[str] = []
    second = again.convert(keeping(tmp_path / "b", tmp_path / "cache", 2), stages.append)
    assert "imagine" not in stages
    assert (second.seed, digests(second)) == (first.seed, digests(first))


def test_the_search_ends_with_the_first_that_is_good_enough(toolbox: Toolbox, tmp_path: Path) -> None:
    preset = preset_with("checks.best_of=3", "checks.enough_score=0.5", "seed=5")
    asset, stages = converted(Line(toolbox, preset), PHOTOS, tmp_path / "out")
    assert asset.verdict is not None and asset.verdict.grade == "pass"
    assert (stages, asset.seed) == (STAGES, 5)


class Refusing:
    """Stands for a reconstruction that makes nothing of a photo."""

    def __call__(self, views: SixViews, cutout: Cutout) -> Surface:
        raise PhotoError("bottle.png: nothing came of it", code="E_NOTHING", remedy="another seed")


def test_a_seed_that_makes_nothing_leaves_the_photo_to_the_others(
    toolbox: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(toolbox, preset_with("checks.best_of=2", "checks.enough_score=1"))
    monkeypatch.setattr(line._seeded[0], "reconstruct", Refusing())
    monkeypatch.setattr(line, "finish", Line(toolbox, PRESET).finish)
    asset, _ = converted(line, PHOTOS, tmp_path / "one")
    assert asset.seed == 1
    monkeypatch.setattr(line._seeded[1], "reconstruct", Refusing())
    with pytest.raises(PhotoError, match="E_NOTHING"):
        converted(line, PHOTOS, tmp_path / "none")


def test_the_seconds_of_a_stage_are_those_of_all_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 2.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(lambda _: None, lambda: 0.0)
    for stage in ("imagine", "bake", "imagine"):
        watch.begin(stage)
    assert watch.stop() == {"imagine": 6.0, "bake": 1.0}


def test_the_reconstructions_noise_is_the_photos_own(published_line: Line) -> None:
    tools = published_line._tools
    size = 256
    views = SixViews(
        rgb=torch.full((6, 3, size, size), 0.4),
        ccm=torch.full((6, 3, size, size), 0.6),
        alpha=torch.ones(6, 1, size, size),
    )

    def planes(seed: int, digest: str) -> Tensor:
        preset = replace(published_line._preset, seed=seed)
        field = Reconstruct(tools, preset)(views, cutout_of(CHAIR, digest)).field
        assert isinstance(field, PlaneField)
        return field.triplane.planes

    first = planes(0, "a" * 64)
    assert torch.equal(planes(0, "a" * 64), first)
    assert not torch.equal(planes(1, "a" * 64), first)
    assert not torch.equal(planes(0, "b" * 64), first)


def test_only_what_takes_long_has_a_forecast(published_line: Line, line: Line) -> None:
    forecast = published_line.forecast_s()
    assert forecast is not None and forecast > 0
    assert line.forecast_s() is None


def test_a_forecast_counts_every_seed_that_may_be_tried(
    published_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "forecast_s", lambda *words, **more: 10.0)
    preset = replace(published_line._preset, checks=replace(published_line._preset.checks, best_of=4))
    assert (published_line.forecast_s(), Line(published_line._tools, preset).forecast_s()) == (10.0, 40.0)


def test_a_whole_canvas_is_asked_for_by_name(toolbox: Toolbox, tmp_path: Path) -> None:
    job = job_for(PHOTOS, "bottle.png", tmp_path)
    photo, subject = Prepare(toolbox, PRESET)(job)
    _, canvas = Prepare(toolbox, preset_with("cutout.framing=canvas"))(job)
    assert subject.rgb.shape[-1] == PRESET.cutout.size_px
    assert canvas.rgb.shape[-1] == max(photo.rgb.shape[:2])


def test_a_preset_says_where_the_field_is_asked(toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def listening(field: Field, resolution: int, *, dense: bool, **_: Any) -> Mesh:
        asked.append((resolution, dense))
        return surface(field, resolution)

    monkeypatch.setattr(pipeline, "surface", listening)
    for dense in ("false", "true"):
        preset = preset_with("reconstruction.grid=24", f"reconstruction.dense={dense}")
        Reconstruct(toolbox, preset)(CHAIR, CUTOUTS[0])
    assert asked == [(24, False), (24, True)]
