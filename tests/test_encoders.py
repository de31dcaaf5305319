import pytest
import torch
from torch import Tensor

from crm_cli import frame
from crm_cli.models.encoders import DepthCodec, PatchCodec, photo_for_frames, pixel_grid


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


def sphere_maps(size: int, radius: float) -> tuple[Tensor, Tensor]:
    """Coordinate maps [6 3 S S] and alpha [6 1 S S] of a sphere off the centre, traced analytically."""
    centre = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    along = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    maps, alphas = [], []
    for view in frame.VIEWS:
        right, up, toward = (torch.tensor(axis, dtype=torch.float64) for axis in view[1:])
        u = along[None, :] - centre @ right
        v = along[:, None] + centre @ up
        under_root = radius**2 - u.square() - v.square()
        depth = centre @ toward + under_root.clamp(min=0).sqrt()
        points = (
            right[:, None, None] * along[None, None, :]
            - up[:, None, None] * along[None, :, None]
            + toward[:, None, None] * depth
        )
        alpha = (under_root > 0)[None]
        maps.append(torch.where(alpha, (points + 1) / 2, 0.5))
        alphas.append(alpha.double())
    return torch.stack(maps), torch.stack(alphas)


def test_one_channel_of_a_coordinate_map_is_all_of_it() -> None:
    maps, alpha = sphere_maps(32, radius=0.6)
    latents = DepthCodec(4).encode(maps[None])
    assert latents.shape == (1, 6, 16, 8, 8)
    assert (DepthCodec(4).decode(latents, alpha[None])[0] - maps).abs().max() < 1e-12


def test_a_depth_latent_is_larger_where_the_surface_is_nearer_in_every_view() -> None:
    maps, alpha = sphere_maps(32, radius=0.6)
    nearness = torch.nn.functional.pixel_shuffle(DepthCodec(4).encode(maps), 4)[:, 0]
    centre = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    for i, view in enumerate(frame.VIEWS):
        nearest = (centre * torch.tensor(view.toward)).sum() + 0.6
        assert abs(nearness[i].max() - nearest) < 0.01, view.name
        assert (nearness[i][alpha[i, 0] == 0] == 0).all(), view.name


def test_the_background_of_decoded_maps_is_mid_grey() -> None:
    alpha = torch.zeros(6, 1, 8, 8)
    alpha[:, :, :4] = 0.49
    maps = DepthCodec(4).decode(torch.ones(6, 16, 2, 2), alpha)
    assert (maps == 0.5).all()


def test_depth_cannot_be_decoded_without_alpha() -> None:
    with pytest.raises(ValueError, match="alpha"):
        DepthCodec(4).decode(torch.ones(6, 16, 2, 2))


def test_every_pixel_stands_where_its_view_says() -> None:
    grid = pixel_grid(8)
    for i, view in enumerate(frame.VIEWS):
        right, up, toward = (torch.tensor(axis, dtype=torch.float32) for axis in view[1:])
        points = grid[i].permute(1, 2, 0)
        assert torch.allclose((points @ right)[3], (torch.arange(8) + 0.5) / 4 - 1), view.name
        assert torch.allclose((points @ up)[:, 3], 1 - (torch.arange(8) + 0.5) / 4), view.name
        assert not (points @ toward).any(), view.name


def test_the_photo_stands_beside_every_frame_mirrored_only_behind() -> None:
    photo = rgba(2, 4, 8, 8)
    beside = photo_for_frames(photo)
    assert beside.shape == (2, 7, 4, 8, 8)
    back = frame.DENOISER_ORDER.index(frame.BACK)
    for i in range(7):
        assert torch.equal(beside[:, i], photo.flip(-1) if i == back else photo)
