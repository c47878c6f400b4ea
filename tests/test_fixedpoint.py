# SPDX-License-Identifier: BSD-3-Clause
"""Formats, rounding and saturation against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circ_overlay.fixedpoint import Format, limits, round_shift, saturate


@given(st.integers(-(1 << 46), 1 << 46), st.integers(0, 40))
def test_round_shift_is_half_up(x, shift):
    exact = math.floor(Fraction(x, 1 << shift) + Fraction(1, 2)) if shift else x
    assert int(round_shift(np.array([x]), shift)[0]) == exact


@given(st.integers(-(1 << 60), 1 << 60), st.integers(2, 48))
def test_saturate(x, bits):
    low, high = limits(bits)
    assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert int(saturate(np.array([x]), bits)[0]) == min(max(x, low), high)


@given(st.floats(-1e6, 1e6), st.integers(2, 24), st.integers(-8, 24))
def test_quantise_is_nearest_in_range(x, width, frac):
    fmt = Format(width, frac)
    n = int(fmt.quantise([x])[0])
    low, high = limits(width)
    exact = math.floor(Fraction(x) * Fraction(2) ** frac + Fraction(1, 2))
    assert n == min(max(exact, low), high)


@given(st.floats(0, 1e9, allow_subnormal=False), st.integers(2, 24))
def test_for_range_is_the_finest_that_holds(largest, width):
    fmt = Format.for_range(width, largest)
    high = limits(width)[1]
    assert np.floor(np.ldexp(largest, fmt.frac) + 0.5) <= high
    if fmt.frac < 64 and largest > 0:
        assert np.floor(np.ldexp(largest, fmt.frac + 1) + 0.5) > high or fmt.frac == -64


def test_value_inverts_quantise():
    fmt = Format(12, 7)
    n = np.arange(-2048, 2048)
    np.testing.assert_array_equal(fmt.quantise(fmt.value(n)), n)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantise_refuses_what_has_no_nearest_value(bad):
    with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite"):
        Format(12, 4).quantise([0.0, bad, 1.0])


@pytest.mark.parametrize(("width", "frac"), [(1, 0), (65, 0), (12, 65), (12, -65)])
def test_format_limits(width, frac):
    with pytest.raises(ValueError, match="a format has"):
        Format(width, frac)


@pytest.mark.parametrize("largest", [-1.0, math.nan, math.inf])
def test_for_range_refuses(largest):
    with pytest.raises(ValueError, match="finite magnitude"):
        Format.for_range(12, largest)
