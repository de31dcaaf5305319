from __future__ import annotations

from typing import Any

import pytest
import torch
from measured import cutout, drawn, exact, tools, unheard
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from crm_cli.bench.counts import Work, embedded_reference_work, our_work, reference_work
from crm_cli.bench.peak import Peaks
from crm_cli.bench.reference import TwoStages
from crm_cli.models import denoiser
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.imagine import Imagination, PublishedImagination
from crm_cli.models.operations import denoiser_step, photo_operations
from crm_cli.preset import Preset, load_preset

IMAGINED = ("conditions", "rgb", "hand-over", "ccm", "decode")


def published(name: str) -> Preset:
    return load_preset(name, architecture="release").preset


def total(work: dict[str, Work]) -> float:
    return sum(one.operations for one in work.values())


def attention(queries: Any, keys: Any, values: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_flop_count(queries, keys, values))


def counted(imagine: Imagination) -> int:
    """What torch counts in the imagination of one photo."""
    # The one operation of a CPU that torch's counter has no formula for.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        imagine([cutout()], unheard)
    return int(counter.get_total_flops())


def test_our_imagination_has_the_operations_that_torch_counts_in_it() -> None:
    work = our_work("miniature", exact(), torch.float32)
    expected = sum(work[stage].operations for stage in IMAGINED)
    imagine = PublishedImagination(drawn(), exact())
    imagine([cutout()], unheard)  # the first photo pays for what all share
    assert counted(imagine) == pytest.approx(expected, rel=1e-6)


def test_the_baseline_s_imagination_has_the_operations_that_torch_counts_in_it() -> None:
    work = reference_work("miniature", exact(), torch.float32)
    found = counted(TwoStages(tools(), exact(), drawn().text))
    # The cameras are embedded once in a step, and not once in each half.
    assert found == pytest.approx(sum(work[stage].operations for stage in IMAGINED), rel=1e-4)


def test_a_photo_of_the_published_loop_has_the_operations_that_were_counted_in_its_code() -> None:
    work = reference_work("release", published("exact"), torch.float16)
    assert total(work) == pytest.approx(311.9e12, rel=2e-4)
    # (50 steps of 3.2690 and 2.7104 TFLOP.)
    assert work["rgb"].operations == pytest.approx(50 * 3.269043699712e12)
    assert work["ccm"].operations == pytest.approx(50 * 2.710449586176e12)


@pytest.mark.parametrize(("name", "teraflop"), [("exact", 296.7), ("fast", 111.05), ("turbo", 56.8)])
def test_a_photo_of_ours_has_the_operations_of_the_forecast(name: str, teraflop: float) -> None:
    # As counted layer by layer beforehand, without what an engine drops of the reference's frame; `fast` lies
    # between what 60 % and all steps with guidance take.
    work = our_work("release", published(name), torch.bfloat16)
    assert 0.985 * teraflop * 1e12 < total(work) < teraflop * 1e12
    # That counts a texture covered all over.
    assert total(work) == pytest.approx(photo_operations("release", published(name)).total(), rel=0.01)


def test_the_embedded_networks_are_counted_with_the_steps_they_make() -> None:
    preset = load_preset("default").preset
    work = our_work("small", preset, torch.float32)
    steps = sum(denoiser_step(config).total() for config in (denoiser.SMALL_RGB, denoiser.SMALL_CCM))
    # Beside one step each, the cameras.
    assert work["imagine"].operations == pytest.approx(steps, rel=1e-3)
    assert embedded_reference_work(preset, torch.float32)["imagine"] == work["imagine"]
    dense = embedded_reference_work(preset, torch.float32)["reconstruct"].operations
    assert dense > 3 * work["reconstruct"].operations


def test_every_step_reads_the_weights_of_its_network_once() -> None:
    with torch.device("meta"):
        parts = {name: ARCHITECTURES["release"].build(name) for name in ("rgb", "vae", "reconstruction")}
    values = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    work = our_work("release", published("fast"), torch.bfloat16)
    assert work["rgb"].bytes == 20 * 2 * values["rgb"]
    assert work["hand-over"].bytes == 2 * values["vae"]
    assert work["decode"].bytes == 2 * sum(p.numel() for p in parts["vae"].decoder.parameters())
    assert work["reconstruct"].bytes == 4 * values["reconstruction"]
    assert work["reconstruct"].dtype == torch.float32
    assert our_work("release", published("fast"), torch.float32)["rgb"].bytes == 20 * 4 * values["rgb"]


def test_the_floor_is_the_longer_of_calculating_and_reading() -> None:
    peaks = Peaks(operations={torch.float32: 100.0, torch.bfloat16: 1000.0}, bytes=10.0)
    assert Work(operations=500, bytes=20, dtype=torch.float32).floor_s(peaks) == 5
    assert Work(operations=500, bytes=20, dtype=torch.bfloat16).floor_s(peaks) == 2
