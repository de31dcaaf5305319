import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crm_cli import frame
from crm_cli.models import denoiser
from crm_cli.models.denoiser import (
    RELEASE_CCM,
    RELEASE_RGB,
    SMALL_CCM,
    SMALL_RGB,
    TINY_CCM,
    TINY_RGB,
    DenoiserConfig,
    MultiViewUNet,
)

WHOLE = replace(
    RELEASE_RGB,
    frames=3,
    width=16,
    multipliers=(1, 2),
    blocks=(1, 1),
    attention_levels=(0,),
    head_dim=8,
    norm_groups=4,
    concat_channels=2,
    context_width=24,
    image_tokens=4,
    image_width=40,
    resampler_layers=2,
    resampler_heads=2,
)
"""Every part of the published network and both kinds of latent condition, small."""


def network(config: DenoiserConfig) -> MultiViewUNet:
    """Random in every layer: zeroed layers would hide what stands before them."""
    torch.manual_seed(0)
    unet = MultiViewUNet(config).double().eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return unet


def inputs(batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "cameras": noise(3, 16),
        "text": noise(batch, 7, 24),
        "image": noise(batch, 9, 40),
        "concat": noise(batch, 3, 2, 8, 8),
        "reference": noise(batch, 4, 8, 8),
        "x": noise(batch, 3, 4, 8, 8),
    }


def predict(unet: MultiViewUNet, given: dict[str, Tensor], t: Tensor) -> Tensor:
    conditions = unet.prepare(**{name: tensor for name, tensor in given.items() if name != "x"})
    with torch.no_grad():
        return unet(given["x"], t, conditions)


