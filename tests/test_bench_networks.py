from __future__ import annotations

import pytest
import torch
from measured import cutout, drawn, exact, tools, unheard
from torch import nn

from crm_cli.bench import systems
from crm_cli.bench.networks import draw_networks, drawn_bytes
from crm_cli.bench.systems import Opener
from crm_cli.errors import EnvironmentProblem
from crm_cli.models.architectures import MINIATURE
from crm_cli.models.clip import Contexts
from crm_cli.models.imagine import PublishedImagination


def test_every_part_has_its_shapes_and_no_value_at_zero() -> None:
    networks = drawn()
    assert set(networks) == set(MINIATURE.parts)
    for part in MINIATURE.parts:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in MINIATURE.build(part).state_dict().items()}
        found = networks[part].state_dict()
        assert {name: tensor.shape for name, tensor in found.items()} == shapes
        assert all(bool((tensor != 0).all()) for tensor in found.values())


def test_values_depend_on_the_seed_and_not_on_the_precision() -> None:
    halved = draw_networks("miniature", device="cpu", dtype=torch.bfloat16)
    other = draw_networks("miniature", device="cpu", dtype=torch.float32, seed=1)
    wide = drawn()["rgb"].state_dict()
    for name, values in halved["rgb"].state_dict().items():
        assert values.dtype == torch.bfloat16
        assert torch.equal(values, wide[name].bfloat16())
    assert not any(torch.equal(values, wide[name]) for name, values in other["rgb"].state_dict().items())
    # A surface lies where small differences change a sign.
    assert {p.dtype for p in halved["reconstruction"].parameters()} == {torch.float32}


def test_the_contexts_are_what_the_text_tower_reads() -> None:
    assert torch.equal(drawn()["contexts"].state_dict()["tokens"], Contexts.of(drawn().text).tokens)


def test_what_passes_through_every_layer_is_neither_tiny_nor_huge() -> None:
    sizes: dict[str, float] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, given: object, answer: torch.Tensor) -> None:
            sizes[name] = max(sizes.get(name, 0.0), float(answer.float().square().mean().sqrt()))

        return hook

    networks = draw_networks("miniature", device="cpu", dtype=torch.float32)
    for part, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_hook(watch(f"{part}.{name}"))  # type: ignore[arg-type]
    [views] = PublishedImagination(networks, exact())([cutout()], unheard)
    assert len(sizes) > 100
    assert min(sizes.values()) > 0.05 and max(sizes.values()) < 30
    for pictures in (views.rgb, views.ccm):
        assert pictures.isfinite().all() and pictures.std() > 0.1


def test_what_the_networks_take_is_told_without_the_text_tower() -> None:
    state = [tensor for part in drawn().values() for tensor in part.state_dict().values()]
    assert drawn().bytes == sum(4 * tensor.numel() for tensor in state)
    text = sum(4 * tensor.numel() for tensor in drawn().text.state_dict().values())
    assert drawn_bytes("miniature", torch.float32) == drawn().bytes + text
    assert drawn().listed().architecture == "miniature"
    with pytest.raises(KeyError):
        drawn()["text"]


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens for a GPU, on which everything is drawn on the CPU instead."""
    monkeypatch.setattr(
        systems,
        "draw_networks",
        lambda kind, *, device, dtype: draw_networks(kind, device="cpu", dtype=dtype),
    )
    monkeypatch.setattr(systems, "open_toolbox", lambda *given, **more: tools())
    monkeypatch.setattr(systems, "corpus", list)
    return Opener("miniature", steps=2, device="cuda", threads=1, precision="float16", tell=lambda text: None)


def test_on_a_gpu_weights_lie_as_each_system_has_them(opener: Opener) -> None:
    def is_turned(part: str, *, is_ours: bool) -> bool:
        _, networks = opener._random("float16", is_ours=is_ours)
        convolutions = [w for w in networks[part].parameters() if w.ndim == 4 and min(w.shape[1:3]) > 1]
        assert convolutions
        return all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)

    assert is_turned("rgb", is_ours=True) and is_turned("vae", is_ours=True)
    assert not is_turned("rgb", is_ours=False) and not is_turned("vae", is_ours=False)
    # Single precision gains nothing by it.
    assert not is_turned("reconstruction", is_ours=True)


def test_what_stands_between_photos_is_the_networks_and_what_recordings_keep(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolbox, networks = opener._random("float16", is_ours=True)
    standing = systems._standing(toolbox)
    assert standing() == networks.bytes
    monkeypatch.setattr(toolbox.recorder, "held_bytes", 300)
    assert standing() == networks.bytes + 300


def test_only_on_a_gpu_does_the_baseline_have_a_copy_of_the_same_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_bytes = drawn_bytes("miniature", torch.float16)
    monkeypatch.setattr(systems, "WORK_BYTES", 0)
    monkeypatch.setattr(systems, "WORK_BYTES_CPU", 0)
    monkeypatch.setattr(systems, "usable_memory", lambda: copy_bytes)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (copy_bytes, 2 * copy_bytes))
    systems.require_room("miniature", ["float16", "float16"], "cpu")
    systems.require_room("miniature", ["float16"], "cuda")
    with pytest.raises(EnvironmentProblem, match="GB are free"):
        systems.require_room("miniature", ["float16", "float16"], "cuda")
