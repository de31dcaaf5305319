from __future__ import annotations

import io
import subprocess

import cv2
import numpy as np
import pytest
from coordinate_box import coordinate_box
from PIL import Image

from crm_cli.export.extras import find_ktx2_tool
from crm_cli.export.textures import encode_texture


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_png_holds_the_texture_exactly():
    texture = coordinate_box().texture
    assert (decode(encode_texture(texture, "png", quality=1).data) == texture).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 3), (64, 64)])
def test_two_readers_that_check_every_byte_agree_on_the_png(shape, tmp_path):
    texture = np.random.default_rng(8).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = encode_texture(texture, "png", quality=1).data
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", shape[::-1])
        image.verify()  # every chunk's checksum
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded[..., ::-1], texture)
    assert np.array_equal(decode(data), texture)


def test_a_png_of_soft_colours_is_much_smaller_than_its_pixels():
    soft = (np.add.outer(np.arange(256), np.arange(256)) // 2).astype(np.uint8)
    assert len(encode_texture(np.dstack([soft] * 3), "png", quality=1).data) < 256 * 256 * 3 / 50


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp")])
def test_formats_that_lose_detail_are_close_and_smaller_the_more_so_the_lower_the_quality(kind, suffix):
    noise = np.random.default_rng(0).integers(0, 40, (256, 256, 1), dtype=np.uint8).repeat(3, axis=2)
    png = encode_texture(noise, "png", quality=90)
    fine, coarse = (encode_texture(noise, kind, quality=quality) for quality in (95, 40))
    assert fine.suffix == suffix
    assert len(coarse.data) < len(fine.data) < len(png.data)
    errors = [np.abs(decode(picture.data).astype(int) - noise).mean() for picture in (fine, coarse)]
    assert errors[0] < errors[1] < 12
    assert errors[0] < 6


@pytest.mark.skipif(find_ktx2_tool() != "basisu", reason="needs basisu on PATH")
def test_the_ktx2_is_srgb_with_all_its_mipmaps_and_the_right_way_up(tmp_path):
    texture = coordinate_box().texture
    (tmp_path / "a.ktx2").write_bytes(encode_texture(texture, "ktx2", quality=90).data)
    done = subprocess.run(
        ["basisu", "-unpack", "-no_ktx", "-file", "a.ktx2"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "DFD transfer func: 2 (SRGB)" in done.stdout
    assert f"Mipmap Levels: {len(texture).bit_length()}" in done.stdout
    unpacked = np.asarray(Image.open(tmp_path / "a_unpacked_rgb_ETC1_RGB_0_0_0000.png").convert("RGB"))
    assert np.abs(unpacked.astype(int) - texture).mean() < 4
