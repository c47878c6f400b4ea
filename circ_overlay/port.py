# SPDX-License-Identifier: BSD-3-Clause
"""Ports: what goes into a network and comes out of it, and how real numbers become stream elements."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import require as _require
from .fixedpoint import limits

__all__ = ["Port"]

Ints = NDArray[np.int64]
_STORAGE: dict[str, np.dtype[Any]] = {"int16": np.dtype("<i2"), "uint8": np.dtype("u1")}


@dataclass(frozen=True, kw_only=True)
class Port:
    """Input or output of a program: what a user's array has to look like, and how it travels.

    Parameters
    ----------
    shape : shape of one sample; its elements go over the stream pixel by pixel.
    frac : fraction bits, -64..64; integer n stands for ``n * 2**-frac``.
    storage : element on the stream, "int16" or "uint8".
    pixels : pixels of an image, 1 for a plain vector.
    channels_first : the shape names channels before rows and columns, as PyTorch does; the stream carries pixel by
        pixel either way.
    """

    shape: tuple[int, ...]
    frac: int
    storage: str = "int16"
    pixels: int = 1
    channels_first: bool = False

    def __post_init__(self) -> None:
        _require(self.storage in _STORAGE, f"storage {self.storage!r}: allowed are {', '.join(_STORAGE)}")
        _require(
            len(self.shape) > 0 and all(isinstance(n, int) and n > 0 for n in self.shape),
            f"shape {self.shape!r}: a sample's shape is a tuple of positive integers",
        )
        _require(
            self.pixels > 0 and self.features % self.pixels == 0,
            f"shape {self.shape}: its {self.features} elements are no {self.pixels} pixels",
        )
        _require(self.channels < 1 << 16, f"shape {self.shape}: a pixel has at most 65535 channels")
        _require(-64 <= self.frac <= 64, f"frac={self.frac}: allowed are -64..64")

    @property
    def features(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of an element on the stream."""
        return _STORAGE[self.storage]

    @property
    def channels(self) -> int:
        """Elements of one pixel."""
        return self.features // self.pixels

    def to_pixels(self, x: NDArray[Any]) -> NDArray[Any]:
        """(batch, features) in the order of the shape as a view (batch, pixels, channels)."""
        if self.channels_first:
            return x.reshape(len(x), self.channels, self.pixels).transpose(0, 2, 1)
        return x.reshape(len(x), self.pixels, self.channels)

    def from_pixels(self, x: NDArray[Any]) -> NDArray[Any]:
        """The inverse of :meth:`to_pixels`."""
        return (x.transpose(0, 2, 1) if self.channels_first else x).reshape(len(x), self.features)

    def flatten(self, x: ArrayLike) -> NDArray[Any]:
        """`x` as (batch, features).

        Raises
        ------
        ValueError
            `x` is not numeric, or no batch of samples: (batch, \\*shape) or (batch, features).
        """
        try:
            array = np.asarray(x)
        except ValueError as error:  # NumPy's message speaks of elements and sequences
            raise ValueError(f"inputs of several shapes: expected each to be {self.shape}") from error
        if array.dtype.kind not in "buif":
            raise ValueError(f"input of dtype {array.dtype}: expected real numbers")
        if array.ndim and array.shape[1:] in (self.shape, (self.features,)):
            return array.reshape(len(array), self.features)
        hint = "; add a batch axis: x[None]" if array.shape in (self.shape, (self.features,)) else ""
        raise ValueError(
            f"input of shape {array.shape}: expected (batch, {', '.join(map(str, self.shape))})"
            + ("" if len(self.shape) == 1 else f" or (batch, {self.features})")
            + hint
        )

    def quantise(self, x: ArrayLike, width: int) -> NDArray[Any]:
        """Real-valued samples as stream elements, (batch, features) of :attr:`dtype`.

        Values beyond the format saturate; uint8 samples for a uint8 port with frac 0 pass untouched.

        Raises
        ------
        ValueError
            wrong shape, not numeric, NaN or infinity.
        """
        array = self.flatten(x)
        if array.dtype == np.uint8 and self.storage == "uint8" and self.frac == 0:
            return array
        low, high = (0, 255) if self.storage == "uint8" else limits(width)
        # In float64 neither the scaling nor the half added below can round any float32 or 16-bit integer.
        values: NDArray[Any] = array.astype(np.float64)
        if values.size:
            # min and max are NaN or infinite exactly if some value is: two cheap passes instead of a mask.
            least, largest = values.min(), values.max()
            if not (np.isfinite(least) and np.isfinite(largest)):
                raise ValueError("input holds NaN or infinite values; only finite numbers can be quantised")
            if self.storage == "uint8" and array.dtype.kind == "f" and 0 < largest <= 1.0:
                warnings.warn(
                    f"all inputs lie in {least:g}..{largest:g}, but this network takes raw pixels, 0..255: "
                    "were they scaled to 0..1?",
                    stacklevel=2,
                )
        values *= 2.0**self.frac
        values += 0.5
        np.floor(values, out=values)
        return np.clip(values, low, high, out=values).astype(self.dtype)

    def check(self, x: NDArray[Any]) -> Ints:
        """Quantised samples as int64 (batch, features).

        Raises
        ------
        ValueError
            wrong shape, not integers, or values that the storage cannot hold.
        """
        array = self.flatten(x)
        info = np.iinfo(self.dtype)
        if array.dtype.kind not in "iu":
            raise ValueError(f"quantised input of dtype {array.dtype}: expected integers")
        if array.size and (array.min() < info.min or array.max() > info.max):
            raise ValueError(f"quantised input outside {info.min}..{info.max}, the range of {self.storage}")
        return array.astype(np.int64)

    def value(self, n: NDArray[Any]) -> NDArray[np.float32]:
        """Stream elements (batch, features) as real samples (batch, \\*shape), float32."""
        return (n.astype(np.float32) * np.float32(2.0**-self.frac)).reshape(len(n), *self.shape)
