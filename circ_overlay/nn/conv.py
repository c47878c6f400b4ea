# SPDX-License-Identifier: BSD-3-Clause
"""A 2-D convolution whose kernel is block-circulant over the channels, for training with PyTorch.

Each of the r x s taps has a ``(p, q)`` grid of ``k x k`` circulant blocks, held as first COLUMNS ``w``. The
channels of a pixel are transformed once however many taps read them, and those of an output pixel once:
between the two, bins do not mix, so that the sum over taps and blocks is a convolution of k / 2 groups. So it
is computed: a real transform of the channels (a k x k matrix product per block and pixel), one grouped real
convolution of the real and imaginary planes, one real transform back. Of the formulations measured, with FFTs
too (docs/training_layers.md), it is the fastest in both directions, k being at most 128: channels stay where
they are, and PyTorch has fast kernels, with gradients, for all three steps. Sources: as in
`circ_overlay.circulant`.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from circ_overlay.circulant import block_grid, project_conv2d
from circ_overlay.nn.images import Convolution, Pair
from circ_overlay.nn.spectral import Array, constants, dense_blocks, real_dft

__all__ = ["BlockCirculantConv2d"]


def _planes(k: int) -> tuple[Array, Array, Array]:
    """Matrices, float64, between blocks of k and the planes of a grouped convolution, two planes a group.

    The first two are (planes, k): to the planes of a signal, and from them (transposed). A group holds a
    bin's real and imaginary part; the first holds bin 0 and, of an even k, bin k / 2, which are real. The
    third, (2 planes, k), makes the group's matrix of a weight: ``[[re, -im], [im, re]]``, and of the first
    group ``[[bin 0, 0], [0, bin k / 2]]``.
    """
    forward, inverse = real_dft(k)
    (re, im), (to_re, to_im) = np.split(forward, 2), np.split(inverse, 2)
    last = k // 2 if k % 2 == 0 else 0
    zero = np.zeros(k)
    nyquist = (re[last], to_re[last]) if last else (zero, zero)
    to_planes, from_planes = [re[0], nyquist[0]], [to_re[0], nyquist[1]]
    weights = [re[0], zero, zero, nyquist[0]]
    for f in range(1, (k + 1) // 2):
        to_planes += [re[f], im[f]]
        from_planes += [to_re[f], to_im[f]]
        weights += [re[f], -im[f], im[f], re[f]]
    return np.stack(to_planes), np.stack(from_planes), np.stack(weights)


def _convolve(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Convolve images (batch, q k, height, width) with first columns (p, q, r, s, k): (batch, p k, ...)."""
    p, q, r, s, k = weight.shape
    if k == 1:
        return functional.conv2d(x, weight[..., 0], stride=stride, padding=padding)
    to_planes, from_planes, of_weight = constants(_planes, k, x.dtype, x.device)
    m = len(to_planes)
    batch, _, height, width = x.shape
    x_planes = torch.matmul(to_planes, x.reshape(batch, q, k, height * width))
    x_planes = x_planes.transpose(1, 2).reshape(batch, m * q, height, width)
    w_planes = (of_weight @ weight.reshape(-1, k).T).view(m // 2, 2, 2, p, q, r, s)
    w_planes = w_planes.transpose(2, 3).reshape(m * p, 2 * q, r, s)
    y_planes = functional.conv2d(x_planes, w_planes, stride=stride, padding=padding, groups=m // 2)
    height, width = y_planes.shape[2:]
    y = torch.matmul(from_planes.T, y_planes.view(batch, m, p, height * width).transpose(1, 2))
    return y.reshape(batch, p * k, height, width)


class BlockCirculantConv2d(Convolution):
    """A convolution whose kernel is block-circulant over its channels, in place of `torch.nn.Conv2d`.

    Neither number of channels need be a multiple of the block size: the last block is then cut off at the
    kernel's edge.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of an image that goes in, and of one that comes out; at least 1.
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
        (p, q, r, s, k): first column of each block of each tap, with p = ceil(out_channels / k) and
        q = ceil(in_channels / k).
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

    def _weight_shape(self) -> tuple[int, ...]:
        p, q = block_grid(self.out_channels, self.in_channels, self.block_size)
        return p, q, *self.kernel_size, self.block_size

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        surplus = -self.in_channels % self.block_size
        if surplus:
            x = functional.pad(x, (0, 0, 0, 0, 0, surplus))
        return _convolve(x, weight, self.stride, self.padding)[:, : self.out_channels]

    def _nearest(self, dense_weight: Array) -> Array:
        return project_conv2d(dense_weight, self.block_size)

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return the kernel as a dense (out_channels, in_channels, r, s) tensor, detached."""
        return dense_blocks(self.weight, self.out_channels, self.in_channels)
