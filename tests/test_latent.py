"""What the published denoisers are asked in training, with networks and pictures at no cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from bench_latent import count, tera_operations
from miniature import networks
from PIL import Image
from test_tasks import lopsided, seen_by_all
from torch import Tensor, nn

from crm_cli.frame import FRONT, VIEWS
from crm_cli.learn import latent
from crm_cli.learn.latent import Frozen, LatentSettings, LatentTask, Question, partly_hidden
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.encoders import for_tower, tower_picture, vae_picture
from crm_cli.models.engine import Shown
from crm_cli.models.imagine import encode, prepare
from crm_cli.models.sampler import clean_from_noise, first_order, published_schedule, sample

STAGES = ("rgb", "ccm")
GREY_LEVELS = 1 / 255

Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks take latents of any size; those of 256 px cost sixteen times as much."""
    monkeypatch.setattr(latent, "VAE_PX", 64)


def batch(count: int = 1, colour: tuple[int, int, int] = (200, 100, 50)) -> Batch:
    alpha, depth = (
        array.repeat_interleave(4, -1).repeat_interleave(4, -2) for array in seen_by_all(lopsided())
    )
    views = torch.zeros(count, 6, 4, 64, 64, dtype=torch.uint8)
    for channel, value in enumerate(colour):
        views[:, :, channel] = (alpha * value).byte()
    views[:, :, 3] = (alpha * 255).byte()
    photo = views[:, FRONT].clone()
    photo[:, 2] += 100 * (photo[:, 3] > 0)
    return {"photo": photo, "views": views, "depth": depth.expand(count, -1, -1, -1)}


def task_of(stage: str, seed: int = 0, **settings: Any) -> LatentTask:
    parts = networks(seed)
    frozen = Frozen(vae=parts["vae"], vision=parts["vision"], contexts=parts["contexts"])  # type: ignore[arg-type]
    network = parts[stage].train().requires_grad_(True)
    return LatentTask(stage, network, frozen, LatentSettings(**settings))


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def asked(stage: str, count: int = 1, **settings: Any) -> Question:
    task = task_of(stage, **settings)
    return task.ask(task.pictures(batch(count), dice()), dice(1))


# The noise.


@pytest.mark.parametrize("stage", STAGES)
def test_taking_the_noise_out_as_the_sampler_does_leaves_the_clean_latents(stage: str) -> None:
    question = asked(stage)
    levels = published_schedule().alpha_bar
    for view in range(6):
        level = levels[question.t[0, view]].item()
        x, noise = question.noisy[0, view].double(), question.noise[0, view].double()
        clean = clean_from_noise(x, noise, level)
        # Rounding of the noisy latents counts 1/√ᾱ-fold.
        assert (clean - question.clean[0, view]).abs().max() < 1e-6 / level**0.5
        # One step of the solver to where the published one ends, and what is left of the noise there.
        end = levels[0].item()
        stepped = first_order(x, clean, level, end)
        wanted = end**0.5 * question.clean[0, view] + (1 - end) ** 0.5 * noise
        assert (stepped - wanted).abs().max() < 1e-6 / level**0.5


def test_every_frame_has_a_noise_level_of_its_own_and_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("rgb")
    monkeypatch.setattr(task, "_latents", lambda pictures, random: torch.zeros(*pictures.shape[:2], 4, 2, 2))
    pictures = task.pictures(batch(), dice())
    drawn = torch.cat([task.ask(pictures, dice(seed)).t.flatten() for seed in range(300)])
    assert drawn.min() >= 0 and drawn.max() <= 999 and drawn.max() > 990
    assert 450 < drawn.float().mean() < 550
    assert len(drawn[:7].unique()) > 1


class Knowing(nn.Module):
    """Answers with what it was told, in whatever frames there are; of the reference, nonsense."""

    def __init__(self, network: nn.Module, told: Callable[[], Tensor]) -> None:
        super().__init__()
        self.config = cast(MultiViewUNet, network).config
        self.told = told
        self.place = nn.Parameter(torch.zeros(()))

    def prepare(self, **conditions: Tensor | None) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, conditions: None) -> Tensor:
        answer = torch.full_like(x, 1e6)
        answer[:, :6] = self.told()
        return answer


