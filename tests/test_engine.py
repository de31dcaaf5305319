"""The published denoisers' loop against the same thing done step by step, with nothing computed ahead."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crm_cli.models import engine
from crm_cli.models.denoiser import MINI_CCM, MINI_RGB, DenoiserConfig, MultiViewUNet
from crm_cli.models.engine import Engine, Engines, Shown, Step
from crm_cli.models.sampler import SOLVERS, ignore, published_schedule, sample, shares_of
from crm_cli.models.steps import planned, timesteps
from crm_cli.preset import Sampling
from crm_cli.toolbox import GraphRecorder

SIDE = 8
TWO_LEVELS_UP = replace(
    MINI_RGB, multipliers=(1, 2, 2), blocks=(1, 1, 1), attention_levels=(2,), resampler_layers=2
)
"""The reference is left out early: two levels without attention follow."""

CONFIGS = {"rgb": MINI_RGB, "ccm": MINI_CCM, "early": TWO_LEVELS_UP}


def sampling(solver: str = "unipc", steps: int = 4, guidance: float = 5.0, guided: float = 1.0) -> Sampling:
    return Sampling(solver=solver, steps=steps, guidance=guidance, guided=guided)  # type: ignore[arg-type]


def network(config: DenoiserConfig, dtype: torch.dtype = torch.float64) -> MultiViewUNet:
    """Random in every layer: zeroed layers would hide what stands before them."""
    torch.manual_seed(0)
    unet = MultiViewUNet(config).to(dtype).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return unet


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEXTS = normal(9, 2, 77, 32)


def given(config: DenoiserConfig, objects: int = 1, seed: int = 1) -> tuple[Shown, Tensor]:
    shown = Shown(
        image=normal(seed, objects, 257, config.image_width),
        reference=normal(seed + 1, objects, 4, SIDE, SIDE) if config.has_reference else None,
        concat=None if config.has_reference else normal(seed + 2, objects, 6, 4, SIDE, SIDE),
    )
    return shown, normal(seed + 3, objects, config.frames, 4, SIDE, SIDE)


def answers_as_coded(
    unet: MultiViewUNet, shown: Shown, wanted: Sampling
) -> Callable[[Tensor, Tensor], Tensor]:
    """What a step predicts: conditions prepared in the step, branches apart, each with all of its frames."""
    (_, guided), done = planned(wanted), 0

    def branch(x: Tensor, t: Tensor, text: Tensor, share: float) -> Tensor:
        texts = text.expand(len(x), -1, -1).to(x)
        seen = {name: getattr(shown, name) for name in ("image", "reference", "concat")}
        seen = {name: None if one is None else share * one.to(x) for name, one in seen.items()}
        return unet(x, t, unet.prepare(text=texts, **seen))

    def answer(x: Tensor, t: Tensor) -> Tensor:
        nonlocal done
        done += 1
        conditional = branch(x, t, TEXTS[0], 1.0)
        if done > guided:
            return conditional
        unconditional = branch(x, t, TEXTS[1], 0.0)
        return unconditional + wanted.guidance * (conditional - unconditional)

    return answer


def as_coded(unet: MultiViewUNet, shown: Shown, noise: Tensor, wanted: Sampling) -> Tensor:
    """The whole loop, all seven frames carried along, states following each other by the solver's formula."""
    latents = sample(
        answers_as_coded(unet, shown, wanted),
        noise,
        steps=wanted.steps,
        solver=wanted.solver,
        prediction=unet.config.prediction,
    )
    return latents[:, :6]


