"""The reconstruction U-Net computes what the library that trained the published one computes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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


# The same network written down once more from its description, in the order of its checkpoint's names.


def plain_unet(unet: ReconstructionUNet, x: Tensor, timestep: int) -> Tensor:
    p, config = unet.state_dict(), unet.config
    half = config.widths[0] // 2
    waves = [f(timestep * 10000 ** (-k / half)) for f in (math.cos, math.sin) for k in range(half)]
    time = linear(p, "time_embedding.linear_1", torch.tensor(waves, dtype=x.dtype))
    time = linear(p, "time_embedding.linear_2", F.silu(time))

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **how)

    def norm(name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), config.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scaled = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def residual(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = h + linear(p, f"{name}.time_emb_proj", F.silu(time))[:, None, None]
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in p else x)

    def attention(name: str, x: Tensor) -> Tensor:
        tokens = norm(f"{name}.group_norm", x).flatten(2).mT
        q, k, v = (linear(p, f"{name}.to_{part}", tokens) for part in "qkv")
        heads = []
        for start in range(0, x.shape[1], 8):
            part = slice(start, start + 8)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(8)
            heads.append(scores.softmax(dim=2) @ v[..., part])
        return x + linear(p, f"{name}.to_out.0", torch.cat(heads, 2)).mT.reshape(x.shape)

    def pair(block: str, place: int, x: Tensor, has_attention: bool) -> Tensor:
        x = residual(f"{block}.resnets.{place}", x)
        return attention(f"{block}.attentions.{place}", x) if has_attention else x

    last = len(config.widths) - 1
    skips = [x := conv("conv_in", x, padding=1)]
    for level in range(last + 1):
        for place in range(2):
            skips.append(x := pair(f"down_blocks.{level}", place, x, level in config.attention))
        if level < last:
            skips.append(x := conv(f"down_blocks.{level}.downsamplers.0.conv", x, stride=2, padding=1))
    x = residual("mid_block.resnets.0", x)
    x = residual("mid_block.resnets.1", attention("mid_block.attentions.0", x))
    for level in range(last, -1, -1):
        block = f"up_blocks.{last - level}"
        for place in range(3):
            x = pair(block, place, torch.cat([x, skips.pop()], 1), level in config.attention)
        if level:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(f"{block}.upsamplers.0.conv", x, padding=1)
    return conv("conv_out", F.silu(norm("conv_norm_out", x)), padding=1)


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def test_the_network_is_the_described_one() -> None:
    torch.manual_seed(0)
    unet = ReconstructionUNet(CONFIG).double().requires_grad_(False)
    for parameter in unet.parameters():  # ones and zeros of norms would hide a swap
        parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    x = torch.randn(2, 6, 16, 48, dtype=torch.float64)
    # Zero is exact in the network's single-precision waves.
    for timestep, tolerance in ((0, 1e-12), (20, 1e-5)):
        ours, plain = unet(x, timestep), plain_unet(unet, x, timestep)
        assert float(plain.std()) > 0.1
        assert float((ours - plain).abs().max() / plain.abs().max()) < tolerance


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
