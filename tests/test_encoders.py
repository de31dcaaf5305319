import pytest
import torch
from torch import Tensor

from crm_cli import frame
from crm_cli.models.encoders import PatchCodec, photo_for_frames


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
