"""The autoencoder computes what its description says, and what another library makes of its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crm_cli.models.vae import MINI_VAE, RELEASE_VAE, Vae, VaeConfig

KEYS = Path(__file__).parent / "published_keys"
"""Name, shape and type of every published tensor."""

UNEVEN = replace(MINI_VAE, multipliers=(1, 2, 2, 3), blocks=2, latent_channels=2)
"""Levels that differ, so that taking them in the wrong order fails."""


def network(config: VaeConfig, dtype: torch.dtype = torch.float64) -> Vae:
    """Random in every parameter: norms that start as the identity would hide themselves."""
    torch.manual_seed(0)
    vae = Vae(config).to(dtype).requires_grad_(False)
    for parameter in vae.parameters():
        parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return vae


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def listed_as(tensor: Tensor) -> str:
    """A tensor's shape as the published key lists give it."""
    return "x".join(map(str, tensor.shape))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert theirs.std() > 0.01
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        vae = Vae(RELEASE_VAE)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    assert len(vae.state_dict()) == 248


@pytest.mark.parametrize("stage", ["pixel", "ccm"])
def test_the_published_state_dict_has_our_names_and_shapes(stage: str) -> None:
    prefix = "vae_model."
    listed = (KEYS / f"{stage}-diffusion.txt").read_text().splitlines()
    published = {
        name.removeprefix(prefix): shape
        for name, shape, _ in map(str.split, listed)
        if name.startswith(prefix)
    }
    with torch.device("meta"):
        vae = Vae(RELEASE_VAE)
    assert {key: listed_as(tensor) for key, tensor in vae.state_dict().items()} == published


# The same network written down once more, straight from the description of the published one.


