from __future__ import annotations

import io

import numpy as np
import pytest
from coordinate_box import coordinate_box
from PIL import Image

from crm_cli.export.textures import encode_texture


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_png_holds_the_texture_exactly():
    texture = coordinate_box().texture
    assert (decode(encode_texture(texture, "png", quality=1).data) == texture).all()


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
