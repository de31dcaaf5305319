"""Sample pictures: a perfect network's rows are equal, and every tile is where it belongs."""

from __future__ import annotations

import torch
from test_tasks import SIZE, batch_of, lopsided

from crm_cli.frame import FRONT
from crm_cli.learn import tasks
from crm_cli.learn.samples import GAP_PX, TILE_PX, compared, on_white, rendered, shaded, sheet
from crm_cli.models.agree import maps_of, on_grey
from crm_cli.models.denoiser import TINY_CCM, TINY_RGB
from crm_cli.models.reconstruction import TINY

SIDE = TILE_PX + GAP_PX


def tile(picture: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """One tile at its own size."""
    factor = TILE_PX // SIZE
    inner = picture[:, row * SIDE : row * SIDE + TILE_PX, column * SIDE : column * SIDE + TILE_PX]
    assert torch.equal(inner[:, ::factor, ::factor], inner[:, factor - 1 :: factor, factor - 1 :: factor])
    return inner[:, ::factor, ::factor]


def test_tiles_stand_in_rows_with_the_shorter_ones_at_the_right() -> None:
    one, two, three = (torch.full((3, SIZE, SIZE), value) for value in (0.2, 0.4, 0.6))
    picture = sheet([[one, two], [three]])
    assert picture.shape == (3, 2 * SIDE, 2 * SIDE)
    for (row, column), value in {(0, 0): 0.2, (0, 1): 0.4, (1, 0): 1.0, (1, 1): 0.6}.items():
        assert torch.equal(tile(picture, row, column), torch.full((3, SIZE, SIZE), value))
    assert (picture[:, :, TILE_PX:SIDE] == 1).all() and (picture[:, SIDE + TILE_PX :] == 1).all()


def test_photo_and_views_stand_above_the_true_views() -> None:
    photos, drawn, true = (
        torch.rand(2, 3, SIZE, SIZE),
        torch.rand(2, 6, 3, SIZE, SIZE),
        torch.rand(2, 6, 3, SIZE, SIZE),
    )
    picture = compared(photos, drawn, true)
    assert torch.equal(tile(picture, 2, 0), photos[1])
    assert torch.equal(tile(picture, 2, 3), drawn[1, 2])
    assert torch.equal(tile(picture, 3, 3), true[1, 2])


def test_colours_on_grey_are_shown_on_white() -> None:
    rgba = torch.tensor([0.2, 0.4, 0.6, 0.5])[:, None, None].expand(4, 2, 2)
    wanted = torch.tensor([0.2, 0.4, 0.6]) * 0.5 + 0.5
    torch.testing.assert_close(on_white(on_grey(rgba))[:, 0, 0], wanted)


def test_what_is_nearer_is_brighter_and_nothing_is_white() -> None:
    depth, alpha = torch.tensor([[-0.5, 0.5, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    grey = shaded(depth, alpha)
    assert grey.shape == (3, 1, 3)
    assert grey[0, 0, 0] < grey[0, 0, 1] < grey[0, 0, 2] == 1


def test_the_rgb_sample_shows_the_photo_and_the_true_views() -> None:
    batch, task = batch_of(lopsided()), tasks.RgbTask(TINY_RGB)
    with torch.no_grad():
        picture = task.show(batch, torch.Generator().manual_seed(0))
        again = task.show(batch, torch.Generator().manual_seed(0))
        other = task.show(batch, torch.Generator().manual_seed(1))
    assert picture.shape == (3, 2 * SIDE, 7 * SIDE)
    assert torch.equal(picture, again)
    truth = on_white(on_grey(batch["views"][0].float() / 255))
    assert torch.equal(tile(picture, 0, 0), truth[FRONT])  # this photo is the front view
    for view in range(6):
        assert torch.equal(tile(picture, 1, 1 + view), truth[view])
        assert not torch.equal(tile(picture, 0, 1 + view), truth[view])
    assert other.shape == picture.shape


def test_a_network_that_finds_nothing_behind_the_hull_shows_the_hull() -> None:
    """A fresh second stage answers nought, and a box is its own hull."""
    box = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    box[3:12, 4:13, 2:9] = True
    batch = batch_of(box)
    with torch.no_grad():
        picture = tasks.CcmTask(TINY_CCM).show(batch, torch.Generator().manual_seed(0))
    assert picture.shape == (3, 2 * SIDE, 7 * SIDE)
    for view in range(6):
        torch.testing.assert_close(tile(picture, 0, 1 + view), tile(picture, 1, 1 + view), atol=0.03, rtol=0)
    assert tile(picture, 1, 1).min() < 0.9


def test_a_fresh_reconstruction_shows_the_hull_in_its_colours() -> None:
    box = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    box[3:12, 4:13, 2:9] = True
    batch = batch_of(box)
    # Everything has the colour of its place, so that a colour from another place is seen.
    alpha = batch["views"][0, :, 3:] / 255
    batch["views"][0, :, :3] = (maps_of(batch["depth"][0], alpha) * alpha * 255).byte()
    with torch.no_grad():
        picture = tasks.ReconstructionTask(TINY).show(batch, torch.Generator().manual_seed(0))
    for view in range(6):
        drawn, true = tile(picture, 0, 1 + view), tile(picture, 1, 1 + view)
        solid, shown = (one.amin(0) < 0.9 for one in (true, drawn))
        assert (solid & shown).sum() / (solid | shown).sum() > 0.7, view
        both = solid & shown
        assert (drawn - true).abs()[:, both].mean() < 0.1, view


def test_a_field_without_a_surface_is_shown_as_nothing() -> None:
    class Nowhere:
        triplane = type("T", (), {"planes": torch.zeros(1)})

        def geometry(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(points)), torch.zeros(len(points), 3)

    assert (rendered(Nowhere(), 8) == 1).all()  # type: ignore[arg-type]
