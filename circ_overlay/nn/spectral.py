# SPDX-License-Identifier: BSD-3-Clause
"""The block-circulant product of the PyTorch layers, and the transforms that it is made of.

A product is three steps: analyse the input's blocks, multiply each bin's little matrix, synthesise the
output's blocks. It never builds the dense matrix, transforms every input and output block once however many
blocks there are between them, and takes a weight's spectrum apart from the product, so that a recurrent layer
pays for it once per sequence.

A bin has one of two forms, chosen by the block size (measured: docs/training_layers.md):

- k > 32: complex, ``rfft`` and ``irfft``, k // 2 + 1 bins.
- k <= 32: real. A complex product costs three real ones (Karatsuba), so that ``circulant(w) @ x`` is
  ``C.T @ ((A @ w) * (A @ x))`` with two constant matrices of about 3k/2 rows; as matrix products they beat a
  Fourier transform this short, and write the bins first, where the product wants them.

Sources: as in `circ_overlay.circulant`; bilinear form of a convolution: S. Winograd, "Arithmetic Complexity
of Computations", SIAM 1980.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = [
    "Array",
    "Rounding",
    "check_dtype",
    "check_result",
    "constants",
    "dense_blocks",
    "product",
    "real_dft",
    "spectrum",
]

Array: TypeAlias = npt.NDArray[Any]
Rounding: TypeAlias = Callable[[Tensor], Tensor]
"""What a layer does to its weight before it multiplies by it."""

_LONGEST_REAL = 32  # block size up to which the real form is the faster one


def spectrum(weight: Tensor) -> Tensor:
    """Transform first columns (p, q, k) for `product`: (bins, p, q), real or complex as the block size wants.

    The gradient that flows through it is scaled bin by bin in a way that only `product` and it agree on.
    """
    if torch.is_grad_enabled():
        bins: Tensor = _Spectrum.apply(weight)  # type: ignore[no-untyped-call]
        return bins
    return _analyse(weight)


def product(x: Tensor, w_bins: Tensor, block_size: int, out_features: int, groups: int = 1) -> Tensor:
    """Multiply rows by a block-circulant matrix, or by several stacked ones.

    Parameters
    ----------
    x : torch.Tensor
        (n, in_features), float32 or float64.
    w_bins : torch.Tensor
        `spectrum` of the (p, q, k) first columns, with p = groups * ceil(out_features / k).
    block_size : int
        k.
    out_features : int
        Rows of each of the matrices.
    groups : int
        How many matrices are stacked, each cut off at its own last row.

    Returns
    -------
    torch.Tensor
        (n, groups * out_features), of x's dtype.
    """
    if torch.is_grad_enabled():
        arguments = (x, w_bins, block_size, out_features, groups)
        y: Tensor = _Product.apply(*arguments)  # type: ignore[no-untyped-call]
    else:  # the way round autograd's own cost, which a small layer would notice
        y = _multiply(x, w_bins, block_size, out_features, groups)[0]
    check_result(y, x)
    return y


def dense_blocks(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """Write first columns (p, q, ..., k) out in full: (out_features, in_features, ...), a copy."""
    p, q, *taps, k = weight.shape
    delay = torch.arange(k, device=weight.device)
    blocks = weight[..., (delay[:, None] - delay) % k]  # (p, q, ..., row, column)
    grid = blocks.movedim((-2, -1), (1, 3))  # (p, row, q, column, ...)
    return grid.reshape(p * k, q * k, *taps)[:out_features, :in_features].clone()


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless both are float32 or both float64, in which alone there are transforms."""
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x has dtype {x.dtype} and the layer's weight {weight.dtype}; allowed is float32 or float64, "
            "the same for both: convert one with .to(dtype)"
        )


def check_result(y: Tensor, x: Tensor) -> None:
    """Raise ValueError if autocast lowered the precision of a step, as it does of some and not of others."""
    if y.dtype != x.dtype:
        raise ValueError(
            f"the layer was called under torch.autocast, which made {y.dtype} of {x.dtype}; it computes in "
            f"float32 or float64 alone: call it within torch.autocast({x.device.type!r}, enabled=False)"
        )


def real_dft(k: int) -> tuple[Array, Array]:
    """Forward and inverse transform of k real samples, float64 (2 bins, k) each.

    ``inverse.T @ forward`` is the identity. Real parts of all k // 2 + 1 bins come first, then their
    imaginary parts, of which those of bin 0 and k / 2 are 0.
    """
    bins = k // 2 + 1
    forward = np.fft.rfft(np.eye(k)).T
    unit = np.eye(bins)
    inverse = np.concatenate([np.fft.irfft(unit, k), np.fft.irfft(1j * unit, k)])
    return np.concatenate([forward.real, forward.imag]), inverse


