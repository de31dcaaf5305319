"""The surface of a field, differentiable: known shapes, known pulls."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crm_cli.learn.shell import find_shell, sign_entropy
from crm_cli.models import flexicubes
from crm_cli.models.field import surface
from crm_cli.models.reconstruction import MINI, TINY, PlaneField, Reconstruction
from crm_cli.records import SixViews, Triplane

GRID = 16
MICRO = replace(MINI, plane_px=16)
"""The published structure on planes of 16 pixels."""


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def published(*, seed: int = 0) -> PlaneField:
    """A field of the published kind, its planes drawn at random and to be learned."""
    torch.manual_seed(seed)
    model = Reconstruction(MICRO)
    planes = torch.randn(3, MICRO.unet.out_channels, 16, 16).requires_grad_()
    return PlaneField(model, Triplane(planes=planes), None)


def embedded() -> PlaneField:
    """A field of the embedded kind: what six views of a ball say."""
    torch.manual_seed(0)
    axis = (torch.arange(32) + 0.5) / 16 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    square = u**2 + v**2
    alpha = (square < 0.36).float().expand(6, 1, 32, 32)
    depth = (0.36 - square).clamp(min=0).sqrt().expand(6, 32, 32)
    from crm_cli.models.agree import maps_of

    views = SixViews(rgb=alpha.expand(6, 3, 32, 32) * 0.5, alpha=alpha, ccm=maps_of(depth, alpha))
    return Reconstruction(TINY).field(views)


@pytest.mark.parametrize("make", [published, embedded])
def test_the_mesh_is_the_one_that_the_pipeline_extracts(make: object) -> None:
    field = make()  # type: ignore[operator]
    shell = find_shell(field, GRID, random())
    wanted = surface(field, GRID)
    vertices = torch.from_numpy(wanted.vertices)
    if field.hull is None:
        # Training puts a vertex into each quad, after the others.
        assert len(shell.vertices) > len(vertices)
        assert len(shell.faces) == 2 * len(wanted.faces)
    else:
        assert torch.equal(shell.faces, torch.from_numpy(wanted.faces))
    torch.testing.assert_close(shell.vertices[: len(vertices)].detach(), vertices, atol=1e-5, rtol=0)


def test_every_part_of_the_published_network_is_pulled() -> None:
    field = published()
    shell = find_shell(field, GRID, random())
    shell.vertices.square().sum().backward()
    for name, parameter in field.model.named_parameters():
        if name.startswith(("sdfMlp", "weightMlp")):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert field.triplane.planes.grad is not None
    # Both what the distance says and where the grid is moved to.
    bias = field.model.sdfMlp.fc3.bias.grad
    assert bias is not None and bias.abs().min() > 0


def test_a_surface_that_fills_the_world_is_closed_at_its_border() -> None:
    field = published()
    with torch.no_grad():
        field.model.sdfMlp.fc3.bias[0] += 3  # positive inside here: all is
    shell = find_shell(field, GRID, random())
    assert len(shell.faces)
    ahead = torch.cat([shell.faces[:, [0, 1]], shell.faces[:, [1, 2]], shell.faces[:, [2, 0]]])
    pairs = {tuple(edge) for edge in ahead.tolist()}
    assert all((b, a) in pairs for a, b in pairs)
    assert shell.vertices.abs().max() < 1


def test_the_embedded_network_is_pulled_through_its_searched_crossings() -> None:
    field = embedded()
    shell = find_shell(field, GRID, random())
    shell.vertices.square().sum().backward()
    bias = field.model.sdfMlp.fc3.bias
    # More distance everywhere is a smaller ball.
    assert bias.grad is not None and bias.grad[0] < 0


def test_a_field_without_a_surface_is_pulled_until_it_has_one() -> None:
    field = published()
    bias = field.model.sdfMlp.fc3.bias
    with torch.no_grad():
        bias[0] -= 1.5  # positive inside here: nothing is
    optimiser = torch.optim.SGD([bias], lr=0.5)
    shell = find_shell(field, GRID, random())
    assert not len(shell.faces)
    for _ in range(12):
        optimiser.zero_grad()
        shell.irregularity.backward()
        optimiser.step()
        shell = find_shell(field, GRID, random())
        if len(shell.faces):
            return
    raise AssertionError("nothing came back")


def test_the_weights_term_is_the_mean_square_of_the_raw_weights() -> None:
    field = published()
    shell = find_shell(field, GRID, random())
    corners = flexicubes.cube_corners(torch.arange(GRID**3), GRID)
    wanted = field.raw_weights(flexicubes.grid(GRID)[corners]).square().mean()
    torch.testing.assert_close(shell.weights, wanted, rtol=0.05, atol=0)
    torch.testing.assert_close(shell.irregularity, shell.deviation + shell.signs + shell.weights)


def plain_entropy(sdf: Tensor, resolution: int) -> float:
    """The same, edge by edge."""
    values = sdf.view(resolution + 1, resolution + 1, resolution + 1)
    total, count = 0.0, 0
    for place in torch.cartesian_prod(*[torch.arange(resolution + 1)] * 3).tolist():
        for axis in range(3):
            other = list(place)
            other[axis] += 1
            if other[axis] > resolution:
                continue
            a, b = values[tuple(place)], values[tuple(other)]
            if (a > 0) != (b > 0):
                for one, side in ((a, b), (b, a)):
                    share = one.sigmoid()
                    total -= float((share if side > 0 else 1 - share).log())
                    count += 1
    return total / max(count, 1)


def test_the_sign_term_is_the_cross_entropy_of_cut_edges() -> None:
    sdf = torch.randn(5**3, generator=random(), dtype=torch.float64)
    assert float(sign_entropy(sdf, 4)) == pytest.approx(plain_entropy(sdf, 4), rel=1e-9)
    turned = sdf.view(5, 5, 5).permute(2, 0, 1).flip(1).reshape(-1)
    torch.testing.assert_close(sign_entropy(turned, 4), sign_entropy(sdf, 4))
    torch.testing.assert_close(sign_entropy(-sdf, 4), sign_entropy(sdf, 4))
    assert torch.autograd.gradcheck(lambda values: sign_entropy(values, 4), sdf.requires_grad_())


def test_the_sign_term_takes_a_speck_away() -> None:
    sdf = torch.full((5**3,), 0.5, dtype=torch.float64)
    sdf[62] = -0.1
    sdf.requires_grad_()
    sign_entropy(sdf, 4).backward()
    assert sdf.grad is not None and sdf.grad[62] < 0, "it is pushed outside"
    assert not sign_entropy(torch.ones(125), 4).any()
