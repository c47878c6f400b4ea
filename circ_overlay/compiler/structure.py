# SPDX-License-Identifier: BSD-3-Clause
"""Block-circulant structure of dense weights: found where it is there, projected where it is wanted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import circulant, spec

__all__ = ["Structured", "of_kernel", "structure"]

Floats = NDArray[np.float64]
TOLERANCE = 1e-6
"""A dense matrix that differs from a block-circulant one by less, relative to its largest entry, is one."""

WORTH = 1.5
"""A block size is taken for found only if it saves more than this factor: a single row is circulant by itself."""

OVERLAP = 4
"""Entries that two rows must share before a factor between them is believed."""


class Structured(NamedTuple):
    """A dense kernel in blocks.

    Attributes
    ----------
    columns : first columns (p, q, r, s, k)
    gather : the blocks lie over the window (row, column, channel), and r = s = 1
    gains : (out,) factors of the rows that are not in the columns, as a folded batch-norm leaves them; None: all 1
    """

    columns: Floats
    gather: bool = False
    gains: Floats | None = None


def structure(kernel: Floats, block_size: int | None = None) -> Floats:
    """First columns (p, q, r, s, k) of a dense kernel (out, in, r, s).

    With `block_size` the nearest block-circulant kernel is taken. Without, the largest k is looked for of which the
    kernel already is; if there is none, k = 1 leaves it as it is.
    """
    if block_size is not None:
        return circulant.project_conv2d(kernel, block_size)
    found = _found(kernel, gains=False)
    return circulant.project_conv2d(kernel, 1) if found is None else found.columns


def of_kernel(kernel: Floats, block_size: int | None = None) -> Structured:
    """The blocks of a dense kernel (out, in, r, s).

    As :func:`structure`; kernels of few channels may have their blocks over the whole window, rows may have been
    multiplied by factors, and a `block_size` that would save nothing leaves the kernel as it is.
    """
    out, channels, rows, columns = kernel.shape
    windows = None
    if channels <= spec.MAX_GATHER_CHANNELS and rows * columns > 1:
        windows = kernel.transpose(0, 2, 3, 1).reshape(out, -1, 1, 1)
    if block_size is None:
        found = _found(kernel)
        if found is None and windows is not None:
            found = _found(windows)
            found = None if found is None else found._replace(gather=True)
        return found or Structured(kernel[..., None])
    if block_size > 1 and windows is not None and channels % block_size:
        if _parameters(windows, block_size) < kernel.size:
            return Structured(circulant.project_conv2d(windows, block_size), gather=True)
    elif block_size > 1 and _parameters(kernel, block_size) < kernel.size:
        return Structured(circulant.project_conv2d(kernel, block_size))
    return Structured(kernel[..., None])


def _parameters(kernel: Floats, k: int) -> int:
    p, q = circulant.block_grid(kernel.shape[0], kernel.shape[1], k)
    return int(p) * q * k * kernel.shape[2] * kernel.shape[3]


def _found(kernel: Floats, gains: bool = True) -> Structured | None:
    """The kernel with the largest k of which it is block-circulant; None if there is none."""
    peak = float(np.abs(kernel).max())
    for k in reversed(spec.BLOCK_SIZES):
        if WORTH * _parameters(kernel, k) > kernel.size:
            continue
        factors = _row_factors(kernel, k, TOLERANCE * peak)
        if factors is None:
            continue
        if np.abs(factors - 1).max() < TOLERANCE:
            factors = np.ones(len(kernel))
        elif not gains:
            continue
        columns = circulant.project_conv2d(kernel / factors[:, None, None, None], k)
        expanded = circulant.expand_conv2d(columns, *kernel.shape[:2]) * factors[:, None, None, None]
        if np.abs(expanded - kernel).max() <= TOLERANCE * peak:
            return Structured(columns, gains=None if np.all(factors == 1) else factors)
    return None


def _row_factors(kernel: Floats, k: int, tolerance: float) -> Floats | None:
    """What each row is multiplied by, relative to the largest of its block row; None if its rows do not match."""
    out, channels = kernel.shape[:2]
    factors = np.ones(out)
    places = np.arange(channels)
    for first in range(0, out, k):
        rows = kernel[first : first + k]
        norms = (rows**2).sum((1, 2, 3))
        base = int(norms.argmax())
        if norms[base] == 0:
            continue
        for n in range(len(rows)):
            from_ = places // k * k + (places % k - (n - base)) % k
            known = from_ < channels
            turned, row = rows[base][from_[known]], rows[n][known]
            size = float((turned**2).sum())
            factor = 1.0
            if turned.size >= OVERLAP and size > 0:
                factor = float((row * turned).sum()) / size
            if np.abs(row - factor * turned).max(initial=0.0) > tolerance or abs(factor) < 1e-9:
                return None
            factors[first + n] = factor
    return factors
