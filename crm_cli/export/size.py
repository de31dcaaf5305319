"""How large a product really is: one factor for all directions, so that nothing is stretched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crm_cli.export.scene import to_export_frame
from crm_cli.records import RealSize

_MM = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """An asset brought to its product's size."""

    metres_per_unit: float
    size_mm: RealSize
    """What the asset measures then."""
    mismatch: float
    """By which share the proportions disagree with the listing; 0 where it gives one length alone."""


def fit(vertices: NDArray[np.float32], listed: RealSize) -> Fit:
    """Find the scale at which an asset [V 3] in the world agrees best with what is listed.

    One length is met exactly. Of several the ratios are averaged as logarithms, so that twice too wide and
    half as high weigh the same; the mismatch is the largest of these ratios over the smallest.
    """
    extents = np.ptp(to_export_frame(vertices, metres_per_unit=1.0).astype(np.float64), axis=0)
    wanted = np.array(listed.in_mm)
    given = wanted > 0
    ratios = np.log(wanted[given] / (extents[given] * _MM))
    scale = float(np.exp(ratios.mean()))
    width, height, depth = (round(float(length), 3) for length in extents * scale * _MM)
    return Fit(
        metres_per_unit=scale,
        size_mm=RealSize(width_mm=width, height_mm=height, depth_mm=depth),
        mismatch=float(np.expm1(np.ptp(ratios))),
    )
