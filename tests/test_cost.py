from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crm_cli.models import cost, vae
from crm_cli.models.cost import Pace, forecast_s, measure_pace
from crm_cli.models.denoiser import MINI_RGB, MultiViewUNet
from crm_cli.models.operations import SIZES, photo_operations
from crm_cli.preset import Preset, load_preset


def turbo() -> Preset:
    return load_preset("turbo", architecture="miniature").preset


def test_work_is_done_at_the_pace_of_the_nearest_side_that_was_measured() -> None:
    pace = Pace({8: 10.0, 32: 100.0, 128: 1000.0})
    counts = Counter({4: 10, 8: 20, 32: 300, 64: 0, 256: 5000})
    assert pace.seconds(counts) == 10 / 10 + 20 / 10 + 300 / 100 + 5000 / 1000
    # Near is what is as often halved: 64 is half of 128, and 16 a quarter of it.
    assert Pace({16: 1.0, 128: 10.0}).seconds(Counter({64: 50})) == 5


def test_the_forecast_is_the_counted_operations_at_the_measured_pace_and_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def measure(sizes: object, *, device: str, dtype: torch.dtype) -> Pace:
        asked.append((sizes, device, dtype))
        return Pace({32: 1e6})

    monkeypatch.setattr(cost, "measure_pace", measure)
    expected = photo_operations("miniature", turbo()).total() / 1e6 + cost.REST_S
    assert forecast_s("miniature", turbo(), device="cpu", dtype=torch.bfloat16) == pytest.approx(expected)
    assert asked == [(SIZES["miniature"], "cpu", torch.bfloat16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pace_is_operations_by_the_clock_s_seconds(dtype: torch.dtype) -> None:
    ticks = itertools.count(step=2)
    pace = measure_pace(SIZES["miniature"], device="cpu", dtype=dtype, clock=lambda: next(ticks))
    # The miniature has its transformers at a side of 16 alone; 2 s pass between any two looks at the clock.
    assert set(pace.by_side) == {16, 128}
    operations = _operations_of_one_site()
    assert pace.by_side == {side: count / 2 for side, count in operations.items()}


def _operations_of_one_site() -> dict[int, int]:
    """What torch counts in one residual block with its transformer, and in one block of the autoencoder."""
    with torch.device("meta"), torch.no_grad():
        network = MultiViewUNet(MINI_RGB).requires_grad_(False)
        residual, transformer = network.middle_block[0], network.middle_block[1]
        text = torch.zeros(1, 77, MINI_RGB.context_width)
        image = torch.zeros(1, MINI_RGB.image_tokens, MINI_RGB.context_width)
        prompt = (transformer.attention.read(text), transformer.attention.see(image))
        with FlopCounterMode(display=False) as site:
            x = torch.zeros(MINI_RGB.frames, 64, 16, 16)
            transformer(residual(x, torch.zeros(MINI_RGB.frames, MINI_RGB.embedding_width)), prompt)
        block = vae.ResidualBlock(8, 8, 4).requires_grad_(False)
        with FlopCounterMode(display=False) as decoding:
            block(torch.zeros(1, 8, 128, 128))
    return {16: site.get_total_flops(), 128: decoding.get_total_flops()}


def test_a_slow_machine_is_measured_once_and_a_quick_one_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks_at_the_clock(seconds_apart: float) -> int:
        looks = itertools.count()
        measure_pace(
            SIZES["miniature"], device="cpu", dtype=torch.float32, clock=lambda: next(looks) * seconds_apart
        )
        return next(looks)

    pieces = 2
    assert looks_at_the_clock(cost.PATIENCE_S) == 1 + (2 * pieces + 1)
    assert looks_at_the_clock(1e-9) == 1 + (2 * pieces + 1) * cost.REPEATS


def test_a_neighbour_who_is_busy_for_a_while_slows_a_turn_and_not_the_best() -> None:
    now = 0.0

    def piece(*seconds: float) -> Callable[[], None]:
        left = itertools.chain(seconds, itertools.repeat(9.0))

        def work() -> None:
            nonlocal now
            now += next(left)

        return work

    passes = {8: piece(0.5, 0.1, 0.3), 32: piece(0.4, 0.6, 0.2)}
    best = cost._quickest_s(passes, lambda: now)
    assert best == {8: pytest.approx(0.1), 32: pytest.approx(0.2)}


def test_the_pace_is_measured_in_the_work_of_this_process_and_not_in_the_time_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worked = itertools.count(step=6)
    monkeypatch.setattr(time, "process_time", lambda: next(worked))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    pace = measure_pace(SIZES["miniature"], device="cpu", dtype=torch.float32)
    # Three threads that worked 6 s together need 2 s where nobody else does anything.
    assert pace.by_side == {side: count / 2 for side, count in _operations_of_one_site().items()}


def test_measuring_leaves_torch_s_own_dice_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure_pace(SIZES["miniature"], device="cpu", dtype=torch.float32)
    assert torch.equal(torch.rand(3), expected)
