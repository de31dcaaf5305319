"""Photos of which every pixel's owner is known, because they are composed here."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.photograph import Background, studio_photo
from crm_cli.learn.products import make_product
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import backdrop
from crm_cli.models.backdrop import separate

Picture = NDArray[np.float64]
SIZE = 480


def grid() -> tuple[Picture, Picture]:
    """Row and column of every pixel, in [-1, 1]."""
    y, x = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE), indexing="ij")
    return y, x


def inside(distance: Picture) -> Picture:
    """Coverage of the pixels of a shape given by its signed distance, with an outline one pixel wide."""
    return np.clip(0.5 - distance * SIZE / 2, 0, 1)


def mug() -> Picture:
    """A body with a handle that has a hole."""
    y, x = grid()
    body = np.maximum(np.abs(x + 0.1) - 0.35, np.abs(y - 0.1) - 0.45)
    handle = np.abs(np.hypot(x - 0.3, y - 0.1) - 0.25) - 0.05
    return inside(np.minimum(body, handle))


def ball() -> Picture:
    y, x = grid()
    return inside(np.hypot(x, y - 0.1) - 0.5)


def rods() -> Picture:
    """Ten thin rods between two rails, as a chair's back."""
    y, x = grid()
    rails = np.maximum(np.abs(x) - 0.6, np.abs(np.abs(y) - 0.5) - 0.06)
    spokes = np.maximum(np.abs((x + 0.6) % 0.12 - 0.06) - 0.012, np.maximum(np.abs(y) - 0.5, np.abs(x) - 0.6))
    return inside(np.minimum(rails, spokes))


def paint(*rgb: float) -> Picture:
    """One colour in soft light from the upper left."""
    y, x = grid()
    return np.array(rgb) * (0.85 - 0.15 * x - 0.15 * y)[..., None]


def white() -> Picture:
    """White paper with a soft shadow under the subject's foot."""
    y, x = grid()
    shadow = 0.25 * np.exp(-((x / 0.6) ** 2) - ((y - 0.62) / 0.08) ** 2)
    return np.ones((SIZE, SIZE, 3)) - shadow[..., None]


def vignette() -> Picture:
    y, x = grid()
    return np.array([0.45, 0.5, 0.6]) * (1.2 - 0.35 * (x**2 + y**2))[..., None]


def wall_and_floor() -> Picture:
    y, _ = grid()
    return np.where(y[..., None] < 0.35, [0.35, 0.5, 0.65], [0.5, 0.45, 0.4])


def wood() -> Picture:
    y, x = grid()
    grain = np.sin(60 * y + 4 * np.sin(3 * x)) + 0.5 * np.sin(170 * y + 5 * x)
    return np.array([0.55, 0.38, 0.22]) + 0.08 * grain[..., None]


