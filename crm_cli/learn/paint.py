"""What loaded meshes are painted with: pictures laid on triangles, tinted by factors and vertex colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crm_cli.learn.materials import Floats

MAX_TEXTURE_PX = 2048
"""Longer sides are halved while a texture is read: no view of ours shows more."""

COARSEST_PX = 16
"""Textures are not averaged below this side: charts beside each other would run together."""


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """A picture that repeats in both directions, as glTF's do where they say nothing else, and its halvings.

    levels: uint8 [H W 3], sRGB, the largest first.
    """

    levels: tuple[NDArray[np.uint8], ...]

    def sample(self, uv: Floats, level: NDArray[np.int64]) -> Floats:
        """Look up colours between texels: uv [N 2], origin top left; level [N]. Returns sRGB [N 3]."""
        colours = np.zeros((len(uv), 3), dtype=np.float32)
        level = np.minimum(level, len(self.levels) - 1)
        for number in np.unique(level):
            chosen = np.flatnonzero(level == number)
            colours[chosen] = _bilinear(self.levels[number], uv[chosen])
        return colours


def open_texture(picture: Image.Image) -> Texture:
    """Take a picture of any mode, its alpha left out."""
    factor = -(-max(picture.size) // MAX_TEXTURE_PX)
    level = picture.convert("RGB")
    if factor > 1:
        level = level.reduce(factor)
    levels = [np.array(level)]
    while min(level.size) >= 2 * COARSEST_PX:
        level = level.reduce(2)
        levels.append(np.array(level))
    return Texture(tuple(levels))


def _bilinear(picture: NDArray[np.uint8], uv: Floats) -> Floats:
    """Blend the four texels around each place of a repeating picture: [N 3] in [0, 1]."""
    height, width = picture.shape[:2]
    # The fraction first: float32 has no texels left far away from the first repetition.
    at = (uv % 1) * np.array([width, height], np.float32) - np.float32(0.5)
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float32)
    blended = np.zeros((len(uv), 3), dtype=np.float32)
    for right in (0, 1):
        for down in (0, 1):
            texels = picture[(low[:, 1] + down) % height, (low[:, 0] + right) % width]
            weight = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if down else 1 - share[:, 1])
            blended += weight[:, None] * texels
    return blended / np.float32(255)


@dataclass(frozen=True, slots=True, eq=False)
class Paint:
    """One material: its texture, where it has one, and how it shines."""

    texture: Texture | None
    gloss: float
    sharpness: float


def paint_of(texture: Texture | None, *, roughness: float) -> Paint:
    """Paint a glTF material: matt at a roughness of 1, polished at 0, in the range of `materials.plain`."""
    smooth = 1 - min(max(roughness, 0.0), 1.0)
    return Paint(texture, gloss=0.03 + 0.77 * smooth**2, sharpness=8.0 * 25.0**smooth)
