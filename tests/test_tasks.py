"""What training does to its examples before a network sees them."""

import pytest
import torch

from crm_cli.frame import FRONT, VIEWS
from crm_cli.learn import tasks
from crm_cli.models import agree
from crm_cli.models.denoiser import TINY_CCM, TINY_RGB, MultiViewUNet
from crm_cli.models.reconstruction import TINY
from crm_cli.models.steps import FIRST_TIMESTEP

SIZE = 16


def seen_by_all(voxels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outline and nearest depth, both [6 S S], of solid voxels [x y z]."""
    axis = agree.centres(SIZE)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    alpha, depth = torch.zeros(6, SIZE, SIZE), torch.full((6, SIZE, SIZE), -1.0)
    for index, view in enumerate(VIEWS):
        u, v, near = (
            (a[0] * x + a[1] * y + a[2] * z)[voxels] for a in (view.right, [-c for c in view.up], view.toward)
        )
        column, row = (((t + 1) / 2 * SIZE - 0.5).round().long() for t in (u, v))
        flat = row * SIZE + column
        depth[index] = depth[index].flatten().scatter_reduce(0, flat, near, "amax").view(SIZE, SIZE)
        alpha[index] = depth[index] > -1
    return alpha, depth * alpha


def lopsided() -> torch.Tensor:
    voxels = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    voxels[2:9, 3:12, 4:13] = True
    voxels[9:14, 5:7, 10:15] = True
    return voxels


def batch_of(voxels: torch.Tensor, colour: tuple[int, int, int] = (200, 100, 50)) -> dict[str, torch.Tensor]:
    alpha, depth = seen_by_all(voxels)
    views = torch.zeros(1, 6, 4, SIZE, SIZE, dtype=torch.uint8)
    for channel, value in enumerate(colour):
        views[0, :, channel] = (alpha * value).byte()
    views[0, :, 3] = (alpha * 255).byte()
    return {"photo": views[:, FRONT], "views": views, "depth": depth[None]}


def augmented(batch: dict[str, torch.Tensor], *, mirrored: bool) -> tuple[torch.Tensor, ...]:
    for seed in range(100):
        answer = tasks.augment(batch, torch.Generator().manual_seed(seed))
        if torch.equal(answer[0][:, 3], batch["photo"][:, 3] / 255) is not mirrored:
            return answer
    raise AssertionError("no seed mirrors")


def test_a_mirrored_example_is_the_example_of_the_mirrored_object() -> None:
    _, views, depth = augmented(batch_of(lopsided()), mirrored=True)
    alpha, wanted = seen_by_all(lopsided().flip(0))
    assert torch.equal(views[0, :, 3], alpha)
    assert torch.allclose(depth[0], wanted, atol=1e-6)


def test_an_example_that_is_not_mirrored_keeps_its_shape() -> None:
    _, views, depth = augmented(batch_of(lopsided()), mirrored=False)
    alpha, wanted = seen_by_all(lopsided())
    assert torch.equal(views[0, :, 3], alpha)
    assert torch.allclose(depth[0], wanted, atol=1e-6)


def test_colours_change_alike_in_photo_and_views() -> None:
    photo, views, _ = augmented(batch_of(lopsided()), mirrored=False)
    assert torch.equal(photo, views[:, FRONT])
    inside = views[0, FRONT, 3] > 0
    channels = sorted((views[0, FRONT, :3][:, inside][:, 0] * 255).round().int().tolist())
    assert channels == [50, 100, 200]


def test_softened_views_keep_the_front_sharp() -> None:
    views = torch.rand(2, 6, 4, SIZE, SIZE)
    blurred = [tasks.soften(views, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(torch.equal(b[:, FRONT], views[:, FRONT]) for b in blurred)
    assert any(b[:, 1:].std() < 0.5 * views[:, 1:].std() for b in blurred)


def test_two_thirds_of_the_noise_levels_are_where_sampling_starts() -> None:
    steps = tasks.draw_steps(10_000, torch.Generator().manual_seed(0))
    at_start = (steps == FIRST_TIMESTEP).float().mean()
    assert 0.62 < at_start < 0.68
    assert steps.min() >= 0 and steps.max() <= FIRST_TIMESTEP


def test_degraded_records_are_exact_or_wavy_but_keep_their_outline() -> None:
    batch = batch_of(lopsided())
    views, depth = (
        batch["views"].float().expand(64, -1, -1, -1, -1) / 255,
        batch["depth"].expand(64, -1, -1, -1),
    )
    records = tasks.degraded(views, depth, torch.Generator().manual_seed(1))
    errors = [(agree.depth_of(r.ccm) - depth[0])[views[0, :, 3] > 0.5].abs().max().item() for r in records]
    exact = sum(error < 1e-5 for error in errors)
    assert 15 < exact < 38  # four in ten of 64
    assert max(errors) > 0.02
    assert all(torch.equal(r.alpha[:, 0], views[0, :, 3]) for r in records)


@pytest.mark.parametrize(("count", "expected"), [(1, {0, 1}), (2, {1}), (3, {1}), (4, {2})])
def test_the_second_stage_sees_half_of_its_objects_as_the_first_one_draws_them(
    count: int, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.CcmTask(TINY_CCM, first=MultiViewUNet(TINY_RGB))
    batch = {name: array.expand(count, *array.shape[1:]) for name, array in batch_of(lopsided()).items()}
    drawn: list[int] = []

    def imagined(
        network: torch.nn.Module, codec: object, photo: torch.Tensor, random: torch.Generator
    ) -> torch.Tensor:
        drawn[-1] += len(photo)
        return photo[:, None].expand(-1, 6, -1, -1, -1)

    monkeypatch.setattr(tasks, "imagined", imagined)
    for seed in range(8):
        drawn.append(0)
        loss, _ = task.loss(batch, torch.Generator().manual_seed(seed))
        assert loss.isfinite()
    assert set(drawn) == expected


def test_every_loss_falls_when_its_network_learns_one_example() -> None:
    batch = batch_of(lopsided())
    batch = {name: array.repeat_interleave(4, -1).repeat_interleave(4, -2) for name, array in batch.items()}
    points = torch.rand(1, 256, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch |= {"points": points, "sdf": points.norm(dim=-1) - 0.5}
    batch |= {"surface": points * 0.5, "surface_rgb": torch.full((1, 256, 3), 128)}
    for task in (tasks.RgbTask(TINY_RGB), tasks.CcmTask(TINY_CCM), tasks.ReconstructionTask(TINY)):
        optimiser = torch.optim.Adam(task.network.parameters(), lr=3e-3)
        losses = []
        for _ in range(8):
            loss, _ = task.loss(batch, torch.Generator().manual_seed(5))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], task.name
