# SPDX-License-Identifier: BSD-3-Clause
"""Layers with weights, block-circulant ones and dense ones, for the Builder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .. import spec
from .graph import Operation
from .records import Records, Value
from .structure import of_kernel

__all__ = ["Weighted"]

Floats = NDArray[np.float64]
Pair = tuple[int, int]


class Weighted(Records):
    """Convolutions and matrices become operations; what follows may still be folded into them."""

    def conv(
        self, v: Value, columns: Floats, out_channels: int, name: str, *, bias: Floats | None,
        stride: Pair = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0), gather: bool = False,
        taps: Pair | None = None,
    ) -> Value:  # fmt: skip
        """A block-circulant convolution with first columns (p, q, r, s, k)."""
        if v.flat:
            self.refuse("A convolution of a flattened map", "flatten behind the convolutions")
        if any(v.pad):
            padding = tuple(a + b for a, b in zip(padding, v.pad))  # type: ignore[assignment]
        shift = np.zeros(out_channels) if bias is None else bias
        taps = taps or (columns.shape[2], columns.shape[3])
        op = Operation(name=name, weight=columns, out_channels=out_channels, taps=taps, stride=stride,
                       padding=padding, gather=gather)  # fmt: skip
        _, shape = op.shapes(v.shape)
        return self.emit(
            name, shape, source=v.tensor, weight=columns, in_channels=v.shape[2], out_channels=out_channels, taps=taps,
            stride=stride, padding=padding, gather=gather, scale=np.ones(out_channels), shift=shift,
        )  # fmt: skip

    def linear(self, v: Value, columns: Floats, out_features: int, name: str, *, bias: Floats | None) -> Value:
        """A block-circulant matrix with first columns (p, q, k) on a vector or a flattened map."""
        self.whole(v)
        height, width, channels = v.shape
        k = columns.shape[2]
        if height * width == 1:
            plain = Value(v.tensor, v.shape, op=v.op)
            return self.conv(plain, columns[:, :, None, None, :], out_features, name, bias=bias)
        if not v.flat:
            self.refuse(f"A linear layer on a map of {height} x {width} pixels", "flatten or pool the map first")
        if k == 1:  # a dense matrix: its columns may come in any order
            kernel = columns[..., 0]
            kernel = (
                kernel.reshape(-1, channels, height, width)
                if v.flat == "chw"
                else kernel.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            )
            taps = kernel[..., None]
        elif v.flat == "chw":
            self.refuse(
                "A block-circulant layer on a map flattened channel by channel",
                "flatten in the core's order instead, x.permute(0, 2, 3, 1).flatten(1), or pool to one pixel before",
            )
        elif channels % k == 0:
            taps = columns.reshape(len(columns), height, width, channels // k, k).transpose(0, 3, 1, 2, 4)
        elif channels % spec.MAP_WORD == 0:
            result = self.conv(
                Value(v.tensor, (1, 1, v.features)), columns[:, :, None, None, :], out_features, name, bias=bias
            )
            assert result.op is not None
            result.op["flatten"] = True
            return result
        elif channels <= spec.MAX_GATHER_CHANNELS:  # a window as large as the map, its pixels packed
            return self.conv(
                Value(v.tensor, v.shape), columns[:, :, None, None, :], out_features, name, bias=bias, gather=True,
                taps=(height, width),
            )  # fmt: skip
        else:
            self.refuse(
                f"A block-circulant layer with k={k} on a flattened map of {channels} channels",
                f"make the channels a multiple of {spec.MAP_WORD}, or pool to one pixel before",
            )
        return self.conv(Value(v.tensor, v.shape, op=v.op), taps, out_features, name, bias=bias)

    def chosen(self, name: str) -> int | None:
        """The block size that the user wants for a dense layer."""
        self.dense.append(name)
        return self.block_size.get(name) if isinstance(self.block_size, Mapping) else self.block_size

    def dense_conv(
        self, v: Value, kernel: Floats, name: str, *, bias: Floats | None, stride: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Value:  # fmt: skip
        """A convolution with a dense kernel (out, in, r, s), in whose weights blocks are looked for."""
        found = of_kernel(kernel, self.chosen(name))
        result = self.conv(v, found.columns, len(kernel), name, bias=bias, stride=stride, padding=padding,
                           gather=found.gather, taps=(kernel.shape[2], kernel.shape[3]))  # fmt: skip
        self.expect(v, kernel.shape[1])
        return self._gained(result, found.gains)

    def expect(self, v: Value, channels: int) -> None:
        """Refuse a map of other channels: blocks that are filled up with zeros would take it."""
        if v.channels != channels:
            self.refuse(f"A layer for {channels} channels on {v.channels}", "check what arrives")

    def dense_linear(self, v: Value, matrix: Floats, name: str, *, bias: Floats | None) -> Value:
        """A dense matrix (out, in) on a vector or a flattened map; blocks are looked for."""
        self.whole(v)
        height, width, channels = v.shape
        if height * width > 1 and not v.flat:
            self.refuse(f"A linear layer on a map of {height} x {width} pixels", "flatten or pool the map first")
        if matrix.shape[1] != v.features:
            self.refuse(f"A matrix for {matrix.shape[1]} features on {v.features}", "check what arrives")
        if height * width == 1:
            return self.dense_conv(
                Value(v.tensor, v.shape, op=v.op), matrix[:, :, None, None], name, bias=bias
            )
        k = self.chosen(name)
        if v.flat == "hwc":
            found = of_kernel(matrix[:, :, None, None], k)
            size = found.columns.shape[4]
            if size > 1 and (channels % size == 0 or channels % spec.MAP_WORD == 0 or channels < spec.MAP_WORD):
                result = self.linear(v, found.columns[:, :, 0, 0], len(matrix), name, bias=bias)
                return self._gained(result, found.gains)
            kernel = matrix.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        else:
            kernel = matrix.reshape(-1, channels, height, width)
        found = of_kernel(kernel, k)
        result = self.conv(Value(v.tensor, v.shape, op=v.op), found.columns, len(matrix), name, bias=bias,
                           gather=found.gather, taps=(height, width))  # fmt: skip
        return self._gained(result, found.gains)

    def _gained(self, v: Value, gains: Floats | None) -> Value:
        if gains is not None:
            assert v.op is not None
            v.op["scale"] = v.op["scale"] * gains
        return v
