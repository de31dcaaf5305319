from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from measured import cutout, drawn, exact, tools, unheard
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import nn

from crm_cli.bench import reference
from crm_cli.bench.networks import RandomNetworks, draw_networks
from crm_cli.bench.reference import ReferenceShaped, TwoStages
from crm_cli.mesh.bake import draw_charts
from crm_cli.models.imagine import PublishedImagination
from crm_cli.models.layers import PromptAttention
from crm_cli.pipeline import Reconstruct
from crm_cli.preset import Preset
from crm_cli.records import Job, Mesh, SixViews, UnwrappedMesh

GREY_LEVEL = 1 / 255


@pytest.fixture(scope="module")
def views() -> SixViews:
    [drawn_views] = TwoStages(tools(), exact(), drawn().text)([cutout()], unheard)
    return drawn_views


def test_the_baseline_draws_the_views_of_the_exact_preset(views: SixViews) -> None:
    [ours] = PublishedImagination(drawn(), exact())([cutout()], unheard)
    for mine, theirs in ((ours.rgb, views.rgb), (ours.ccm, views.ccm)):
        # Pictures are cut to whole levels, where the last bit of a sum decides now and then.
        assert (mine - theirs).abs().max() <= 1.001 * GREY_LEVEL
        assert (mine != theirs).float().mean() < 0.02
        assert mine.std() > 0.1
    assert torch.equal(ours.alpha, views.alpha)


def test_the_baseline_draws_the_surface_of_the_exact_preset(views: SixViews) -> None:
    mesh, field = ReferenceShaped(tools(), exact(), drawn().text).reconstruct(views, cutout())
    ours = Reconstruct(tools(), exact())(views, cutout())
    assert ours.confidence == "ok" and len(mesh.faces) > 500
    assert np.array_equal(mesh.faces, ours.mesh.faces)
    assert np.abs(mesh.vertices - ours.mesh.vertices).max() < 1e-5
    points = torch.from_numpy(mesh.vertices)
    assert torch.allclose(field.colour(points), ours.field.colour(points), atol=1e-5)


def test_nothing_is_kept_from_one_step_frame_or_stage_to_the_next() -> None:
    networks = draw_networks("miniature", device="cpu", dtype=torch.float32)
    rows: Counter[str] = Counter()

    def count(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Any, ...], answer: object) -> None:
            rows[name] += len(given[0])

        module.register_forward_hook(hook)

    vae: Any = networks["vae"]
    count("text", networks.text)
    count("vision", networks["vision"])
    count("encoded", vae.encoder)
    count("decoded", vae.decoder)
    for stage in ("rgb", "ccm"):
        denoiser: Any = networks[stage]
        count(f"{stage} step", denoiser.time_embed)
        count(f"{stage} resampler", denoiser.image_embed)
        first = next(layer for layer in denoiser.modules() if isinstance(layer, PromptAttention))
        count(f"{stage} keys", first.to_k)
        count(f"{stage} image values", first.to_v_ip)
    TwoStages(tools_with(networks), exact(), networks.text)([cutout()], unheard)
    steps, halves = 2, 2
    assert rows == {
        "text": 4, "vision": 2, "encoded": 9, "decoded": 13,
        "rgb step": steps * halves, "ccm step": steps * halves,
        "rgb resampler": steps * halves * 7, "ccm resampler": steps * halves * 6,
        "rgb keys": steps * halves * 7, "ccm keys": steps * halves * 6,
        "rgb image values": steps * halves * 7, "ccm image values": steps * halves * 6,
    }  # fmt: skip


def tools_with(networks: RandomNetworks) -> Any:
    from dataclasses import replace

    return replace(tools(), networks=networks)


def ball() -> Mesh:
    solid = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
    return Mesh(vertices=np.asarray(solid.vertices, np.float32), faces=np.asarray(solid.faces, np.int64))


class Coordinates:
    """A field whose colour tells the place."""

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return (points + 1) / 2


