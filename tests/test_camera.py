"""The photo's camera, found from outlines whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray

from crm_cli.mesh.camera import Aim, aim_at, describe
from crm_cli.mesh.raster import TorchRaster
from crm_cli.records import Crop, Mesh

RASTER = TorchRaster()


def bottle(size: float = 1.0) -> Mesh:
    """Wide below and narrow above, so that neither place nor size can be mistaken."""
    solid = trimesh.creation.revolve(
        [(0, -0.7), (0.45, -0.7), (0.45, 0.1), (0.15, 0.4), (0.15, 0.8), (0, 0.8)]
    )
    return Mesh(vertices=(solid.vertices * size).astype(np.float32), faces=solid.faces.astype(np.int64))


def seen_from(aim: Aim, mesh: Mesh, size_px: int = 512) -> NDArray[np.float32]:
    """The alpha of a cut-out that was photographed from there."""
    placed = aim.place(torch.from_numpy(mesh.vertices), size_px)
    seen = RASTER.rasterize(placed, torch.from_numpy(mesh.faces), height=size_px, width=size_px)
    return seen.covered.float().numpy()


def test_what_fits_where_the_networks_put_it_stays_there() -> None:
    aim = aim_at(bottle(), seen_from(Aim(), bottle()), RASTER)
    assert (aim.scale, aim.right, aim.down, aim.is_refined) == (1.0, 0.0, 0.0, False)
    assert aim.iou > 0.99


def test_a_gain_that_smoothing_may_explain_moves_nothing() -> None:
    aim = aim_at(bottle(0.993), seen_from(Aim(), bottle()), RASTER)
    assert not aim.is_refined
    assert 0.96 < aim.iou < 0.995


@pytest.mark.parametrize(
    "truth",
    [Aim(right=0.08, down=-0.05), Aim(scale=0.85), Aim(scale=1.12, right=-0.06, down=0.04)],
    ids=["moved", "smaller", "both"],
)
def test_another_framing_is_found(truth: Aim) -> None:
    alpha = seen_from(truth, bottle())
    aim = aim_at(bottle(), alpha, RASTER)
    assert aim.is_refined
    assert aim.iou > 0.97
    assert aim.scale == pytest.approx(truth.scale, abs=0.01)
    assert (aim.right, aim.down) == pytest.approx((truth.right, truth.down), abs=0.008)


def test_an_outline_that_fits_nowhere_says_so() -> None:
    ring = np.zeros((256, 256), np.float32)
    ring[20:24, 20:236] = ring[232:236, 20:236] = 1
    assert aim_at(bottle(), ring, RASTER).iou < 0.4


def test_an_empty_matte_matches_nothing() -> None:
    assert aim_at(bottle(), np.zeros((64, 64), np.float32), RASTER).iou == 0


def test_points_are_placed_where_they_are_looked_up() -> None:
    aim = Aim(scale=1.1, right=0.05, down=-0.03)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    placed = aim.place(points, 200)[:, :2]
    torch.testing.assert_close(placed, (aim.canvas(points) + 1) * 100)


def test_the_record_speaks_of_the_photos_pixels() -> None:
    mesh = Mesh(
        vertices=np.array([(-0.5, 0, -0.25), (0.5, 0, -0.25), (0, 0, 0.75)], np.float32),
        faces=np.array([[0, 1, 2]]),
    )
    crop = Crop(centre_x=300.0, centre_y=200.0, side_px=160.0)
    camera = describe(
        Aim(scale=0.5, right=0.25, iou=0.9, is_refined=True), mesh, crop, width_px=640, height_px=480
    )
    # Half a canvas is 80 px, and a world unit half of that.
    assert (camera.px_per_unit, camera.centre_x, camera.centre_y) == (40.0, 320.0, 200.0)
    assert (camera.left, camera.right, camera.top, camera.bottom) == (300.0, 340.0, 170.0, 210.0)
    assert (camera.photo_width_px, camera.photo_height_px) == (640, 480)
    assert (camera.silhouette_iou, camera.is_refined) == (0.9, True)
