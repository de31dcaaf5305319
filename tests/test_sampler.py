import itertools
import math
import operator
from collections.abc import Callable

import pytest
import torch
from exact_flow import (
    ALPHA_BAR,
    OBJECTS,
    TOY,
    Mixture,
    errors,
    flow,
    guidance_ends,
    unit_noise,
)
from torch import Tensor

from crm_cli.models import sampler
from crm_cli.models.agree import hull_depth
from crm_cli.models.denoiser import TINY_CCM, TINY_RGB, DenoiserConfig, MultiViewUNet, to_frames, to_views
from crm_cli.models.encoders import PatchCodec, photo_for_frames
from crm_cli.models.steps import even_timesteps

MIXTURE = Mixture(unit_noise(40, 16, seed=3), width=0.05)
"""Narrow, as data near a surface of few dimensions are."""


def test_the_schedule_has_the_published_values() -> None:
    expected = {
        0: 0.99915,
        1: 0.998233,
        21: 0.979012,
        500: 0.2410188,
        961: 3.3559e-4,
        981: 6.8865716e-5,
        998: 1.9679e-7,
    }
    for t, value in expected.items():
        digits = len(f"{value:e}".split("e")[0].rstrip("0")) - 2
        assert f"{ALPHA_BAR[t].item():.{digits}e}" == f"{value:.{digits}e}", t
    assert ALPHA_BAR[999].item() == 0
    assert ALPHA_BAR.dtype == torch.float64 and ALPHA_BAR.shape == (1000,)
    assert (ALPHA_BAR.diff() < 0).all()


def test_noised_latents_have_the_level_of_their_timestep() -> None:
    schedule = sampler.published_schedule()
    clean, noise = unit_noise(2, 3, 4, 5, 5), unit_noise(2, 3, 4, 5, 5, seed=1)
    shared = schedule.noised(clean, noise, torch.tensor([500, 999]))
    assert torch.equal(shared[1], noise[1])
    expected = math.sqrt(ALPHA_BAR[500]) * clean[0] + math.sqrt(1 - ALPHA_BAR[500]) * noise[0]
    assert torch.allclose(shared[0], expected, atol=1e-12)
    each = schedule.noised(clean, noise, torch.tensor([[500, 0, 999], [1, 2, 3]]))
    assert torch.equal(each[0, 0], shared[0, 0])
    assert torch.equal(each[0, 2], noise[0, 2])


def test_noise_of_an_object_does_not_depend_on_its_batch() -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    alone = sampler.draw_noise((6, 4, 8, 8), [generator(5)])
    together = sampler.draw_noise((6, 4, 8, 8), [generator(4), generator(5)])
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_ddim_is_the_published_loop() -> None:
    x = noise = unit_noise(4, 16)
    for t in range(981, 0, -20):
        a = ALPHA_BAR[t].item()
        a_before = ALPHA_BAR[t - 20].item() if t > 20 else ALPHA_BAR[0].item()
        e = MIXTURE.noise(x, torch.tensor([t]))
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        x = a_before**0.5 * x0 + (1 - a_before) ** 0.5 * e
    ours = sampler.sample(MIXTURE.noise, noise, steps=50, solver="ddim", prediction="eps")
    assert (ours - x).abs().max() < 1e-10


