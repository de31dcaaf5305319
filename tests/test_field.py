"""A field becomes a mesh record in the world frame, or one clear error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.models import flexicubes
from crm_cli.models.field import first_stride, in_chunks, sample_near_surface, surface
from crm_cli.models.flexicubes import CubeWeights, OwnSurface


@dataclass
class Box:
    """A box whose field is cut off by the world's border when it is large; deformed by a constant."""

    half: tuple[float, float, float]
    shift: float = 0.0
    is_weighted: bool = False

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return (points.abs() - points.new_tensor(self.half)).amax(1), torch.full_like(points, self.shift)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        return CubeWeights.from_raw(corners.new_zeros(len(corners), 21)) if self.is_weighted else None

    def colour(self, points: Tensor) -> Tensor:
        return (points + 1) / 2


def test_a_surface_stands_where_the_field_says() -> None:
    mesh = surface(Box((0.7, 0.5, 0.3)), 20)
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(mesh.vertices.max(0), (0.7, 0.5, 0.3), atol=1e-3)
    np.testing.assert_allclose(mesh.vertices.min(0), (-0.7, -0.5, -0.3), atol=1e-3)


def test_a_deformed_grid_carries_the_surface_along() -> None:
    still = surface(Box((0.71, 0.52, 0.33), is_weighted=True), 20)
    moved = surface(Box((0.71, 0.52, 0.33), shift=0.02, is_weighted=True), 20)
    np.testing.assert_allclose(moved.vertices - still.vertices, 0.02, atol=1e-6)
    unweighted = surface(Box((0.71, 0.52, 0.33), shift=0.02), 20)
    np.testing.assert_allclose(unweighted.vertices, moved.vertices, atol=1e-6)


def test_a_plain_field_is_met_exactly_where_interpolation_would_miss() -> None:
    half = np.array((0.71, 0.52, 0.33))
    exact = surface(Box(tuple(half)), 20).vertices
    rims = (abs(exact) > half - 0.1).sum(1) > 1
    # Off the rims, every vertex lies on a face.
    assert abs(abs(abs(exact[~rims]) - half).min(1)).max() < 1e-3


