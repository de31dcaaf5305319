"""How alike two pictures are: outlines by what they share, colours as an eye tells them apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crm_cli.srgb import to_linear

Floats = NDArray[np.float64]

TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""Rows X, Y, Z of linear sRGB, white D65. (IEC 61966-2-1)"""

CHROMA_7 = 25.0**7
"""Where the correction of greyish colours is at half its strength. (Sharma, Wu, Dalal 2005, eq. 4)"""


def silhouette_iou(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """Give the share two masks of one size have in common: 1 where they agree, 0 where both are empty."""
    union = int(np.count_nonzero(left | right))
    return np.count_nonzero(left & right) / union if union else 0.0


def colour_distance(left: Floats, right: Floats) -> float:
    """Mean difference of colours [N 3], sRGB in [0, 1], as CIEDE2000; 0 where there are none.

    About 1 is the least that can be seen side by side; 100 lies between black and white.
    """
    return float(ciede2000(to_lab(left), to_lab(right)).mean()) if len(left) else 0.0


def to_lab(srgb: Floats) -> Floats:
    """Turn sRGB in [0, 1] into CIELAB for D65, both [N 3]. (CIE 15:2004, 8.2.1)."""
    matrix = np.array(TO_XYZ)
    xyz = to_linear(srgb) @ (matrix / matrix.sum(axis=1, keepdims=True)).T  # white is 1, 1, 1
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def ciede2000(left: Floats, right: Floats) -> Floats:
    """Difference of CIELAB colours, [N 3] and [N 3] to [N]. (Sharma, Wu, Dalal 2005, eq. 2 to 22)."""
    mean_chroma = (np.hypot(left[:, 1], left[:, 2]) + np.hypot(right[:, 1], right[:, 2])) / 2
    stretch = 1.5 - 0.5 * _saturation(mean_chroma)
    (light, chroma, hue), (light_2, chroma_2, hue_2) = (_polar(lab, stretch) for lab in (left, right))
    is_grey = chroma * chroma_2 == 0
    turn = (hue_2 - hue + 180) % 360 - 180  # the shorter way round
    # Exactly opposite hues have two ways; the formula takes the one upwards.
    turn = np.where(is_grey, 0, np.where((turn == -180) & (hue_2 > hue), 180, turn))
    lightness, saturation = (light + light_2) / 2, (chroma + chroma_2) / 2
    middle = np.where(is_grey, hue + hue_2, _mean_hue(hue, hue_2))
    by_light = (light_2 - light) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_chroma = (chroma_2 - chroma) / (1 + 0.045 * saturation)
    by_hue = 2 * np.sqrt(chroma * chroma_2) * np.sin(np.radians(turn / 2))
    by_hue /= 1 + 0.015 * saturation * _hue_weight(middle)
    rotation = -2 * _saturation(saturation) * np.sin(2 * np.radians(30 * _bell(middle)))
    squared = by_light**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue
    distance: Floats = np.sqrt(np.maximum(squared, 0))
    return distance


def _saturation(chroma: Floats) -> Floats:
    """Near 0 for greys, near 1 for vivid colours."""
    seventh = chroma**7
    saturation: Floats = np.sqrt(seventh / (seventh + CHROMA_7))
    return saturation


def _polar(lab: Floats, stretch: Floats) -> tuple[Floats, Floats, Floats]:
    """Lightness, chroma and hue in degrees, with a stretched red-green axis. (eq. 5 to 7)."""
    a, b = lab[:, 1] * stretch, lab[:, 2]
    return lab[:, 0], np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def _mean_hue(hue: Floats, other: Floats) -> Floats:
    """The hue halfway along the shorter way. (eq. 14)."""
    total, is_near = hue + other, np.abs(hue - other) <= 180
    return np.where(is_near, total, np.where(total < 360, total + 360, total - 360)) / 2


def _hue_weight(hue: Floats) -> Floats:
    """T of the formula. (eq. 15)."""
    terms = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    weight = np.ones_like(hue)
    for size, times, at in terms:
        weight += size * np.cos(np.radians(times * hue + at))
    return weight


def _bell(hue: Floats) -> Floats:
    """1 at the blue where chroma and hue depend on each other, falling off around it. (eq. 16)."""
    bell: Floats = np.exp(-(((hue - 275) / 25) ** 2))
    return bell
