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

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from circ_overlay.circulant import block_grid, project_conv2d
from circ_overlay.nn.spectral import Array, check_dtype, check_result, constants, dense_blocks, real_dft

__all__ = ["BlockCirculantConv2d"]

Pair = int | tuple[int, int]


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


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) of an argument that may be one number for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name} is {value!r}; allowed is an integer of at least {least}, or a pair of them")
    return pair[0], pair[1]


class BlockCirculantConv2d(nn.Module):
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
        super().__init__()
        p, q = block_grid(out_channels, in_channels, block_size)
        self.in_channels, self.out_channels, self.block_size = in_channels, out_channels, block_size
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
        self.weight = nn.Parameter(
            torch.empty(p, q, *self.kernel_size, block_size, device=device, dtype=dtype)
        )
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(fan-in), 1/sqrt(fan-in)), as `torch.nn.Conv2d` does.

        The fan-in is in_channels * r * s, the dense layer's: every output sums so many products.
        """
        bound = 1.0 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to images (batch, in_channels, height, width), or to one without the batch.

        Returns
        -------
        torch.Tensor
            (batch, out_channels, (height + 2 padding - r) // stride + 1, and the same of the width).

        Raises
        ------
        ValueError
            If `x` has another shape or dtype, or is smaller than the kernel.
        """
        self._check(x)
        if x.ndim == 3:
            one: Tensor = self(x.unsqueeze(0))
            return one.squeeze(0)
        surplus = -self.in_channels % self.block_size
        if surplus:
            x = functional.pad(x, (0, 0, 0, 0, 0, surplus))
        y = _convolve(x, self.weight, self.stride, self.padding)[:, : self.out_channels]
        check_result(y, x)
        if self.bias is not None:
            y = y + self.bias[:, None, None]
        return y

    def _check(self, x: Tensor) -> None:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this layer needs (batch, {self.in_channels}, height, width): "
                "bring the channels to the third dimension from the end"
            )
        check_dtype(x, self.weight)
        image = [size + 2 * pad for size, pad in zip(x.shape[-2:], self.padding, strict=True)]
        if image[0] < self.kernel_size[0] or image[1] < self.kernel_size[1]:
            raise ValueError(
                f"x has {x.shape[-2]} x {x.shape[-1]} pixels, {image[0]} x {image[1]} when padded; this "
                f"layer has {self.kernel_size[0]} x {self.kernel_size[1]} taps: pad more or enlarge it"
            )

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Return the kernel as a dense (out_channels, in_channels, r, s) tensor, detached."""
        return dense_blocks(self.weight, self.out_channels, self.in_channels)

    @torch.no_grad()
    def project_(self, dense_weight: Tensor) -> "BlockCirculantConv2d":
        """Set the weight, in place, to the block-circulant kernel nearest to ``dense_weight``.

        Parameters
        ----------
        dense_weight : torch.Tensor
            (out_channels, in_channels, r, s), for example the weight of a trained `torch.nn.Conv2d`.

        Returns
        -------
        BlockCirculantConv2d
            This layer; the bias is left alone.

        Raises
        ------
        ValueError
            If the kernel has another shape.
        """
        expected = (self.out_channels, self.in_channels, *self.kernel_size)
        if tuple(dense_weight.shape) != expected:
            raise ValueError(
                f"dense_weight has shape {tuple(dense_weight.shape)}; this layer needs {expected} "
                "(out_channels, in_channels, r, s): transpose it or make a layer of its size"
            )
        nearest = project_conv2d(dense_weight.detach().cpu().double().numpy(), self.block_size)
        self.weight.copy_(torch.from_numpy(nearest))
        return self

    def extra_repr(self) -> str:
        """Sizes shown by ``print(module)``."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size={self.kernel_size}, block_size={self.block_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}"
        )