def run(unet: MultiViewUNet, shown: Shown, noise: Tensor, wanted: Sampling, *, record: Any = None) -> Tensor:
    made = Engine(unet, wanted, texts=TEXTS, shown=shown, record=record)
    return made.run(unet, shown, noise, ignore)


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("objects", [1, 2])
def test_one_evaluation_is_that_of_the_network_with_nothing_computed_ahead(
    config: DenoiserConfig, objects: int
) -> None:
    unet = network(config)
    shown, noise = given(config, objects)
    wanted = sampling(steps=3)
    made = Engine(unet, wanted, texts=TEXTS, shown=shown)
    made.run(unet, shown, noise, ignore)
    # The history is x0; what the network has answered follows from the state that it was asked about.
    t = timesteps("unipc", 3)[0]
    level = published_schedule().alpha_bar[t].item()
    answer = (noise[:, :6] - math.sqrt(level) * made._history[1]) / math.sqrt(1 - level)
    expected = answers_as_coded(unet, shown, wanted)(noise, torch.full((objects,), t))[:, :6]
    assert expected.std() > 0.1
    assert apart(answer, expected) < 1e-12


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "wanted",
    [
        sampling("ddim", 5),
        sampling("unipc", 6, guided=0.5),
        sampling("unipc", 4, guidance=1.0),
        sampling("unipc", 1),
    ],
    ids=["ddim", "half guided", "unguided", "one step"],
)
def test_the_loop_gives_what_it_gives_step_by_step(config: DenoiserConfig, wanted: Sampling) -> None:
    unet = network(config)
    shown, noise = given(config, 2)
    ours, theirs = run(unet, shown, noise, wanted), as_coded(unet, shown, noise, wanted)
    assert ours.shape == (2, 6, 4, SIDE, SIDE)
    assert theirs.std() > 0.1
    assert apart(ours, theirs) < 1e-12


def test_a_network_that_predicts_x0_ends_at_its_last_answer() -> None:
    config = replace(MINI_CCM, prediction="x0")
    unet, (shown, noise) = network(config), given(config)
    for wanted in (sampling(steps=1), sampling(steps=4)):
        assert apart(run(unet, shown, noise, wanted), as_coded(unet, shown, noise, wanted)) < 1e-12


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_shares_are_what_a_solver_makes_of_noise_and_answers(solver: str) -> None:
    levels = [published_schedule().alpha_bar[t].item() for t in (*timesteps(solver, 10), 0)]
    noise, cleans = normal(1, 5), normal(2, 10, 5)
    asked = []

    def clean_at(x: Tensor, i: int) -> Tensor:
        asked.append(x)
        return cleans[i]

    result = SOLVERS[solver].integrate(clean_at, noise, levels)
    shares = shares_of(solver, levels)
    assert shares.shape == (11, 11) and shares.dtype == torch.float64
    assert not shares.triu(1).any(), "nothing is asked about an answer that is still to come"
    told = shares @ torch.cat([noise[None], cleans])
    torch.testing.assert_close(told, torch.stack([*asked, result]), rtol=0, atol=1e-13)


def test_what_an_earlier_photo_left_does_not_count() -> None:
    unet, wanted = network(MINI_RGB), sampling(guided=0.5)
    engines = Engines()
    first, second = given(MINI_RGB), given(MINI_RGB, seed=20)

    def draw(shown: Shown, noise: Tensor) -> Tensor:
        return engines.run(unet, wanted, shown, texts=TEXTS, noise=noise, progress=ignore)

    expected = draw(*second)
    broken = Shown(image=first[0].image * math.nan, reference=first[0].reference)
    assert draw(*first).isfinite().all()
    assert draw(broken, first[1]).isnan().any()
    assert torch.equal(draw(*second), expected)


def test_what_no_photo_changes_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, engines = network(MINI_RGB), Engines()
    calls: dict[str, list[int]] = {name: [] for name in ("read", "see", "shifts", "steered")}
    for name, heard in calls.items():
        whole = getattr(MultiViewUNet, name)

        def counted(
            self: Any, x: Tensor, *rest: Any, whole: Any = whole, heard: Any = heard, **more: Any
        ) -> Any:
            heard.append(len(x))
            return whole(self, x, *rest, **more)

        monkeypatch.setattr(MultiViewUNet, name, counted)
    for seed in (1, 30, 60):
        shown, noise = given(MINI_RGB, 2, seed=seed)
        engines.run(unet, sampling(steps=4, guided=0.5), shown, texts=TEXTS, noise=noise, progress=ignore)
    assert calls["read"] == [2], "both prompts, once"
    assert calls["shifts"] == [4 * 7], "the frames of all steps, once"
    assert calls["see"] == [1, 2, 2, 2], "nothing once, then each batch of photos once"
    assert calls["steered"] == [4, 4, 2, 2] * 3


