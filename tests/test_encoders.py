from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from crm_cli import frame
from crm_cli.models.encoders import (
    PatchCodec,
    from_vae,
    photo_for_frames,
    square_on_grey,
    tower_picture,
    vae_picture,
)
from crm_cli.records import Crop, Cutout


def rgba(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_lose_nothing(patch: int) -> None:
    images = rgba(2, 6, 4, 16, 16)
    latents = PatchCodec(patch).encode(images)
    assert latents.shape == (2, 6, 4 * patch**2, 16 // patch, 16 // patch)
    assert (PatchCodec(patch).decode(latents) - images).abs().max() < 1e-15


def test_a_latent_channel_is_one_colour_of_one_place_in_the_patch() -> None:
    image = torch.zeros(4, 16, 16)
    image[2, 4 * 3 + 1, 4 * 2 + 3] = 1  # blue, patch (3, 2), row 1, column 3
    latents = PatchCodec(4).encode(image)
    assert (latents == 1).nonzero().tolist() == [[2 * 16 + 1 * 4 + 3, 3, 2]]
    assert (latents == -1).sum() == latents.numel() - 1


def test_decoded_colours_stay_in_range() -> None:
    decoded = PatchCodec(4).decode(torch.tensor([-3.0, 0.0, 3.0]).repeat_interleave(16).reshape(48, 1, 1))
    assert decoded[:, 0, 0].tolist() == [0, 0.5, 1]


def test_depth_is_its_own_latent_so_that_the_background_is_zero() -> None:
    depth = 2 * rgba(2, 6, 1, 16, 16) - 1
    depth[..., :8] = 0
    codec = PatchCodec(4, lowest=-1.0)
    latents = codec.encode(depth)
    assert torch.equal(latents[..., :2], torch.zeros_like(latents[..., :2]))
    assert torch.allclose(torch.nn.functional.pixel_shuffle(latents, 4), depth, rtol=0, atol=1e-15)
    assert (codec.decode(latents) - depth).abs().max() < 1e-15
    assert codec.decode(torch.full((16, 1, 1), -2.0)).min() == -1


def test_the_photo_stands_beside_every_frame_mirrored_only_behind() -> None:
    photo = rgba(2, 4, 8, 8)
    beside = photo_for_frames(photo)
    assert beside.shape == (2, 7, 4, 8, 8)
    back = frame.DENOISER_ORDER.index(frame.BACK)
    for i in range(7):
        assert torch.equal(beside[:, i], photo.flip(-1) if i == back else photo)


def cutout(size: int) -> Cutout:
    planes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, size, size), np.uint8)) / 255
    crop = Crop(centre_x=0, centre_y=0, side_px=size)
    return Cutout(
        rgb=planes[:3], alpha=planes[3:], crop=crop, photo=PurePosixPath("a"), digest="", matting="alpha"
    )


def test_published_networks_see_the_cutout_on_grey_127() -> None:
    shown = cutout(20)
    picture = np.asarray(square_on_grey(shown)).transpose(2, 0, 1).astype(float)
    exact = (shown.rgb * shown.alpha * 255 + 127 * (1 - shown.alpha)).numpy()
    assert np.abs(picture - exact).max() <= 1  # Pillow composes in integers
    assert np.asarray(square_on_grey(replace(shown, alpha=0 * shown.alpha))).ravel().tolist() == [127] * 1200
    opaque = square_on_grey(replace(shown, alpha=0 * shown.alpha + 1))
    assert np.array_equal(np.asarray(opaque).transpose(2, 0, 1), (shown.rgb * 255).round().numpy())


def test_a_resampled_cutout_becomes_the_nearest_bytes() -> None:
    between = replace(cutout(4), rgb=torch.full((3, 4, 4), 100.6 / 255), alpha=torch.ones(1, 4, 4))
    assert np.unique(np.asarray(square_on_grey(between))).tolist() == [101]


def test_the_vae_sees_256_pixels_from_minus_one_to_one() -> None:
    flat = Image.new("RGB", (64, 64), (0, 127, 255))
    seen = vae_picture(flat)
    assert seen.shape == (3, 256, 256)
    assert [float(channel.unique()) for channel in seen] == pytest.approx([-1, 127 / 127.5 - 1, 1], abs=1e-7)


def test_shrinking_for_the_vae_is_a_triangle_over_every_pixel() -> None:
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[101, 200] = 255
    seen = (vae_picture(Image.fromarray(pixels))[0] + 1) * 127.5
    # Halved, a triangle of two pixels to either side weighs the four source pixels 1, 3, 3, 1 eighths.
    weights = {(50, 100): 3 * 3, (51, 100): 1 * 3, (50, 99): 3 * 1, (51, 99): 1}
    for place, weight in weights.items():
        assert abs(float(seen[place]) - 255 * weight / 64) <= 1
    assert float(seen.sum()) == pytest.approx(255 / 4, abs=3)


def test_the_tower_sees_224_pixels_in_its_own_units() -> None:
    seen = tower_picture(Image.new("RGB", (448, 448), (255, 0, 127)))
    assert seen.shape == (3, 224, 224)
    expected = [
        (1 - 0.48145466) / 0.26862954,
        -0.4578275 / 0.26130258,
        (127 / 255 - 0.40821073) / 0.27577711,
    ]
    assert seen[:, 100, 100].tolist() == pytest.approx(expected, abs=1e-6)


def test_decoded_pictures_are_cut_to_bytes_where_asked() -> None:
    decoded = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0, 2 * 100.7 / 255 - 1])
    assert (from_vae(decoded, truncate=True) * 255).round().tolist() == [0, 0, 127, 254, 255, 255, 100]
    kept = [0, 0, 0.5, 0.9995, 1, 1, 100.7 / 255]
    assert from_vae(decoded, truncate=False).tolist() == pytest.approx(kept, abs=1e-6)
