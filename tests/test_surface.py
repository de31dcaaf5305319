"""Training on pictures of the surface: what is compared, what is learned, and that it repeats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_perceptual import weights
from torch import Tensor

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.learn import surface as module
from crm_cli.learn.data import Shards, write_shard
from crm_cli.learn.portraits import Portrayed, draw_eyes, eyes_of, write_portraits
from crm_cli.learn.render import OwnRenderer
from crm_cli.learn.samples import GAP_PX, TILE_PX
from crm_cli.learn.shell import Shell, find_shell
from crm_cli.learn.surface import EndToEnd, SurfaceTask, check_end_to_end, open_renderer, show
from crm_cli.learn.tasks import records_of
from crm_cli.learn.train import Batch, TrainSettings, train
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.reconstruction import MINI, TINY, PlaneField, ReconstructionConfig
from crm_cli.toolbox import accelerators

MICRO = replace(MINI, plane_px=16)
"""The published structure on planes of 16 pixels."""

GRID = 12


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Portrayed:
    folder = tmp_path_factory.mktemp("data")
    for name, write in (("examples", write_shard), ("portraits", write_portraits)):
        (folder / name).mkdir()
        write(folder / name / "0000000.npz", range(2), WarpRaster(), 24)
    return Portrayed(Shards(folder / "examples"), Shards(folder / "portraits"))


def task_of(config: ReconstructionConfig, **changes: object) -> SurfaceTask:
    torch.manual_seed(0)
    return SurfaceTask(config, EndToEnd(grid=GRID, **changes))  # type: ignore[arg-type]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ball:
    """A field with nothing to learn: a ball whose colours are its places."""

    hull = None

    def __init__(self, radius: float) -> None:
        self.radius = radius
        self.triplane = torch.nn.Module()
        self.triplane.planes = torch.zeros(1)

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points.norm(dim=1) - self.radius, torch.zeros_like(points)

    def cube_weights(self, corners: Tensor) -> CubeWeights:
        return CubeWeights.from_raw(self.raw_weights(corners))

    def raw_weights(self, corners: Tensor) -> Tensor:
        return torch.zeros(len(corners), 21)

    def colour(self, points: Tensor) -> Tensor:
        return (points + 1) / 2


def test_a_surface_is_shown_in_the_colours_of_the_very_places_that_pixels_see() -> None:
    field = Ball(0.8)
    shell = find_shell(field, 24, random())  # type: ignore[arg-type]
    eyes = draw_eyes(np.random.default_rng(0), 0.8, count=4)
    shown = show(field, shell, eyes, OwnRenderer(WarpRaster()), size_px=32)  # type: ignore[arg-type]
    torch.testing.assert_close(
        shown.mask.mean((1, 2)), torch.full((4,), np.pi / 4).float(), rtol=0.03, atol=0
    )
    toward = eyes.axes[:, 2]
    middle = (slice(None), slice(15, 17), slice(15, 17))
    torch.testing.assert_close(shown.toward[middle].mean((1, 2)), torch.full((4,), 0.8), atol=0.02, rtol=0)
    colours = shown.rgb.permute(0, 2, 3, 1)[middle].mean((1, 2))
    torch.testing.assert_close(colours, (0.8 * toward + 1) / 2, atol=0.02, rtol=0)
    assert torch.equal(shown.rgb[:, :, 0, 0], torch.full((4, 3), module.BACKGROUND))
    assert torch.equal(shown.is_solid, shown.toward != 0)


@pytest.mark.parametrize("config", [TINY, MICRO], ids=["embedded", "published"])
def test_the_loss_is_the_papers_sum(
    config: ReconstructionConfig, examples: Portrayed, tmp_path: Path
) -> None:
    torch.save(weights(), tmp_path / "lpips.pth")
    batch = examples.batch(np.array([0, 1]))
    plain, terms = task_of(config).loss(batch, random())
    assert set(terms) == {"colour", "depth", "mask", "irregular", "iou"}
    wanted = terms["colour"] + 0.5 * terms["depth"] + 0.5 * terms["mask"] + 0.005 * terms["irregular"]
    torch.testing.assert_close(plain, wanted)
    loss, terms = task_of(config, lpips=(tmp_path / "lpips.pth",)).loss(batch, random())
    assert terms["lpips"] > 0
    torch.testing.assert_close(loss, wanted + 0.1 * terms["lpips"])


def test_every_parameter_of_either_network_is_pulled(examples: Portrayed) -> None:
    for config in (TINY, MICRO):
        task = task_of(config)
        loss, _ = task.loss(examples.batch(np.array([0, 1])), random())
        loss.backward()
        still = [
            name
            for name, parameter in task.network.named_parameters()
            if parameter.grad is None or not parameter.grad.isfinite().all()
        ]
        assert not still


def test_the_published_network_sees_noise_as_its_generator_says(examples: Portrayed) -> None:
    task, batch = task_of(MICRO), examples.batch(np.array([0, 0]))
    planes = [
        torch.stack([field.triplane.planes for field in task._fields(batch, random(seed))])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(planes[0], planes[1])
    assert not torch.equal(planes[0], planes[2])
    assert not torch.equal(planes[0][0], planes[0][1]), "each object its own"


def test_a_step_takes_half_of_the_portraits_as_its_generator_says(examples: Portrayed) -> None:
    task = task_of(MICRO)
    taken: list[Tensor] = []
    task._renderer = OwnRenderer(WarpRaster())
    eyes_of = module.eyes_of

    def watched(axes: Tensor, distance: Tensor) -> object:
        taken.append(axes)
        return eyes_of(axes, distance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "eyes_of", watched)
        losses = [task.loss(examples.batch(np.array([0])), random(seed))[0].item() for seed in (0, 0, 1)]
    assert [len(axes) for axes in taken] == [8, 8, 8]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(taken[0], taken[1]) and not torch.equal(taken[0], taken[2])


@pytest.mark.parametrize("config", [TINY, MICRO], ids=["embedded", "published"])
def test_it_learns_an_example(config: ReconstructionConfig, examples: Portrayed, tmp_path: Path) -> None:
    settings = TrainSettings(steps=20, batch=1, learning_rate=1e-2, warmup=3, log_every=1)
    only = Only(examples, 1)
    lines = list(train(task_of(config), only, settings, tmp_path))
    first, last = (
        {name: np.mean([line.terms[name] for line in part]) for name in lines[0].terms}
        for part in (lines[:4], lines[-4:])
    )
    assert last["mask"] < 0.7 * first["mask"]
    assert last["iou"] > first["iou"] + 0.02


class Only:
    """The first few of some examples."""

    def __init__(self, examples: Portrayed, count: int) -> None:
        self.examples, self.count = examples, count

    def at_step(self, step: int) -> int:
        return self.count

    def batch(self, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        return self.examples.batch(indices)


@pytest.mark.parametrize("config", [TINY, MICRO], ids=["embedded", "published"])
def test_it_repeats_byte_for_byte_and_resumes_exactly(
    config: ReconstructionConfig, examples: Portrayed, tmp_path: Path
) -> None:
    settings = TrainSettings(steps=3, batch=2, learning_rate=1e-2, warmup=1, save_every=1, log_every=1)
    for name, stops in (("once", (None,)), ("again", (None,)), ("resumed", (1, None))):
        for stop in stops:
            list(train(task_of(config), examples, settings, tmp_path / name, until=stop))
    files = [
        (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("once", "again", "resumed")
    ]
    assert files[0] == files[1] == files[2]


def test_half_precision_ends_before_the_surface(examples: Portrayed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(field: PlaneField, *rest: object) -> Shell:
        seen.append((field.triplane.planes.dtype, torch.is_autocast_enabled("cpu")))
        return find_shell(field, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "find_shell", watched)
    batch = examples.batch(np.array([0]))
    task = task_of(MICRO)
    plain, _ = task.loss(batch, random())
    with torch.autocast("cpu", torch.bfloat16):
        half, terms = task.loss(batch, random())
    assert seen == [(torch.float32, False)] * 2
    assert half.dtype == terms["depth"].dtype == torch.float32
    assert half != plain, "the U-Net did calculate in half precision"
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0)


def test_a_network_that_draws_nothing_is_pulled_back(examples: Portrayed) -> None:
    task = task_of(MICRO)
    bias = task.network.sdfMlp.fc3.bias  # type: ignore[union-attr]
    with torch.no_grad():
        bias[0] -= 2  # type: ignore[operator]
    loss, terms = task.loss(examples.batch(np.array([0])), random())
    loss.backward()
    assert terms["iou"] == 0 and loss.isfinite()
    assert bias.grad[0] < 0  # type: ignore[index]
    assert all(parameter.grad is not None for parameter in task.network.parameters())


def test_a_sample_shows_what_is_drawn_above_what_is(examples: Portrayed) -> None:
    batch = examples.batch(np.array([0, 1]))
    with torch.no_grad():
        picture = task_of(TINY).show(batch, random())
    times = TILE_PX // 24
    side = 24 * times + GAP_PX
    assert picture.shape == (3, 2 * 2 * side, 8 * side)
    tiles = picture.view(3, 2, 2, side, 8, side)[:, :, :, :-GAP_PX:times, :, :-GAP_PX:times]
    drawn, truth = tiles.unbind(2)
    portrait = batch["portrait"][:, ::2].float() / 255
    wanted = portrait[:, :, :3] + module.BACKGROUND * (1 - portrait[:, :, 3:])
    torch.testing.assert_close(truth, wanted.permute(2, 0, 3, 1, 4))
    # Views of a mug or a shoe carve out nearly the mug and the shoe.
    assert 0 < (drawn - truth).abs().mean() < 0.5 * (truth - module.BACKGROUND).abs().mean()


@pytest.mark.skipif(not accelerators(), reason="needs CUDA")
def test_a_gpu_finds_the_loss_and_the_pull_of_the_cpu(examples: Portrayed) -> None:
    batch = examples.batch(np.array([0, 1]))
    losses, slopes = [], []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        task = SurfaceTask(MICRO, EndToEnd(grid=GRID), device=device)
        task.network.to(device)
        fields = task.network.fields(records_of(batch["views"].to(device) / 255, batch["depth"].to(device)))  # type: ignore[operator]
        shell = find_shell(fields[0], GRID, torch.Generator(device).manual_seed(0))
        eyes = eyes_of(batch["eye_axes"][0].to(device), batch["eye_distance"][0].to(device))
        shown = show(fields[0], shell, eyes, open_renderer(device), size_px=24)
        loss = shown.mask.square().mean() + shown.rgb.square().mean()
        loss.backward()
        losses.append(loss.item())
        slopes.append(task.network.sdfMlp.fc1.weight.grad.cpu())  # type: ignore[union-attr, operator]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(*(s.flatten() for s in slopes), dim=0) > 0.95


def test_settings_without_their_word_are_refused() -> None:
    assert check_end_to_end(EndToEnd(), is_asked=False) is None
    assert check_end_to_end(EndToEnd(grid=32), is_asked=True) == EndToEnd(grid=32)
    with pytest.raises(UsageError, match="add --end-to-end"):
        check_end_to_end(EndToEnd(grid=32), is_asked=False)


def test_the_renderer_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, name in (("auto", "warp"), ("torch", "torch")):
        monkeypatch.setenv("CRM_RASTERISER", wanted)
        renderer = open_renderer("cpu")
        assert isinstance(renderer, OwnRenderer) and renderer._raster.name == name
    monkeypatch.setenv("CRM_RASTERISER", "nvdiffrast")
    with pytest.raises(EnvironmentProblem, match="needs CUDA"):
        open_renderer("cpu")
