# SPDX-License-Identifier: BSD-3-Clause
"""Instructions as the core's sequencer reads them. docs/instructions.md says what each one does."""

from __future__ import annotations

from dataclasses import dataclass

from .numbers import (
    INSTRUCTION_WORDS,
    MAP_WORD,
    Activation,
    LayerFlag,
    Opcode,
    pixel_words,
)
from .registers import Field

__all__ = [
    "INSTRUCTION_FIELDS",
    "Instruction",
]

# ---- instructions: lsb counts from bit 0 of the first word, little-endian --------------------------------
INSTRUCTION_FIELDS: tuple[Field, ...] = (
    Field(name="opcode", lsb=0, width=8, description="operation", enum=Opcode),
    Field(name="log2_block", lsb=8, width=8, description="log2 of the block size k; 0 for an uncompressed layer"),
    Field(name="activation", lsb=16, width=8, description="function after the affine", enum=Activation),
    Field(name="flags", lsb=24, width=8, description="see LayerFlag", enum=LayerFlag),
    Field(name="in_channels", lsb=32, width=16, description="channels of an input pixel; the last block ends in zeros"),
    Field(name="out_channels", lsb=48, width=16, description="channels of an output pixel; surplus ones are dropped"),
    Field(name="weight_base", lsb=64, width=32, description="first complex word of the weights"),
    Field(name="affine_base", lsb=96, width=32, description="affine entry of output channel 0"),
    Field(name="acc_shift", lsb=128, width=8, description="rounding right shift after the accumulators"),
    Field(name="affine_shift", lsb=136, width=8, description="rounding right shift after the affine"),
    Field(name="add_shift", lsb=144, width=8, description="left shift of the residual operand"),
    Field(name="ceiling", lsb=160, width=16, description="upper limit of a ReLU, 2^(W-1)-1 for a plain one"),
    Field(name="in_base", lsb=192, width=32, description="map word of the input's first pixel"),
    Field(name="out_base", lsb=224, width=32, description="map word of the output's first pixel"),
    Field(name="add_base", lsb=256, width=32, description="map word of the residual operand's first pixel"),
    Field(name="factor_base", lsb=288, width=32, description="PRODUCT: map word of the second factor's first pixel"),
    Field(name="in_height", lsb=320, width=16, description="rows of input pixels"),
    Field(name="in_width", lsb=336, width=16, description="input pixels of a row"),
    Field(name="out_height", lsb=352, width=16, description="rows of output pixels, after pooling"),
    Field(name="out_width", lsb=368, width=16, description="output pixels of a row, after pooling"),
    Field(name="tap_rows", lsb=384, width=8, description="r: rows of a window"),
    Field(name="tap_columns", lsb=392, width=8, description="s: pixels of a window's row"),
    Field(name="stride_rows", lsb=400, width=8, description="rows between windows"),
    Field(name="stride_columns", lsb=408, width=8, description="pixels between windows"),
    Field(name="pad_top", lsb=416, width=8, description="rows outside the input above it"),
    Field(name="pad_left", lsb=424, width=8, description="pixels outside the input left of it"),
    Field(name="pool_rows", lsb=432, width=8, description="rows of results whose largest is written"),
    Field(name="pool_columns", lsb=440, width=8, description="results of a row whose largest is written"),
    Field(name="in_pitch", lsb=448, width=16, description="map words from an input pixel to the next"),
    Field(name="out_pitch", lsb=464, width=16, description="map words from an output pixel to the next"),
    Field(name="add_pitch", lsb=480, width=16, description="map words between pixels of the residual operand"),
    Field(name="factor_pitch", lsb=496, width=16, description="map words between pixels of the second factor"),
)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One layer as the core's sequencer reads it; the fields are those of :data:`INSTRUCTION_FIELDS`."""

    opcode: int
    log2_block: int
    activation: int
    flags: int
    in_channels: int
    out_channels: int
    weight_base: int
    affine_base: int
    acc_shift: int
    affine_shift: int
    add_shift: int
    ceiling: int
    in_base: int
    out_base: int
    add_base: int
    factor_base: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    tap_rows: int
    tap_columns: int
    stride_rows: int
    stride_columns: int
    pad_top: int
    pad_left: int
    pool_rows: int
    pool_columns: int
    in_pitch: int
    out_pitch: int
    add_pitch: int
    factor_pitch: int

    @property
    def block_size(self) -> int:
        """k, in elements; 1 for an uncompressed layer."""
        return 1 << self.log2_block

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return self.tap_rows * self.tap_columns

    @property
    def gathers(self) -> bool:
        """True if a window's pixels make one vector."""
        return bool(self.flags & LayerFlag.GATHER)

    @property
    def in_blocks(self) -> int:
        """q: blocks of one transformed vector, a pixel or with GATHER a window; k = 1: its map words."""
        if self.log2_block == 0:
            return pixel_words(self.in_channels)
        elements = self.in_channels * (self.taps if self.gathers else 1)
        return -(-elements // self.block_size)

    @property
    def out_blocks(self) -> int:
        """p, output blocks: out_channels over k, rounded up."""
        return -(-self.out_channels // self.block_size)

    @property
    def block_words(self) -> int:
        """Complex words of a weight block: k/2; k = 1: the two that face a map word's four elements."""
        return self.block_size // 2 if self.log2_block else MAP_WORD // 2

    @property
    def row_blocks(self) -> int:
        """Weight blocks that are summed into one output block: taps x q, with GATHER q."""
        return self.in_blocks * (1 if self.gathers else self.taps)

    @property
    def terms(self) -> int:
        """Real products that are summed into one output, zeros included."""
        return 2 * self.row_blocks * self.block_words

    @property
    def weight_count(self) -> int:
        """Complex words of this layer's weights, 0 unless CIRCULANT."""
        if self.opcode != Opcode.CIRCULANT:
            return 0
        return self.out_blocks * self.row_blocks * self.block_words

    @property
    def result_height(self) -> int:
        """Rows of results, before pooling."""
        return self.out_height * self.pool_rows

    @property
    def result_width(self) -> int:
        """Results of a row, before pooling."""
        return self.out_width * self.pool_columns

    @property
    def spectra_words(self) -> int:
        """Spectral words that have to be at hand at a time: the input rows that a row of outputs needs.

        0 unless CIRCULANT with k > 1; with GATHER one window's.
        """
        if self.opcode != Opcode.CIRCULANT or self.log2_block == 0:
            return 0
        words = self.in_blocks * self.block_words
        if self.gathers:
            return words
        rows = min(self.in_height, self.tap_rows + (self.pool_rows - 1) * self.stride_rows)
        return rows * self.in_width * words

    def encode(self) -> tuple[int, ...]:
        """The instruction as INSTRUCTION_WORDS unsigned 64-bit integers, little-endian.

        Raises
        ------
        ValueError
            A value does not fit in its field.
        """
        bits = 0
        for f in INSTRUCTION_FIELDS:
            value = int(getattr(self, f.name))
            if not 0 <= value < 1 << f.width:
                raise ValueError(f"instruction field {f.name}={value} is outside 0..{(1 << f.width) - 1}")
            bits |= value << f.lsb
        mask = (1 << 64) - 1
        return tuple(bits >> (64 * i) & mask for i in range(INSTRUCTION_WORDS))

    @classmethod
    def decode(cls, words: tuple[int, ...]) -> Instruction:
        """The inverse of :meth:`encode`; bits outside the fields are ignored."""
        bits = sum(int(w) << (64 * i) for i, w in enumerate(words))
        return cls(**{f.name: bits >> f.lsb & ((1 << f.width) - 1) for f in INSTRUCTION_FIELDS})
