"""Portraits show the true object from where they say, whoever renders them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crm_cli.errors import UsageError
from crm_cli.frame import VIEWS
from crm_cli.learn.data import Shards, store, write_shard
from crm_cli.learn.examples import draw_posed
from crm_cli.learn.portraits import (
    ARRAYS,
    FOV_RAD,
    HIGHEST_DEG,
    LOWEST_DEG,
    VIEWS_EACH,
    Portrayed,
    draw_eyes,
    paint_of,
    portray,
    portray_product,
    write_portraits,
)
from crm_cli.learn.render import Eyes, OwnRenderer
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import flexicubes

SIZE = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    for name, write in (("examples", write_shard), ("portraits", write_portraits)):
        (folder / name).mkdir()
        write(folder / name / "0000000.npz", range(3), WarpRaster(), 16)
    return folder / "examples", folder / "portraits"


def test_viewers_stand_all_around_and_see_the_whole_object() -> None:
    eyes = draw_eyes(np.random.default_rng(0), 1.2)
    assert len(eyes.distance) == VIEWS_EACH
    identity = torch.eye(3).expand(VIEWS_EACH, 3, 3)
    torch.testing.assert_close(eyes.axes @ eyes.axes.mT, identity, atol=1e-6, rtol=0)
    right, up, toward = eyes.axes.unbind(1)
    torch.testing.assert_close(torch.linalg.cross(right, up), toward)  # as frame.View has it
    assert not right[:, 2].any() and (up[:, 2] > 0).all(), "no picture is tilted"
    height = torch.rad2deg(toward[:, 2].asin())
    assert LOWEST_DEG <= height.min() < 0 < 40 < height.max() <= HIGHEST_DEG
    turn = torch.rad2deg(torch.atan2(toward[:, 0], toward[:, 1])).sort().values
    torch.testing.assert_close(
        turn.diff(), torch.full((VIEWS_EACH - 1,), 360 / VIEWS_EACH), atol=1e-3, rtol=0
    )
    directions = torch.nn.functional.normalize(
        torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    placed = eyes.place(1.2 * directions, 100)[..., :2]
    assert placed.min() > -0.01 and placed.max() < 100.01
    assert placed.amin((0, 1)).max() < 2 and placed.amax((0, 1)).min() > 98, "and no more than that"


def test_a_portrait_shows_colour_coverage_and_depth_of_the_mesh() -> None:
    points = flexicubes.grid(24)
    vertices, faces, _ = flexicubes.extract(points, points.norm(dim=1) - 0.8, 24)
    eyes = draw_eyes(np.random.default_rng(1), 0.8)

    def paint(face: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        places = np.einsum("nk,nkd->nd", weights, vertices.numpy()[faces.numpy()[face]])
        return ((places + 1) / 2).astype(np.float32)

    found = portray(vertices.numpy(), faces.numpy(), paint, eyes, OwnRenderer(WarpRaster()), size_px=48)
    # The ball fills the picture from side to side: a disc whose diameter is its own.
    cover = found.rgba[:, 3].astype(np.float64).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(cover, np.pi / 4, rtol=0.03)
    # Its nearest point is in the middle, at its radius towards the viewer, and the colour there is its place.
    middle = found.toward[:, 23:25, 23:25].astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(middle, 0.8, atol=0.01)
    toward = eyes.axes[:, 2].numpy()
    colour = found.rgba[:, :3, 23:25, 23:25].mean(axis=(2, 3)) / 255
    np.testing.assert_allclose(colour, (0.8 * toward + 1) / 2, atol=0.02)
    assert np.tan(FOV_RAD / 2) == pytest.approx(0.36, abs=0.001)


def test_portraits_follow_from_the_seed_alone(folders: tuple[Path, Path]) -> None:
    stored = Shards(folders[1])
    for seed in (2, 0):
        again = portray_product(
            draw_posed(np.random.default_rng(seed)),
            np.random.default_rng((seed, 7)),
            OwnRenderer(WarpRaster()),
            size_px=16,
        )
        for field, name in ARRAYS.items():
            assert np.array_equal(stored[seed][name], getattr(again, field)), name


def test_a_portrait_from_far_away_is_the_orthographic_view(folders: tuple[Path, Path]) -> None:
    far = 1e4
    axes = torch.tensor([(view.right, view.up, view.toward) for view in VIEWS], dtype=torch.float32)
    eyes = Eyes(axes=axes, distance=torch.full((6,), far), zoom=torch.full((6,), far))
    for seed in range(3):
        posed = draw_posed(np.random.default_rng(seed))
        found = portray(
            posed.vertices, posed.faces, paint_of(posed), eyes, OwnRenderer(WarpRaster()), size_px=16
        )
        views = Shards(folders[0])[seed]["views"].astype(np.float64)
        alpha = views[:, 3:] / 255
        # The views are covered by quarters of a pixel, portraits by as much as they are.
        assert np.abs(found.rgba[:, 3:] / 255 - alpha).max() < 0.3
        assert np.abs(found.rgba[:, 3:] / 255 - alpha).mean() < 0.02
        assert np.abs(found.rgba[:, :3] - views[:, :3] * alpha).mean() < 4  # of 255
        both = (found.toward != 0) & (alpha[:, 0] > 0.9)
        off = np.abs(found.toward.astype(np.float64) - Shards(folders[0])[seed]["depth"].astype(np.float64))
        assert np.median(off[both]) < 0.02


def test_a_batch_holds_both(folders: tuple[Path, Path]) -> None:
    both = Portrayed(Shards(folders[0]), Shards(folders[1]))
    assert len(both) == both.at_step(5) == 3
    batch = both.batch(np.array([2, 0]))
    assert batch["portrait"].shape == (2, VIEWS_EACH, 4, 16, 16)
    assert batch["portrait"].dtype == torch.uint8
    assert batch["views"].shape == (2, 6, 4, 16, 16)
    assert batch["seed"].tolist() == [2, 0]


def test_portraits_of_other_examples_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_portraits(tmp_path / "0000001.npz", range(1, 4), WarpRaster(), 8)
    with pytest.raises(UsageError, match="not the portraits of the examples"):
        Portrayed(Shards(folders[0]), Shards(tmp_path))
    with pytest.raises(UsageError, match="not the portraits of the examples"):
        Portrayed(Shards(folders[0]), Shards(folders[1], 2))
    stored = {name: np.array(array) for name, array in np.load(folders[1] / "0000000.npz").items()}
    other = tmp_path / "other"
    other.mkdir()
    # Of the same seeds, but something else: as examples that come from files.
    store(other / "0000000.npz", range(3), stored | {"family": stored["family"] + 1})
    with pytest.raises(UsageError, match="not the portraits of the examples"):
        Portrayed(Shards(folders[0]), Shards(other))
