"""Published checkpoints: the names of their tensors in our networks."""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pickles import CCM, CRM, RGB, clip_of, published, published_keys, vae_of
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, ExitCode
from crm_cli.models.architectures import MINIATURE, RELEASE
from crm_cli.models.checkpoints import (
    CLIP,
    SCHEDULE,
    VAE,
    check_fit,
    check_schedule,
    from_published,
    from_tower_file,
    load_published,
    text_tower,
    unwrapped,
)
from crm_cli.models.clip import RELEASE_TEXT, Contexts, TextTower
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.sampler import published_schedule


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def released(part: str) -> nn.Module:
    with torch.device("meta"):
        return RELEASE.build(part)


# The names of the real files.


@pytest.mark.parametrize(
    ("file", "part"),
    [(CRM, "reconstruction"), (RGB, "rgb"), (CCM, "ccm")]
    + [(file, part) for file in (RGB, CCM) for part in ("vision", "vae")],
)
def test_a_real_file_has_the_names_and_shapes_of_our_network_and_no_others(file: str, part: str) -> None:
    given = from_published(part, published_keys(file))
    assert shapes(given) == shapes(released(part).state_dict())


@pytest.mark.parametrize("file", [RGB, CCM])
def test_a_real_file_has_the_names_and_shapes_of_our_text_tower_and_no_others(file: str) -> None:
    with torch.device("meta"):
        tower = TextTower(RELEASE_TEXT)
    assert shapes(text_tower(published_keys(file))) == shapes(tower.state_dict())


@pytest.mark.parametrize(("file", "part"), [(RGB, "rgb"), (CCM, "ccm")])
def test_all_that_is_left_out_of_a_real_file_is_what_inference_never_reads(file: str, part: str) -> None:
    keys = published_keys(file)
    used = {f"model.diffusion_model.{name}" for name in from_published(part, keys)}
    used |= {f"{CLIP}visual.{name}" for name in from_published("vision", keys)}
    used |= {CLIP + name for name in text_tower(keys)}
    used |= {VAE + name for name in from_published("vae", keys)}
    left = {name.removeprefix(CLIP) for name in keys.keys() - used}
    assert len(left) == 2 * 12 + 2 + 1 + 2
    assert RELEASE.towers is not None and all(name.startswith(RELEASE.towers.unused) for name in left)


def test_the_two_denoisers_are_not_taken_for_each_other() -> None:
    with pytest.raises(EnvironmentProblem, match=r"\[320, 8, 3, 3\], not \[320, 4, 3, 3\]"):
        check_fit("rgb", released("rgb"), from_published("rgb", published_keys(CCM)))


# Variants of the names.


@pytest.fixture(scope="module")
def files() -> dict[str, OrderedDict[str, Tensor]]:
    return published()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def mini(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return from_published(part, tensors, architecture="miniature")


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "module._forward_module."])
def test_what_parallel_training_puts_before_every_name_is_taken_off(
    files: dict[str, OrderedDict[str, Tensor]], prefix: str
) -> None:
    for name, parts in ((CRM, ["reconstruction"]), (RGB, ["rgb", "vision", "vae", "contexts"])):
        wrapped = {prefix + key: tensor for key, tensor in files[name].items()}
        for part in parts:
            assert same(mini(part, wrapped), mini(part, files[name])), part


def test_a_prefix_that_some_names_lack_stays() -> None:
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrapped(tensors) == tensors


def test_a_denoiser_saved_one_level_lower_is_the_same(files: dict[str, OrderedDict[str, Tensor]]) -> None:
    assert same(mini("rgb", published(lowered=True)[RGB]), mini("rgb", files[RGB]))


def test_the_older_names_of_attention_layers_are_the_same(files: dict[str, OrderedDict[str, Tensor]]) -> None:
    older = published(older_attention=True)[CRM]
    assert {"query", "key", "value", "proj_attn"} <= {word for name in older for word in name.split(".")}
    assert same(mini("reconstruction", older), mini("reconstruction", files[CRM]))


@pytest.mark.parametrize("part", ["rgb", "vision", "vae", "contexts"])
def test_extras_of_training_are_left_out(files: dict[str, OrderedDict[str, Tensor]], part: str) -> None:
    extras = published(extras=True)[RGB]
    assert {"betas", f"{CLIP}attn_mask", f"{VAE}loss.logvar"} <= extras.keys() - files[RGB].keys()
    assert same(mini(part, extras), mini(part, files[RGB]))


def test_a_name_that_nobody_knows_is_refused(files: dict[str, OrderedDict[str, Tensor]]) -> None:
    stranger = {**files[RGB], "model_ema.decay": torch.ones(1)}
    with pytest.raises(EnvironmentProblem, match=r"model_ema\.decay is unknown.*E_WEIGHTS_WRONG") as caught:
        mini("vae", stranger)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT and caught.value.remedy


