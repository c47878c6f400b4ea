# SPDX-License-Identifier: BSD-3-Clause
"""The two transforms, on int64 arrays with any leading axes. docs/numerics.md derives them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..fixedpoint import round_shift, saturate
from ..tables import TWIDDLES

__all__ = ["forward_transform", "inverse_transform"]

Ints = NDArray[np.int64]


def _twiddles(points: int, count: int) -> tuple[Ints, Ints]:
    """Real and imaginary parts of exp(-2 pi i n / points), n = 0 .. count - 1."""
    table = TWIDDLES[:: len(TWIDDLES) // points][:count]
    return table[:, 0], table[:, 1]


def _rotate(re: Ints, im: Ints, w_re: Ints, w_im: Ints, shift: int) -> tuple[Ints, Ints]:
    """(re + i im) * (w_re + i w_im), each part rounded once."""
    return round_shift(re * w_re - im * w_im, shift), round_shift(re * w_im + im * w_re, shift)


def _complex_forward(re: Ints, im: Ints) -> tuple[Ints, Ints]:
    """DFT of length m = re.shape[-1], decimation in frequency: natural order in, bit-reversed out."""
    m = re.shape[-1]
    length = m
    while length > 1:
        half = length // 2
        shape = (*re.shape[:-1], m // length, 2, half)
        a, b = re.reshape(shape), im.reshape(shape)
        u_re, v_re, u_im, v_im = a[..., 0, :], a[..., 1, :], b[..., 0, :], b[..., 1, :]
        d_re, d_im = _rotate(u_re - v_re, u_im - v_im, *_twiddles(length, half), spec.TWIDDLE_FRAC_BITS)
        re = np.stack([u_re + v_re, d_re], -2).reshape(re.shape)
        im = np.stack([u_im + v_im, d_im], -2).reshape(im.shape)
        length = half
    return re, im


def _complex_inverse(re: Ints, im: Ints) -> tuple[Ints, Ints]:
    """Unscaled inverse DFT, decimation in time: bit-reversed order in, natural out."""
    m = re.shape[-1]
    length = 2
    while length <= m:
        half = length // 2
        shape = (*re.shape[:-1], m // length, 2, half)
        a, b = re.reshape(shape), im.reshape(shape)
        w_re, w_im = _twiddles(length, half)
        t_re, t_im = _rotate(a[..., 1, :], b[..., 1, :], w_re, -w_im, spec.TWIDDLE_FRAC_BITS)
        u_re, u_im = a[..., 0, :], b[..., 0, :]
        re = np.stack([u_re + t_re, u_re - t_re], -2).reshape(re.shape)
        im = np.stack([u_im + t_im, u_im - t_im], -2).reshape(im.shape)
        length *= 2
    return re, im


def forward_transform(x: Ints) -> Ints:
    """Spectrum of real blocks, unscaled, one rounding per rotation.

    Each level splits a real sequence into sums, which go to the next level, and differences, whose two
    halves form one complex sequence of a quarter of the length: its DFT is bins 1, 5, 9, ... and, by
    symmetry, all odd bins.

    Parameters
    ----------
    x : (..., k) int64

    Returns
    -------
    (..., k/2, 2) int64: real and imaginary parts in the order of :func:`spec.spectrum_order`.
    """
    k = x.shape[-1]
    words = np.empty((*x.shape[:-1], k // 2, 2), np.int64)
    length = k
    while length >= 4:
        half, quarter = length // 2, length // 4
        total, difference = x[..., :half] + x[..., half:], x[..., :half] - x[..., half:]
        c_re, c_im = _rotate(
            difference[..., :quarter],
            -difference[..., quarter:],
            *_twiddles(length, quarter),
            spec.TWIDDLE_FRAC_BITS,
        )
        words[..., quarter:half, 0], words[..., quarter:half, 1] = _complex_forward(c_re, c_im)
        x, length = total, half
    words[..., 0, 0] = x[..., 0] + x[..., 1]
    words[..., 0, 1] = x[..., 0] - x[..., 1]
    return words


def inverse_transform(words: Ints) -> Ints:
    """k times the real blocks whose spectra are `words`, saturated to TIME_BITS.

    Parameters
    ----------
    words : (..., k/2, 2) int64 in the order of :func:`spec.spectrum_order`

    Returns
    -------
    (..., k) int64
    """
    k = 2 * words.shape[-2]
    first, second = words[..., 0, 0], words[..., 0, 1]
    x = np.stack([first + second, first - second], -1)
    length = 4
    while length <= k:
        half, quarter = length // 2, length // 4
        c_re, c_im = _complex_inverse(words[..., quarter:half, 0], words[..., quarter:half, 1])
        w_re, w_im = _twiddles(length, quarter)
        # A bin above k/2 mirrors one below: the pair counts twice, hence one shift less.
        d_re, d_im = _rotate(c_re, c_im, w_re, -w_im, spec.TWIDDLE_FRAC_BITS - 1)
        difference = np.concatenate([d_re, -d_im], -1)
        x = np.concatenate([x + difference, x - difference], -1)
        length *= 2
    return saturate(x, spec.TIME_BITS)
