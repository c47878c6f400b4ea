# SPDX-License-Identifier: BSD-3-Clause
"""Integer model of the core: every bit, no speed. The other implementations are measured against it.

The functions take int64 arrays with any leading axes, so a whole batch goes through at once. Where each
rounding happens, and why there, is written in docs/numerics.md; this module is that page in NumPy.
It never sees a float.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import spec
from .fixedpoint import round_shift, saturate
from .program import Layer, Program
from .tables import SIGMOID, TWIDDLES

__all__ = ["activate", "enter", "forward_transform", "inverse_transform", "linear", "run", "spectral_product"]

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


def spectral_product(weights: Ints, spectra: Ints) -> Ints:
    """Sum over input blocks of weight times spectrum, exact in ACC_BITS.

    Parameters
    ----------
    weights : (p, q, k/2, 2) int64
    spectra : (batch, q, k/2, 2) int64

    Returns
    -------
    (batch, p, k/2, 2) int64. Word 0 is two real products, the others are complex ones.
    """
    w = np.moveaxis(weights, (2, 1, 0), (0, 1, 2))  # (k/2, q, p, 2)
    x = np.moveaxis(spectra, 2, 0)  # (k/2, batch, q, 2)
    rr, ii = x[..., 0] @ w[..., 0], x[..., 1] @ w[..., 1]
    ri, ir = x[..., 0] @ w[..., 1], x[..., 1] @ w[..., 0]
    re, im = rr - ii, ri + ir
    re[0], im[0] = rr[0], ii[0]
    return np.moveaxis(np.stack([re, im], -1), 0, 2)


def activate(v: Ints, activation: int, width: int) -> Ints:
    """The activation and the saturation to `width` bits behind it.

    Parameters
    ----------
    v : int64, the affine's result after its rounding shift. For identity and relu in the format of the
        output; for sigmoid and tanh with `width` fraction bits, saturated here to [-8, 8).

    Returns
    -------
    int64 of `width` bits; for sigmoid and tanh with `width` - 1 fraction bits.
    """
    if activation == spec.Activation.IDENTITY:
        return saturate(v, width)
    if activation == spec.Activation.RELU:
        return saturate(np.maximum(v, 0), width)
    tanh = activation == spec.Activation.TANH
    v = saturate(v, width + spec.PREACT_GUARD_BITS)
    # tanh(x) = 2 sigmoid(2x) - 1, so one table serves both; |u| < 8 is the table's domain.
    u = np.minimum(np.abs(v) << (1 if tanh else 0), (8 << width) - 1)
    position_bits = width + 3 - spec.ACTIVATION_LOG2_SEGMENTS
    segment, position = u >> position_bits, u & ((1 << position_bits) - 1)
    chord = SIGMOID[segment + 1] - SIGMOID[segment]
    curve = SIGMOID[segment] + ((chord * position) >> position_bits)
    curve = np.where(v < 0, -curve, curve)
    half = 0 if tanh else 1 << (spec.ACTIVATION_FRAC_BITS - 1)
    drop = spec.ACTIVATION_FRAC_BITS - (width - 1) - (1 if tanh else 0)
    return saturate(round_shift(curve + half, drop), width)


def enter(x: Ints, u8: bool, width: int) -> Ints:
    """Stream elements as the first layer takes them.

    Unsigned bytes are shifted up, see spec.u8_shift; int16 elements saturate to `width` bits.
    """
    return x << spec.u8_shift(width) if u8 else saturate(x, width)


def linear(layer: Layer, x: Ints, width: int) -> Ints:
    """A block-circulant fully connected layer on a batch.

    Parameters
    ----------
    layer : the layer, see :class:`circ_overlay.program.Layer`
    x : (batch, in_features) int64, values of `width` bits
    width : W of the core

    Returns
    -------
    (batch, out_features) int64, values of `width` bits.
    """
    p, q, half, _ = layer.weights.shape
    k = 2 * half
    padded = np.zeros((len(x), q * k), np.int64)
    padded[:, : layer.in_features] = x
    spectra = forward_transform(padded.reshape(len(x), q, k))
    sums = spectral_product(layer.weights.astype(np.int64), spectra)
    sums = saturate(round_shift(sums, layer.acc_shift), spec.SUM_BITS)
    y = inverse_transform(sums).reshape(len(x), p * k)[:, : layer.out_features]
    v = round_shift(y * layer.scale + layer.bias, layer.affine_shift)
    return activate(v, layer.activation, width)


def run(program: Program, x: NDArray[np.generic], *, every_layer: bool = False) -> Ints | list[Ints]:
    """A program on a batch of quantised inputs.

    Parameters
    ----------
    program : the compiled network
    x : (batch, in_features) integers in the program's input format
    every_layer : return the outputs of all layers as a list instead of the last one's

    Returns
    -------
    (batch, out_features) int64, or a list of such arrays.

    Raises
    ------
    ValueError
        `x` has another shape, or a value that the input format cannot hold.
    """
    x = enter(program.input.check(x), program.input.storage == "uint8", program.width)
    outputs: list[Ints] = []
    for layer in program.layers:
        x = linear(layer, x, program.width)
        outputs.append(x)
    return outputs if every_layer else x
