"""The published layout is read into the views and depths that rendering the object itself gives."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_layout import layout_of, png_of

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, RIGHT, TOP
from crm_cli.learn.camera import EXTENT, pose
from crm_cli.learn.examples import six_views
from crm_cli.learn.layout import (
    EMPTY,
    MAP_NAMES,
    VIEW_NAMES,
    RenderedObject,
    example_of_views,
    fitted,
    read_object,
)
from crm_cli.learn.materials import Material, solid
from crm_cli.learn.parts import Part, Product, assemble
from crm_cli.learn.products import make_product
from crm_cli.learn.shapes import box
from crm_cli.learn.subject import Unusable
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models.agree import hull_depth

SOURCE, SIZE = 128, 32
RASTER = WarpRaster()
REAL = os.environ.get("CRM_TRAIN_EXAMPLE", "")


def read(files: dict[str, bytes]) -> RenderedObject:
    return read_object([files[name] for name in VIEW_NAMES], [files[name] for name in MAP_NAMES])


def lopsided(width: float = 1.0, depth: float = 0.6) -> Product:
    """A red box with a blue one on its left shoulder and a green one in front."""
    parts = [
        Part(box((width, depth, 0.8)), Material(solid((1, 0, 0)))),
        Part(box((width / 4, depth / 2, 0.5)).moved((width / 3, 0, 0.5)), Material(solid((0, 0, 1)))),
        Part(box((width / 3, 0.3, 0.3)).moved((-width / 4, depth / 2, -0.2)), Material(solid((0, 1, 0)))),
    ]
    return assemble("lopsided", parts)


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.05, -0.1, 0.08)])
@pytest.mark.parametrize(
    "product",
    [lopsided(), lopsided(depth=2.5), lopsided(width=3.0), make_product(np.random.default_rng(4), "shoe")],
    ids=["upright", "deep", "wide", "shoe"],
)
def test_what_is_read_is_what_rendering_the_object_gives(
    product: Product, shift: tuple[float, float, float]
) -> None:
    views, depth = fitted(read(layout_of(product, size_px=SOURCE, shift=shift)), size_px=SIZE)
    truth, true_depth = six_views(pose(product, np.eye(3)), RASTER, size_px=SIZE)
    mine, theirs = views[:, 3].astype(int), truth[:, 3].astype(int)
    # Borders that cross a pixel: coverages, not outlines, are compared.
    overlap = np.minimum(mine, theirs).sum(axis=(1, 2)) / np.maximum(mine, theirs).sum(axis=(1, 2))
    assert overlap.min() > 0.88 and mine.sum() == pytest.approx(theirs.sum(), rel=0.03)
    both = (views[:, 3] == 255) & (truth[:, 3] == 255)
    colour = np.abs(views[:, :3].astype(int) - truth[:, :3]).mean(axis=1)[both]
    assert colour.mean() < 6
    # Eight bits over [-1, 1], scaled; steps within a pixel may fall to either side.
    error = np.abs(depth.astype(float) - true_depth)[both]
    assert np.median(error) < 0.01 and (error > 0.06).mean() < 0.04
    assert not depth[views[:, 3] == 0].any() and depth[views[:, 3] > 0].all()
    assert not views.transpose(0, 2, 3, 1)[..., :3][views[:, 3] == 0].any()


def test_the_front_fills_what_a_product_fills() -> None:
    views, _ = fitted(read(layout_of(lopsided(), size_px=SOURCE)), size_px=SIZE)
    rows, columns = (np.flatnonzero((views[FRONT, 3] > 127).any(axis=k)) for k in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(EXTENT / 2 * SIZE, abs=1)
    for line in (rows, columns):
        assert abs(line[0] + line[-1] - (SIZE - 1)) <= 1


def test_colour_under_no_alpha_does_not_bleed_in() -> None:
    files = layout_of(lopsided(), size_px=SOURCE)
    clean = fitted(read(files), size_px=SIZE)[0]
    for name in VIEW_NAMES:
        pixels = np.array(Image.open(io.BytesIO(files[name])))
        pixels[pixels[..., 3] == 0] = (0, 255, 255, 0)
        files[name] = png_of(pixels)
    np.testing.assert_array_equal(fitted(read(files), size_px=SIZE)[0], clean)


def test_grey_on_the_border_of_a_map_is_no_coordinate() -> None:
    files = layout_of(lopsided(), size_px=SOURCE)
    whole = read(files)
    for number, name in enumerate(MAP_NAMES):
        pixels = np.array(Image.open(io.BytesIO(files[name])))
        inner = whole.rgba[number, ..., 3] > 127
        inner[1:] &= inner[:-1].copy()
        inner[:-1] &= inner[1:].copy()
        pixels[~inner] = 127
        files[name] = png_of(pixels)
    patched = read(files)
    solid_part = whole.depth > EMPTY / 2
    np.testing.assert_array_equal(patched.depth > EMPTY / 2, solid_part)
    assert np.quantile(np.abs(patched.depth - whole.depth)[solid_part], 0.97) < 0.03


def test_an_example_is_drawn_from_its_generator_and_has_no_distances() -> None:
    seen = read(layout_of(lopsided(), size_px=SOURCE))
    one, same, other = (
        example_of_views(np.random.default_rng(seed), seen, size_px=SIZE) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.photo, same.photo)
    assert (one.photo != other.photo).any()
    np.testing.assert_array_equal(one.views, other.views)
    photo, front = one.photo[3] > 127, one.views[FRONT, 3] > 127
    assert (photo & front).sum() > 0.8 * (photo | front).sum()
    assert len(one.points) == len(one.surface) == 0


def damaged(name: str, data: bytes) -> dict[str, bytes]:
    return layout_of(lopsided(), size_px=32) | {name: data}


BLANK = np.zeros((32, 32, 4), np.uint8)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("003.png", b"", "003.png: not a readable picture"),
        ("xyz_new_002.png", png_of(BLANK)[:60], "xyz_new_002.png: not a readable picture"),
        ("000.png", png_of(BLANK[..., :3]), "000.png: no alpha channel"),
        ("000.png", png_of(BLANK[:20]), "000.png: not square"),
        ("005.png", png_of(BLANK), "005.png: shows nothing"),
        (
            "xyz_new_004.png",
            png_of(np.zeros((16, 16, 3), np.uint8)),
            "xyz_new_004.png: not as large as 000.png",
        ),
    ],
)
def test_a_broken_file_is_named(name: str, data: bytes, said: str) -> None:
    with pytest.raises(Unusable, match=said):
        read(damaged(name, data))


def test_views_of_different_sizes_are_unusable() -> None:
    files = layout_of(lopsided(), size_px=32) | {"002.png": layout_of(lopsided(), size_px=16)["002.png"]}
    with pytest.raises(Unusable, match=r"002\.png: not as large as 000\.png"):
        read(files)


def test_views_in_another_order_are_unusable() -> None:
    files = layout_of(lopsided(), size_px=32)
    for kind in ("{:03d}.png", "xyz_new_{:03d}.png"):
        files[kind.format(LEFT)], files[kind.format(RIGHT)] = (
            files[kind.format(RIGHT)],
            files[kind.format(LEFT)],
        )
    with pytest.raises(
        Unusable, match=r"xyz_new_001\.png: its colours are not the coordinates of the left view"
    ):
        read(files)


@pytest.mark.skipif(
    not REAL, reason="needs CRM_TRAIN_EXAMPLE=…/ of the published repository's train_examples"
)
@pytest.mark.parametrize("size_px", [64, 256])
def test_the_published_example_agrees_with_itself(size_px: int) -> None:
    folder = Path(REAL)
    seen = read({name: (folder / name).read_bytes() for name in (*VIEW_NAMES, *MAP_NAMES)})
    np.testing.assert_allclose(np.abs(seen.bounds[:, 2]), 1, atol=1e-6)
    views, depth = fitted(seen, size_px=size_px)
    alpha = views[:, 3].astype(int)
    for one, mirrored in (
        (FRONT, alpha[BACK][:, ::-1]),
        (LEFT, alpha[RIGHT][:, ::-1]),
        (BOTTOM, alpha[TOP][::-1]),
    ):
        assert np.abs(alpha[one] - mirrored).mean() < 0.01
    # Nothing lies before the hull of the six outlines, but for what a pixel rounds off.
    covered = torch.from_numpy(views[None, :, 3:].astype(np.float32) / 255)
    hull = hull_depth(covered)[0].numpy()
    inside = (views[:, 3] > 127) & (hull > -1)
    assert (depth.astype(np.float32) - hull > 0.06)[inside].mean() < 0.05
    # Each side's nearest place is an outermost one of the outlines across.
    assert depth[FRONT].max() == pytest.approx(0.68 * EXTENT / 2, abs=0.02)
