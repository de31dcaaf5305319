from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crm_cli.models import clip, denoiser, reconstruction, vae
from crm_cli.models.denoiser import DenoiserConfig, MultiViewUNet
from crm_cli.models.operations import (
    LATENT_SIDE,
    PATCHES,
    PICTURE_SIDE,
    PROMPT_TOKENS,
    SIZES,
    VIEWS,
    colour_head,
    convolution,
    decode,
    denoiser_pieces,
    denoiser_preparation,
    denoiser_step,
    distance_head,
    encode,
    engine_step,
    look,
    photo_operations,
    planes,
    read,
    reconstruct,
    shape,
    step_as_published,
    weight_head,
)
from crm_cli.models.reconstruction import Reconstruction
from crm_cli.models.unet import ReconstructionUNet
from crm_cli.preset import Override, Preset, load_preset

DENOISERS = {
    "release rgb": denoiser.RELEASE_RGB,
    "release ccm": denoiser.RELEASE_CCM,
    "miniature rgb": denoiser.MINI_RGB,
    "miniature ccm": denoiser.MINI_CCM,
    "no prompts": denoiser.SMALL_RGB,
    "text alone": replace(denoiser.MINI_RGB, image_tokens=None),
    "uneven": replace(denoiser.MINI_RGB, multipliers=(1, 3, 3), blocks=(2, 0, 1), attention_levels=(0, 2)),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().requires_grad_(False)


def counted(work: Callable[[], object]) -> int:
    """What torch's own counter finds, where nothing is really calculated."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("config", DENOISERS.values(), ids=DENOISERS)
def test_a_denoiser_s_operations_are_those_that_torch_counts(config: DenoiserConfig) -> None:
    network = built(lambda: MultiViewUNet(config))
    found = []

    def prepare() -> None:
        found.append(
            network.prepare(
                cameras=torch.zeros(config.frames, 16),
                text=torch.zeros(1, PROMPT_TOKENS, config.context_width) if config.context_width else None,
                image=torch.zeros(1, PATCHES + 1, config.image_width) if config.image_tokens else None,
                concat=torch.zeros(1, config.frames, config.concat_channels, 32, 32)
                if config.concat_channels
                else None,
                reference=torch.zeros(1, config.channels_in, 32, 32) if config.has_reference else None,
            )
        )

    def step() -> None:
        x = torch.zeros(1, config.frames, config.channels_in, 32, 32)
        network(x, torch.zeros(1, dtype=torch.long), found[0])

    assert counted(prepare) == denoiser_preparation(config)
    assert counted(step) == denoiser_step(config).total()


@pytest.mark.parametrize(
    ("config", "as_coded"),
    [(denoiser.RELEASE_RGB, 3_269_043_699_712), (denoiser.RELEASE_CCM, 2_710_449_586_176)],
)
def test_a_guided_step_as_published_is_what_was_counted_in_the_published_code(
    config: DenoiserConfig, as_coded: int
) -> None:
    assert step_as_published(config) == as_coded


def test_the_sides_of_a_denoiser_s_layers_are_those_of_its_maps() -> None:
    config = denoiser.RELEASE_RGB
    shares = {side: count / denoiser_step(config).total() for side, count in denoiser_step(config).items()}
    # Strided and enlarging convolutions count where they end: a little less at 32 than its blocks alone.
    assert shares == pytest.approx({32: 0.466, 16: 0.274, 8: 0.216, 4: 0.044}, abs=0.001)
    assert [piece.side for piece in denoiser_pieces(config)][:4] == [32, 32, 32, 32]


@pytest.mark.parametrize("config", [vae.RELEASE_VAE, vae.MINI_VAE], ids=["release", "miniature"])
def test_the_autoencoder_s_operations_are_those_that_torch_counts(config: vae.VaeConfig) -> None:
    network = built(lambda: vae.Vae(config))
    pictures = (1, 3, PICTURE_SIDE, PICTURE_SIDE)
    assert counted(lambda: network.encode(torch.zeros(pictures), None)) == encode(config).total()
    latents = (1, config.latent_channels, LATENT_SIDE, LATENT_SIDE)
    assert counted(lambda: network.decode(torch.zeros(latents))) == decode(config).total()
    assert set(encode(config)) == set(decode(config)) == {32, 64, 128, 256}


@pytest.mark.parametrize("config", [clip.RELEASE_VISION, clip.MINI_VISION], ids=["release", "miniature"])
def test_the_tower_s_operations_are_those_that_torch_counts(config: clip.TowerConfig) -> None:
    network = built(lambda: clip.VisionTower(config))
    assert counted(lambda: network(torch.zeros(1, 3, 224, 224))) == look(config)


@pytest.mark.parametrize("config", [clip.RELEASE_TEXT, clip.MINI_TEXT], ids=["release", "miniature"])
def test_the_text_tower_s_operations_are_those_that_torch_counts(config: clip.TowerConfig) -> None:
    network = built(lambda: clip.TextTower(config))
    assert counted(lambda: network(torch.zeros(1, PROMPT_TOKENS, dtype=torch.long))) == read(config)


@pytest.mark.parametrize(
    "config", [reconstruction.RELEASE, reconstruction.MINI], ids=["release", "miniature"]
)
def test_the_reconstruction_s_operations_are_those_that_torch_counts(
    config: reconstruction.ReconstructionConfig,
) -> None:
    network = built(lambda: ReconstructionUNet(config.unet))
    shape = (1, config.unet.in_channels, config.plane_px, 3 * config.plane_px)
    assert counted(lambda: network(torch.zeros(shape), 20)) == planes(config.unet, config.plane_px)
    heads = built(lambda: Reconstruction(config))
    assert counted(lambda: heads.weightMlp(torch.zeros(7, 8 * config.unet.out_channels))) == 7 * weight_head(
        config
    )
    features = config.unet.out_channels
    points = counted(lambda: heads.sdfMlp(torch.zeros(17**3, features)))
    fewer = counted(lambda: heads.sdfMlp(torch.zeros(9**3 + 2 * 5 * 16**2, features)))
    texels = counted(lambda: heads.rgbMlp(torch.zeros(128**2, features)))
    cubes = counted(lambda: heads.weightMlp(torch.zeros(5 * 16**2, 8 * features)))
    rest = planes(config.unet, config.plane_px) + texels + cubes
    assert reconstruct(config, grid=16, is_dense=True, texture_px=128) == rest + points
    assert reconstruct(config, grid=16, is_dense=False, texture_px=128) == rest + fewer


def test_the_embedded_reconstruction_s_operations_are_those_that_torch_counts() -> None:
    config = reconstruction.SMALL
    network = built(lambda: Reconstruction(config))
    side, channels = config.plane_px, config.unet.in_channels
    unet = counted(lambda: network.unet2.unet(torch.zeros(1, channels, side, 3 * side), 20))
    assert unet == planes(config.unet, side)
    wide = network.sdfMlp.fc1.in_features
    assert counted(lambda: network.sdfMlp(torch.zeros(11, wide))) == 11 * distance_head(config)
    assert counted(lambda: network.rgbMlp(torch.zeros(11, wide))) == 11 * colour_head(config)
    assert weight_head(config) == 0
    dense = shape(config, grid=8, is_dense=True)
    assert dense == unet + 9**3 * distance_head(config)


def suited(name: str, *assignments: str) -> Preset:
    overrides = [Override.from_assignment(text) for text in assignments]
    return load_preset(name, overrides, architecture="release").preset


def test_the_published_number_of_steps_takes_little_less_than_297_teraflop() -> None:
    # As counted layer by layer beforehand, without what an engine drops of the reference's frame.
    assert 0.985 * 297e12 < photo_operations("release", suited("exact")).total() < 297e12


def test_guidance_costs_one_more_evaluation_in_every_guided_step_and_nothing_when_off() -> None:
    sizes = SIZES["release"]
    one_step = sum(engine_step(config).total() for config in (sizes.rgb, sizes.ccm))

    def total(guidance: float, share: float, steps: int = 20) -> int:
        values = {"solver": "unipc", "steps": steps, "guidance": guidance, "guided": share}
        words = [f"{stage}.{key}={value}" for stage in ("rgb", "ccm") for key, value in values.items()]
        return photo_operations("release", suited("fast", *words)).total()

    assert total(5, 1) - total(1, 1) == 20 * one_step
    assert total(5, 0.75) - total(1, 1) == 15 * one_step
    assert total(5, 0) == total(1, 1) == total(1, 0.5)
    assert total(1, 1, 30) - total(1, 1, 20) == 10 * one_step


def test_the_published_sampler_is_counted_with_the_steps_it_really_makes() -> None:
    def total(steps: int) -> int:
        words = [f"{stage}.steps={steps}" for stage in ("rgb", "ccm")]
        return photo_operations("release", suited("exact", *words)).total()

    assert total(30) > total(25)
    # 31 evaluations: 30 does not divide the 1000 steps of the schedule.
    assert (total(30) - total(25)) / (total(50) - total(25)) == pytest.approx(6 / 25)


def test_every_picture_of_both_stages_is_decoded_and_the_first_stage_s_encoded_again() -> None:
    config = SIZES["release"].vae
    counts = photo_operations("release", suited("turbo"))
    for side in (64, 128):  # no other network has maps of these sides
        assert counts[side] == (1 + VIEWS) * encode(config)[side] + 2 * VIEWS * decode(config)[side]


def test_a_convolution_is_counted_at_the_places_of_its_answer() -> None:
    layer = built(lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1))
    assert counted(lambda: layer(torch.zeros(1, 5, 16, 16))) == convolution(64, 5, 7)
