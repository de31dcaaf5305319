"""Labels: what is printed on products, drawn with words that no one owns."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crm_cli.learn.materials import ONES, Floats, Look, Material, Random, draw_colour


@lru_cache(maxsize=64)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


_SYLLABLES = [
    "ba",
    "ko",
    "li",
    "mo",
    "na",
    "ra",
    "su",
    "ti",
    "vo",
    "ze",
    "pur",
    "nor",
    "vel",
    "lux",
    "san",
    "del",
    "fir",
    "gra",
    "ola",
    "min",
    "tea",
    "cof",
    "aro",
    "so",
    "ny",
    "dex",
    "hy",
    "bio",
]


def _word(rng: Random) -> str:
    """Draw a brand-like word."""
    word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.integers(2, 4)))
    return str(word.upper() if rng.uniform() < 0.5 else word.capitalize())


def _logo(
    rng: Random, draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: str
) -> None:
    """Draw a disc, a ring, a star, a leaf-like polygon or a picture of hills."""
    x, y = centre
    frame = (x - radius, y - radius, x + radius, y + radius)
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse(frame, fill=fill)
    elif kind == 1:
        draw.ellipse(frame, outline=fill, width=max(2, int(radius / 4)))
    else:
        spikes = int(rng.integers(3, 9))
        inner = rng.uniform(0.35, 0.95)
        angle = np.arange(2 * spikes) * np.pi / spikes - np.pi / 2
        reach = radius * np.where(np.arange(2 * spikes) % 2, inner, 1.0)
        draw.polygon(
            [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(reach, angle, strict=True)], fill=fill
        )


def _css(colour: Floats) -> str:
    return "#" + "".join(f"{round(float(np.clip(c, 0, 1)) * 255):02x}" for c in colour)


def draw_label(rng: Random, look: Look, *, width_px: int, height_px: int) -> Floats:
    """Print a label as a brand would: ground, frame, logo, name, small print. [H W 3]."""
    ground = look.accent if rng.uniform() < 0.6 else np.float32(rng.uniform(0.85, 1.0)) * ONES
    luminance = float(ground @ np.array([0.3, 0.6, 0.1], dtype=np.float32))
    ink = (
        look.detail
        if abs(float(look.detail.mean()) - luminance) > 0.35
        else np.float32(luminance < 0.5) * ONES
    )
    colours = [_css(ink), _css(look.main), _css(draw_colour(rng))]
    picture = Image.new("RGB", (width_px, height_px), _css(ground))
    draw = ImageDraw.Draw(picture)
    if rng.uniform() < 0.4:
        top = int(height_px * rng.uniform(0.1, 0.5))
        draw.rectangle((0, top, width_px, top + int(height_px * rng.uniform(0.15, 0.5))), fill=colours[2])
    if rng.uniform() < 0.5:
        inset = max(2, width_px // 24)
        draw.rectangle(
            (inset, inset, width_px - inset, height_px - inset), outline=colours[0], width=max(1, inset // 2)
        )
    if rng.uniform() < 0.7:
        radius = min(width_px, height_px) * rng.uniform(0.12, 0.3)
        _logo(
            rng,
            draw,
            (width_px * rng.uniform(0.4, 0.6), height_px * rng.uniform(0.25, 0.75)),
            radius,
            colours[1],
        )
    word = _word(rng)
    size = max(8, int(min(1.5 * width_px / len(word), 0.4 * height_px)))
    at = (width_px / 2, height_px * rng.uniform(0.2, 0.8))
    draw.text(at, word, fill=colours[0], font=_font(size // 4 * 4 + 4), anchor="mm")
    small = max(6, height_px // 14)
    for line in range(int(rng.integers(0, 4))):
        y = height_px * 0.95 - small * (1.3 * line + 0.5)
        draw.text(
            (width_px / 2, y), f"{_word(rng)} {_word(rng)}", fill=colours[0], font=_font(small), anchor="mm"
        )
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def look_up(picture: Floats, across: NDArray[np.floating], down: NDArray[np.floating]) -> Floats:
    """Read a picture [H W 3] at shares [N] of its width and height, blending four pixels."""
    height, width = picture.shape[:2]
    x = np.clip(across * width - 0.5, 0, width - 1.001)
    y = np.clip(down * height - 0.5, 0, height - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    tx, ty = (x - column).astype(np.float32)[:, None], (y - row).astype(np.float32)[:, None]
    upper = picture[row, column] * (1 - tx) + picture[row, column + 1] * tx
    lower = picture[row + 1, column] * (1 - tx) + picture[row + 1, column + 1] * tx
    result: Floats = upper * (1 - ty) + lower * ty
    return result


LABEL_PX = 160
"""Height of label pictures: still sharp in a 768 px photo."""


def labelled(
    rng: Random,
    ground: Material,
    look: Look,
    *,
    width: float,
    height: float,
    centre_z: float,
    centre_x: float = 0.0,
    front: float = 0.0,
) -> Material:
    """Stick a flat label on the front, where y > front; left and right as one reads from +Y."""
    picture = draw_label(rng, look, width_px=max(24, round(LABEL_PX * width / height)), height_px=LABEL_PX)

    def paint(places: Floats) -> Floats:
        colours = np.array(ground.colouring(places))
        across = 0.5 - (places[:, 0] - centre_x) / width
        down = 0.5 - (places[:, 2] - centre_z) / height
        on = (np.abs(across - 0.5) < 0.5) & (np.abs(down - 0.5) < 0.5) & (places[:, 1] > front)
        colours[on] = look_up(picture, across[on], down[on])
        return colours

    return replace(ground, colouring=paint)


def wrapped(
    rng: Random, ground: Material, look: Look, *, bottom: float, top: float, radius: float, repeats: int = 1
) -> Material:
    """Wrap a printed band around the z axis between two heights; it starts at the back."""
    height = top - bottom
    width_px = max(48, min(1000, round(LABEL_PX * 2 * np.pi * radius / repeats / height)))
    picture = draw_label(rng, look, width_px=width_px, height_px=LABEL_PX)

    def paint(places: Floats) -> Floats:
        colours = np.array(ground.colouring(places))
        down = (top - places[:, 2]) / height
        on = (down > 0) & (down < 1)
        angle = np.arctan2(-places[on, 0], places[on, 1]) / (2 * np.pi)
        colours[on] = look_up(picture, (angle * repeats + 0.5) % 1, down[on])
        return colours

    return replace(ground, colouring=paint)


def printed(
    rng: Random, ground: Material, look: Look, *, width: float, height: float, centre_z: float
) -> Material:
    """Print front and back of something flat, such as a book or a bag."""
    one = labelled(rng, ground, look, width=width, height=height, centre_z=centre_z)

    def paint(places: Floats) -> Floats:
        facing = places * np.where(places[:, 1:2] < 0, _TURNED, ONES)
        return one.colouring(facing)

    return replace(ground, colouring=paint)


_TURNED = np.array([-1, -1, 1], dtype=np.float32)