def test_an_engine_goes_with_its_network_and_does_not_hold_it() -> None:
    unet, engines = network(MINI_RGB), Engines()
    shown, noise = given(MINI_RGB)
    engines.run(unet, sampling(steps=1), shown, texts=TEXTS, noise=noise, progress=ignore)
    [made] = engines._made[unet].values()
    of_network, of_engine = weakref.ref(unet), weakref.ref(made)
    del made
    gc.disable()
    try:
        del unet
        assert of_network() is None and of_engine() is None, "without waiting for a search for cycles"
    finally:
        gc.enable()


def test_progress_is_told_after_each_evaluation() -> None:
    unet, (shown, noise) = network(MINI_CCM), given(MINI_CCM)
    heard: list[tuple[int, int]] = []
    wanted = sampling("ddim", 6, guidance=1.0)
    Engine(unet, wanted, texts=TEXTS, shown=shown).run(
        unet, shown, noise, lambda done, of: heard.append((done, of))
    )
    assert heard == [(k, 7) for k in range(1, 8)], "6 does not divide the 1000 steps of the schedule"


class Slow:
    """A stand-in for an accelerator's events: each is reached after some naps, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, naps: int) -> None:
        self.naps_left: list[int] = []
        self.most_ahead = 0
        slow = self

        class Event:
            def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
                assert device.type == "cuda" and not enable_timing

            def record(self) -> None:
                self.number = len(slow.naps_left)
                slow.naps_left.append(naps)
                slow.most_ahead = max(slow.most_ahead, slow.ahead)

            def query(self) -> bool:
                return slow.naps_left[self.number] == 0

        monkeypatch.setattr(torch, "Event", Event)
        monkeypatch.setattr(engine.time, "sleep", self.work)

    def work(self, seconds: float) -> None:
        first = next(number for number, left in enumerate(self.naps_left) if left)
        self.naps_left[first] -= 1

    @property
    def ahead(self) -> int:
        return sum(left > 0 for left in self.naps_left)


def test_the_host_stays_close_to_an_accelerator_and_sleeps_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, pace = Slow(monkeypatch, naps=3), engine.Pace(torch.device("cuda:0"))
    for _ in range(6):
        pace.keep()
        assert slow.ahead <= engine.AHEAD
    assert slow.most_ahead == engine.AHEAD + 1, "it orders the next one before it waits"
    pace.finish()
    assert slow.naps_left == [0] * 6


def test_what_is_told_of_an_accelerator_is_almost_done_and_what_is_given_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, (shown, noise), slow = network(MINI_CCM), given(MINI_CCM), Slow(monkeypatch, naps=2)
    monkeypatch.setattr(engine, "Pace", lambda device, of=engine.Pace: of(torch.device("cuda")))
    ahead: list[int] = []
    Engine(unet, sampling(), texts=TEXTS, shown=shown).run(
        unet, shown, noise, lambda done, of: ahead.append(slow.ahead)
    )
    assert ahead == [1, 2, 2, 2] and slow.ahead == 0


# What a recording would forbid or get wrong, on a CPU.


WAITING = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}
"""Operations that bring a number to the host, and so wait for the device."""

FROM_HOST = {"lift_fresh", "arange", "full", "scalar_tensor", "eye", "linspace", "randn", "rand", "_to_copy"}
"""Operations that make what a recording would keep as it was, or bring it from elsewhere."""


class Capture(TorchDispatchMode):
    """Refuses what a recording cannot hold, and notes the rest."""

    def __init__(self, *, allowed: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.kernels: list[tuple[str, tuple[int, ...]]] = []
        self._refused = (WAITING | FROM_HOST) - allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self._refused, f"{name} in a step"
        # Memory that lasts has one address; that of intermediate results depends on the allocator.
        self.kernels.append((name, tuple(tuple(one.shape) for one in args if isinstance(one, Tensor))))
        return func(*args, **(kwargs or {}))


def captured(step: Step, **options: Any) -> Capture:
    with Capture(**options) as capture:
        step()
    return capture


@pytest.mark.parametrize("config", [MINI_RGB, MINI_CCM], ids=["rgb", "ccm"])
@pytest.mark.parametrize("is_guided", [True, False])
def test_a_step_neither_waits_for_the_device_nor_decides_by_what_is_on_it(
    config: DenoiserConfig, is_guided: bool
) -> None:
    unet, (shown, _) = network(config, torch.float32), given(config)
    made = Engine(unet, sampling(guided=0.5), texts=TEXTS, shown=shown)
    step = partial(made.step, unet, is_guided=is_guided)
    first = captured(step)
    second = captured(step)
    assert first.kernels == second.kernels
    assert len(first.kernels) > 100


def test_the_refusal_would_notice_a_step_that_waits() -> None:
    at = torch.zeros(1, dtype=torch.int64)
    for bad in (at.item, at.nonzero, lambda: torch.tensor([1.0]), lambda: at.sum() > 0 and None):
        with pytest.raises(AssertionError, match="in a step"):
            captured(bad)  # type: ignore[arg-type]


class Tape:
    """Records a step as a CUDA graph does: every operation with the tensors that it was given, no Python.

    A number that Python has read, or a tensor that it has made, is on the tape as it was.
    """

    def __init__(self) -> None:
        self.recordings = 0
        self.replays = 0

    def __call__(self, step: Step) -> Step:
        from torch.fx.experimental.proxy_tensor import make_fx

        step()  # as the real one does, before it records
        self.recordings += 1
        counter = torch.zeros(())

        def traced(x: Tensor) -> Tensor:
            step()
            return x

        graph = make_fx(traced)(counter)

        def replay() -> None:
            self.replays += 1
            graph(counter)

        return replay


@contextmanager
def without_python() -> Iterator[None]:
    """Nothing of the network may be called: a recording does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiViewUNet, "steered", None)
        yield


