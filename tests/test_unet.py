"""The reconstruction U-Net computes what the library that trained the published one computes."""

import pytest
import torch

from crm_cli.models.unet import ReconstructionUNet, UNetConfig

CONFIG = UNetConfig(in_channels=6, out_channels=5, widths=(16, 16, 32, 32), attention=(1, 2), groups=8)


def test_a_picture_keeps_its_size() -> None:
    unet = ReconstructionUNet(CONFIG).requires_grad_(False)
    assert unet(torch.zeros(2, 6, 16, 48), 20).shape == (2, 5, 16, 48)


def test_every_pixel_may_reach_every_other() -> None:
    torch.manual_seed(0)
    unet = ReconstructionUNet(CONFIG)
    x = torch.randn(1, 6, 16, 48, requires_grad=True)
    unet(x, 20)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert float(x.grad[0, :, -1, -1].abs().max()) > 0


def test_the_timestep_matters() -> None:
    torch.manual_seed(0)
    unet = ReconstructionUNet(CONFIG).requires_grad_(False)
    x = torch.randn(1, 6, 16, 16)
    assert float((unet(x, 20) - unet(x, 500)).abs().max()) > 1e-3


@pytest.mark.filterwarnings("default")
def test_diffusers_agrees() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    ours = ReconstructionUNet(CONFIG).requires_grad_(False)
    theirs = diffusers.UNet2DModel(
        in_channels=6,
        out_channels=5,
        block_out_channels=CONFIG.widths,
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 6, 32, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 20), theirs(x, 20).sample, atol=1e-5, rtol=1e-4)
