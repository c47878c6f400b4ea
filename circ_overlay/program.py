# SPDX-License-Identifier: BSD-3-Clause
"""Program: a compiled network, every number already in the core's formats. The only door to a ``.circ`` file.

A Program is checked when it is made, so whatever holds one may rely on it. It never quantises weights:
that is the compiler's work.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import spec
from .errors import ProgramError
from .fixedpoint import limits

__all__ = ["Layer", "Port", "Program"]

Ints = NDArray[np.int64]
_STORAGE: dict[str, np.dtype[Any]] = {"int16": np.dtype("<i2"), "uint8": np.dtype("u1")}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProgramError(message)


@dataclass(frozen=True, kw_only=True)
class Port:
    """Input or output of a program: what a user's array has to look like, and how it travels.

    Parameters
    ----------
    shape : shape of one sample; its elements go over the stream in C order.
    frac : fraction bits, -64..64; integer n stands for ``n * 2**-frac``.
    storage : element on the stream, "int16" or "uint8".
    """

    shape: tuple[int, ...]
    frac: int
    storage: str = "int16"

    def __post_init__(self) -> None:
        _require(self.storage in _STORAGE, f"storage {self.storage!r}: allowed are {', '.join(_STORAGE)}")
        _require(
            len(self.shape) > 0 and all(isinstance(n, int) and n > 0 for n in self.shape),
            f"shape {self.shape!r}: a sample's shape is a tuple of positive integers",
        )
        _require(self.features < 1 << 16, f"shape {self.shape}: a sample has at most 65535 elements")
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
    def beats(self) -> int:
        """Stream beats of one sample."""
        return spec.beats(self.features, self.dtype.itemsize)

    def flatten(self, x: ArrayLike) -> NDArray[Any]:
        """`x` as (batch, features).

        Raises
        ------
        ValueError
            `x` is not numeric, or no batch of samples: (batch, \\*shape) or (batch, features).
        """
        array = np.asarray(x)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A block-circulant fully connected layer in the core's numbers.

    Parameters
    ----------
    in_features, out_features : sizes; neither need be a multiple of the block size.
    weights : (p, q, k/2, 2) int16, spectra of the blocks in the order of :func:`spec.spectrum_order`.
    scale : (out_features,) int32, of SCALE_BITS bits.
    bias : (out_features,) int64, of BIAS_BITS bits, in units of the product time output x scale.
    acc_shift, affine_shift : rounding right shifts after the accumulators and after the affine.
    activation : see :class:`spec.Activation`.
    out_frac : fraction bits of the outputs.
    name : for tables and messages.
    """

    in_features: int
    out_features: int
    weights: NDArray[np.int16]
    scale: NDArray[np.int32]
    bias: NDArray[np.int64]
    acc_shift: int
    affine_shift: int
    activation: spec.Activation
    out_frac: int
    name: str = "linear"

    @property
    def block_size(self) -> int:
        """k, in elements."""
        return 2 * int(self.weights.shape[2])

    def validate(self, width: int) -> None:
        """Raise ProgramError unless every number fits the core of `width` bits."""
        w, where = self.weights, f"layer {self.name!r}: "
        _require(isinstance(self.name, str) and self.name.isprintable(), f"layer name {self.name!r}: expected text")
        _require(w.ndim == 4 and w.shape[3] == 2, f"{where}weights of shape {w.shape}: expected (p, q, k/2, 2)")
        k = self.block_size
        _require(k in spec.BLOCK_SIZES, f"{where}block size {k}: allowed are {spec.BLOCK_SIZES}")
        _require(-64 <= self.out_frac <= 64, f"{where}out_frac={self.out_frac}: allowed are -64..64")
        curved = self.activation in (spec.Activation.SIGMOID, spec.Activation.TANH)
        _require(
            not curved or self.out_frac == width - 1,
            f"{where}out_frac={self.out_frac}: a {self.activation.name.lower()} gives {width - 1} fraction bits",
        )
        for name in ("in_features", "out_features"):
            n = getattr(self, name)
            _require(0 < n < 1 << 16, f"{where}{name}={n}: allowed are 1..65535")
        grid = (-(-self.out_features // k), -(-self.in_features // k))
        _require(w.shape[:2] == grid, f"{where}{w.shape[:2]} blocks: {grid} are needed for k={k}")
        for name, bits, shape in (
            ("weights", width, w.shape),
            ("scale", spec.SCALE_BITS, (self.out_features,)),
            ("bias", spec.BIAS_BITS, (self.out_features,)),
        ):
            a, (low, high) = getattr(self, name), limits(bits)
            _require(a.dtype.kind == "i", f"{where}{name} of dtype {a.dtype}: expected signed integers")
            _require(a.shape == shape, f"{where}{name} of shape {a.shape}: expected {shape}")
            _require(bool(a.min() >= low and a.max() <= high), f"{where}{name} exceeds {bits} bits")
        for name, top in (("acc_shift", spec.MAX_ACC_SHIFT), ("affine_shift", spec.MAX_AFFINE_SHIFT)):
            shift = getattr(self, name)
            _require(0 <= shift <= top, f"{where}{name}={shift}: allowed are 0..{top}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A compiled network.

    Parameters
    ----------
    name : the network's name.
    width : W, bits of activations and weights; the core must be built for the same.
    input, output : ports.
    layers : in the order of execution.
    labels : names of the classes, or empty.
    metadata : anything JSON that belongs to the network: where it came from, its accuracy.

    Raises
    ------
    ProgramError
        Something does not fit: sizes of neighbouring layers, a value in its format.
    """

    name: str
    width: int
    input: Port
    output: Port
    layers: tuple[Layer, ...]
    labels: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(
            isinstance(self.name, str) and 0 < len(self.name) <= 200 and self.name.isprintable(),
            f"name {self.name!r}: expected up to 200 printable characters",
        )
        _require(self.width in spec.WIDTHS, f"width={self.width}: allowed are 8..16 bits")
        _require(0 < len(self.layers) <= spec.MAX_LAYERS, f"{len(self.layers)} layers: allowed are 1..64")
        features = self.input.features
        for layer in self.layers:
            layer.validate(self.width)
            _require(
                layer.in_features == features,
                f"layer {layer.name!r} takes {layer.in_features} features, but {features} arrive",
            )
            features = layer.out_features
        _require(self.output.features == features, f"output shape {self.output.shape}: {features} arrive")
        _require(self.output.storage == "int16", "outputs travel as int16")
        _require(self.output.frac == self.layers[-1].out_frac, "output format differs from the last layer's")
        _require(
            self.input.storage == "int16" or self.width > 8,
            "uint8 inputs need activations of at least 9 bits; quantise the input to int16 storage",
        )
        _require(
            not self.labels or len(self.labels) == features,
            f"{len(self.labels)} labels for {features} outputs",
        )

    @property
    def parameters(self) -> int:
        """Stored real numbers: p*q*k of each layer, and scale and bias of each output."""
        return sum(la.weights.size + 2 * la.out_features for la in self.layers)

    @property
    def dense_parameters(self) -> int:
        """What the same layers would store uncompressed."""
        return sum(la.in_features * la.out_features + 2 * la.out_features for la in self.layers)

    @cached_property
    def image(self) -> NDArray[np.uint64]:
        """The program image that the core loads, see :mod:`circ_overlay.image`."""
        from .image import encode

        return encode(self)

    @property
    def program_id(self) -> int:
        """Identity of the image, in its header: CRC-32 of all that follows, never 0."""
        return int(self.image[1]) & 0xFFFFFFFF

    def __repr__(self) -> str:
        sizes = "-".join(str(n) for n in (self.input.features, *(la.out_features for la in self.layers)))
        blocks = ",".join(str(la.block_size) for la in self.layers)
        return f"<Program {self.name}: {sizes}, k={blocks}, {self.width} bits, {self.parameters} parameters>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.circ`` file; `path` holds the old file or the whole new one, whatever happens."""
        from .circfile import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a ``.circ`` file.

        Raises
        ------
        ProgramFileError
            The file is truncated, altered, not a program, or made for another specification; the message
            says which and what to do.
        """
        from .circfile import load

        return load(path)