@pytest.mark.parametrize("wanted", [sampling("unipc", 5, guided=0.6), sampling("ddim", 4)])
def test_replayed_recordings_give_the_bits_of_the_steps_themselves(wanted: Sampling) -> None:
    unet, tape = network(MINI_RGB, torch.float32), Tape()
    expected = []
    for seed in (1, 40):
        shown, noise = given(MINI_RGB, seed=seed)
        expected.append(run(unet, shown, noise.float(), wanted))
    made = Engine(unet, wanted, texts=TEXTS, shown=shown, record=tape)
    made.run(unet, shown, noise.float(), ignore)
    assert tape.recordings == (2 if wanted.guided < 1 else 1)
    with without_python():
        for seed, latents in zip((1, 40), expected, strict=True):
            shown, noise = given(MINI_RGB, seed=seed)
            assert torch.equal(made.run(unet, shown, noise.float(), ignore), latents)
    assert tape.replays == 3 * planned(wanted)[0]


def test_where_nothing_can_be_recorded_the_steps_are_run_themselves() -> None:
    unet, (shown, noise) = network(MINI_CCM, torch.float32), given(MINI_CCM)
    tried = []

    def refuse(step: Step) -> None:
        step()  # as a recording that fails half way may have
        tried.append(step)

    wanted = sampling(guided=0.5)
    expected = run(unet, shown, noise.float(), wanted)
    assert torch.equal(run(unet, shown, noise.float(), wanted, record=refuse), expected)
    assert len(tried) == 2


cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),  # noqa: TID251
    reason="needs a CUDA device: graphs are recorded by its driver",
)


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_gives_the_bits_of_the_kernels_one_by_one(dtype: torch.dtype) -> None:
    unet, wanted = network(MINI_RGB, dtype).cuda(), sampling("unipc", 5, guided=0.6)
    recorder = GraphRecorder()
    recorded, plain = Engines(recorder), Engines()
    with torch.inference_mode():
        for seed in (1, 40):
            shown, noise = given(MINI_RGB, 2, seed=seed)
            ours, theirs = (
                engines.run(unet, wanted, shown, texts=TEXTS, noise=noise.float(), progress=ignore)
                for engines in (recorded, plain)
            )
            assert torch.equal(ours, theirs)
    assert recorder.why_not is None
    assert set(recorded._made[unet].popitem()[1]._recorded) == {True, False}


@cuda
def test_what_a_cuda_graph_cannot_hold_is_run_kernel_by_kernel_and_told() -> None:
    recorder = GraphRecorder()
    x = torch.ones(1, device="cuda")
    assert recorder(lambda: x.fill_(x.item())) is None
    assert "recording failed" in str(recorder.why_not)
    assert (x + 1).item() == 2, "the device works as before"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()  # noqa: TID251
    torch.cuda.empty_cache()  # noqa: TID251  # fails where the allocator believes that a recording goes on