def test_a_stranger_in_the_reconstruction_is_left_out_with_a_warning(
    files: dict[str, OrderedDict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = {**files[CRM], "renderer.light": torch.ones(3)}
    assert same(mini("reconstruction", stranger), mini("reconstruction", files[CRM]))
    assert "renderer.light" in caplog.text


@pytest.mark.parametrize(
    ("part", "harm", "message"),
    [
        ("rgb", lambda t: t.pop("model.diffusion_model.out.2.bias"), r"out\.2\.bias is missing"),
        (
            "rgb",
            lambda t: t.update({"model.diffusion_model.out.3.bias": torch.ones(4)}),
            r"out\.3\.bias is unknown",
        ),
        (
            "vae",
            lambda t: t.update({f"{VAE}quant_conv.bias": torch.ones(7)}),
            r"its vae .* quant_conv\.bias is \[7\], not \[8\]",
        ),
        (
            "vision",
            lambda t: t.update({f"{CLIP}visual.class_embedding": torch.ones(32).long()}),
            r"class_embedding is \[32\] of whole numbers, not \[32\]",
        ),
        ("contexts", lambda t: t.pop(f"{CLIP}ln_final.bias"), r"ln_final\.bias is missing"),
    ],
)
def test_a_network_is_filled_whole_and_strictly_or_stays_as_it_was(
    files: dict[str, OrderedDict[str, Tensor]],
    part: str,
    harm: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    tensors = dict(files[RGB])
    harm(tensors)
    network = MINIATURE.build(part)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(EnvironmentProblem, match=message):
        load_published(network, part, tensors, architecture="miniature")
    assert same(network.state_dict(), before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_takes_the_published_values_in_its_own_precision(
    files: dict[str, OrderedDict[str, Tensor]], device: str
) -> None:
    with torch.device(device):
        network = MINIATURE.build("rgb")
    load_published(network, "rgb", files[RGB], architecture="miniature")
    assert isinstance(network, MultiViewUNet)
    for name, tensor in network.state_dict().items():
        stored = files[RGB][f"model.diffusion_model.{name}"]
        assert stored.dtype == torch.float16 and tensor.dtype == torch.float32
        assert torch.equal(tensor, stored.float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_contexts_are_what_the_text_tower_makes_of_the_prompts_in_single_precision(
    dtype: torch.dtype,
) -> None:
    tensors = published(dtype=dtype)[RGB]
    assert MINIATURE.towers is not None
    tower = TextTower(MINIATURE.towers.text)
    # By hand: without the block that is not used and what follows the last one.
    tower.load_state_dict({name: tensors[CLIP + name].float() for name in tower.state_dict()})
    contexts = mini("contexts", tensors)["tokens"]
    assert contexts.dtype == torch.float32
    assert torch.equal(contexts, Contexts.of(tower).tokens)
    assert (contexts[0] - contexts[1]).abs().max() > 0.1, "the prompts are two"


@pytest.mark.parametrize("prefix", ["", "model.", CLIP, "module.model."])
def test_a_file_of_clip_alone_goes_by_any_of_its_names(
    files: dict[str, OrderedDict[str, Tensor]], prefix: str
) -> None:
    renamed = from_tower_file("clip", clip_of(files, prefix))
    assert same(mini("vision", renamed), mini("vision", files[RGB]))
    assert same(mini("contexts", renamed), mini("contexts", files[RGB]))


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", VAE])
def test_a_vae_is_found_by_itself_and_inside_a_larger_file(
    files: dict[str, OrderedDict[str, Tensor]], prefix: str
) -> None:
    others = {"model.diffusion_model.out.2.bias": torch.ones(4), "cond_stage_model.x": torch.ones(1)}
    tensors = vae_of(files, prefix) | (others if prefix else {})
    assert same(mini("vae", from_tower_file("vae", tensors)), mini("vae", files[RGB]))


@pytest.mark.parametrize(
    ("tower", "probe"), [("clip", "visual.conv1.weight"), ("vae", "encoder.conv_in.weight")]
)
def test_a_file_without_the_tower_it_is_given_for_is_refused(
    files: dict[str, OrderedDict[str, Tensor]], tower: str, probe: str
) -> None:
    with pytest.raises(EnvironmentProblem, match=rf"no {tower} in it: {re.escape(probe)} is missing"):
        from_tower_file(tower, files[CRM])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_another_noise_schedule_is_worth_a_warning(
    caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    levels = published_schedule().alpha_bar
    check_schedule(Path("a.pth"), {"alphas_cumprod": levels.to(dtype)})
    check_schedule(Path("a.pth"), {})
    assert not caplog.records
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    check_schedule(Path("b.pth"), {"module.alphas_cumprod": (1 - betas).cumprod(0).to(dtype)})
    assert "b.pth" in caplog.text and caplog.records[0].levelno == logging.WARNING
    assert len(SCHEDULE) == 12


@pytest.mark.parametrize(
    ("part", "file"), [("rgb", RGB), ("vision", RGB), ("vae", RGB), ("reconstruction", CRM)]
)
def test_a_modules_own_state_dict_is_taken_as_it_is(
    files: dict[str, OrderedDict[str, Tensor]], part: str, file: str
) -> None:
    alone = from_published(part, files[file], architecture="miniature")
    network = MINIATURE.build(part)
    load_published(network, part, alone, architecture="miniature")
    filled = network.state_dict()
    assert filled.keys() == alone.keys()
    assert all(torch.equal(filled[name], tensor.to(filled[name].dtype)) for name, tensor in alone.items())