@pytest.mark.parametrize("scale", [5.0, 5.5])
@pytest.mark.parametrize("steps", [50, 30])
def test_guided_ddim_is_the_published_loop_from_the_betas_on(steps: int, scale: float) -> None:
    betas = [
        (math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)
    ]
    roots = [math.sqrt(product) for product in itertools.accumulate((1 - b for b in betas), operator.mul)]
    a = [((r - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for r in roots]
    shift = unit_noise(1000, 16, seed=5)

    def answer(x: Tensor, t: int, text: float) -> Tensor:
        return torch.tanh(x + shift[t] + text) + text * x

    x = noise = unit_noise(4, 16)
    timesteps = list(range(1, 1001, 1000 // steps))
    before = [0, *timesteps[:-1]]
    for t, t_before in reversed(list(zip(timesteps, before, strict=True))):
        unguided, shown = answer(x, t, -0.1), answer(x, t, 0.3)
        e = unguided + scale * (shown - unguided)
        x0 = (x - math.sqrt(1 - a[t]) * e) / math.sqrt(a[t])
        x = math.sqrt(a[t_before]) * x0 + math.sqrt(1 - a[t_before]) * e

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        assert len(x) == len(t) == 8 and len(set(t.tolist())) == 1
        negative, positive = x.chunk(2)
        return torch.cat([answer(negative, int(t[0]), -0.1), answer(positive, int(t[0]), 0.3)])

    ours = sampler.sample(denoise, noise, steps=steps, solver="ddim", prediction="eps", guidance=scale)
    assert x.abs().max() > 0.1
    assert (ours - x).abs().max() / x.abs().max() < 1e-9


def test_unipc_is_the_papers_algorithm() -> None:
    # UniPC-2 with data prediction and B(h) = e^h - 1, in λ and matrices (arXiv 2302.04867).
    timesteps = even_timesteps(12)
    levels = [ALPHA_BAR[t].item() for t in timesteps] + [ALPHA_BAR[0].item()]
    alpha = [math.sqrt(level) for level in levels]
    sigma = [math.sqrt(1 - level) for level in levels]
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]

    def linear(x: Tensor, answer: Tensor, i: int) -> Tensor:
        return sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(lam[i - 1] - lam[i]) * answer

    x = noise = unit_noise(4, 16)
    answers = [MIXTURE.clean(x, levels[0])]
    for i in range(1, len(timesteps)):
        h = lam[i] - lam[i - 1]
        basis = math.expm1(-h)
        steady = linear(x, answers[-1], i)
        if i == 1:
            answers.append(MIXTURE.clean(steady, levels[1]))
            x = steady - alpha[1] * basis * 0.5 * (answers[1] - answers[0])
            continue
        ratio = (lam[i - 2] - lam[i - 1]) / h
        past = (answers[-2] - answers[-1]) / ratio
        answers.append(MIXTURE.clean(steady - alpha[i] * basis * 0.5 * past, levels[i]))
        phi_2 = basis / -h - 1
        phi_3 = phi_2 / -h - 0.5
        system = torch.tensor([[1.0, 1.0], [ratio, 1.0]], dtype=torch.float64)
        moments = torch.tensor([phi_2, 2 * phi_3], dtype=torch.float64) / basis
        weights = torch.linalg.solve(system, moments)
        x = steady - alpha[i] * basis * (weights[0] * past + weights[1] * (answers[-1] - answers[-2]))
    x = linear(x, answers[-1], len(timesteps))
    ours = sampler.sample(MIXTURE.noise, noise, steps=12, solver="unipc", prediction="eps")
    assert (ours - x).abs().max() < 1e-9


@pytest.fixture(scope="module")
def guided_flow() -> tuple[Tensor, Tensor]:
    """Unit noise and where it leads exactly, with guidance from the first to the last moment."""
    noise = unit_noise(OBJECTS, 16, seed=7)
    return noise, TOY.converged(noise)


def test_the_exact_flow_is_that_of_one_gaussian_where_that_is_known() -> None:
    gaussian = Mixture(torch.zeros(1, 6, dtype=torch.float64), width=0.5)
    noise, start, end = unit_noise(4, 6), ALPHA_BAR[981].item(), ALPHA_BAR[0].item()
    scale = math.sqrt((end * 0.25 + 1 - end) / (start * 0.25 + 1 - start))
    assert (flow(gaussian.noise_at, noise, start, end) - scale * noise).abs().max() < 1e-6


@pytest.mark.parametrize(("few", "many"), [(20, 50), (10, 25)])
def test_few_unipc_steps_end_nearer_to_the_exact_flow_than_more_ddim_steps(
    guided_flow: tuple[Tensor, Tensor], few: int, many: int
) -> None:
    noise, exact = guided_flow
    ours = errors(TOY.sample(noise, "unipc", few), exact)
    theirs = errors(TOY.sample(noise, "ddim", many), exact)
    for share in (0.5, 0.9):
        assert ours.quantile(share) < 0.6 * theirs.quantile(share), share


@pytest.mark.parametrize("share", [0.75, 0.5])
def test_where_guidance_ends_early_few_steps_end_where_that_flow_leads(
    guided_flow: tuple[Tensor, Tensor], share: float
) -> None:
    noise, full = guided_flow
    exact = TOY.converged(noise, until=guidance_ends("unipc", 20, share))
    ours = errors(TOY.sample(noise, "unipc", 20, share), exact)
    theirs = errors(TOY.sample(noise, "ddim", 50, share), exact)
    assert ours.quantile(0.9) < 0.6 * theirs.quantile(0.9)
    # What leaving guidance out of the last quarter costs is nothing beside that; half of it is not.
    assert (errors(exact, full).quantile(0.9) < 0.01 * ours.quantile(0.9)) == (share == 0.75)


def test_unipc_is_of_second_order_and_ddim_of_first() -> None:
    # One Gaussian: the flow scales x by the ratio of standard deviations, exactly.
    gaussian = Mixture(torch.zeros(1, 6, dtype=torch.float64), width=0.5)
    noise = unit_noise(4, 6)

    def deviation(level: float) -> float:
        return math.sqrt(level * 0.25 + 1 - level)

    def error(solver: sampler.Solver, steps: int) -> float:
        ratios = torch.linspace(-4, 4, steps + 1, dtype=torch.float64)
        levels = ratios.sigmoid().tolist()
        exact = noise * deviation(levels[-1]) / deviation(levels[0])
        ours = solver.integrate(lambda x, i: gaussian.clean(x, levels[i]), noise, levels)
        return (ours - exact).abs().max().item()

    for name, order in (("ddim", 1), ("unipc", 2)):
        solver = sampler.SOLVERS[name]
        measured = math.log2(error(solver, 200) / error(solver, 400))
        assert measured > order - 0.1, name
        assert measured < order + 1.1, name


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_network_that_knows_the_answer_gives_it_whatever_the_solver(solver: str, steps: int) -> None:
    clean = unit_noise(2, 3, 4)
    ours = sampler.sample(
        lambda x, t: clean, unit_noise(2, 3, 4, seed=1), steps=steps, solver=solver, prediction="x0"
    )
    assert torch.equal(ours, clean)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_a_network_that_knows_the_noise_ends_at_the_published_last_level(solver: str) -> None:
    clean, noise = unit_noise(2, 4), unit_noise(2, 4, seed=1)
    a, a0 = ALPHA_BAR[981].item(), ALPHA_BAR[0].item()
    start = math.sqrt(a) * clean + math.sqrt(1 - a) * noise
    ours = sampler.sample(
        lambda x, t: noise, start, steps=20 if solver == "unipc" else 50, solver=solver, prediction="eps"
    )
    assert torch.allclose(ours, math.sqrt(a0) * clean + math.sqrt(1 - a0) * noise, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_one_step_of_an_x0_network_is_its_answer_at_981(solver: str) -> None:
    seen: list[list[int]] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return x / 2

    noise = unit_noise(2, 3)
    assert torch.equal(sampler.sample(denoise, noise, steps=1, solver=solver, prediction="x0"), noise / 2)
    assert seen == [[981, 981]]


def test_predicting_noise_or_x0_is_the_same_flow() -> None:
    noise = unit_noise(4, 16)

    def clean(x: Tensor, t: Tensor) -> Tensor:
        return MIXTURE.clean(x, ALPHA_BAR[t[0]].item())

    by_noise = sampler.sample(MIXTURE.noise, noise, steps=40, solver="unipc", prediction="eps")
    by_clean = sampler.sample(clean, noise, steps=40, solver="unipc", prediction="x0")
    a0 = ALPHA_BAR[0].item()
    last = MIXTURE.clean(by_noise, a0)
    assert (by_clean - last).abs().max() < 0.02  # they part at the last step only, from ᾱ_0 to 1


def test_guidance_runs_both_branches_in_one_batch() -> None:
    batches: list[int] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        batches.append(len(x))
        assert len(t) == len(x)
        return torch.cat([torch.full_like(x[:2], 1.0), torch.full_like(x[2:], 3.0)])

    ours = sampler.sample(denoise, unit_noise(2, 3), steps=1, solver="unipc", prediction="x0", guidance=5.0)
    assert torch.equal(ours, torch.full((2, 3), 11.0, dtype=torch.float64))
    assert batches == [4]


def test_guidance_of_one_is_the_conditional_answer_and_of_zero_the_other() -> None:
    conditional, unconditional = unit_noise(3), unit_noise(3, seed=1)
    assert torch.allclose(sampler.guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(sampler.guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize(("solver", "evaluations"), [("ddim", 31), ("unipc", 30)])
def test_progress_tells_the_real_number_of_evaluations(solver: str, evaluations: int) -> None:
    told: list[tuple[int, int]] = []
    sampler.sample(
        lambda x, t: x,
        unit_noise(1, 2),
        steps=30,
        solver=solver,
        prediction="x0",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(i + 1, evaluations) for i in range(evaluations)]


def test_a_half_precision_network_is_stepped_in_single_precision() -> None:
    x = sampler.sample(
        lambda x, t: x.bfloat16(), unit_noise(1, 2).bfloat16(), steps=5, solver="unipc", prediction="x0"
    )
    assert x.dtype == torch.float32


def chain(steps: int, solver: str) -> tuple[Tensor, Tensor]:
    """Six views and their depth from random networks and a random photo."""
    torch.manual_seed(0)
    first, second = random_network(TINY_RGB), random_network(TINY_CCM)
    patch, depth = PatchCodec(), PatchCodec(lowest=-1.0)
    photo = torch.rand(2, 4, 64, 64)

    def noise(channels: int, frames: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return sampler.draw_noise((frames, channels, 32, 32), generators)

    def run(unet: Callable[[Tensor, Tensor], Tensor], start: Tensor) -> Tensor:
        return sampler.sample(unet, start, steps=steps, solver=solver, prediction="x0")

    with torch.no_grad():
        conditions = first.prepare(
            concat=patch.encode(photo_for_frames(photo)), reference=patch.encode(photo)
        )
        views = to_views(patch.decode(run(lambda x, t: first(x, t, conditions), noise(16, 7))))
        hull = hull_depth(views[:, :, 3:])[:, :, None]
        concat = torch.cat([patch.encode(to_frames(views)), depth.encode(to_frames(hull))], 2)
        seen = second.prepare(concat=concat)
        latents = to_views(run(lambda x, t: second(x, t, seen), noise(4, 6)))
        return views, depth.decode(latents)


def random_network(config: DenoiserConfig) -> MultiViewUNet:
    unet = MultiViewUNet(config)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet


@pytest.mark.parametrize(("solver", "steps"), [("unipc", 1), ("unipc", 4), ("ddim", 5)])
def test_random_networks_make_views_and_depth_of_the_right_shape(solver: str, steps: int) -> None:
    views, depths = chain(steps, solver)
    assert views.shape == (2, 6, 4, 64, 64)
    assert depths.shape == (2, 6, 1, 64, 64)
    for images, lowest in ((views, 0), (depths, -1)):
        assert images.isfinite().all() and images.min() >= lowest and images.max() <= 1
        assert images.std() > 0.01
    again = chain(steps, solver)
    assert torch.equal(views, again[0]) and torch.equal(depths, again[1])


@pytest.mark.parametrize(("share", "guided_steps"), [(0.0, 0), (0.6, 6), (0.74, 7), (1.0, 10)])
def test_only_the_first_share_of_the_steps_is_guided(share: float, guided_steps: int) -> None:
    sizes = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.zeros_like(x)

    sampler.sample(
        denoise,
        unit_noise(3, 4),
        steps=10,
        solver="unipc",
        prediction="eps",
        guidance=5.0,
        guided_share=share,
    )
    assert sizes == [6] * guided_steps + [3] * (10 - guided_steps)


def test_guidance_is_formed_in_single_precision_whatever_the_network_answers() -> None:
    answers = torch.tensor([1.0, 1.0 + 2**-7], dtype=torch.bfloat16)
    both = sampler.guided(lambda x, t: answers[:, None], 5.5)
    guided = both(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    assert guided.item() == 1 + 5.5 * 2**-7  # needs more than the eight bits of bfloat16


def test_dice_depend_on_seed_digest_and_purpose_and_on_nothing_else() -> None:
    def throw(seed: int, digest: str, purpose: str) -> list[float]:
        return torch.rand(4, generator=sampler.dice(seed, digest, purpose)).tolist()

    first = throw(0, "ab", "rgb")
    torch.manual_seed(1)
    torch.rand(5)
    assert throw(0, "ab", "rgb") == first
    others = [throw(1, "ab", "rgb"), throw(0, "ac", "rgb"), throw(0, "ab", "ccm"), throw(0, "a", "brgb")]
    assert all(other != first for other in others)
