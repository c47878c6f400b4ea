# SPDX-License-Identifier: BSD-3-Clause
"""First layer over few channels: every patch of the image, as one vector, times one block-circulant matrix."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from circ_overlay.circulant import block_grid
from circ_overlay.nn.spectral import dense_blocks

__all__ = ["BlockCirculantPatchConv2d", "patch_kernel"]


def patch_kernel(matrix: Tensor, in_channels: int, rows: int, columns: int) -> Tensor:
    """Turn a matrix over patches in order (row, col, channel) into a convolution's (out, in, row, col) kernel."""
    return matrix.reshape(-1, rows, columns, in_channels).permute(0, 3, 1, 2)


class BlockCirculantPatchConv2d(nn.Module):
    """A convolution as a block-circulant matrix, weight (p, q, k), over the (row, col, channel) patch vector."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        block_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        p, q = block_grid(out_channels, kernel_size**2 * in_channels, block_size)
        self.in_channels, self.out_channels, self.block_size = in_channels, out_channels, block_size
        self.kernel_size, self.stride, self.padding = (kernel_size,) * 2, (stride,) * 2, (padding,) * 2
        bound = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.empty(p, q, block_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (batch, in_channels, height, width)."""
        rows, columns = self.kernel_size
        matrix = dense_blocks(self.weight, self.out_channels, rows * columns * self.in_channels)
        kernel = patch_kernel(matrix, self.in_channels, rows, columns)
        return functional.conv2d(x, kernel, self.bias, self.stride, self.padding)
