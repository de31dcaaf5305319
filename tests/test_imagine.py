import hashlib
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from measured import cutout
from miniature import networks
from PIL import Image
from torch import Tensor, nn

from crm_cli.frame import VIEWS
from crm_cli.models.denoiser import MultiViewUNet, camera_vectors
from crm_cli.models.imagine import (
    EmbeddedImagination,
    PublishedImagination,
    coverage,
    in_batches,
    open_imagination,
)
from crm_cli.models.sampler import Progress
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import Cutout, SixViews

FRAMES = ["left", "bottom", "back", "right", "top", "front"]


def preset_with(*assignments: str, name: str = "exact") -> Preset:
    quick = ["rgb.steps=2", "ccm.steps=2"]
    overrides = [Override.from_assignment(text) for text in (*quick, *assignments)]
    return load_preset(name, overrides, architecture="miniature").preset


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    return networks()


def imagine(parts: dict[str, nn.Module], preset: Preset, *cutouts: Cutout) -> list[SixViews]:
    return PublishedImagination(parts, preset)(cutouts, lambda done, of: None)


# The published pipeline written down once more, from its description: one photo, a loop in double precision.


def noise(digest: str, purpose: str, *shape: int) -> Tensor:
    number = int.from_bytes(hashlib.sha256(f"0:{digest}:{purpose}".encode()).digest()[:8], "little") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def posterior(parts: dict[str, nn.Module], pictures: Tensor, unit: Tensor) -> Tensor:
    mean, log_variance = parts["vae"].moments(pictures)
    return 0.18215 * (mean + (log_variance / 2).exp() * unit)


def ddim(
    parts: dict[str, nn.Module], stage: str, digest: str, guidance: float, image: Tensor, **given: Tensor
) -> Tensor:
    """Two steps, at t = 501 and t = 1; pictures [6 3 256 256] in [-1, 1] as decoded."""
    unet = parts[stage]
    assert isinstance(unet, MultiViewUNet)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    levels = roots**2
    frames = 7 if stage == "rgb" else 6
    x = noise(digest, stage, frames, 4, 32, 32).double()
    positive, negative = parts["contexts"].tokens
    for t, target in ((501, levels[1]), (1, levels[0])):
        answers = []
        for context, share in ((negative, 0.0), (positive, 1.0)):
            conditions = unet.prepare(
                cameras=camera_vectors(frames),
                text=context[None],
                image=image * share,
                **{name: tensor * share for name, tensor in given.items()},
            )
            answers.append(unet(x.float()[None], torch.tensor([t]), conditions)[0].double())
        e = answers[0] + guidance * (answers[1] - answers[0])
        clean = (x - np.sqrt(1 - levels[t]) * e) / np.sqrt(levels[t])
        x = np.sqrt(target) * clean + np.sqrt(1 - target) * e
    latents = x[:6].float() / 0.18215
    return torch.cat([parts["vae"].decode(latent[None] * 0.18215) for latent in latents])


@torch.inference_mode()
def plainly(parts: dict[str, nn.Module], shown: Cutout, guidance: float) -> tuple[Tensor, Tensor]:
    """Frames of colours and of maps in [0, 1], in the order of the denoisers."""
    rgba = (torch.cat([shown.rgb, shown.alpha]) * 255).round().permute(1, 2, 0).byte().numpy()
    grey = Image.new("RGBA", (90, 90), (127, 127, 127, 255))
    picture = Image.alpha_composite(grey, Image.fromarray(rgba)).convert("RGB")

    def tensor(size: int, kernel: Image.Resampling) -> Tensor:
        return torch.tensor(np.array(picture.resize((size, size), kernel))).permute(2, 0, 1)[None] / 255

    seen = tensor(256, Image.Resampling.BILINEAR) * 2 - 1
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    image = parts["vision"]((tensor(224, Image.Resampling.BICUBIC) - mean) / deviation)
    reference = posterior(parts, seen, noise(shown.digest, "rgb reference", 1, 4, 32, 32))
    rgb = ddim(parts, "rgb", shown.digest, guidance, image, reference=reference)
    rgb = ((rgb + 1) / 2).clamp(0, 1)
    beside = posterior(parts, rgb * 2 - 1, noise(shown.digest, "ccm views", 6, 4, 32, 32))
    ccm = ddim(parts, "ccm", shown.digest, guidance, image, concat=beside[None])
    return rgb, ((ccm + 1) / 2).clamp(0, 1)