class Plain:
    """Reads a Vae's parameters and nothing else of it."""

    def __init__(self, vae: Vae) -> None:
        self.p = dict(vae.state_dict())
        self.config = vae.config

    def conv(self, name: str, x: Tensor, padding: tuple[int, int, int, int] = (1, 1, 1, 1)) -> Tensor:
        """Sum over the window, one of its places at a time; stride 2 where the padding is uneven."""
        weight = self.p[f"{name}.weight"]
        size, stride = weight.shape[-1], 1 if padding[0] == padding[1] else 2
        if size == 1:
            padding = (0, 0, 0, 0)
        left, right, top, bottom = padding
        padded = x.new_zeros(*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)
        padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
        h, w = (padded.shape[2] - size) // stride + 1, (padded.shape[3] - size) // stride + 1
        y = sum(
            torch.einsum(
                "oc,nchw->nohw",
                weight[:, :, row, column],
                padded[:, :, row : row + stride * h : stride, column : column + stride * w : stride],
            )
            for row in range(size)
            for column in range(size)
        )
        return y + self.p[f"{name}.bias"][:, None, None]

    def norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.config.groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        scaled = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
        return scaled * self.p[f"{name}.weight"][:, None, None] + self.p[f"{name}.bias"][:, None, None]

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", h)))
        if f"{name}.nin_shortcut.weight" in self.p:
            x = self.conv(f"{name}.nin_shortcut", x)
        return x + h

    def attention(self, name: str, x: Tensor) -> Tensor:
        normed = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")  # [N C hw]
        weights = (torch.einsum("nci,ncj->nij", q, k) / x.shape[1] ** 0.5).softmax(dim=2)
        seen = torch.einsum("nij,ncj->nci", weights, v).reshape(x.shape)
        return x + self.conv(f"{name}.proj_out", seen)

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x))
        return self.block(f"{name}.block_2", x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv("encoder.conv_in", x)
        for level in range(4):
            for block in range(self.config.blocks):
                x = self.block(f"encoder.down.{level}.block.{block}", x)
            if level < 3:
                x = self.conv(f"encoder.down.{level}.downsample.conv", x, padding=(0, 1, 0, 1))
        x = self.middle("encoder.mid", x)
        x = self.conv("encoder.conv_out", silu(self.norm("encoder.norm_out", x)))
        x = self.conv("quant_conv", x)
        half = self.config.latent_channels
        return x[:, :half], x[:, half:].clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z / 0.18215))
        x = self.middle("decoder.mid", x)
        for level in (3, 2, 1, 0):
            for block in range(self.config.blocks + 1):
                x = self.block(f"decoder.up.{level}.block.{block}", x)
            if level > 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x)
        return self.conv("decoder.conv_out", silu(self.norm("decoder.norm_out", x)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def test_pictures_become_latents_as_described() -> None:
    vae = network(UNEVEN)
    pictures, sample = noise(2, 3, 32, 32), noise(2, 2, 4, 4, seed=2)
    mean, log_variance = vae.moments(pictures)
    plain_mean, plain_log_variance = Plain(vae).moments(pictures)
    assert error(mean, plain_mean) < 1e-12
    assert error(log_variance, plain_log_variance) < 1e-12
    drawn = 0.18215 * (plain_mean + plain_log_variance.exp().sqrt() * sample)
    assert error(vae.encode(pictures, sample), drawn) < 1e-12
    assert error(vae.encode(pictures, None), 0.18215 * plain_mean) < 1e-12


def test_latents_become_pictures_as_described() -> None:
    vae = network(UNEVEN)
    latents = noise(2, 2, 4, 6)
    pictures = vae.decode(latents)
    assert pictures.shape == (2, 3, 32, 48)
    assert error(pictures, Plain(vae).decode(latents)) < 1e-12


def test_log_variances_stay_where_their_exponential_is_a_number() -> None:
    vae = network(MINI_VAE)
    vae.quant_conv.bias[4:] = torch.tensor([-1e6, -1e6, 1e6, 1e6])
    _, log_variance = vae.moments(noise(1, 3, 16, 16))
    assert log_variance[:, :2].unique().tolist() == [-30]
    assert log_variance[:, 2:].unique().tolist() == [20]


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    vae = network(MINI_VAE, torch.float32)
    pictures, latents = noise(3, 3, 32, 32, dtype=torch.float32), noise(3, 4, 4, 4, dtype=torch.float32)
    for one in range(3):
        alone = slice(one, one + 1)
        assert torch.equal(vae.encode(pictures, None)[alone], vae.encode(pictures[alone], None))
        assert torch.equal(vae.decode(latents)[alone], vae.decode(latents[alone]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_sum_beyond_what_half_precision_can_hold(dtype: torch.dtype) -> None:
    norm = network(MINI_VAE, dtype).decoder.norm_out
    x = noise(1, MINI_VAE.width, 64, 64, dtype=torch.float32) * 1000  # squares reach 10⁷, half ends at 65504
    exact = F.group_norm(x, MINI_VAE.groups, norm.weight.float(), norm.bias.float(), 1e-6)
    assert error(norm(x.to(dtype)).float(), exact) < 2 * torch.finfo(dtype).eps


def test_pictures_of_another_kind_are_refused_by_name() -> None:
    vae = network(MINI_VAE)
    with pytest.raises(ValueError, match=r"Vae.pictures: got \[1, 4, 32, 32\]"):
        vae.encode(noise(1, 4, 32, 32), None)
    with pytest.raises(ValueError, match=r"Vae.latents: got \[1, 3, 4, 4\]"):
        vae.decode(noise(1, 3, 4, 4))


def diffusers_name(name: str, levels: int) -> str:
    """What diffusers calls one of our parameters: it numbers the decoder's levels in order of work."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    words = rest.split(".")
    if words[0] in ("down", "up"):
        level = int(words[1]) if words[0] == "down" else levels - 1 - int(words[1])
        words[:2] = [f"{words[0]}_blocks", str(level)]
    rest = ".".join(words)
    for ours, theirs in (
        (".block.", ".resnets."),
        (".downsample.", ".downsamplers.0."),
        (".upsample.", ".upsamplers.0."),
        ("nin_shortcut", "conv_shortcut"),
        ("mid.block_1", "mid_block.resnets.0"),
        ("mid.block_2", "mid_block.resnets.1"),
        ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
        ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
        ("mid.attn_1.", "mid_block.attentions.0.to_"),
        ("norm_out", "conv_norm_out"),
    ):
        rest = rest.replace(ours, theirs)
    return f"{side}.{rest}"


@pytest.mark.filterwarnings("default")
def test_diffusers_agrees() -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = network(UNEVEN, torch.float32)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(UNEVEN.widths),
        layers_per_block=UNEVEN.blocks,
        latent_channels=UNEVEN.latent_channels,
        norm_num_groups=UNEVEN.groups,
    ).requires_grad_(False)
    state = {}
    for name, tensor in ours.state_dict().items():
        # Their attention is made of linear layers, ours of convolutions of one pixel.
        is_linear = "attn_1" in name and tensor.ndim == 4
        state[diffusers_name(name, levels=4)] = tensor[:, :, 0, 0] if is_linear else tensor
    theirs.load_state_dict(state, strict=True)
    pictures = noise(2, 3, 64, 64, dtype=torch.float32)
    latents = noise(2, 2, 8, 8, dtype=torch.float32)
    distribution = theirs.encode(pictures).latent_dist
    mean, log_variance = ours.moments(pictures)
    assert error(mean, distribution.mean) <= 1e-5
    assert error(log_variance, distribution.logvar) <= 1e-5
    assert theirs.config.scaling_factor == 0.18215
    assert error(ours.decode(latents), theirs.decode(latents / 0.18215).sample) <= 1e-5
