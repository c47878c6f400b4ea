# SPDX-License-Identifier: BSD-3-Clause
"""Layer: one instruction of the core with its numbers; Map: a feature map's place in the core's map memory.

Checked for what makes sense on its own; whether a core can hold it is :mod:`circ_overlay.image`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import spec
from .errors import require
from .fixedpoint import limits

__all__ = ["Layer", "Map"]

_NO_WEIGHTS = np.zeros((0, 0, 0, 2), np.int16)


@dataclass(frozen=True, kw_only=True)
class Map:
    """A feature map in map memory: height x width pixels of `channels` elements, row by row.

    Parameters
    ----------
    height, width, channels : shape; a plain vector is one pixel.
    base : map word (spec.MAP_WORD elements) of the first pixel.
    pitch : words from a pixel to the next; 0: as many as a pixel fills. A larger one leaves room for other
        channels of the same pixels, which is how maps are concatenated.
    """

    height: int = 1
    width: int = 1
    channels: int
    base: int = 0
    pitch: int = 0

    def __post_init__(self) -> None:
        if self.pitch == 0:
            object.__setattr__(self, "pitch", self.pixel_words)

    @property
    def pixels(self) -> int:
        """Height x width."""
        return self.height * self.width

    @property
    def pixel_words(self) -> int:
        """Words that a pixel fills."""
        return spec.pixel_words(self.channels)

    @property
    def end(self) -> int:
        """The word behind the last one that the map fills."""
        return self.base + (self.pixels - 1) * self.pitch + self.pixel_words

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    def overlaps(self, other: Map) -> bool:
        """True if the two share a word, exactly for maps of one pitch and roughly (spans) for others."""
        if self.base >= other.end or other.base >= self.end:
            return False
        if self.pitch != other.pitch:
            return True
        apart = (other.base - self.base) % self.pitch
        return not (self.pixel_words <= apart and apart + other.pixel_words <= self.pitch)

    def validate(self, where: str) -> None:
        """Raise ProgramError unless every number fits its field of an instruction."""
        for name in ("height", "width", "channels", "pitch"):
            n = getattr(self, name)
            require(0 < n < 1 << 16, f"{where}{name}={n}: allowed are 1..65535")
        require(0 <= self.base < 1 << 32, f"{where}base={self.base}: allowed are 0..2^32-1")
        require(self.pitch >= self.pixel_words, f"{where}pitch={self.pitch}: a pixel fills {self.pixel_words} words")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One instruction in the core's numbers; docs/instructions.md says what it computes.

    Parameters
    ----------
    opcode : CIRCULANT (weights), MAX or SUM of a window's pixels, or PRODUCT of two maps.
    source, target : input map, and output map behind the pooling.
    residual : map added before the activation, or None; as large as the result before the pooling.
    factor : second factor of a PRODUCT, else None.
    block_size : k of a CIRCULANT layer: 1, or 4 .. 128.
    gather : CIRCULANT: the window's pixels make one vector, (row, column, channel), instead of one for each.
    taps, stride, padding, pool : (rows, columns): window, step between windows, rows above and pixels left of the
        input, results of which the largest is kept.
    weights : (p, row blocks, words, 2) int16. k >= 4: spectra of the blocks in the order of
        :func:`spec.spectrum_order`, row blocks being (tap row, tap column, q), with `gather` q alone. k = 1: the
        weights themselves, output by output, window pixel by pixel, four channels in two words.
    scale : (channels,) int32, of SCALE_BITS bits.
    bias : (channels,) int64, of BIAS_BITS bits, in units of the product time output x scale.
    acc_shift, affine_shift : rounding right shifts after the accumulators and after the affine.
    add_shift : left shift of the residual's integers before they join the product's.
    activation : see :class:`spec.Activation`.
    ceiling : largest output of a ReLU; None: what the width allows.
    out_frac : fraction bits of the outputs.
    name : for tables and messages.
    """

    opcode: spec.Opcode = spec.Opcode.CIRCULANT
    source: Map
    target: Map
    residual: Map | None = None
    factor: Map | None = None
    block_size: int = 1
    gather: bool = False
    taps: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pool: tuple[int, int] = (1, 1)
    weights: NDArray[np.int16] = field(default_factory=lambda: _NO_WEIGHTS)
    scale: NDArray[np.int32]
    bias: NDArray[np.int64]
    acc_shift: int = 0
    affine_shift: int = 0
    add_shift: int = 0
    activation: spec.Activation = spec.Activation.IDENTITY
    ceiling: int | None = None
    out_frac: int
    name: str = "layer"

    def instruction(self, width: int, weight_base: int = 0, affine_base: int = 0) -> spec.Instruction:
        """What the core of `width` bits reads; tables begin at the given places."""
        none = Map(channels=spec.MAP_WORD)
        residual, factor = self.residual or none, self.factor or none
        flags = spec.LayerFlag(0)
        if self.gather:
            flags |= spec.LayerFlag.GATHER
        if self.residual is not None:
            flags |= spec.LayerFlag.ADD
        return spec.Instruction(
            opcode=self.opcode,
            log2_block=self.block_size.bit_length() - 1,
            activation=self.activation,
            flags=flags,
            in_channels=self.source.channels,
            out_channels=self.target.channels,
            weight_base=weight_base,
            affine_base=affine_base,
            acc_shift=self.acc_shift,
            affine_shift=self.affine_shift,
            add_shift=self.add_shift,
            ceiling=limits(width)[1] if self.ceiling is None else self.ceiling,
            in_base=self.source.base,
            out_base=self.target.base,
            add_base=residual.base,
            factor_base=factor.base,
            in_height=self.source.height,
            in_width=self.source.width,
            out_height=self.target.height,
            out_width=self.target.width,
            tap_rows=self.taps[0],
            tap_columns=self.taps[1],
            stride_rows=self.stride[0],
            stride_columns=self.stride[1],
            pad_top=self.padding[0],
            pad_left=self.padding[1],
            pool_rows=self.pool[0],
            pool_columns=self.pool[1],
            in_pitch=self.source.pitch,
            out_pitch=self.target.pitch,
            add_pitch=residual.pitch,
            factor_pitch=factor.pitch,
        )

    @property
    def result_shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) before the pooling."""
        return self.target.height * self.pool[0], self.target.width * self.pool[1], self.target.channels

    @property
    def parameters(self) -> int:
        """Stored real numbers: weights, scale and bias."""
        return self.weights.size + 2 * len(self.scale)

    @property
    def dense_parameters(self) -> int:
        """What the same layer would store uncompressed."""
        weights = self.source.channels * self.target.channels * self.taps[0] * self.taps[1]
        return (weights if self.opcode == spec.Opcode.CIRCULANT else 0) + 2 * len(self.scale)

    def validate(self, width: int) -> None:
        """Raise ProgramError unless this is a layer that a core of `width` bits can be told to execute."""
        require(isinstance(self.name, str) and self.name.isprintable(), f"layer name {self.name!r}: expected text")
        where = f"layer {self.name!r}: "
        self._validate_maps(where)
        self._validate_numbers(where, width)
        self._validate_weights(where, width)

    def _validate_maps(self, where: str) -> None:
        maps = {"source": self.source, "target": self.target, "residual": self.residual, "factor": self.factor}
        for name, m in maps.items():
            if m is not None:
                m.validate(f"{where}{name} ")
        for name, least in (("taps", 1), ("stride", 1), ("padding", 0), ("pool", 1)):
            pair = getattr(self, name)
            require(
                len(pair) == 2 and all(isinstance(n, int) and least <= n < 256 for n in pair),
                f"{where}{name}={pair}: allowed are two integers, {least}..255",
            )
        circulant, product = self.opcode == spec.Opcode.CIRCULANT, self.opcode == spec.Opcode.PRODUCT
        require(
            circulant or self.source.channels == self.target.channels,
            f"{where}{self.opcode.name} of {self.source.channels} channels into {self.target.channels}",
        )
        require((self.factor is not None) == product, f"{where}a second factor belongs to PRODUCT, and to it alone")
        require(
            not product or (self.taps, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0)),
            f"{where}PRODUCT goes pixel by pixel: one tap, stride 1, no padding",
        )
        for name, m in (("residual", self.residual), ("factor", self.factor)):
            require(
                m is None or m.shape == self.result_shape,
                f"{where}{name} of shape {m.shape if m else ()}: the result before pooling has {self.result_shape}",
            )
        require(not product or self.source.shape == self.result_shape, f"{where}factors of different shapes")
        pixelwise = not circulant and (self.taps, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))
        for name, m, in_place in (
            ("source", self.source, pixelwise), ("residual", self.residual, True), ("factor", self.factor, True)
        ):  # fmt: skip
            require(
                m is None or (m == self.target and in_place and self.pool == (1, 1)) or not m.overlaps(self.target),
                f"{where}its target overlaps its {name}",
            )

    def _validate_numbers(self, where: str, width: int) -> None:
        require(-64 <= self.out_frac <= 64, f"{where}out_frac={self.out_frac}: allowed are -64..64")
        curved = self.activation in (spec.Activation.SIGMOID, spec.Activation.TANH)
        require(
            not curved or self.out_frac == width - 1,
            f"{where}out_frac={self.out_frac}: a {self.activation.name.lower()} gives {width - 1} fraction bits",
        )
        require(
            self.ceiling is None
            or (self.activation == spec.Activation.RELU and 0 < self.ceiling <= limits(width)[1]),
            f"{where}ceiling={self.ceiling}: it limits a ReLU to 1..{limits(width)[1]}",
        )
        for name, bits in (("scale", spec.SCALE_BITS), ("bias", spec.BIAS_BITS)):
            a, (low, high) = getattr(self, name), limits(bits)
            require(a.dtype.kind == "i", f"{where}{name} of dtype {a.dtype}: expected signed integers")
            shape = (self.target.channels,)
            require(a.shape == shape, f"{where}{name} of shape {a.shape}: expected {shape}")
            require(bool(a.min() >= low and a.max() <= high), f"{where}{name} exceeds {bits} bits")
        for name, top in (
            ("acc_shift", spec.MAX_ACC_SHIFT),
            ("affine_shift", spec.MAX_AFFINE_SHIFT),
            ("add_shift", spec.MAX_ADD_SHIFT),
        ):
            shift = getattr(self, name)
            require(0 <= shift <= top, f"{where}{name}={shift}: allowed are 0..{top}")

    def _validate_weights(self, where: str, width: int) -> None:
        w, k = self.weights, self.block_size
        if self.opcode != spec.Opcode.CIRCULANT:
            require(w.size == 0 and k == 1 and not self.gather, f"{where}only CIRCULANT has weights, k and gather")
            return
        require(k == 1 or k in spec.BLOCK_SIZES, f"{where}block size {k}: allowed are 1 and {spec.BLOCK_SIZES}")
        require(
            not self.gather or (k > 1 and self.source.channels <= spec.MAX_GATHER_CHANNELS),
            f"{where}gather with k={k} and {self.source.channels} channels: it takes k >= 4 and at most "
            f"{spec.MAX_GATHER_CHANNELS} channels",
        )
        i = self.instruction(width)
        require(i.terms <= spec.MAX_TERMS, f"{where}{i.terms} products in a sum: allowed are {spec.MAX_TERMS}")
        shape = (i.out_blocks, i.row_blocks, i.block_words, 2)
        require(w.dtype.kind == "i", f"{where}weights of dtype {w.dtype}: expected signed integers")
        require(w.shape == shape, f"{where}weights of shape {w.shape}: expected {shape} for k={k}")
        low, high = limits(width)
        require(bool(w.min() >= low and w.max() <= high), f"{where}weights exceed {width} bits")