@pytest.mark.parametrize(
    ("config", "parameters"), [(RELEASE_RGB, 941_672_900), (RELEASE_CCM, 941_684_420)], ids=["rgb", "ccm"]
)
def test_the_published_networks_have_the_published_number_of_parameters(
    config: DenoiserConfig, parameters: int
) -> None:
    with torch.device("meta"):
        unet = MultiViewUNet(config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    assert len(unet.state_dict()) == 773


def test_the_published_blocks_stand_in_the_published_order() -> None:
    with torch.device("meta"):
        p = {name: tuple(tensor.shape) for name, tensor in MultiViewUNet(RELEASE_RGB).state_dict().items()}
    # Channels of each residual block; T: with a transformer, U: with an up-sampler, D: a down-sampler alone.
    down = "320 320T 320T 320D 320-640T 640T 640D 640-1280T 1280T 1280D 1280 1280"
    up = "2560-1280 2560-1280 2560-1280U 2560-1280T 2560-1280T 1920-1280TU"
    up += " 1920-640T 1280-640T 960-640TU 960-320T 640-320T 640-320T"

    def described(name: str) -> str:
        if f"{name}.0.weight" in p:
            return str(p[f"{name}.0.weight"][0])
        if f"{name}.0.op.weight" in p:
            return f"{p[f'{name}.0.op.weight'][0]}D"
        channels_out, channels_in = p[f"{name}.0.in_layers.2.weight"][:2]
        channels = f"{channels_in}-{channels_out}" if channels_in != channels_out else f"{channels_in}"
        has_transformer = f"{name}.1.proj_in.weight" in p
        has_upsampler = f"{name}.{1 + has_transformer}.conv.weight" in p
        return channels + "T" * has_transformer + "U" * has_upsampler

    assert " ".join(described(f"input_blocks.{i}") for i in range(12)) == down
    assert " ".join(described(f"output_blocks.{i}") for i in range(12)) == up
    assert [described("middle_block"), p["middle_block.1.proj_in.weight"]] == ["1280T", (1280, 1280)]
    assert sum(name.endswith("attn2.to_k_ip.weight") for name in p) == 16


def test_the_small_networks_stay_small() -> None:
    for config in (SMALL_RGB, SMALL_CCM):
        with torch.device("meta"):
            unet = MultiViewUNet(config)
        assert sum(parameter.numel() for parameter in unet.parameters()) < 9_000_000


@pytest.mark.parametrize("config", [SMALL_RGB, SMALL_CCM, TINY_RGB, TINY_CCM])
def test_the_small_networks_turn_patches_into_patches(config: DenoiserConfig) -> None:
    unet = MultiViewUNet(config)
    x = torch.randn(1, config.frames, config.channels_in, 16, 16)
    conditions = unet.prepare(
        concat=torch.randn(1, config.frames, config.concat_channels, 16, 16),
        reference=torch.randn(1, config.channels_in, 16, 16) if config.has_reference else None,
    )
    y = unet(x, torch.tensor([981]), conditions)
    assert y.shape == (1, config.frames, config.channels_out, 16, 16)
    assert not y.any(), "an untrained network predicts zero"


# The same network written down once more, straight from the description of the published one: every frame
# is an item of the batch, nothing is computed ahead, attention is spelled out.


def plain_predict(unet: MultiViewUNet, given: dict[str, Tensor], t: Tensor) -> Tensor:
    p = {name: parameter.detach() for name, parameter in unet.state_dict().items()}
    config = unet.config
    x = given["x"].clone()
    batch, frames = x.shape[:2]
    x[:, -1] = given["reference"]
    x = torch.cat([x, given["concat"]], dim=2).reshape(batch * frames, -1, *x.shape[3:])
    text = given["text"].repeat_interleave(frames, dim=0)
    image = plain_resampler(p, given["image"].repeat_interleave(frames, dim=0))
    half = config.width // 2
    omega = torch.tensor([10000 ** (-k / half) for k in range(half)], dtype=torch.float64)
    angles = t.repeat_interleave(frames)[:, None].double() * omega
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = plain_perceptron(p, "time_embed", waves)
    emb = emb + plain_perceptron(p, "camera_embed", given["cameras"].repeat(batch, 1))

    def res(name: str, x: Tensor) -> Tensor:
        h = F.silu(plain_group_norm(p, f"{name}.in_layers.0", x, config.norm_groups, 1e-5))
        h = F.conv2d(h, p[f"{name}.in_layers.2.weight"], p[f"{name}.in_layers.2.bias"], padding=1)
        h = h + plain_linear(p, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        h = F.silu(plain_group_norm(p, f"{name}.out_layers.0", h, config.norm_groups, 1e-5))
        h = F.conv2d(h, p[f"{name}.out_layers.3.weight"], p[f"{name}.out_layers.3.bias"], padding=1)
        if f"{name}.skip_connection.weight" in p:
            x = F.conv2d(x, p[f"{name}.skip_connection.weight"], p[f"{name}.skip_connection.bias"])
        return x + h

    def transformer(name: str, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = plain_group_norm(p, f"{name}.norm", x, config.norm_groups, 1e-6)
        y = y.permute(0, 2, 3, 1).reshape(n, h * w, c)
        y = plain_linear(p, f"{name}.proj_in", y)
        block = f"{name}.transformer_blocks.0"
        joined = plain_layer_norm(p, f"{block}.norm1", y).reshape(batch, frames * h * w, c)
        q, k, v = (plain_linear(p, f"{block}.attn1.to_{part}", joined) for part in "qkv")
        seen = plain_attention(q, k, v, config.head_dim).reshape(n, h * w, c)
        y = y + plain_linear(p, f"{block}.attn1.to_out.0", seen)
        q = plain_linear(p, f"{block}.attn2.to_q", plain_layer_norm(p, f"{block}.norm2", y))
        seen = sum(
            plain_attention(
                q,
                plain_linear(p, f"{block}.attn2.to_k{suffix}", tokens),
                plain_linear(p, f"{block}.attn2.to_v{suffix}", tokens),
                config.head_dim,
            )
            for suffix, tokens in (("", text), ("_ip", image))
        )
        y = y + plain_linear(p, f"{block}.attn2.to_out.0", seen)
        z = plain_linear(p, f"{block}.ff.net.0.proj", plain_layer_norm(p, f"{block}.norm3", y))
        y = y + plain_linear(p, f"{block}.ff.net.2", z[..., : 4 * c] * F.gelu(z[..., 4 * c :]))
        y = plain_linear(p, f"{name}.proj_out", y)
        return x + y.reshape(n, h, w, c).permute(0, 3, 1, 2)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride, padding=1)

    # WHOLE: two levels, one block each, transformers at full resolution and in the middle.
    skips = [conv("input_blocks.0.0", x)]
    skips.append(transformer("input_blocks.1.1", res("input_blocks.1.0", skips[-1])))
    skips.append(conv("input_blocks.2.0.op", skips[-1], stride=2))
    skips.append(res("input_blocks.3.0", skips[-1]))
    x = transformer("middle_block.1", res("middle_block.0", skips[-1]))
    x = res("middle_block.2", x)
    x = res("output_blocks.0.0", torch.cat([x, skips.pop()], dim=1))
    x = res("output_blocks.1.0", torch.cat([x, skips.pop()], dim=1))
    x = conv("output_blocks.1.1.conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    x = transformer("output_blocks.2.1", res("output_blocks.2.0", torch.cat([x, skips.pop()], dim=1)))
    x = transformer("output_blocks.3.1", res("output_blocks.3.0", torch.cat([x, skips.pop()], dim=1)))
    x = conv("out.2", F.silu(plain_group_norm(p, "out.0", x, config.norm_groups, 1e-5)))
    return x.reshape(batch, frames, *x.shape[1:])


def plain_linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def plain_perceptron(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return plain_linear(p, f"{name}.2", F.silu(plain_linear(p, f"{name}.0", x)))


def plain_layer_norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def plain_group_norm(p: dict[str, Tensor], name: str, x: Tensor, groups: int, eps: float) -> Tensor:
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    scaled = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    heads = []
    for start in range(0, q.shape[-1], head_dim):
        part = slice(start, start + head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / head_dim**0.5
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1)


def plain_resampler(p: dict[str, Tensor], image: Tensor) -> Tensor:
    tokens = plain_linear(p, "image_embed.proj_in", image)
    queries = p["image_embed.latents"].repeat(image.shape[0], 1, 1)
    for layer in range(WHOLE.resampler_layers):
        name = f"image_embed.layers.{layer}"
        normed = plain_layer_norm(p, f"{name}.0.norm2", queries)
        seen = torch.cat([plain_layer_norm(p, f"{name}.0.norm1", tokens), normed], dim=1)
        kv = plain_linear(p, f"{name}.0.to_kv", seen)
        half = kv.shape[-1] // 2
        q = plain_linear(p, f"{name}.0.to_q", normed)
        answer = plain_attention(q, kv[..., :half], kv[..., half:], 64)
        queries = queries + plain_linear(p, f"{name}.0.to_out", answer)
        hidden = F.gelu(plain_linear(p, f"{name}.1.1", plain_layer_norm(p, f"{name}.1.0", queries)))
        queries = queries + plain_linear(p, f"{name}.1.3", hidden)
    return plain_layer_norm(p, "image_embed.norm_out", plain_linear(p, "image_embed.proj_out", queries))


def test_constants_computed_once_give_what_computing_them_per_frame_and_step_gives() -> None:
    unet = network(WHOLE)
    given = inputs()
    # Zero is exact in the network's single-precision waves; the other timesteps are not.
    for t, tolerance in ((torch.tensor([0, 0]), 1e-12), (torch.tensor([981, 21]), 1e-4)):
        ours, plain = predict(unet, given, t), plain_predict(unet, given, t)
        assert plain.std() > 0.1
        assert (ours - plain).abs().max() / plain.abs().max() < tolerance


def test_every_condition_reaches_the_prediction() -> None:
    unet, t = network(WHOLE), torch.tensor([500, 500])
    given, others = inputs(), inputs(seed=2)
    before = predict(unet, given, t)
    for name in given:
        after = predict(unet, {**given, name: others[name]}, t)
        assert (after - before).abs().mean() > 1e-3, name
    assert (predict(unet, given, t // 2) - before).abs().mean() > 1e-3


def test_views_inform_each_other_and_objects_do_not() -> None:
    unet, t = network(WHOLE), torch.tensor([500, 500])
    given = inputs()
    before = predict(unet, given, t)
    x = given["x"].clone()
    x[0, 0] += 1
    change = (predict(unet, {**given, "x": x}, t) - before).abs().amax(dim=(2, 3, 4))
    assert (change[0] > 1e-3).all()
    assert (change[1] < 1e-12).all()


def test_the_reference_replaces_the_last_frame() -> None:
    unet, t = network(WHOLE), torch.tensor([500, 500])
    given = inputs()
    x = given["x"].clone()
    x[:, -1] = 1e6
    assert torch.equal(predict(unet, given, t), predict(unet, {**given, "x": x}, t))


def test_one_timestep_for_all_frames_is_the_same_as_one_for_each() -> None:
    unet, given = network(WHOLE), inputs()
    shared = predict(unet, given, torch.tensor([500, 21]))
    each = predict(unet, given, torch.tensor([[500] * 3, [21] * 3]))
    assert torch.allclose(shared, each, rtol=0, atol=1e-12)


def test_gradients_reach_every_parameter_that_has_a_say() -> None:
    unet, given = network(WHOLE), inputs()
    x = given.pop("x")
    unet(x, torch.tensor([500, 21]), unet.prepare(**given)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs concat"),
        ({"concat": torch.zeros(1, 7, 16, 16, 16)}, "needs reference"),
        ({"text": torch.zeros(1, 77, 1024)}, "takes no text"),
        (
            {"concat": torch.zeros(1, 6, 16, 16, 16), "reference": torch.zeros(1, 16, 16, 16)},
            r"concat: got \[1, 6, 16",
        ),
    ],
)
def test_wrong_conditions_are_refused_by_name(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiViewUNet(TINY_RGB).prepare(**given)


def test_cameras_are_orthonormal_and_stand_where_their_names_say() -> None:
    cameras = denoiser.camera_vectors(7)
    matrices = cameras[:6].reshape(6, 4, 4)
    rotation, position = matrices[:, :3, :3], matrices[:, :3, 3]
    assert torch.equal(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(6, 3, 3))
    assert torch.equal(torch.linalg.det(rotation), torch.ones(6))
    names = [frame.VIEWS[view].name for view in frame.DENOISER_ORDER]
    places = dict(zip(names, position.tolist(), strict=True))
    assert places == {
        "front": [0, -1, 0],
        "left": [-1, 0, 0],
        "bottom": [0, 0, -1],
        "back": [0, 1, 0],
        "right": [1, 0, 0],
        "top": [0, 0, 1],
    }
    assert not cameras[6].any()


def test_the_cameras_are_the_published_numbers_in_the_published_order() -> None:
    # Elevation and azimuth in degrees: left, bottom, back, right, top, front; rows of the matrices below.
    angles = [(0, -90), (-90, 0), (0, 180), (0, 90), (90, 0), (0, 0)]
    expected = []
    for elevation, azimuth in angles:
        e, a = math.radians(elevation), math.radians(azimuth)
        back = (math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e))
        right = (math.cos(a), math.sin(a), 0.0)
        up = (
            back[1] * right[2] - back[2] * right[1],
            back[2] * right[0] - back[0] * right[2],
            back[0] * right[1] - back[1] * right[0],
        )
        rows = [value for row in zip(right, up, back, back, strict=True) for value in row]
        expected.append([*rows, 0, 0, 0, 1])
    cameras = denoiser.camera_vectors(7)
    torch.testing.assert_close(cameras[:6], torch.tensor(expected), atol=2e-16, rtol=0)
    assert cameras[5].tolist() == [1, 0, 0, 0, 0, 0, -1, -1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert cameras[4].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert cameras[1].tolist() == [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, -1, 0, 0, 0, 1]
    assert cameras[6].tolist() == [0] * 16
    assert torch.equal(denoiser.camera_vectors(6), cameras[:6])


def test_frames_and_views_are_the_same_pictures_in_two_orders() -> None:
    views = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(2, 6, 3, 4, 4)
    frames = denoiser.to_frames(views)
    assert frames[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 0]
    assert torch.equal(denoiser.to_views(frames), views)
    with_reference = torch.cat([frames, frames[:, :1] + 100], dim=1)
    assert torch.equal(denoiser.to_views(with_reference), views)
