# SPDX-License-Identifier: BSD-3-Clause
"""Windows that slide over maps (batch, height, width, ...), for integer and float models alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["windows"]

Pair = tuple[int, int]


def windows(
    x: NDArray[Any], results: Pair, taps: Pair, stride: Pair, padding: Pair, outside: float = 0
) -> Iterator[NDArray[Any]]:
    """For each tap, row by row, the pixel that every result sees through it.

    Parameters
    ----------
    x : (batch, height, width, ...)
    results : rows and columns of results
    taps, stride : rows and columns of a window, and between windows
    padding : rows above the map and columns left of it; below and right as many as the windows need
    outside : value of a pixel outside the map

    Yields
    ------
    (batch, rows, columns, ...), for tap (0, 0), (0, 1), ...
    """
    (rows, columns), (r, s), (down, across), (top, left) = results, taps, stride, padding
    height, width = (rows - 1) * down + r, (columns - 1) * across + s
    if (top, left) != (0, 0) or height > x.shape[1] or width > x.shape[2]:
        padded = np.full((len(x), height, width, *x.shape[3:]), outside, x.dtype)
        inner = x[:, : max(0, height - top), : max(0, width - left)]
        padded[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
        x = padded
    for i in range(r):
        for j in range(s):
            yield x[:, i : height - r + i + 1 : down, j : width - s + j + 1 : across]