def test_an_object_larger_than_the_world_is_closed_at_its_border() -> None:
    mesh = surface(Box((2, 2, 0.5)), 16)
    ahead = np.concatenate([mesh.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    assert sorted(map(tuple, ahead)) == sorted(map(tuple, ahead[:, ::-1]))
    assert 0.8 < abs(mesh.vertices[:, :2]).max() < 1


def test_an_empty_field_is_a_photo_error() -> None:
    with pytest.raises(PhotoError, match="empty") as caught:
        surface(Box((-1, -1, -1)), 8)
    assert (caught.value.code, caught.value.kind) == ("E_NO_SURFACE", "quality")


class Asked:
    """A field that counts the points it is asked for."""

    def __init__(self, sdf: Callable[[Tensor], Tensor], shift: float = 0.0) -> None:
        self._sdf, self._shift, self.points = sdf, shift, 0

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.points += len(points)
        return self._sdf(points), torch.full_like(points, self._shift)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        return None

    def colour(self, points: Tensor) -> Tensor:
        return (points + 1) / 2


def rods(points: Tensor) -> Tensor:
    """Two crossing rods, askew, as thin as two cells of a grid of 48, and a ball beside them."""
    ball = (points - points.new_tensor((0.3, 0.1, -0.2))).norm(dim=1) - 0.25
    axes = [points.new_tensor(axis) / 9 for axis in ((4, 7, 4), (-7, 4, 4))]
    rods = [(points - (points @ axis)[:, None] * axis).norm(dim=1) - 0.042 for axis in axes]
    return torch.stack((ball, *rods)).amin(0).maximum(points.norm(dim=1) - 0.9)


def jumping(points: Tensor) -> Tensor:
    """Walls of two cells of a grid of 48, in a field that says nothing of how near they are, as hulls do."""
    x, y, z = points.unbind(1)
    in_a_wall = ((x * 6 + 0.3 * y).frac().abs() * 4 < 1) | (z < -0.4)
    within = (points.abs() < 0.7).all(1)
    return torch.where(in_a_wall & within, -0.7, 1.3) + 0.01 * y


def larger_than_the_world(points: Tensor) -> Tensor:
    return points[:, 2].abs() - 0.3


@pytest.mark.parametrize("resolution", [48, 47, 33])
@pytest.mark.parametrize("sdf", [rods, jumping, larger_than_the_world])
def test_asking_near_the_surface_alone_changes_nothing(
    sdf: Callable[[Tensor], Tensor], resolution: int
) -> None:
    field = Asked(sdf, shift=0.01)
    points = flexicubes.grid(resolution)
    found, offset = sample_near_surface(field, points, resolution)
    dense = flexicubes.close_border(sdf(points), resolution)
    assert torch.equal(found > 0, dense > 0)
    cubes = flexicubes.surface_cubes(dense, resolution)
    corners = flexicubes.cube_corners(cubes, resolution).view(-1)
    torch.testing.assert_close(found[corners], dense[corners], atol=1e-6, rtol=0)
    assert bool((offset[corners] == 0.01).all())
    sparse, whole = (flexicubes.extract(points, values, resolution, refine=sdf) for values in (found, dense))
    assert torch.equal(sparse[1], whole[1])
    torch.testing.assert_close(sparse[0], whole[0], atol=1e-5, rtol=0)


def thin(points: Tensor) -> Tensor:
    """A true distance: two plates two cells of a grid of 160 thick, and a loose grain of three cells."""
    x, y, z = points.unbind(1)
    plates = [
        torch.stack((x.abs() - 0.6, (y - at - 0.1 * x).abs() / 1.01 - 0.0125, z.abs() - 0.5)).amax(0)
        for at in (-0.3, 0.23)
    ]
    grain = (points - points.new_tensor((0.03, 0.77, 0.31))).norm(dim=1) - 0.02
    return torch.stack((*plates, grain)).amin(0)


@pytest.mark.parametrize("sdf", [rods, thin])
def test_on_a_fine_grid_distances_lead_to_everything(sdf: Callable[[Tensor], Tensor]) -> None:
    field = Asked(sdf)
    points = flexicubes.grid(160)
    found, _ = sample_near_surface(field, points, 160)
    assert field.points < 161**3 / 8
    dense = flexicubes.close_border(sdf(points), 160)
    assert torch.equal(found > 0, dense > 0)
    corners = flexicubes.cube_corners(flexicubes.surface_cubes(dense, 160), 160).view(-1)
    torch.testing.assert_close(found[corners], dense[corners], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("resolution", "stride"), [(20, 2), (96, 2), (159, 2), (160, 4), (256, 4), (320, 8)])
def test_finer_grids_begin_with_vertices_as_near_as_coarse_ones(resolution: int, stride: int) -> None:
    assert first_stride(resolution) == stride


def test_a_finer_grid_asks_for_points_as_its_surface_grows() -> None:
    asked = []
    for resolution in (80, 160):
        field = Asked(lambda points: points.norm(dim=1) - 0.7)
        surface(field, resolution)
        asked.append(field.points)
    assert asked[1] < 4 * asked[0]


def test_a_surface_costs_a_fraction_of_its_grid() -> None:
    field = Asked(lambda points: points.norm(dim=1) - 0.7)
    sample_near_surface(field, flexicubes.grid(96), 96)
    assert field.points < 97**3 / 5


def test_chunks_come_back_in_order() -> None:
    points = torch.arange(3 * 20_000).view(-1, 3)
    assert torch.equal(in_chunks(lambda chunk: chunk + 1, points), points + 1)


def test_asking_everywhere_finds_what_slips_between_the_vertices_asked_first() -> None:
    def geometry(points: Tensor) -> tuple[Tensor, Tensor]:
        large = (points - points.new_tensor((-0.4, 0, 0))).norm(dim=1) - 0.3
        # Around one vertex, which is not asked first.
        grain = (points - points.new_tensor((0.5, 0.5, 0.5))).norm(dim=1) - 0.06
        return torch.minimum(large, grain), torch.zeros_like(points)

    grainy = Box((0, 0, 0))
    grainy.geometry = geometry  # type: ignore[method-assign]
    assert surface(grainy, 20).vertices[:, 0].max() < 0.1
    dense = surface(grainy, 20, dense=True)
    assert dense.vertices[:, 0].max() > 0.5


@pytest.mark.parametrize("resolution", [15, 20])
def test_asking_everywhere_and_following_the_surface_agree(resolution: int) -> None:
    box = Box((0.7, 0.5, 0.3), shift=0.01)
    near, dense = surface(box, resolution), surface(box, resolution, dense=True)
    assert len(dense.faces) > 100
    np.testing.assert_array_equal(near.faces, dense.faces)
    np.testing.assert_allclose(near.vertices, dense.vertices, atol=1e-6)


def test_another_tool_can_draw_the_surface() -> None:
    class Upside(OwnSurface):
        """Draws the same, mirrored at the ground."""

        def extract(self, *given: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
            vertices, faces, deviation = super().extract(*given, **more)
            return vertices * vertices.new_tensor((1, 1, -1)), faces.flip(1), deviation

    box = Box((0.7, 0.5, 0.3))
    mesh = surface(box, 20, surfacer=Upside())
    np.testing.assert_allclose(mesh.vertices * (1, 1, -1), surface(box, 20).vertices)
