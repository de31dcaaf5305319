"""Light, and the values that pictures hold of it, in arrays and tensors alike.

Both in [0, 1] where a picture can show it. (IEC 61966-2-1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "NDArray[np.float32]", "NDArray[np.float64]", "Tensor")


def to_linear(srgb: Values) -> Values:
    """Light of sRGB values, in the same precision."""
    light: Values = _either(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return light


def to_srgb(light: Values) -> Values:
    """SRGB values of light, in the same precision; the inverse of `to_linear`."""
    # Rounding may have left light below nothing, of which there is no root; the line is taken there.
    root = light.clip(1e-9) ** (1 / 2.4)
    srgb: Values = _either(light <= 0.0031308, light * 12.92, 1.055 * root - 0.055)
    return srgb


def _either(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(one, np.ndarray):
        return np.where(condition, one, other)
    import torch

    return torch.where(condition, one, other)
