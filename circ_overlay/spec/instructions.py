# SPDX-License-Identifier: BSD-3-Clause
"""Instructions as the core's sequencer reads them."""

from __future__ import annotations

from dataclasses import dataclass

from .numbers import INSTRUCTION_WORDS, Activation, LayerFlag, Opcode
from .registers import Field

__all__ = [
    "INSTRUCTION_FIELDS",
    "Instruction",
]

# ---- instructions: 8 x 32 bits; lsb counts from bit 0 of the first word, little-endian -------------------
INSTRUCTION_FIELDS: tuple[Field, ...] = (
    Field(name="opcode", lsb=0, width=8, description="operation", enum=Opcode),
    Field(name="log2_block", lsb=8, width=8, description="log2 of the block size k"),
    Field(name="activation", lsb=16, width=8, description="function after the affine", enum=Activation),
    Field(name="flags", lsb=24, width=8, description="see LayerFlag", enum=LayerFlag),
    Field(name="in_features", lsb=32, width=16, description="inputs; the last block is filled with zeros"),
    Field(name="out_features", lsb=48, width=16, description="outputs; surplus ones are dropped"),
    Field(name="weight_base", lsb=64, width=32, description="first complex word of the weights"),
    Field(name="affine_base", lsb=96, width=32, description="affine entry of output channel 0"),
    Field(name="acc_shift", lsb=128, width=8, description="rounding right shift after the accumulators"),
    Field(name="affine_shift", lsb=136, width=8, description="rounding right shift after the affine"),
)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One layer as the core's sequencer reads it; the fields are those of :data:`INSTRUCTION_FIELDS`."""

    opcode: int
    log2_block: int
    activation: int
    flags: int
    in_features: int
    out_features: int
    weight_base: int
    affine_base: int
    acc_shift: int
    affine_shift: int

    @property
    def block_size(self) -> int:
        """k, in elements."""
        return 1 << self.log2_block

    @property
    def in_blocks(self) -> int:
        """q, input blocks of a layer: in_features over k, rounded up."""
        return -(-self.in_features // self.block_size)

    @property
    def out_blocks(self) -> int:
        """p, output blocks of a layer: out_features over k, rounded up."""
        return -(-self.out_features // self.block_size)

    @property
    def weight_count(self) -> int:
        """Complex words of this layer's weights."""
        return self.out_blocks * self.in_blocks * self.block_size // 2

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
