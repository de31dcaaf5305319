"""From six views to a field: the roll-out, the published network's shape, the embedded one's start."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from traced import ball, block, coordinates, trace

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, PLANES, RIGHT, ROLL_OUT, TOP, VIEWS
from crm_cli.models.field import surface
from crm_cli.models.hull import Hull
from crm_cli.models.reconstruction import (
    NOISE_ADD,
    NOISE_KEEP,
    RELEASE,
    SMALL,
    TINY,
    PlaneField,
    Reconstruction,
    add_input_noise,
    network_input,
    roll_out,
    sample,
)
from crm_cli.models.unet import UNetConfig
from crm_cli.records import SixViews, Triplane

TINY_PUBLISHED = dataclasses.replace(
    RELEASE,
    unet=UNetConfig(in_channels=16, out_channels=8, widths=(8, 16), layers=2, attention=(1,), groups=4),
    plane_px=16,
    learned_channels=4,
    head_width=16,
)


def coordinate_views(size: int, *, depth: float = 0.25) -> Tensor:
    """Maps [6 3 S S] of a flat card before each camera."""
    u = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack(
        [
            sum(
                torch.tensor(axis).view(3, 1, 1) * amount
                for axis, amount in ((view.right, u), (view.up, -u[:, None]), (view.toward, depth))
            ).expand(3, size, size)
            for view in VIEWS
        ]
    )


def plane_errors(ccm: Tensor, seen: Tensor) -> dict[tuple[str, int], float]:
    """Mean disagreement between each block's columns and rows and its maps' own in-plane coordinates."""
    size = ccm.shape[-1]
    u = (2 * torch.arange(size) + 1) / size - 1
    rolled, mask = roll_out(ccm), roll_out(seen)
    errors = {}
    for side in range(2):
        for place, plane in enumerate(PLANES):
            part = (..., slice(place * size, (place + 1) * size))
            block, inside = rolled[3 * side : 3 * side + 3][part], mask[side][part]
            off = torch.stack((block[plane.column] - u, block[plane.row] - u[:, None]))
            errors[plane.name, side] = float(off[:, inside].abs().mean(1).max())
    return errors


def test_a_rolled_out_coordinate_image_reads_back_its_own_coordinates() -> None:
    errors = plane_errors(coordinate_views(32), torch.ones(6, 1, 32, 32, dtype=torch.bool))
    assert len(errors) == 6
    assert max(errors.values()) < 1e-6


def published_block(views: Tensor, plane: int, side: int) -> Tensor:
    """One block [C S S] of the published input, pixel by pixel. (thu-ml/CRM, inference.py)"""
    last = views.shape[-1] - 1
    view, source = {
        (0, 0): (BOTTOM, lambda i, j: (last - i, last - j)),
        (0, 1): (TOP, lambda i, j: (i, last - j)),
        (1, 0): (RIGHT, lambda i, j: (last - i, last - j)),
        (1, 1): (LEFT, lambda i, j: (last - i, j)),
        (2, 0): (FRONT, lambda i, j: (last - j, last - i)),
        (2, 1): (BACK, lambda i, j: (last - j, i)),
    }[plane, side]
    block = torch.full_like(views[0], math.nan)
    for i in range(last + 1):
        for j in range(last + 1):
            row, column = source(i, j)
            block[:, i, j] = views[view, :, row, column]
    return block


def test_the_roll_out_is_the_published_arrangement() -> None:
    size = 8
    views = torch.rand(6, 2, size, size)
    rolled = roll_out(views)
    assert rolled.shape == (4, size, 3 * size)
    for side in range(2):
        blocks = [published_block(views, plane, side) for plane in range(3)]
        assert torch.equal(rolled[2 * side : 2 * side + 2], torch.cat(blocks, dim=2))
    assert torch.equal(roll_out(views[None])[0], rolled)


def test_the_published_training_example_lies_on_the_planes() -> None:
    folder = os.environ.get("CRM_TRAIN_EXAMPLE")
    if not folder:
        pytest.skip("CRM_TRAIN_EXAMPLE does not name a folder with thu-ml/CRM's training example")
    maps = [np.asarray(Image.open(Path(folder) / f"xyz_new_{index:03d}.png")) for index in range(6)]
    alpha = [np.asarray(Image.open(Path(folder) / f"{index:03d}.png"))[:, :, 3:] for index in range(6)]
    ccm = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2) / 127.5 - 1
    errors = plane_errors(ccm, torch.from_numpy(np.stack(alpha)).permute(0, 3, 1, 2) == 255)
    # Maps of 8 bits, rounded down and named after pixel corners: at most one grey level of 0.0078.
    assert max(errors.values()) < 0.0078


def test_the_network_input_is_the_published_one() -> None:
    size = 8
    rgb, ccm = torch.rand(2, 6, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = network_input(SixViews(rgb=rgb, ccm=ccm, alpha=torch.ones(6, 1, size, size)), size)
    assert x.shape == (12, size, 3 * size)
    for side in range(2):
        for plane, kept in enumerate((0, 2, 1)):  # Z across xy, X across yz, Y across zx, as channels Z, Y, X
            part = (slice(None), slice(plane * size, (plane + 1) * size))
            assert torch.equal(x[3 * side : 3 * side + 3][:, *part], published_block(rgb, plane, side))
            maps = published_block(ccm, plane, side)[[2, 1, 0]]
            maps[[channel for channel in range(3) if channel != kept]] = 0
            assert torch.equal(x[6 + 3 * side : 9 + 3 * side][:, *part], maps)
    assert len(ROLL_OUT) == 2


def test_input_noise_is_that_of_step_twenty_of_the_plain_schedule() -> None:
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    kept = float((1 - betas).cumprod(0)[20])
    # The published numbers come out of single precision.
    assert pytest.approx((math.sqrt(kept), math.sqrt(1 - kept)), abs=3e-7) == (NOISE_KEEP, NOISE_ADD)
    x = torch.rand(1, 12, 4, 12)
    noise = torch.randn(12, 4, 12, generator=torch.Generator().manual_seed(1))
    expected = math.sqrt(kept) * x[0] + math.sqrt(1 - kept) * (0.5 * noise + 0.5)
    noised = add_input_noise(x, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(noised[0], expected, atol=1e-6, rtol=0)


def test_each_object_draws_its_own_noise() -> None:
    x = torch.zeros(2, 12, 64, 64)
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    both = add_input_noise(x, [first, second])
    alone = add_input_noise(x[:1], [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(both[1:], alone)
    assert float(both.mean()) == pytest.approx(NOISE_ADD * 0.5, abs=2e-3)
    assert float(both.std()) == pytest.approx(NOISE_ADD * 0.5, rel=0.02)
    assert bool((add_input_noise(x[:1], [None]) == NOISE_ADD * 0.5).all())


def test_plane_features_are_read_where_the_point_lies() -> None:
    size = 9
    u = torch.linspace(-1, 1, size)
    ramp = torch.stack((u.expand(size, size), u[:, None].expand(size, size)))  # column, row
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = sample(Triplane(planes=ramp.expand(3, 2, size, size)), points)
    expected = torch.stack([points[:, [0, 1]].T, points[:, [1, 2]].T, points[:, [2, 0]].T])
    torch.testing.assert_close(features, expected)
    beyond = sample(Triplane(planes=ramp.expand(3, 2, size, size)), torch.full((1, 3), 3.0))
    torch.testing.assert_close(beyond, torch.ones(3, 2, 1))


def test_the_release_has_the_published_parameters() -> None:
    with torch.device("meta"):
        model = Reconstruction(RELEASE)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # Counts and names of the public CRM.pth.
    assert len(shapes) == 629
    assert sum(math.prod(shape) for shape in shapes.values()) == 118_841_404
    parts = {
        "unet2.unet.down_blocks.": 31_550_144,
        "unet2.unet.mid_block.": 10_758_144,
        "unet2.unet.up_blocks.": 71_776_384,
        "unet2.unet.time_embedding.": 82_432,
        "weightMlp.": 142_357,
        "sdfMlp.": 281_604,
        "rgbMlp.": 281_091,
    }
    for prefix, count in parts.items():
        assert sum(math.prod(s) for name, s in shapes.items() if name.startswith(prefix)) == count
    for name, shape in {
        "unet2.learned_plane": (1, 20, 256, 768),
        "unet2.unet.down_blocks.3.attentions.1.to_out.0.weight": (256, 256),
        "unet2.unet.down_blocks.3.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "unet2.unet.up_blocks.1.resnets.2.conv1.weight": (512, 768, 3, 3),
        "unet2.unet.up_blocks.5.upsamplers.0.conv.weight": (128, 128, 3, 3),
        "weightMlp.2.weight": (21, 512),
        "sdfMlp.fc3.weight": (4, 512),
    }.items():
        assert shapes[name] == shape


def silent(model: Reconstruction) -> Reconstruction:
    """The published structure with heads that answer zero."""
    for head in (model.sdfMlp.fc3, model.rgbMlp.fc3):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return model


def test_a_silent_published_network_is_its_starting_sphere() -> None:
    field = silent(Reconstruction(TINY_PUBLISHED)).requires_grad_(False).field(trace(ball(), 16))
    sdf, offset = field.geometry(torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]]))
    torch.testing.assert_close(sdf, torch.tensor([-0.5, 0, 0.5]))
    assert float(offset.abs().max()) == 0
    assert bool((field.colour(torch.zeros(1, 3)) == 0.5).all())


def test_a_positive_published_answer_makes_the_object_larger() -> None:
    model = silent(Reconstruction(TINY_PUBLISHED))
    torch.nn.init.constant_(model.sdfMlp.fc3.bias, 0.2)
    mesh = surface(model.field(trace(ball(), 16)), 24)
    # Offsets move the whole grid by the same little, up to a quarter of a cell of the grid of 80.
    shift = 0.5 / 80 * math.tanh(0.2)
    radii = np.linalg.norm(mesh.vertices - shift, axis=1)
    assert abs(radii - 0.7).max() < 0.01


# The published decoding written down once more, point by point.


def plain_feature(planes: Tensor, point: Tensor) -> Tensor:
    """Sum of three bilinear samples [C]; planes [3 C R R] with their outermost pixels at ±1."""
    x, y, z = point.tolist()
    size = planes.shape[-1]
    total = torch.zeros(planes.shape[1], dtype=planes.dtype)
    for plane, (across, down) in zip(planes, ((x, y), (y, z), (z, x)), strict=True):
        column, row = (min(max((at + 1) / 2 * (size - 1), 0), size - 1) for at in (across, down))
        left, top = min(int(column), size - 2), min(int(row), size - 2)
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (1 - abs(column - left - dx)) * (1 - abs(row - top - dy))
            total = total + weight * plane[:, top + dy, left + dx]
    return total


def plain_head(p: dict[str, Tensor], name: str, feature: Tensor) -> Tensor:
    for layer in (1, 2):
        feature = (p[f"{name}.fc{layer}.weight"] @ feature + p[f"{name}.fc{layer}.bias"]).clamp(min=0)
    return p[f"{name}.fc3.weight"] @ feature + p[f"{name}.fc3.bias"]


def test_published_answers_are_the_described_ones() -> None:
    torch.manual_seed(0)
    model = Reconstruction(TINY_PUBLISHED).double().requires_grad_(False)
    p = dict(model.named_parameters())
    planes = 3 * torch.randn(3, 8, 16, 16, dtype=torch.float64)
    field = PlaneField(model, Triplane(planes=planes), None)
    points = 2.6 * torch.rand(40, 3, dtype=torch.float64) - 1.3  # some beyond the planes
    corners = 2 * torch.rand(5, 8, 3, dtype=torch.float64) - 1

    sdf, offset = field.geometry(points)
    colours = field.colour(points)
    for i, point in enumerate(points):
        feature = plain_feature(planes, point)
        answer = plain_head(p, "sdfMlp", feature)
        positive_inside = answer[0] + 0.5 - point.square().sum().sqrt()
        assert float(sdf[i]) == pytest.approx(-float(positive_inside), abs=1e-12)
        torch.testing.assert_close(offset[i], answer[1:].tanh() / 2 / 80, atol=1e-14, rtol=0)
        colour = ((plain_head(p, "rgbMlp", feature) + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(colours[i], colour, atol=1e-12, rtol=0)
    assert float(offset.abs().max()) > 1e-4 and bool((sdf > 0).any())

    weights = field.cube_weights(corners)
    assert weights is not None
    for i, cube in enumerate(corners):
        hidden = torch.cat([plain_feature(planes, corner) for corner in cube])
        hidden = p["weightMlp.0.weight"] @ hidden + p["weightMlp.0.bias"]
        raw = 0.1 * (p["weightMlp.2.weight"] @ (hidden * hidden.sigmoid()) + p["weightMlp.2.bias"])
        torch.testing.assert_close(weights.beta[i], 1 + raw[:12].tanh() / 2, atol=1e-12, rtol=0)
        torch.testing.assert_close(weights.alpha[i], 1 + raw[12:20].tanh() / 2, atol=1e-12, rtol=0)
        assert float(weights.gamma[i]) == pytest.approx(0.25 + 0.5 * float(raw[20].sigmoid()), abs=1e-12)


def test_the_published_planes_are_the_u_nets_answer_at_step_twenty_cut_in_three() -> None:
    torch.manual_seed(0)
    model = Reconstruction(TINY_PUBLISHED).requires_grad_(False)
    model.unet2.learned_plane.normal_()
    views = trace(ball(), 16)
    x = add_input_noise(network_input(views, 16)[None], [torch.Generator().manual_seed(1)])
    answer = model.unet2.unet(torch.cat([x, model.unet2.learned_plane], dim=1), 20)[0]
    planes = model.field(views, generator=torch.Generator().manual_seed(1)).triplane.planes
    torch.testing.assert_close(planes, torch.stack([answer[..., k * 16 : k * 16 + 16] for k in range(3)]))
    assert float(model.unet2.learned_plane.std()) > 0.5


def test_published_weights_are_squashed_into_the_papers_ranges() -> None:
    field = Reconstruction(TINY_PUBLISHED).requires_grad_(False).field(trace(ball(), 16))
    weights = field.cube_weights(torch.rand(7, 8, 3))
    assert weights is not None
    assert (weights.beta.shape, weights.alpha.shape, weights.gamma.shape) == ((7, 12), (7, 8), (7,))
    assert 0.5 < float(weights.beta.min()) < float(weights.beta.max()) < 1.5
    assert 0.25 < float(weights.gamma.min()) < float(weights.gamma.max()) < 0.75


def test_a_published_field_is_asked_in_pieces_of_the_wanted_size() -> None:
    model = Reconstruction(TINY_PUBLISHED).requires_grad_(False)
    whole = model.field(trace(ball(), 16))
    pieces = dataclasses.replace(whole, chunk=40)
    corners = torch.rand(23, 8, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows: list[int] = []
    hear = model.weightMlp.register_forward_hook(lambda layer, given, answer: rows.append(len(answer)))
    found = pieces.cube_weights(corners)
    assert rows == [5, 5, 5, 5, 3], "cubes of eight points each"
    hear.remove()
    expected = whole.cube_weights(corners)
    assert found is not None and expected is not None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    points = corners.flatten(0, 1)
    torch.testing.assert_close(pieces.geometry(points), whole.geometry(points))
    torch.testing.assert_close(pieces.colour(points), whole.colour(points))


@pytest.mark.parametrize("config", [SMALL, TINY], ids=["small", "tiny"])
def test_an_untrained_embedded_network_is_the_hull(config: object) -> None:
    views = trace(block(0.6, 0.4, 0.7), 64)
    field = Reconstruction(config).field(views)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hull = Hull(views)
    torch.testing.assert_close(field.geometry(points)[0], hull.sdf(points))
    torch.testing.assert_close(field.colour(points), hull.colour(points))


def test_the_embedded_network_corrects_the_hull_in_world_units() -> None:
    views = trace(block(0.6, 0.4, 0.7), 64)
    model = Reconstruction(TINY).requires_grad_(False)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.sdfMlp.fc3.bias[0] = 2.0
    torch.testing.assert_close(model.field(views).geometry(points)[0], Hull(views).sdf(points) + 0.2)
    model.sdfMlp.fc3.bias[1:] = 50.0  # every view in doubt as far as it can be
    torch.testing.assert_close(model.field(views).geometry(points)[0], Hull(views).sdf(points) + 0.2 - 0.5)


def test_the_embedded_network_is_small() -> None:
    assert sum(value.numel() for value in Reconstruction(SMALL).parameters()) < 600_000


def test_a_textured_box_comes_back_through_the_whole_reconstruction() -> None:
    half = (0.6, 0.4, 0.7)
    field = Reconstruction(SMALL).field(trace(block(*half), 128))
    mesh = surface(field, 40)
    vertices = torch.from_numpy(mesh.vertices)
    # Dual vertices at rims and corners average crossings of several sides, a part of a cell of 0.05.
    assert float(block(*half)(vertices).abs().mean()) < 0.005
    corners = mesh.vertices[mesh.faces]
    volume = np.einsum("fi,fi", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume == pytest.approx(8 * math.prod(half), rel=0.02)
    with torch.no_grad():
        error = (field.colour(vertices) - coordinates(vertices)).abs()
    assert float(error.mean()) < 0.01


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = Reconstruction(TINY)
    for head in (model.sdfMlp, model.rgbMlp):
        torch.nn.init.normal_(head.fc3.weight, std=0.1)
    torch.nn.init.normal_(model.unet2.learned_plane)
    views = [trace(ball(), 32), trace(block(0.5, 0.5, 0.5), 32)]
    points = torch.rand(256, 3) * 2 - 1
    fields = model.fields(views)
    sum(field.geometry(points)[0].square().sum() + field.colour(points).sum() for field in fields).backward()
    still = [
        name
        for name, value in model.named_parameters()
        if value.grad is None or float(value.grad.abs().max()) == 0
    ]
    assert still == []


def test_a_batch_does_not_change_an_answer() -> None:
    torch.manual_seed(0)
    model = Reconstruction(TINY_PUBLISHED).eval()
    views = [trace(ball(radius), 16) for radius in (0.4, 0.8)]
    points = torch.rand(64, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = model.fields(views, generators=generators)[1].geometry(points)[0]
    alone = model.field(views[1], generator=torch.Generator().manual_seed(4)).geometry(points)[0]
    torch.testing.assert_close(together, alone)