def test_the_texture_holds_the_colour_of_the_place_that_a_texel_shows() -> None:
    baseline = ReferenceShaped(tools(), exact(), drawn().text)
    unwrapped = baseline.unwrap(ball())
    texture = baseline.bake(unwrapped, Coordinates())  # type: ignore[arg-type]
    assert texture.shape == (1024, 1024, 3) and texture.dtype == np.uint8
    corners = unwrapped.mesh.vertices[unwrapped.mesh.faces]  # [F 3 3]
    places = corners.mean(1)
    u, v = unwrapped.uv[unwrapped.uv_faces].mean(1).T
    seen = texture[(1024 * (1 - v)).astype(int), (1024 * u).astype(int)] / 255 * 2 - 1
    # A texel is half as wide as a face is long here, and its colour is cut to 8 bits.
    assert np.abs(seen - places).max() < 0.03


def test_around_the_charts_there_is_a_rim_of_one_texel_and_nothing_beyond() -> None:
    baseline = ReferenceShaped(tools(), exact(), drawn().text)
    unwrapped = baseline.unwrap(ball())
    coloured = baseline.bake(unwrapped, Coordinates()).max(2) > 1  # type: ignore[arg-type]
    covered = draw_charts(unwrapped, tools().raster, size_px=1024).covered.numpy()
    rim = binary_dilation(covered, np.ones((3, 3))) & ~covered
    assert coloured[rim].all() and coloured[covered].all()
    assert not coloured[~(rim | covered)].any()
    assert rim.sum() > 1000


def test_obj_brings_back_what_was_written_up_to_six_decimals() -> None:
    baseline = ReferenceShaped(tools(), exact(), drawn().text)
    unwrapped = baseline.unwrap(ball())
    again = reference._from_obj(reference._as_obj(unwrapped))
    assert np.array_equal(again.mesh.faces, unwrapped.mesh.faces)
    assert np.array_equal(again.uv_faces, unwrapped.uv_faces)
    assert np.abs(again.mesh.vertices - unwrapped.mesh.vertices).max() < 1e-6
    assert np.abs(again.uv - unwrapped.uv).max() < 1e-6


def test_the_obj_stands_on_its_feet_as_published() -> None:
    mesh = Mesh(vertices=np.array([[1, 2, 3], [0, 0, 0], [0, 1, 0]], np.float32), faces=np.array([[0, 1, 2]]))
    unwrapped = UnwrappedMesh(
        mesh=mesh, uv=np.array([[0.25, 0.5]], np.float32), uv_faces=np.zeros((1, 3), int)
    )
    assert reference._as_obj(unwrapped).splitlines() == [
        "v 1.000000 3.000000 -2.000000",
        "v 0.000000 0.000000 -0.000000",
        "v 0.000000 0.000000 -1.000000",
        "vt 0.250000 0.500000",
        "f 1/1 2/1 3/1",
    ]


def converted(preset: Preset, folder: Path) -> tuple[Path, list[str]]:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[12:52, 20:44] = (200, 90, 30, 255)
    Image.fromarray(picture).save(folder / "a.png")
    path = PurePosixPath("a.png")
    job = Job(root=folder, path=path, stem=PurePosixPath("a"), id="0" * 16, scratch=folder, max_mpixels=1)
    stages: list[str] = []
    steps: list[tuple[int, int]] = []
    glb = ReferenceShaped(tools(), preset, drawn().text).convert(
        job, stages.append, lambda done, of: steps.append((done, of))
    )
    assert len(steps) == 2 + 2
    return glb, stages


def test_a_photo_becomes_a_textured_glb_stage_by_stage(tmp_path: Path) -> None:
    glb, stages = converted(exact(), tmp_path)
    assert stages == ["prepare", "imagine", "reconstruct", "unwrap", "bake", "deliver"]
    [solid] = trimesh.load(glb, process=False).geometry.values()
    assert len(solid.faces) > 500
    texture = np.asarray(solid.visual.material.baseColorTexture)
    assert texture.shape == (1024, 1024, 3) and texture.std() > 5
    assert {file.name for file in tmp_path.iterdir()} == {"a.png", "a.obj", "a.glb"}