@pytest.mark.parametrize("stage", STAGES)
def test_who_knows_the_noise_has_no_loss_whatever_it_says_of_the_reference(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(stage)
    questions: list[Question] = []
    ask = task.ask
    monkeypatch.setattr(
        task, "ask", lambda pictures, random: questions.append(ask(pictures, random)) or questions[-1]
    )
    task.network = Knowing(task.network, lambda: questions[-1].noise)
    loss, terms = task.loss(batch(), dice())
    assert loss == 0 and terms["noise"] == 0
    task.network = Knowing(task.network, lambda: questions[-1].noise + 0.5)
    assert task.loss(batch(), dice())[0] == pytest.approx(0.25)


class Optimal(Knowing):
    """Knows the one object there is, and takes what is left of noisy latents for noise."""

    def forward(self, x: Tensor, t: Tensor, conditions: None) -> Tensor:
        clean = torch.cat([self.told(), x[:, 6:]], dim=1)
        level = published_schedule().at(t, x.double())
        return ((x - level.sqrt() * clean) / (1 - level).sqrt()).to(x.dtype)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_network_without_loss_is_the_one_that_sampling_turns_into_the_latents(
    stage: str, solver: str
) -> None:
    task = task_of(stage)
    question = task.ask(task.pictures(batch(), dice()), dice(1))
    task.network = Optimal(task.network, lambda: question.clean)
    assert task.error(question) < 1e-9
    frames = task.network.config.frames
    noise = torch.randn(1, frames, *question.clean.shape[2:], generator=dice(2))
    made = sample(lambda x, t: task.network(x, t, None), noise, steps=20, solver=solver, prediction="eps")
    left = (1 - published_schedule().alpha_bar[0].item()) ** 0.5  # the published end is not quite clean
    assert (made[:, :6] - question.clean).abs().max() < 1.1 * left * noise.abs().max()


# What is shown.


@pytest.mark.parametrize("stage", STAGES)
def test_hidden_conditions_are_those_of_the_unconditional_half_of_sampling(stage: str) -> None:
    question, shown = asked(stage, hidden=1.0), asked(stage, hidden=0.0).shown
    parts = networks()
    text, negative = (context[None] for context in parts["contexts"].tokens)  # type: ignore[union-attr]
    assert torch.equal(cast(Tensor, shown.text), text)
    wanted = shown.hidden(negative)
    for name in ("concat", "reference", "image", "text"):
        one, other = getattr(question.shown, name), getattr(wanted, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    network = cast(MultiViewUNet, parts[stage])
    x = question.noisy
    answers = [network(x, question.t, prepare(network, [each])) for each in (question.shown, wanted)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], network(x, question.t, prepare(network, [shown])))


def test_conditions_are_hidden_object_by_object() -> None:
    shown = Shown(reference=torch.ones(3, 4, 2, 2), image=torch.ones(3, 5, 6), text=torch.ones(3, 7, 8))
    mixed = partly_hidden(shown, shown.hidden(torch.full((3, 7, 8), 2.0)), torch.tensor([False, True, False]))
    assert mixed.concat is None
    for tensor, hidden in ((mixed.reference, 0), (mixed.image, 0), (mixed.text, 2)):
        assert [row.unique().tolist() for row in cast(Tensor, tensor)] == [[1], [hidden], [1]]


def test_the_asked_share_of_conditions_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("ccm", hidden=0.25)
    monkeypatch.setattr(task, "_latents", lambda pictures, random: torch.ones(*pictures.shape[:2], 4, 1, 1))
    monkeypatch.setattr(latent, "look", lambda vision, pictures: torch.ones(len(pictures), 1, 32))
    pictures = task.pictures(batch(64), dice())
    beside = cast(Tensor, task.ask(pictures, dice()).shown.concat)
    assert 8 <= (beside.flatten(1).amax(1) == 0).sum() <= 24


def test_the_reference_is_clean_and_of_a_draw_of_its_own() -> None:
    question = asked("rgb", photos=0.0)
    reference = cast(Tensor, question.shown.reference)
    assert torch.equal(question.noisy[:, 6], reference)
    front = question.clean[:, 5]  # the last of the six frames shows the same face
    assert not torch.equal(reference, front)


@pytest.mark.parametrize("stage", STAGES)
def test_frames_are_in_the_order_of_the_denoisers_and_the_views_stand_beside_their_maps(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the noise that chooses among a picture's latents, which is as large as they are.
    monkeypatch.setattr(latent, "encode", lambda vae, pictures, noise: encode(vae, pictures, 0 * noise))
    task = task_of(stage, photos=0.0)
    pictures = task.pictures(batch(), dice())
    question = task.ask(pictures, dice(1))
    vae = cast(Any, task)._frozen.vae
    names = ["left", "bottom", "back", "right", "top", "front"]
    order = [[view.name for view in VIEWS].index(name) for name in names]
    rgb, maps = (vae.encode(shown[0, order] * 2 - 1, None) for shown in (pictures.rgb, pictures.maps))
    if stage == "rgb":
        assert torch.equal(question.clean[0], rgb)
        assert torch.equal(cast(Tensor, question.shown.reference), vae.encode(pictures.seen * 2 - 1, None))
    else:
        assert torch.equal(question.clean[0], maps)
        assert torch.equal(cast(Tensor, question.shown.concat)[0], rgb)


def test_towers_see_what_they_see_when_a_photo_is_converted() -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 9, 9, generator=dice()), (256, 256), mode="bicubic"
    )
    pixels = (smooth[0].clamp(0, 1) * 255).round()
    picture = Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())
    tower = torch.nn.functional.interpolate(pixels[None] / 255, (224, 224), mode="bicubic", antialias=True)
    assert (for_tower(tower[0].clamp(0, 1)) - tower_picture(picture)).abs().max() < 3 * GREY_LEVELS / 0.26
    assert torch.allclose(pixels / 255 * 2 - 1, vae_picture(picture))