def test_the_exact_preset_draws_what_the_description_says(parts: dict[str, nn.Module]) -> None:
    [views] = imagine(parts, preset_with("views.truncate=false"), cutout())
    rgb, ccm = plainly(parts, cutout(), guidance=5.0)
    assert views.rgb.std() > 0.05 and views.ccm.std() > 0.05, "the answer must be more than one grey"
    for place, name in enumerate(FRAMES):
        view = [each.name for each in VIEWS].index(name)
        assert (views.rgb[view] - rgb[place]).abs().max() < 1e-4
        assert (views.ccm[view] - ccm[place]).abs().max() < 1e-3


def test_pictures_are_cut_to_bytes_and_not_rounded(parts: dict[str, nn.Module]) -> None:
    [whole], [cut] = (
        imagine(parts, preset_with(f"views.truncate={flag}"), cutout()) for flag in ("false", "true")
    )
    assert torch.equal(cut.rgb, (whole.rgb * 255).floor() / 255)
    levels = cut.ccm * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert not torch.equal(cut.ccm, (whole.ccm * 255).floor() / 255), "the second stage has seen other views"


def test_progress_counts_both_stages_as_one(parts: dict[str, nn.Module]) -> None:
    heard = []
    preset = preset_with("ccm.steps=4")
    PublishedImagination(parts, preset)([cutout()], lambda done, of: heard.append((done, of)))
    assert heard == [(k, 6) for k in range(1, 7)]


def test_alone_or_with_others_a_photo_becomes_the_same_views(parts: dict[str, nn.Module]) -> None:
    first, second = cutout(), cutout("e" * 64, seed=1)
    preset = preset_with("views.truncate=false")
    together = imagine(parts, preset, first, second)
    for alone, among in zip((first, second), together, strict=True):
        [views] = imagine(parts, preset, alone)
        assert (views.rgb - among.rgb).abs().max() < 1e-4
        assert (views.ccm - among.ccm).abs().max() < 1e-3
    assert (together[0].rgb - together[1].rgb).abs().max() > 0.1


@pytest.mark.parametrize(
    ("photos", "asked"),
    [("abcde", ["abc", "dee"]), ("a", ["aaa"]), ("abc", ["abc"]), ("", [])],
)
def test_networks_are_always_given_the_same_number_of_photos(photos: str, asked: list[str]) -> None:
    groups: list[str] = []
    heard: list[tuple[int, int]] = []

    def draw(cutouts: Any, progress: Progress) -> Any:
        groups.append("".join(cutouts))
        progress(1, 2)
        progress(2, 2)
        return [letter.upper() for letter in cutouts]

    drawn: Any = in_batches(draw, cast(Any, photos), 3, lambda done, of: heard.append((done, of)))
    assert groups == asked
    assert "".join(drawn) == photos.upper(), "without those that only fill up"
    assert heard == [(k + 1, 2 * len(asked)) for k in range(2 * len(asked))]


def test_in_batches_of_one_size_a_photo_s_views_do_not_tell_its_neighbours(
    parts: dict[str, nn.Module],
) -> None:
    photos = [cutout(letter * 64, seed) for seed, letter in enumerate("abc")]
    preset = preset_with("views.truncate=false", "rgb.steps=1", "ccm.steps=1")
    heard = []
    way = PublishedImagination(parts, preset, batch=2)
    together = way(photos, lambda done, of: heard.append((done, of)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)], "two batches of two steps"
    # Second of a pair, alone in what would be one, and in a run that began with it.
    for again, among in zip(way([photos[2], photos[0]], lambda done, of: None), together[::-2], strict=True):
        assert torch.equal(again.rgb, among.rgb) and torch.equal(again.ccm, among.ccm)
    [alone] = way(photos[1:2], lambda done, of: None)
    assert torch.equal(alone.rgb, together[1].rgb) and torch.equal(alone.ccm, together[1].ccm)


