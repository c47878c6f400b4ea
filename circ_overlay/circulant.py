# SPDX-License-Identifier: BSD-3-Clause
"""Float reference algebra of block-circulant matrices and convolutions; NumPy only.

What the compiler and every test of the fixed-point and hardware models are held against: right first, then
O(n log n). It never rounds, quantises or packs anything; `fixedpoint` and `golden` do that.

A matrix (out_features, in_features) is a ``(p, q)`` grid of ``k x k`` circulant blocks, ``p = ceil(out / k)``
and ``q = ceil(in / k)``, cut off at the matrix's edge. A block is held as its first COLUMN ``w``, as in
`scipy.linalg.circulant`: ``block[r, c] = w[(r - c) % k]``, hence ``block @ x = irfft(rfft(w) * rfft(x))``.
The other convention, first rows, means the transposed block; it would conjugate the spectrum, and never
appears here.

A convolution has one such matrix over its channels for each of its r x s taps. A fully connected layer is the
1 x 1 convolution of a 1 x 1 image and is computed as one: the functions without ``conv2d`` in their names
only reshape.

Arrays are float32 or float64; a result has the wider type of its arguments and is computed in it. Every
function raises ValueError for an array of another type or shape than it documents.

Source: C. Ding et al., "CirCNN: Accelerating and Compressing Deep Neural Networks Using Block-Circulant
Weight Matrices", MICRO 2017 (product and gradients by FFT); Y. Wang et al., "Towards Ultra-High Performance
and Energy Efficiency of Deep Learning Systems", AAAI 2018 (decoupling: sum first, then one inverse FFT).
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "MAX_BLOCK_SIZE", "block_grid", "conv2d", "conv2d_grad", "expand", "expand_conv2d", "matvec",
    "matvec_grad", "project", "project_conv2d",
]

Array: TypeAlias = npt.NDArray[Any]
Pair: TypeAlias = int | tuple[int, int]

MAX_BLOCK_SIZE = 128
"""Largest block size k; the largest transform that the accelerator has."""

_VECTORS, _MATRIX, _GRID = "(..., features)", "(out_features, in_features)", "(p, q, k)"
_IMAGES, _KERNEL = "(batch, channels, height, width)", "(out_channels, in_channels, r, s)"
_TAPS = "(p, q, r, s, k)"


def block_grid(out_features: int, in_features: int, block_size: int) -> tuple[int, int]:
    """Return the grid ``(p, q)`` of k x k blocks that covers an (out_features, in_features) matrix.

    Raises
    ------
    ValueError
        If a size is less than 1, or `block_size` is not from 1 to 128.
    """
    for name, size in (("out_features", out_features), ("in_features", in_features)):
        if size < 1:
            raise ValueError(f"{name} is {size}; a matrix needs at least 1: give the layer's true size")
    if not 1 <= block_size <= MAX_BLOCK_SIZE:
        raise ValueError(
            f"block_size is {block_size}; allowed is 1 (uncompressed) to {MAX_BLOCK_SIZE}: choose another"
        )
    return -(-out_features // block_size), -(-in_features // block_size)


def expand(w: Array, out_features: int, in_features: int) -> Array:
    """Write a block-circulant matrix out in full: (p, q, k) -> (out_features, in_features)."""
    return expand_conv2d(_taps(w), out_features, in_features)[:, :, 0, 0]


def expand_conv2d(w: Array, out_channels: int, in_channels: int) -> Array:
    """Write a block-circulant kernel out in full: (p, q, r, s, k) -> (out_channels, in_channels, r, s)."""
    _check("w", w, _TAPS)
    _check_grid(w, out_channels, in_channels)
    p, q, r, s, k = w.shape
    delay = np.arange(k)
    blocks = w[..., (delay[:, np.newaxis] - delay) % k]  # (p, q, r, s, row, column)
    dense = blocks.transpose(0, 4, 1, 5, 2, 3).reshape(p * k, q * k, r, s)
    return np.ascontiguousarray(dense[:out_channels, :in_channels])


def project(dense: Array, block_size: int) -> Array:
    """Return the block-circulant matrix nearest to `dense` in the Frobenius norm.

    Block-circulant matrices are the span of the blocks' wrapped diagonals, which do not overlap; so the
    nearest one holds on each diagonal the mean of the entries there. In a block that the matrix's edge cuts,
    only entries inside the matrix count; a diagonal wholly outside gets 0.

    Parameters
    ----------
    dense : numpy.ndarray
        (out_features, in_features).
    block_size : int
        k, 1 to 128.

    Returns
    -------
    numpy.ndarray
        (p, q, k) first columns.
    """
    _check("dense", dense, _MATRIX)
    return project_conv2d(dense[:, :, np.newaxis, np.newaxis], block_size)[:, :, 0, 0, :]


def project_conv2d(dense: Array, block_size: int) -> Array:
    """Project every tap as `project` does: (out_channels, in_channels, r, s) -> (p, q, r, s, k)."""
    _check("dense", dense, _KERNEL)
    out_channels, in_channels, _, _ = dense.shape
    k = block_size
    p, q = block_grid(out_channels, in_channels, k)
    column = np.arange(k)
    row = (column + column[:, np.newaxis]) % k  # (delay, column): one row lists one wrapped diagonal

    def diagonal_sums(kernel: Array) -> Array:
        edges = ((0, p * k - out_channels), (0, q * k - in_channels), (0, 0), (0, 0))
        blocks = np.pad(kernel, edges).reshape(p, k, q, k, *kernel.shape[2:])
        diagonals: Array = blocks[:, row, :, column].sum(axis=1)  # (delay, p, q, r, s)
        return np.moveaxis(diagonals, 0, -1)

    # Summed in float32, a mean of 128 entries would lose bits that the result still has room for.
    sums = diagonal_sums(dense.astype(np.float64))
    support = diagonal_sums(np.ones((out_channels, in_channels, 1, 1)))
    w: Array = sums / np.maximum(support, 1)
    return w.astype(dense.dtype)


def matvec(w: Array, x: Array, out_features: int) -> Array:
    """Multiply vectors by a block-circulant matrix in O(n log n).

    ``y_i = irfft(sum_j rfft(w_ij) * rfft(x_j))``: the sum is taken on spectra, so that a vector costs q
    forward transforms and p inverse ones instead of p * q.

    Parameters
    ----------
    w : numpy.ndarray
        (p, q, k) first columns.
    x : numpy.ndarray
        (..., in_features), with any number of leading dimensions.
    out_features : int
        Rows of the matrix.

    Returns
    -------
    numpy.ndarray
        (..., out_features).
    """
    return conv2d(_taps(w), _pixels("x", x), out_features).reshape(*x.shape[:-1], out_features)


def matvec_grad(w: Array, x: Array, grad_y: Array) -> tuple[Array, Array]:
    """Gradients of a scalar loss through ``y = matvec(w, x, out_features)``.

    Parameters
    ----------
    w, x : numpy.ndarray
        (p, q, k) and (..., in_features), as given to `matvec`.
    grad_y : numpy.ndarray
        (..., out_features): gradient with respect to y.

    Returns
    -------
    grad_w, grad_x : numpy.ndarray
        (p, q, k), summed over the leading dimensions, and (..., in_features).
    """
    pixels, grad_pixels = _pixels("x", x), _pixels("grad_y", grad_y)
    if x.shape[:-1] != grad_y.shape[:-1]:
        raise ValueError(
            f"x has shape {x.shape} and grad_y {grad_y.shape}; all dimensions but the last must be equal: "
            "give the gradient with respect to matvec(w, x, out_features)"
        )
    grad_w, grad_x = conv2d_grad(_taps(w), pixels, grad_pixels)
    return grad_w[:, :, 0, 0, :], grad_x.reshape(x.shape)


def conv2d(w: Array, x: Array, out_channels: int, stride: Pair = 1, padding: Pair = 0) -> Array:
    """Block-circulant convolution over images (cross-correlation, as `torch.nn.functional.conv2d`).

    A pixel's channels are transformed once however many taps read them, and an output pixel's once: the sum
    over taps and input blocks is taken on spectra.

    Parameters
    ----------
    w : numpy.ndarray
        (p, q, r, s, k) first columns, for each of the r x s taps.
    x : numpy.ndarray
        (batch, in_channels, height, width).
    out_channels : int
        Channels of the result.
    stride, padding : int or (int, int)
        Step between output pixels, and rows and columns of zeros on each side of the image; vertical first.

    Returns
    -------
    numpy.ndarray
        (batch, out_channels, (height + 2 padding - r) // stride + 1, and the same of the width).
    """
    _check("w", w, _TAPS)
    _check("x", x, _IMAGES)
    _check_grid(w, out_channels, x.shape[1])
    p, q, r, s, k = w.shape
    x_bins = _spectra(x, q, k, padding)
    size, windows = _windows((r, s), x_bins.shape[2:4], stride)
    w_bins = _rfft(w).transpose(2, 3, 4, 1, 0).reshape(r * s, -1, q, p)  # (taps, bins, q, p)
    y_rows = sum(_rows(x_bins[window]) @ tap for tap, window in zip(w_bins, windows, strict=True))
    return _signals(np.asarray(y_rows).reshape(len(x_bins), len(x), *size, p), out_channels, k)


def conv2d_grad(
    w: Array, x: Array, grad_y: Array, stride: Pair = 1, padding: Pair = 0
) -> tuple[Array, Array]:
    """Gradients of a scalar loss through ``y = conv2d(w, x, out_channels, stride, padding)``.

    Parameters
    ----------
    w, x, stride, padding
        As given to `conv2d`.
    grad_y : numpy.ndarray
        Gradient with respect to y, of y's shape.

    Returns
    -------
    grad_w, grad_x : numpy.ndarray
        Of the shapes of `w` and `x`.
    """
    _check("w", w, _TAPS)
    _check("x", x, _IMAGES)
    _check("grad_y", grad_y, _IMAGES)
    _check_grid(w, grad_y.shape[1], x.shape[1])
    p, q, r, s, k = w.shape
    x_bins = _spectra(x, q, k, padding)
    size, windows = _windows((r, s), x_bins.shape[2:4], stride)
    if (len(grad_y), *grad_y.shape[2:]) != (len(x), *size):
        raise ValueError(
            f"grad_y has shape {grad_y.shape}; allowed is {(len(x), grad_y.shape[1], *size)} for this x, "
            "stride and padding: give the gradient with respect to conv2d's result"
        )
    dtype = np.result_type(w, x, grad_y, np.complex64)
    g_rows = _rows(_spectra(grad_y, p, k))  # (bins, pixels, p)
    # A block's transpose has the conjugate spectrum; and circulant(w) @ x is circulant(x) @ w.
    w_bins = _rfft(w).transpose(2, 3, 4, 0, 1).reshape(r * s, -1, p, q).conj()  # (taps, bins, p, q)
    grad_w_bins, grad_x_bins = np.empty_like(w_bins, dtype), np.zeros_like(x_bins, dtype)
    for tap, window in enumerate(windows):
        grad_w_bins[tap] = g_rows.transpose(0, 2, 1) @ _rows(x_bins[window]).conj()
        grad_x_bins[window] += (g_rows @ w_bins[tap]).reshape(x_bins[window].shape)
    grad_w = _irfft(grad_w_bins.transpose(2, 3, 0, 1), k).reshape(w.shape)
    top, left = _pair("padding", padding, 0)
    inside = grad_x_bins[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return grad_w, _signals(inside, x.shape[1], k)


def _check(name: str, array: Array, shape: str) -> None:
    """Refuse an array that is not float32 or float64 of the number of dimensions that `shape` spells."""
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} has dtype {array.dtype}; allowed are float32 and float64: use .astype()")
    if array.ndim < 1 or (shape != _VECTORS and array.ndim != shape.count(",") + 1):
        raise ValueError(f"{name} has shape {array.shape}; allowed is {shape}: reshape or transpose it")


def _check_grid(w: Array, out_features: int, in_features: int) -> None:
    """Refuse a weight whose grid of blocks does not cover exactly the matrix's size."""
    grid = block_grid(out_features, in_features, w.shape[-1])
    if w.shape[:2] != grid:
        raise ValueError(
            f"w has a grid of {w.shape[:2]} blocks of size {w.shape[-1]}; {out_features} outputs and "
            f"{in_features} inputs need (p, q) = {grid}: check the sizes, or build w with project()"
        )


def _taps(w: Array) -> Array:
    """View a matrix's weight (p, q, k) as that of a 1 x 1 convolution."""
    _check("w", w, _GRID)
    return w[:, :, np.newaxis, np.newaxis, :]


def _pixels(name: str, x: Array) -> Array:
    """View vectors (..., features) as images of one pixel."""
    _check(name, x, _VECTORS)
    return x.reshape(-1, x.shape[-1], 1, 1)


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) of an argument that may be one number for both."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} is {value}; allowed is an integer of at least {least}, or a pair of them")
    return pair[0], pair[1]


