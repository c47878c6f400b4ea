# SPDX-License-Identifier: BSD-3-Clause
"""A fully connected layer with a block-circulant weight matrix, for training with PyTorch.

The matrix is a ``(p, q)`` grid of ``k x k`` circulant blocks, each held as its first COLUMN ``w`` (the
convention of `scipy.linalg.circulant`), so that ``block @ x = irfft(rfft(w) * rfft(x))``. The layer never
builds the dense matrix to compute: both directions cost O(n log n), with q forward transforms and p inverse
ones per vector, however many blocks there are between them; `circ_overlay.nn.spectral` holds the product.
Sources: as in `circ_overlay.circulant`.
"""

import math

import torch
from torch import Tensor, nn

from circ_overlay.circulant import block_grid, project
from circ_overlay.nn.spectral import Rounding, check_dtype, dense_blocks, product, spectrum

__all__ = ["BlockCirculantLinear"]


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
        self.rounding: Rounding | None = None  # of the weight; see circ_overlay.nn.qat
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
            If the last dimension of `x` is not in_features, or its dtype is not the weight's.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this layer needs (..., {self.in_features}): flatten or "
                "reshape the input so that its last dimension holds the features"
            )
        weight = self.weight if self.rounding is None else self.rounding(self.weight)
        check_dtype(x, weight)
        rows = x.reshape(-1, self.in_features)
        y = product(rows, spectrum(weight), self.block_size, self.out_features)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return W as a dense (out_features, in_features) tensor, detached from the parameter."""
        return dense_blocks(self.weight, self.out_features, self.in_features)

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
