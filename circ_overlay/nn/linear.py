# SPDX-License-Identifier: BSD-3-Clause
"""A fully connected layer with a block-circulant weight matrix, for training with PyTorch.

The matrix is a ``(p, q)`` grid of ``k x k`` circulant blocks, each held as its first COLUMN ``w`` (the
convention of `scipy.linalg.circulant`), so that ``block @ x = irfft(rfft(w) * rfft(x))``. The layer never
builds the dense matrix to compute: both directions cost O(n log n), with q forward transforms and p inverse
ones per vector, however many blocks there are between them. Sources: as in `circ_overlay.circulant`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from circ_overlay.circulant import block_grid, project

__all__ = ["BlockCirculantLinear"]


def _spectrum(rows: Tensor, blocks: int, block_size: int) -> Tensor:
    """Transform ``rows`` (n, features) block by block: complex (bins, n, blocks), bins = k // 2 + 1.

    Bins come first because the spectral product is then one small dense matrix product per bin, which a
    batched GEMM does far faster than a broadcast product over (n, p, q, bins) and without that array's
    memory.
    """
    if len(rows) == 0:  # MKL's transforms refuse an empty batch, torch's linear layers do not
        return rows.new_empty((block_size // 2 + 1, 0, blocks), dtype=rows.dtype.to_complex())
    padded = functional.pad(rows, (0, blocks * block_size - rows.shape[1]))
    bins: Tensor = torch.fft.rfft(padded.reshape(-1, blocks, block_size))
    return bins.permute(2, 0, 1)


def _signal(spectrum: Tensor, features: int, block_size: int) -> Tensor:
    """Inverse of `_spectrum`: real (n, features), the surplus of the last block dropped."""
    if spectrum.shape[1] == 0:
        return spectrum.real.new_empty((0, features))
    blocks: Tensor = torch.fft.irfft(spectrum.permute(1, 2, 0), n=block_size)
    return blocks.flatten(1)[:, :features]


class _BlockCirculantProduct(torch.autograd.Function):
    """``y = W x`` for rows x (n, in) and first columns w (p, q, k), with hand-written gradients.

    Autograd through `torch.fft` would give the same numbers but keep more and transform more often: here the
    two spectra of the forward pass are saved and used again, so that backward needs p forward transforms per
    row and q inverse ones, and p * q inverse ones for the weight, whatever the batch is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out_features: int) -> Tensor:
        _, q, block_size = weight.shape
        x_bins = _spectrum(x, q, block_size)
        w_bins = torch.fft.rfft(weight).permute(2, 1, 0)  # (bins, q, p)
        ctx.save_for_backward(x_bins, w_bins)
        ctx.in_features, ctx.block_size = x.shape[1], block_size
        return _signal(torch.bmm(x_bins, w_bins), out_features, block_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_bins, w_bins = ctx.saved_tensors
        g_bins = _spectrum(grad_y, w_bins.shape[2], ctx.block_size)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            # A circulant block's transpose has the conjugate spectrum.
            grad_x = _signal(torch.bmm(g_bins, w_bins.mH), ctx.in_features, ctx.block_size)
        if ctx.needs_input_grad[1]:
            # circulant(w) @ x is also circulant(x) @ w, so the weight sees the conjugate of x.
            grad_bins = torch.bmm(g_bins.mT, x_bins.conj())  # (bins, p, q)
            grad_weight = torch.fft.irfft(grad_bins.permute(1, 2, 0), n=ctx.block_size)
        return grad_x, grad_weight, None


class BlockCirculantLinear(nn.Module):
    """A linear layer ``y = W x + b`` whose matrix W is block-circulant, in place of `torch.nn.Linear`.

    Neither size need be a multiple of the block size: the last block of either direction is then cut off at
    the matrix's edge, as if the input were padded with zeros and the surplus outputs dropped.

    Parameters
    ----------
    in_features, out_features : int
        Size of a vector that goes in, and of one that comes out; at least 1.
    block_size : int
        k, from 1 (an uncompressed layer) to 128; W has about k times fewer parameters than a dense matrix.
    bias : bool
        Whether a learned bias (out_features,) is added.
    device, dtype : optional
        As for every torch module; float32 or float64.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (p, q, k): first column of each block, with p = ceil(out_features / k) and q = ceil(in_features / k).
    bias : torch.nn.Parameter or None
        (out_features,).

    Raises
    ------
    ValueError
        If a size is not positive or the block size is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        p, q = block_grid(out_features, in_features, block_size)
        self.in_features, self.out_features, self.block_size = in_features, out_features, block_size
        self.weight = nn.Parameter(torch.empty(p, q, block_size, device=device, dtype=dtype))
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), as `torch.nn.Linear` does.

        Every output sums in_features products whether W is dense or circulant, so that the fan-in, and with
        it the variance that keeps activations in range, is the dense layer's.
        """
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` (..., in_features); returns (..., out_features) of the same dtype.

        Raises
        ------
        ValueError
            If the last dimension of `x` is not in_features.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this layer needs (..., {self.in_features}): flatten or "
                "reshape the input so that its last dimension holds the features"
            )
        rows = x.reshape(-1, self.in_features)
        y: Tensor = _BlockCirculantProduct.apply(rows, self.weight, self.out_features)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return W as a dense (out_features, in_features) tensor, detached from the parameter."""
        k = self.block_size
        p, q, _ = self.weight.shape
        delay = torch.arange(k, device=self.weight.device)
        blocks = self.weight[:, :, (delay[:, None] - delay) % k]  # (p, q, row, column)
        dense = blocks.transpose(1, 2).reshape(p * k, q * k)
        return dense[: self.out_features, : self.in_features].clone()

    @torch.no_grad()
    def project_(self, dense_weight: Tensor) -> "BlockCirculantLinear":
        """Set the weight, in place, to the block-circulant matrix nearest to ``dense_weight``.

        Parameters
        ----------
        dense_weight : torch.Tensor
            (out_features, in_features), for example the weight of a trained `torch.nn.Linear`.

        Returns
        -------
        BlockCirculantLinear
            This layer; the bias is left alone.

        Raises
        ------
        ValueError
            If the matrix has another shape.
        """
        expected = (self.out_features, self.in_features)
        if tuple(dense_weight.shape) != expected:
            raise ValueError(
                f"dense_weight has shape {tuple(dense_weight.shape)}; this layer needs {expected} "
                "(out_features, in_features): transpose it or make a layer of its size"
            )
        nearest = project(dense_weight.detach().cpu().double().numpy(), self.block_size)
        self.weight.copy_(torch.from_numpy(nearest))
        return self

    def extra_repr(self) -> str:
        """Sizes shown by ``print(module)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"block_size={self.block_size}, bias={self.bias is not None}"
        )