def _windows(
    taps: tuple[int, ...], image: tuple[int, ...], stride: Pair
) -> tuple[tuple[int, int], list[tuple[slice, ...]]]:
    """Return the output's (height, width) and, for each tap, the padded image's pixels that it reads."""
    down, across = _pair("stride", stride, 1)
    if taps[0] > image[0] or taps[1] > image[1]:
        raise ValueError(
            f"w has {taps[0]} x {taps[1]} taps, more than the padded image's {image[0]} x {image[1]} pixels: "
            "pad more, or use a smaller kernel"
        )
    height, width = (image[0] - taps[0]) // down + 1, (image[1] - taps[1]) // across + 1
    rows = [slice(row, row + height * down, down) for row in range(taps[0])]
    columns = [slice(column, column + width * across, across) for column in range(taps[1])]
    return (height, width), [(slice(None), slice(None), row, column) for row in rows for column in columns]


def _rows(bins: Array) -> Array:
    """Flatten spectra (bins, batch, height, width, blocks) to (bins, pixels, blocks), a GEMM a bin."""
    return bins.reshape(len(bins), -1, bins.shape[-1])


def _spectra(x: Array, blocks: int, k: int, padding: Pair = 0) -> Array:
    """Transform the channels of images block by block: complex (bins, batch, height, width, blocks)."""
    down, across = _pair("padding", padding, 0)
    batch, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, blocks * k - channels), (down, down), (across, across)))
    pixels = padded.reshape(batch, blocks, k, height + 2 * down, width + 2 * across)
    return np.moveaxis(_rfft(pixels.transpose(0, 3, 4, 1, 2)), -1, 0)


def _signals(bins: Array, channels: int, k: int) -> Array:
    """Invert `_spectra` and drop the surplus of the last block: real (batch, channels, height, width)."""
    pixels = _irfft(np.moveaxis(bins, 0, -1), k)  # (batch, height, width, blocks, k)
    flat = pixels.reshape(*pixels.shape[:3], bins.shape[-1] * k)[..., :channels]
    return np.ascontiguousarray(np.moveaxis(flat, -1, 1))


def _rfft(x: Array) -> Array:
    """Transform the last axis in x's own precision, which numpy before 2.0 would widen."""
    return np.fft.rfft(x).astype(np.result_type(x, np.complex64), copy=False)


def _irfft(bins: Array, k: int) -> Array:
    """Invert `_rfft` to k real samples; k must be told, because k // 2 + 1 bins fit an even and an odd k."""
    return np.fft.irfft(bins, n=k).astype(bins.real.dtype, copy=False)
