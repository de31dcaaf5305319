"""A field becomes a mesh record in the world frame, or one clear error."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.models.field import surface
from crm_cli.models.flexicubes import CubeWeights


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