# The pictures.


@pytest.mark.parametrize("stage", STAGES)
def test_maps_tell_where_a_pixel_is_and_fill_the_cube(stage: str) -> None:
    pictures = task_of(stage, photos=1.0).pictures(batch(), dice(2))
    rgb, maps = pictures.rgb[0], pictures.maps[0] * 2 - 1
    grey = rgb[0, :, 0, 0]
    inside = ((rgb - grey[:, None, None]).abs() > 0.02).all(dim=1)
    # Pixels at the border are mixed with the background.
    inner = torch.nn.functional.max_pool2d((~inside).float(), 3, stride=1, padding=1) == 0
    grid = (torch.arange(64) + 0.5) / 32 - 1
    spans = []
    for index, view in enumerate(VIEWS):
        rows, columns = inner[index].nonzero().T
        u, v = grid[columns], grid[rows]
        across = next(axis for axis in range(3) if view.right[axis])
        upward = next(axis for axis in range(3) if view.up[axis])
        x, y = maps[index, across][rows, columns], maps[index, upward][rows, columns]
        spans.append((u * view.right[across] / x)[x.abs() > 0.3])
        spans.append((-v * view.up[upward] / y)[y.abs() > 0.3])
    share = torch.cat(spans)
    # Colours keep the whole range, however small the object: the picture is a share of them.
    assert share.std() < 0.01
    assert 0.475 - 0.02 < share.mean() < (0.95 if stage == "rgb" else 0.97)
    if stage == "ccm":
        assert share.mean() == pytest.approx(0.95, abs=0.02)
    largest = (maps.abs() * inner[:, None]).amax()
    assert 0.85 < largest <= 1


def test_the_photo_or_a_face_is_shown_on_the_background_of_all_pictures() -> None:
    def tint(**settings: Any) -> tuple[Tensor, Tensor]:
        pictures = task_of("ccm", **settings).pictures(batch(), dice(3))
        assert torch.equal(pictures.seen[0, :, 0, 0], pictures.maps[0, 0, :, 0, 0])
        return pictures.seen[0], pictures.rgb[0, FRONT]

    seen, front = tint(photos=0.0)
    assert torch.equal(seen, front)
    seen, front = tint(photos=1.0)
    assert torch.equal(seen[:2], front[:2]) and (seen[2] - front[2]).max() == pytest.approx(
        100 / 255, abs=1e-3
    )


