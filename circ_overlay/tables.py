# SPDX-License-Identifier: BSD-3-Clause
"""Constant tables of the core, computed once from the specification: twiddles and the sigmoid's curve.

Generated into the C++ header as they stand here, so no implementation evaluates a cosine of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from . import spec

__all__ = ["SIGMOID", "TWIDDLES"]

_POINTS = spec.BLOCK_SIZES[-1]


def _twiddles() -> NDArray[np.int64]:
    angles = [-2 * math.pi * n / _POINTS for n in range(_POINTS)]
    one = 1 << spec.TWIDDLE_FRAC_BITS
    return np.array([[round(one * math.cos(a)), round(one * math.sin(a))] for a in angles], np.int64)


def _sigmoid() -> NDArray[np.int64]:
    # One entry more than there are segments: the chord of segment i ends where that of i + 1 begins.
    segments = 1 << spec.ACTIVATION_LOG2_SEGMENTS
    one = 1 << spec.ACTIVATION_FRAC_BITS
    points = (8 * i / segments for i in range(segments + 1))
    return np.array([round(one * (1 / (1 + math.exp(-x)) - 0.5)) for x in points], np.int64)


TWIDDLES: NDArray[np.int64] = _twiddles()
"""(128, 2) real and imaginary parts of exp(-2 pi i n / 128), TWIDDLE_FRAC_BITS fraction bits."""

SIGMOID: NDArray[np.int64] = _sigmoid()
"""(129,) sigmoid(x) - 1/2 at x = 0, 1/16, ... 8, ACTIVATION_FRAC_BITS fraction bits."""

for _table in (TWIDDLES, SIGMOID):
    _table.setflags(write=False)
