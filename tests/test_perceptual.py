"""LPIPS with random weights, held against the same computation written down with numpy alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from crm_cli.errors import EnvironmentProblem
from crm_cli.learn.perceptual import Lpips
from crm_cli.models.archives import read_old_checkpoint

WIDTHS = (3, 4, 5, 6, 6)
"""Channels of the five stages; VGG16's are 64, 128, 256, 512, 512."""


def weights() -> dict[str, Tensor]:
    """What both public files hold, by their names, with fewer channels and a classifier to be passed over."""
    random = torch.Generator().manual_seed(0)
    held = {"classifier.0.weight": torch.zeros(2, 2)}
    before = 3
    convolutions = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    for stage, (numbers, width) in enumerate(zip(convolutions, WIDTHS, strict=True)):
        for number in numbers:
            held[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=random) / 3
            held[f"features.{number}.bias"] = torch.randn(width, generator=random) / 5
            before = width
        held[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=random)
    return held


def plain_lpips(held: dict[str, Tensor], one: Tensor, other: Tensor) -> float:
    """The distance of two pictures [3 H W], as the paper and its code describe it."""
    arrays = {name: tensor.double().numpy() for name, tensor in held.items()}

    def convolve(x: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        kernel, bias = arrays[f"features.{number}.weight"], arrays[f"features.{number}.bias"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        total = np.zeros((len(kernel), *x.shape[1:])) + bias[:, None, None]
        for row in range(3):
            for column in range(3):
                patch = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
                total += np.einsum("oi,ihw->ohw", kernel[:, :, row, column], patch)
        return np.maximum(total, 0)

    def see(picture: Tensor) -> list[NDArray[np.float64]]:
        x = picture.double().numpy()
        x = (x - np.reshape([-0.03, -0.088, -0.188], (3, 1, 1))) / np.reshape([0.458, 0.448, 0.45], (3, 1, 1))
        found = []
        for numbers in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            if numbers[0]:
                x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
            for number in numbers:
                x = convolve(x, number)
            found.append(x / (np.sqrt((x**2).sum(axis=0)) + 1e-10))
        return found

    total = 0.0
    for stage, (a, b) in enumerate(zip(see(one), see(other), strict=True)):
        head = arrays[f"lin{stage}.model.1.weight"].reshape(-1, 1, 1)
        total += float(((a - b) ** 2 * head).sum(axis=0).mean())
    return total


def pairs(count: int = 3, *, size_px: int = 32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    one, other = torch.rand(2, count, 3, size_px, size_px, generator=random) * 2 - 1
    return one, other


def test_it_is_what_the_paper_says() -> None:
    held = weights()
    one, other = pairs()
    found = Lpips.from_tensors(held).distance(one, other)
    wanted = [plain_lpips(held, a, b) for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-6)
    assert found.min() > 0.01


def test_equal_pictures_are_at_no_distance_and_like_ones_nearer() -> None:
    lpips = Lpips.from_tensors(weights())
    one, other = pairs()
    assert not lpips.distance(one, one).any()
    assert (lpips.distance(one, one + 0.1 * (other - one)) < lpips.distance(one, other)).all()


def test_it_pulls_a_picture_towards_the_other_even_where_nothing_is_seen() -> None:
    held = weights()
    # A stage that answers with nought everywhere has no direction.
    held["features.28.bias"] = torch.full((WIDTHS[-1],), -100.0)
    lpips = Lpips.from_tensors(held)
    one, other = pairs(1)
    one.requires_grad_()
    before = lpips.distance(one, other)
    (slope,) = torch.autograd.grad(before.sum(), one)
    assert slope.isfinite().all()
    assert lpips.distance(one - 0.02 * slope / slope.abs().max(), other) < before


@pytest.mark.parametrize("kind", ["old", "zip", "safetensors"])
def test_the_public_files_are_read_in_every_format(kind: str, tmp_path: Path) -> None:
    held = weights()
    features = {name: tensor for name, tensor in held.items() if not name.startswith("lin")}
    heads = {name: tensor for name, tensor in held.items() if name.startswith("lin")}
    files = [
        tmp_path / f"{name}.{'safetensors' if kind == 'safetensors' else 'pth'}" for name in ("vgg16", "vgg")
    ]
    for file, part in zip(files, (features, heads), strict=True):
        if kind == "safetensors":
            save_file(part, file)
        else:
            torch.save(part, file, _use_new_zipfile_serialization=kind == "zip")
    one, other = pairs()
    found = Lpips.read(files).distance(one, other)
    assert torch.equal(found, Lpips.from_tensors(held).distance(one, other))


def test_files_that_lack_something_are_refused_with_its_name(tmp_path: Path) -> None:
    held = weights()
    del held["lin3.model.1.weight"]
    torch.save(held, tmp_path / "vgg16.pth")
    with pytest.raises(EnvironmentProblem, match=r"no lin3\.model\.1\.weight in there.*--lpips FILE"):
        Lpips.read([tmp_path / "vgg16.pth"])
    with pytest.raises(EnvironmentProblem, match=r"no such file.*--lpips FILE"):
        Lpips.read([tmp_path / "nothing.pth"])


class Runs:
    """A pickle of this would run a function when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_an_old_file_that_would_run_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.pth"
    torch.save({"features.0.weight": Runs()}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        read_old_checkpoint(file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_BROKEN"):
        read_old_checkpoint(file)
    assert "run" not in capsys.readouterr().out