def test_another_seed_draws_something_else(parts: dict[str, nn.Module]) -> None:
    one, other = (imagine(parts, preset_with(f"seed={seed}"), cutout())[0] for seed in (0, 1))
    assert (one.rgb - other.rgb).abs().max() > 0.1


def test_without_guidance_nobody_reads_the_negative_prompt(parts: dict[str, nn.Module]) -> None:
    changed = dict(parts)
    changed["contexts"] = networks()["contexts"]
    changed["contexts"].tokens[1] += 1
    plain = preset_with("rgb.guidance=1", "ccm.guidance=1")
    assert torch.equal(imagine(parts, plain, cutout())[0].ccm, imagine(changed, plain, cutout())[0].ccm)
    unguided = preset_with("rgb.guided=0", "ccm.guided=0")
    assert torch.equal(imagine(parts, plain, cutout())[0].ccm, imagine(parts, unguided, cutout())[0].ccm)
    guided = preset_with()
    assert not torch.equal(imagine(parts, guided, cutout())[0].ccm, imagine(changed, guided, cutout())[0].ccm)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("stage", "name", "shape"), [("rgb", "reference", (4, 8, 8)), ("ccm", "concat", (6, 4, 8, 8))]
)
def test_where_guidance_has_ended_the_conditional_half_alone_is_asked(
    parts: dict[str, nn.Module], stage: str, name: str, shape: tuple[int, ...]
) -> None:
    unet = parts[stage]
    assert isinstance(unet, MultiViewUNet)
    text, image = parts["contexts"].tokens.flip(0), noise("", "image", 2, 257, 32)
    given = noise("", name, 2, *shape)
    both = unet.prepare(text=text, image=image, **{name: given})
    x, t = noise("", "x", 1, unet.config.frames, 4, 8, 8), torch.tensor([501])
    hidden, shown = (
        unet(x, t, unet.prepare(text=text[k], image=image[k], **{name: given[k]}))
        for k in (slice(0, 1), slice(1, 2))
    )
    assert (hidden - shown).abs().max() > 1e-2
    torch.testing.assert_close(unet(x, t, both.last(1)), shown)


@pytest.mark.parametrize("part", ["vision", "vae", "contexts"])
def test_a_second_diffusion_with_parts_of_its_own_reads_those(parts: dict[str, nn.Module], part: str) -> None:
    preset = preset_with("views.truncate=false")
    [shared] = imagine(parts, preset, cutout())
    [own] = imagine({**parts, f"ccm.{part}": networks(seed=1)[part]}, preset, cutout())
    assert torch.equal(own.rgb, shared.rgb)
    assert (own.ccm - shared.ccm).abs().max() > 1e-3


def test_half_precision_networks_draw_almost_the_same(parts: dict[str, nn.Module]) -> None:
    halves = {name: network.bfloat16() for name, network in networks().items()}
    halves["contexts"].float()
    preset = preset_with("views.truncate=false")
    [narrow], [wide] = imagine(halves, preset, cutout()), imagine(parts, preset, cutout())
    assert narrow.rgb.dtype == torch.float32
    assert 0 < (narrow.rgb - wide.rgb).square().mean().sqrt() < 0.02


def test_coverage_is_where_a_view_is_not_plain_grey() -> None:
    views = torch.full((6, 3, 8, 8), 127 / 255)
    views += torch.linspace(-0.03, 0.03, 8)  # what a decoder makes of grey
    views[:, 1, 2:5, 3:6] = 0.9
    assert coverage(views).sum() == 6 * 9
    assert coverage(views)[:, 0, 2:5, 3:6].all()


def test_an_architecture_has_its_way(parts: dict[str, nn.Module]) -> None:
    preset = preset_with()
    assert isinstance(open_imagination("small", parts, preset), EmbeddedImagination)
    for name in ("release", "miniature"):
        assert isinstance(open_imagination(name, parts, replace(preset)), PublishedImagination)