def clutter() -> Picture:
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0.25, 0.75, (16, 16, 1)) * [0.6, 0.8, 1.0]
    return np.kron(coarse, np.ones((SIZE // 16, SIZE // 16, 1)))


SUBJECTS = {
    "red mug": (mug, (0.8, 0.15, 0.1)),
    "dark ball": (ball, (0.12, 0.13, 0.12)),
    "green rods": (rods, (0.1, 0.6, 0.15)),
}


def photograph(subject: Picture, alpha: Picture, backdrop: Picture) -> NDArray[np.uint8]:
    """Compose them, with the noise of a camera."""
    noise = np.random.default_rng(0).normal(0, 0.004, backdrop.shape)
    picture = subject * alpha[..., None] + backdrop * (1 - alpha[..., None]) + noise
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def overlap(found: NDArray[np.uint8], true: Picture) -> float:
    """Intersection over union of what is mostly subject."""
    a, b = found >= 128, true >= 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("backdrop", [white, vignette, wall_and_floor])
@pytest.mark.parametrize("subject", ["red mug", "dark ball"])
def test_the_subject_is_found_before_a_smooth_backdrop(subject: str, backdrop: Callable[[], Picture]) -> None:
    shape, colour = SUBJECTS[subject]
    alpha, _ = separate(photograph(paint(*colour), shape(), backdrop()))
    assert overlap(alpha, shape()) >= 0.97


@pytest.mark.parametrize("backdrop", [white, vignette])
def test_thin_rods_and_the_holes_between_them_are_kept(backdrop: Callable[[], Picture]) -> None:
    shape, colour = SUBJECTS["green rods"]
    alpha, _ = separate(photograph(paint(*colour), shape(), backdrop()))
    assert overlap(alpha, shape()) >= 0.97


@pytest.mark.parametrize("backdrop", [wood, clutter])
def test_the_subject_is_found_before_a_busy_backdrop(backdrop: Callable[[], Picture]) -> None:
    shape, colour = SUBJECTS["dark ball"]
    alpha, _ = separate(photograph(paint(*colour), shape(), backdrop()))
    assert overlap(alpha, shape()) >= 0.95


def test_white_on_white_is_kept() -> None:
    y, x = grid()
    # A white ball is a little darker than the paper, most at its outline.
    shade = 0.93 - 0.2 * np.clip(np.hypot(x, y - 0.1) / 0.5, 0, 1) ** 2
    alpha, _ = separate(photograph(np.repeat(shade[..., None], 3, axis=2), ball(), np.ones((SIZE, SIZE, 3))))
    assert overlap(alpha, ball()) >= 0.97


def test_a_part_in_the_backdrops_colour_is_no_hole() -> None:
    y, x = grid()
    label = np.hypot(x, y - 0.1) < 0.3
    subject = np.where(label[..., None], vignette() * 1.05, paint(0.8, 0.7, 0.1))
    alpha, _ = separate(photograph(subject, ball(), vignette()))
    assert overlap(alpha, ball()) >= 0.97


def test_alpha_at_the_outline_is_the_coverage() -> None:
    alpha, _ = separate(photograph(paint(0.8, 0.15, 0.1), mug(), white()))
    assert np.abs(alpha / 255 - mug()).mean() < 0.004
    fringe = (mug() > 0.05) & (mug() < 0.95)
    assert np.abs(alpha / 255 - mug())[fringe].mean() < 0.12


def test_colours_at_the_outline_are_the_subjects_own() -> None:
    alpha, rgb = separate(photograph(paint(0.8, 0.15, 0.1), mug(), white()))
    fringe = (mug() > 0.3) & (mug() < 0.9) & (alpha > 64)
    error = np.abs(rgb / 255 - np.clip(paint(0.8, 0.15, 0.1), 0, 1))[fringe]
    mixed = np.abs(photograph(paint(0.8, 0.15, 0.1), mug(), white()) / 255 - paint(0.8, 0.15, 0.1))[fringe]
    assert error.mean() < mixed.mean() / 3


def test_a_subject_that_runs_out_of_the_picture_is_kept_to_its_edge() -> None:
    y, x = grid()
    half = inside(np.maximum(np.abs(x + 0.7) - 0.6, np.abs(y) - 0.3))
    alpha, _ = separate(photograph(paint(0.8, 0.15, 0.1), half, vignette()))
    assert overlap(alpha, half) >= 0.97


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_empty_picture_has_no_subject(level: float) -> None:
    alpha, _ = separate(np.full((200, 300, 3), round(level * 255), np.uint8))
    assert not alpha.any()


def test_the_same_photo_gives_the_same_alpha_twice() -> None:
    photo = photograph(paint(0.8, 0.15, 0.1), mug(), clutter())
    np.testing.assert_array_equal(separate(photo)[0], separate(photo)[0])


@pytest.mark.parametrize("shape", [(16, 16), (16, 2048), (2048, 16), (17, 33)])
def test_odd_sizes_are_taken(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    alpha, rgb = separate(noise)
    assert alpha.shape == shape and rgb.shape == (*shape, 3)


def in_studio(family: str, seed: int, background: Background) -> NDArray[np.uint8]:
    """One product in one studio: the background changes nothing else."""
    rng = np.random.default_rng(HELD_OUT + seed)
    return studio_photo(make_product(rng, family), rng, WarpRaster(), size_px=384, background=background)


def test_cast_shadows_are_left_behind_and_grey_parts_are_kept() -> None:
    overlaps, shadows = [], []
    photos: list[tuple[str, int, Background]] = [
        ("car", 5028, "white"),  # grey all over, beside a grey shadow
        ("book", 5045, "grey"),  # nearly the colour of the backdrop
        ("stool", 5022, "coloured"),  # shadow walled in by a ring
    ]
    for family, seed, background in photos:
        found, _ = separate(in_studio(family, seed, background))
        true = in_studio(family, seed, "transparent")[..., 3] / 255
        overlaps.append(overlap(found, true))
        shadows.append(np.mean((found >= 128) & (true < 0.5)) / np.mean(true >= 0.5))
    assert min(overlaps) >= 0.93 and np.mean(overlaps) >= 0.96, overlaps
    assert np.mean(shadows) <= 0.02, shadows


@pytest.mark.parametrize("shape", [(1, 60), (97, 64), (64, 97, 3), (200, 300, 3)])
@pytest.mark.parametrize("sigma", [2.0, 8.0, 9.6])
def test_a_wide_blur_at_half_the_size_is_the_same_to_a_hundredth(
    shape: tuple[int, ...], sigma: float
) -> None:
    grain = cv2.GaussianBlur(np.random.default_rng(6).random(shape).astype(np.float32), (0, 0), 1.5)
    sharp = (grain > 0.5).astype(np.float32).reshape(shape)
    sharp[:, : shape[1] // 3] = 0
    exact = cv2.GaussianBlur(sharp, (0, 0), sigma)
    assert backdrop._blurred(sharp, sigma).shape == sharp.shape
    assert np.abs(backdrop._blurred(sharp, sigma) - exact)[12:-12, 12:-12].max(initial=0) < 0.01
    assert np.abs(backdrop._blurred(sharp, sigma) - exact).mean() < 0.01