def test_the_first_stage_is_shown_all_faces_and_the_second_those_around() -> None:
    counts = {}
    for stage in STAGES:
        pictures = task_of(stage, photos=0.0).pictures(batch(48), dice(4))
        backdrop = pictures.rgb[:, :1, :, :1, :1]
        solid = ((pictures.rgb - backdrop).abs().amax(2) > 0.02).flatten(2).float().mean(2)  # [48 6]
        share = solid / solid.sum(1, keepdim=True)
        counts[stage] = len({tuple((row * 100).round().tolist()) for row in share})
    assert counts["rgb"] > counts["ccm"] > 1


def test_outlines_are_painted_over_in_half_of_what_the_first_stage_is_shown() -> None:
    painted = {}
    for stage in STAGES:
        pictures = task_of(stage, photos=0.0).pictures(batch(64), dice(5))
        painted[stage] = (pictures.seen != pictures.rgb[:, FRONT]).flatten(1).any(1).sum().item()
    assert 20 < painted["rgb"] < 44 and painted["ccm"] == 0


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_contour_has_its_width_and_lies_on_the_outline(width: int) -> None:
    alpha = torch.zeros(1, 20, 20)
    alpha[:, 5:15, 5:15] = 1
    ink = latent.Contour(width_px=width, ink=(1.0, 0.0, 0.0))
    rgb, covered = ink.over(torch.full((3, 20, 20), 0.5) * alpha, alpha)
    line = (rgb == torch.tensor([1.0, 0, 0])[:, None, None]).all(0)
    assert line[10].sum() == 2 * width and line[:, 10].sum() == 2 * width
    assert line[10, 5] and line[10, 14] and not line[9:11, 9:11].any()
    assert torch.equal(covered[0] > 0, line | (alpha[0] > 0))


# Learning.


@pytest.mark.parametrize("stage", STAGES)
def test_fine_tuning_lowers_the_loss_on_what_it_sees(stage: str) -> None:
    task = task_of(stage)
    optimiser = torch.optim.AdamW(task.network.parameters(), lr=2e-3)
    before = [tensor.clone() for tensor in networks()["vae"].state_dict().values()]
    losses = []
    for _ in range(6):
        loss, _ = task.loss(batch(), dice())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    frozen = cast(Any, task)._frozen
    assert all(map(torch.equal, before, frozen.vae.state_dict().values()))
    assert all(p.grad is None for part in (frozen.vae, frozen.vision) for p in part.parameters())
    # All of the network learns, with its resampler and cameras.
    assert all(p.grad is not None for p in task.network.parameters())


def test_blocks_that_are_computed_twice_give_the_same_gradients_and_keep_less() -> None:
    gradients, kept = [], []
    for is_recomputed in (False, True):
        task = task_of("rgb", is_recomputed=is_recomputed)
        bytes_kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss, _ = task.loss(batch(), dice())
        kept.append(bytes_kept)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in task.network.parameters()])
        assert task.network.state_dict().keys() == networks()["rgb"].state_dict().keys()
    assert all(torch.equal(cast(Tensor, a), cast(Tensor, b)) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_memory_is_counted_of_everything_that_is_kept() -> None:
    network = networks()["rgb"]
    once, twice = (
        count("miniature", "rgb", precision="float32", is_recomputed=is_recomputed)
        for is_recomputed in (False, True)
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert once[0] == twice[0] == 5 * 4 * parameters / 1e9
    # All blocks' inputs are kept either way, and nothing of the frozen parts.
    assert 0 < twice[2] < once[2] / 3


def test_operations_are_those_of_the_published_sizes() -> None:
    # Forward passes as measured on the authors' code, in 10⁹: both guidance branches 3269 and 2710; VAE 273 a
    # picture, image tower 324. That code repeats for every frame what is the same in all: the resampler of
    # 5.5 and keys and values of 93 tokens, 1024 wide, for widths that add up to 12480.
    repeated = 77 / 14 + 2 * 2 * 93 * 1024 * 12480 / 1e9
    for stage, unet, frames, pictures in (("rgb", 3269, 7, 7), ("ccm", 2710, 6, 12)):
        learned, frozen = tera_operations("release", stage, is_recomputed=False)
        assert learned == pytest.approx(3 * (unet / 2 - (frames - 1) * repeated) / 1e3, rel=0.003)
        assert frozen == pytest.approx((pictures * 273 + 324) / 1e3, rel=0.003)
        assert tera_operations("release", stage, is_recomputed=True)[0] == pytest.approx(4 / 3 * learned)
