# SPDX-License-Identifier: BSD-3-Clause
"""What the block-circulant convolutions share: parameters, checks of images; `conv` and `patch` have the product."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from circ_overlay.nn.spectral import Array, Rounding, check_dtype, check_result

__all__ = ["Convolution", "Pair"]

Pair = int | tuple[int, int]
Layer = TypeVar("Layer", bound="Convolution")


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) of an argument that may be one number for both."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name} is {value!r}; allowed is an integer of at least {least}, or a pair of them")
    return pair[0], pair[1]


class Convolution(nn.Module):
    """A convolution of images; a subclass has the weight's shape and the product."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        block_size: int,
        stride: Pair,
        padding: Pair,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.block_size = in_channels, out_channels, block_size
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
        self.weight = nn.Parameter(torch.empty(*self._weight_shape(), device=device, dtype=dtype))
        self.rounding: Rounding | None = None  # of the weight; see circ_overlay.nn.qat
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _weight_shape(self) -> tuple[int, ...]:
        """Return the shape of all first columns; ValueError if a size is out of range."""
        raise NotImplementedError

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve checked images (batch, in_channels, height, width), without the bias."""
        raise NotImplementedError

    def _nearest(self, dense_weight: Array) -> Array:
        """Return the first columns nearest to a float64 kernel (out_channels, in_channels, r, s)."""
        raise NotImplementedError

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
        weight = self.weight if self.rounding is None else self.rounding(self.weight)
        self._check(x, weight)
        y = self._convolve(x if x.ndim == 4 else x.unsqueeze(0), weight)
        check_result(y, x)
        if self.bias is not None:
            y = y + self.bias[:, None, None]
        return y if x.ndim == 4 else y.squeeze(0)

    def _check(self, x: Tensor, weight: Tensor) -> None:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this layer needs (batch, {self.in_channels}, height, width): "
                "bring the channels to the third dimension from the end"
            )
        check_dtype(x, weight)
        image = [size + 2 * pad for size, pad in zip(x.shape[-2:], self.padding, strict=True)]
        if image[0] < self.kernel_size[0] or image[1] < self.kernel_size[1]:
            raise ValueError(
                f"x has {x.shape[-2]} x {x.shape[-1]} pixels, {image[0]} x {image[1]} when padded; this "
                f"layer has {self.kernel_size[0]} x {self.kernel_size[1]} taps: pad more or enlarge it"
            )

    @torch.no_grad()
    def project_(self: Layer, dense_weight: Tensor) -> Layer:
        """Set the weight, in place, to the block-circulant kernel nearest to ``dense_weight``.

        Parameters
        ----------
        dense_weight : torch.Tensor
            (out_channels, in_channels, r, s), for example the weight of a trained `torch.nn.Conv2d`.

        Returns
        -------
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
        nearest = self._nearest(dense_weight.detach().cpu().double().numpy())
        self.weight.copy_(torch.from_numpy(nearest))
        return self

    def extra_repr(self) -> str:
        """Sizes shown by ``print(module)``."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size={self.kernel_size}, block_size={self.block_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}"
        )
