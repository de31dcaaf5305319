"""What the published networks are said to need, against what torch really allocates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from crm_cli import toolbox
from crm_cli.models import memory
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.memory import Need, need, need_of, peak_bytes
from crm_cli.models.operations import SIZES
from crm_cli.preset import Preset, load_preset

CONTEXT_BYTES = 500_000_000
"""What CUDA keeps on a device for itself, about."""


def preset(architecture: str, name: str = "fast") -> Preset:
    return load_preset(name, architecture=architecture).preset


def test_what_is_alive_counts_and_what_was_let_go_or_shares_memory_does_not() -> None:
    def work() -> None:
        a = torch.zeros(1000)  # 4000 bytes
        b = a.view(10, 100).mT
        b.add_(1)
        c = a + b.reshape(-1)  # two more of them while it is made
        del a, b
        (c * 2).sum()

    assert peak_bytes(work) == 3 * 4000
    kept = torch.zeros(50)
    assert peak_bytes(lambda: kept.mul_(2)) == 0


def allocated(work: Callable[[], object]) -> int:
    """The most that torch's own allocator had given at a time, from its log."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        work()
    events = [one for one in log.profiler.kineto_results.events() if one.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("part", ["rgb", "vision", "vae"])
@torch.inference_mode()
def test_a_part_s_work_is_what_torch_allocates_for_it(part: str) -> None:
    network = ARCHITECTURES["miniature"].build(part).requires_grad_(False)
    work = partial(memory._WORK[part], network, SIZES["miniature"], preset("miniature", "turbo"), 1)
    _, predicted = need_of(part, "miniature", preset("miniature", "turbo"), dtype=torch.float32)
    really = allocated(work)
    # Convolutions of some shapes have scratch memory; nothing is counted that is not there.
    assert predicted <= really < 1.3 * predicted


def test_weights_and_the_largest_work_add_up_and_parts_take_turns() -> None:
    one = Need(weights={"a": 50, "b": 30}, work={"a": 1, "b": 40})
    assert one.at_once == 50 + 30 + 40
    assert one.in_turns == 30 + 40


def test_the_published_networks_stay_on_a_card_of_8_gb_and_take_turns_on_one_of_4() -> None:
    found = need("release", preset("release", "exact"), dtype=torch.bfloat16)
    assert sum(found.weights.values()) == pytest.approx(5.63e9, rel=0.01)
    assert found.at_once + CONTEXT_BYTES < 7.0e9
    assert found.in_turns + CONTEXT_BYTES < 3.5e9
    # A recorded step keeps its memory while the reconstruction is at work.
    held = max(found.work["rgb"], found.work["ccm"]) + found.work["reconstruction"]
    assert 0.8 * toolbox.WORK_BYTES < held < toolbox.WORK_BYTES


def test_a_larger_batch_takes_what_is_set_aside_for_it() -> None:
    more, one = (
        need_of("rgb", "release", preset("release"), dtype=torch.bfloat16, batch=batch)[1] for batch in (5, 1)
    )
    assert 0.8 * toolbox.WORK_BYTES_MORE < (more - one) / 4 < toolbox.WORK_BYTES_MORE
