# SPDX-License-Identifier: BSD-3-Clause
"""What an instruction computes, on int64 arrays (batch, rows, columns, channels)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..fixedpoint import limits, round_shift, saturate
from ..layer import Layer
from ..tables import SIGMOID
from ..windows import windows
from .transform import forward_transform, inverse_transform

__all__ = ["activate", "apply", "enter", "reduce", "spectral_product"]

Ints = NDArray[np.int64]


def _exact_matmul(a: Ints, b: Ints) -> Ints:
    """a @ b of integers whose sums of products stay below 2**53: exact in float64, and BLAS is fast at it."""
    exact: Ints = np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return exact


def spectral_product(weights: Ints, spectra: Ints) -> Ints:
    """Sum over input blocks of weight times spectrum, exact in ACC_BITS.

    Parameters
    ----------
    weights : (p, q, k/2, 2) int64
    spectra : (..., q, k/2, 2) int64

    Returns
    -------
    (..., p, k/2, 2) int64. Word 0 is two real products, the others are complex ones.
    """
    p, q, half, _ = weights.shape
    w = np.moveaxis(weights, (2, 1, 0), (0, 1, 2))  # (k/2, q, p, 2)
    x = np.moveaxis(spectra.reshape(-1, q, half, 2), 1, 3).transpose(1, 0, 2, 3)  # (k/2, n, 2, q)
    # (re, im) of q inputs times a matrix of 2q x 2p: [[re, im], [-im, re]], for word 0 [[re, 0], [0, im]].
    matrix = np.empty((half, 2, q, 2, p), np.int64)
    matrix[:, 0, :, 0] = matrix[:, 1, :, 1] = w[..., 0]
    matrix[:, 0, :, 1], matrix[:, 1, :, 0] = w[..., 1], -w[..., 1]
    matrix[0, 0, :, 1] = matrix[0, 1, :, 0] = 0
    matrix[0, 1, :, 1] = w[0, ..., 1]
    sums = _exact_matmul(x.reshape(half, -1, 2 * q), matrix.reshape(half, 2 * q, 2 * p))
    ordered = sums.reshape(half, -1, 2, p).transpose(1, 3, 0, 2)
    return ordered.reshape(*spectra.shape[:-3], p, half, 2)


def activate(v: Ints, activation: int, width: int, ceiling: int | None = None) -> Ints:
    """The activation and the saturation to `width` bits behind it.

    Parameters
    ----------
    v : int64, the affine's result after its rounding shift. For identity and relu in the format of the
        output; for sigmoid and tanh with `width` fraction bits, saturated here to [-8, 8).
    ceiling : largest output of a relu; None: what the width allows.

    Returns
    -------
    int64 of `width` bits; for sigmoid and tanh with `width` - 1 fraction bits.
    """
    if activation == spec.Activation.IDENTITY:
        return saturate(v, width)
    if activation == spec.Activation.RELU:
        return np.clip(v, 0, limits(width)[1] if ceiling is None else ceiling)
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


def _windows(layer: Layer, x: Ints, outside: int = 0) -> Iterator[Ints]:
    return windows(x, layer.result_shape[:2], layer.taps, layer.stride, layer.padding, outside)


def _fill(x: Ints, channels: int) -> Ints:
    """The last axis filled up to `channels` with zeros."""
    return np.concatenate([x, np.zeros((*x.shape[:-1], channels - x.shape[-1]), np.int64)], -1)


def _circulant(layer: Layer, x: Ints) -> tuple[Ints, bool]:
    """Sums behind the accumulators, spectra unless k = 1: (batch, rows, columns, p, ...)."""
    w, k = layer.weights.astype(np.int64), layer.block_size
    taps = layer.taps[0] * layer.taps[1]
    q = w.shape[1] // (1 if layer.gather else taps)
    if k == 1:
        pixels = _fill(x, spec.MAP_WORD * q)
        matrices = w.reshape(len(w), taps, -1).transpose(1, 2, 0)
        return sum(_exact_matmul(v, m) for v, m in zip(_windows(layer, pixels), matrices)), False  # type: ignore[return-value]
    if layer.gather:
        patches = np.concatenate(list(_windows(layer, x)), -1)
        blocks = _fill(patches, q * k).reshape(*patches.shape[:-1], q, k)
        return spectral_product(w, forward_transform(blocks)), True
    spectra = forward_transform(_fill(x, q * k).reshape(*x.shape[:-1], q, k))
    of_taps = w.reshape(len(w), taps, q, k // 2, 2).swapaxes(0, 1)
    return sum(spectral_product(m, v) for v, m in zip(_windows(layer, spectra), of_taps)), True  # type: ignore[return-value]


def reduce(layer: Layer, x: Ints, factor: Ints | None = None) -> Ints:
    """The value that the affine takes, before its rounding shift: what `acc_shift` is chosen from.

    Returns
    -------
    (batch, rows, columns, p, k/2, 2) int64 spectral sums for CIRCULANT with k > 1, else
    (batch, rows, columns, channels).
    """
    if layer.opcode == spec.Opcode.CIRCULANT:
        return _circulant(layer, x)[0]
    if layer.opcode == spec.Opcode.PRODUCT:
        (pixels,) = _windows(layer, x)
        return pixels if factor is None else pixels * factor
    if layer.opcode == spec.Opcode.SUM:
        return sum(_windows(layer, x))  # type: ignore[return-value]
    lowest = -(1 << 62)  # pixels outside the input never win; a window of nothing else gives the limit below
    largest: Ints = np.maximum.reduce(list(_windows(layer, x, lowest)))
    return largest


def apply(
    layer: Layer, x: Ints, width: int, *, residual: Ints | None = None, factor: Ints | None = None
) -> Ints:
    """A layer on a batch.

    Parameters
    ----------
    layer : see :class:`circ_overlay.layer.Layer`; where its maps lie does not matter here
    x : (batch, *source shape) int64, values of `width` bits
    width : W of the core
    residual, factor : (batch, *result shape) int64, for layers that have them

    Returns
    -------
    (batch, *target shape) int64, values of `width` bits.
    """
    y = reduce(layer, x, factor)
    if layer.opcode == spec.Opcode.CIRCULANT:
        y = saturate(round_shift(y, layer.acc_shift), spec.SUM_BITS)
        if layer.block_size > 1:
            y = inverse_transform(y).reshape(*y.shape[:3], -1)[..., : layer.target.channels]
    elif layer.opcode == spec.Opcode.MAX:
        y = round_shift(np.maximum(y, limits(width)[0]), layer.acc_shift)
    else:
        y = saturate(round_shift(y, layer.acc_shift), spec.TIME_BITS)
    v = y * layer.scale + layer.bias
    if residual is not None:
        v = v + (residual << layer.add_shift)
    out = activate(round_shift(v, layer.affine_shift), layer.activation, width, layer.ceiling)
    rows, columns = layer.pool
    batch, height, columns_out, channels = len(out), layer.target.height, layer.target.width, layer.target.channels
    pooled: Ints = out.reshape(batch, height, rows, columns_out, columns, channels).max((2, 4))
    return pooled
