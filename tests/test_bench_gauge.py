from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from crm_cli.bench import gauge as module
from crm_cli.bench import peak as peak_module
from crm_cli.bench.clock import Moment
from crm_cli.bench.gauge import OWN, Gauge, covered_us, kernel_seconds
from crm_cli.bench.peak import measure_peaks, seconds_worked


@pytest.mark.skipif(not (OWN / "clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_the_peak_on_a_cpu_is_that_since_the_start() -> None:
    gauge = Gauge("cpu")
    gauge.start()
    before = gauge.peak(0)
    large = np.ones(100_000_000, np.uint8)
    with_it = gauge.peak(0)
    assert before is not None and with_it is not None
    assert with_it - before > 80_000_000
    del large
    gauge.start()
    after = gauge.peak(0)
    assert after is not None and with_it - after > 80_000_000


def test_where_the_system_tells_nothing_there_is_no_peak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(module, "OWN", tmp_path / "nowhere")
    gauge = Gauge("cpu")
    gauge.start()
    assert gauge.peak(5) is None


def test_the_peak_on_an_accelerator_leaves_out_what_other_systems_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reset: list[str] = []
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda device: 900)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 1000)
    gauge = Gauge("cuda:1")
    gauge.start()
    # 900 bytes of networks, of which 400 are this system's, and 100 of work.
    assert gauge.peak(400) == 500
    assert reset == ["cuda:1"]


def test_the_time_of_kernels_is_that_in_which_the_profiler_saw_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def event(kind: DeviceType, start: float, end: float, **more: bool) -> SimpleNamespace:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(device_type=kind, time_range=span, **{"is_user_annotation": False, **more})

    class Profile:
        def __init__(self, activities: list[Any]) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Profile:
            order.append("begin")
            return self

        def __exit__(self, *error: object) -> None:
            order.append("end")

        def events(self) -> list[SimpleNamespace]:
            return [
                event(DeviceType.CPU, 0, 9e6),  # a call of the driver
                event(DeviceType.CUDA, 4e6, 4.5e6),
                event(DeviceType.CUDA, 1e6, 2e6),
                event(DeviceType.CUDA, 1.5e6, 2.25e6),  # in another stream
                event(DeviceType.CUDA, 0, 9e6, is_user_annotation=True),
            ]

    monkeypatch.setattr(module, "profile", Profile)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(f"settle {device}"))
    assert kernel_seconds(lambda: order.append("work"), "cuda") == 1.25 + 0.5
    assert order == ["begin", "work", "settle cuda", "end"]


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_kernels_take_part_of_the_time_of_their_work() -> None:
    a = torch.randn(4096, 4096, device="cuda")
    assert 0 < kernel_seconds(lambda: a @ a, "cuda") < 1


def test_spans_that_lie_within_each_other_count_once() -> None:
    assert covered_us([(5, 6), (0, 4), (1, 2), (3, 4.5)]) == 5.5
    assert covered_us([]) == 0


def test_peaks_are_operations_and_bytes_by_the_quickest_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([9.0, 2.0, 4.0] + [5.0] * 4 + [7.0] * 6 + [1.0])
    now = 0.0
    is_begin = True

    def tick() -> Moment:
        nonlocal now, is_begin
        now += 0.0 if is_begin else next(lengths)
        is_begin = not is_begin
        return Moment(now, 10 * now)

    monkeypatch.setattr(peak_module, "now", tick)
    monkeypatch.setattr(peak_module, "CPU_SIDE", 8)
    monkeypatch.setattr(peak_module, "CPU_COPY_BYTES", 400)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    peaks = measure_peaks("cpu", {torch.bfloat16})
    assert peaks.operations == {torch.bfloat16: 2 * 8**3 / 2.0}
    assert peaks.bytes == 2 * 400 / 1.0


def test_on_a_cpu_waiting_for_others_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert seconds_worked(9.0, 8.0, "cpu") == 2.0
    # What keeps a single thread busy takes its time.
    assert seconds_worked(1.9, 8.0, "cpu") == 1.9
    assert seconds_worked(9.0, 8.0, "cuda") == 9.0
