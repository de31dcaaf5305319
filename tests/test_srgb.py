"""Light and the values of pictures: the standard's figures, the same for arrays and tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from crm_cli.srgb import to_linear, to_srgb

KINDS: dict[str, Callable[[Any], Any]] = {
    "float32": np.float32,
    "float64": np.float64,
    "tensor": lambda values: torch.tensor(values, dtype=torch.float32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_middle_grey_is_a_fifth_of_the_light_and_both_ends_stay(kind: str) -> None:
    values = KINDS[kind]([0.0, 0.04, 0.5, 1.0])
    light = to_linear(values)
    assert light.dtype == values.dtype
    # Of 0.5: ((0.5 + 0.055) / 1.055)^2.4, the standard's formula in any calculator.
    np.testing.assert_allclose(light, [0, 0.04 / 12.92, 0.2140411, 1], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_back(kind: str) -> None:
    values = KINDS[kind]([code / 255 for code in range(256)])
    again = to_srgb(to_linear(values))
    assert again.dtype == values.dtype
    np.testing.assert_allclose(again, values, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_light_that_rounding_has_left_below_nothing_is_a_little_below_nothing(kind: str) -> None:
    np.testing.assert_allclose(to_srgb(KINDS[kind]([-1e-4, -1e-12])), [-1.292e-3, -1.292e-11], rtol=1e-5)