def _bilinear(k: int) -> tuple[Array, Array]:
    """Matrices A and C of the real form: ``circulant(w) @ x == C.T @ ((A @ w) * (A @ x))``."""
    forward, inverse = real_dft(k)
    (re, im), (to_re, to_im) = np.split(forward, 2), np.split(inverse, 2)
    alone = [f for f in range(k // 2 + 1) if 2 * f % k == 0]  # real bins: one product
    pairs = [f for f in range(k // 2 + 1) if 2 * f % k]
    # With a = re re', b = im im', c = (re + im)(re' + im'), the product's re is a - b, its im c - a - b.
    analysis = [re[alone], re[pairs], im[pairs], (re + im)[pairs]]
    synthesis = [to_re[alone], (to_re - to_im)[pairs], (-to_re - to_im)[pairs], to_im[pairs]]
    return np.concatenate(analysis), np.concatenate(synthesis)


@functools.lru_cache(maxsize=256)
def constants(
    build: Callable[[int], tuple[Array, ...]], k: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the arrays ``build(k)`` as tensors, made once for each dtype and device."""
    # Made in inference mode, they could never be saved for a later backward pass.
    with torch.inference_mode(False):
        return tuple(torch.tensor(array, dtype=dtype, device=device) for array in build(k))


def _matrices(k: int, like: Tensor) -> tuple[Tensor, ...] | tuple[None, None]:
    """Matrices A and C, or None twice where the transform is a Fourier transform."""
    return (None, None) if k > _LONGEST_REAL else constants(_bilinear, k, like.dtype, like.device)


def _to_bins(blocks: Tensor, matrix: Tensor | None) -> Tensor:
    """Transform (n, blocks, k): (bins, n, blocks).

    Bins come first because the spectral product is then one small dense matrix product per bin, which a
    batched GEMM does far faster than a broadcast product over (n, p, q, bins) and without that array's
    memory.
    """
    n, count, k = blocks.shape
    if matrix is not None:
        return (matrix @ blocks.reshape(n * count, k).T).view(len(matrix), n, count)
    if n == 0:  # MKL's transforms refuse an empty batch, torch's linear layers do not
        return blocks.new_empty((k // 2 + 1, 0, count), dtype=blocks.dtype.to_complex())
    bins: Tensor = torch.fft.rfft(blocks)
    return bins.permute(2, 0, 1)


def _from_bins(bins: Tensor, matrix: Tensor | None, k: int) -> Tensor:
    """Transform (bins, n, blocks) back: (n, blocks, k). Inverse, or adjoint up to scale, of `_to_bins`."""
    m, n, count = bins.shape
    if matrix is not None:
        return (bins.reshape(m, n * count).T @ matrix).view(n, count, k)
    if n == 0:
        return bins.real.new_empty((0, count, k))
    blocks: Tensor = torch.fft.irfft(bins.permute(1, 2, 0), n=k)
    return blocks


def _split(rows: Tensor, groups: int, k: int) -> Tensor:
    """Cut rows (n, groups * features) into blocks (n, groups * blocks, k), zeros after each group's last."""
    n, features = len(rows), rows.shape[1] // groups
    if features % k:
        rows = functional.pad(rows.reshape(n, groups, features), (0, -features % k))
    return rows.reshape(n, groups * -(-features // k), k)


def _join(blocks: Tensor, groups: int, features: int) -> Tensor:
    """Inverse of `_split`: (n, groups * features), the surplus of each group's last block dropped."""
    n, count, k = blocks.shape
    if count * k != groups * features:
        blocks = blocks.reshape(n, groups, count // groups * k)[:, :, :features]
    return blocks.reshape(n, groups * features)


def _analyse(weight: Tensor) -> Tensor:
    """Compute what `spectrum` returns."""
    # Contiguous, so that a product which meets it again, as at every step of a sequence, need not copy it.
    return _to_bins(weight, _matrices(weight.shape[2], weight)[0]).contiguous()


def _multiply(x: Tensor, w_bins: Tensor, k: int, out_features: int, groups: int) -> tuple[Tensor, Tensor]:
    """Compute what `product` returns, and the input's spectrum (bins, n, q)."""
    analysis, synthesis = _matrices(k, x)
    x_bins = _to_bins(_split(x, 1, k), analysis)
    y = _from_bins(torch.bmm(x_bins, w_bins.mT), synthesis, k)
    return _join(y, groups, out_features), x_bins


class _Spectrum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.block_size = weight.shape[2]
        return _analyse(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bins: Tensor) -> Tensor:
        k = ctx.block_size
        return _from_bins(grad_bins, _matrices(k, grad_bins.real)[0], k)


class _Product(torch.autograd.Function):
    """The product's forward and backward pass; the two spectra of the first are used again in the second.

    Backward transforms with the adjoint of each step: in the real form its matrix transposed, in the complex
    one a Fourier transform and conjugate spectra (a circulant block's transpose has the conjugate spectrum;
    ``circulant(w) @ x`` is also ``circulant(x) @ w``, so that the weight sees the conjugate of x). The
    adjoint of irfft is rfft but for a factor per bin, whose inverse the adjoint of rfft would bring: both are
    left out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_bins: Tensor, k: int, out_features: int, groups: int) -> Tensor:
        y, x_bins = _multiply(x, w_bins, k, out_features, groups)
        ctx.save_for_backward(x_bins, w_bins)
        ctx.block_size, ctx.in_features, ctx.groups = k, x.shape[1], groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_bins, w_bins = ctx.saved_tensors
        k = ctx.block_size
        analysis, synthesis = _matrices(k, grad_y)
        g_bins = _to_bins(_split(grad_y, ctx.groups, k), synthesis)
        grad_x = grad_bins = None
        if ctx.needs_input_grad[0]:
            grad_blocks = _from_bins(torch.bmm(g_bins, w_bins.conj()), analysis, k)
            grad_x = _join(grad_blocks, 1, ctx.in_features)
        if ctx.needs_input_grad[1]:
            grad_bins = torch.bmm(g_bins.mT, x_bins.conj())
        return grad_x, grad_bins, None, None, None
