# SPDX-License-Identifier: BSD-3-Clause
"""Program image: the 64-bit words that a LOAD command streams into the core, and back.

    word 0     spec id << 32 | magic
    word 1     weight words << 32 | program id
    word 2     instructions << 32 | affine entries
    word 3     flags (spec.ImageFlag) << 8 | W, the width that the program was compiled for
    word 4     map words filled from the input stream << 32 | the first of them
    word 5     map words sent to the output stream << 32 | the first of them
    word 6     map words cleared when a sequence begins << 32 | the first of them
    word 7     0
    then       instructions, 8 words each (spec.INSTRUCTION_FIELDS)
    then       affine entries, one word each: bias << 24 | scale (SCALE_BITS, two's complement)
    then       weights, two complex words in a 64-bit word: re, im, re, im, 16 bits each, low end first

The program id is the CRC-32 of all words from word 2 on, never 0.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import spec
from .program import Segment, Span

__all__ = ["Image", "decode", "encode", "instructions"]

Words = NDArray[np.uint64]
_KNOWN_FLAGS = int(spec.ImageFlag.INPUT_U8 | spec.ImageFlag.SEQUENCE)


class Image(NamedTuple):
    """A decoded program image."""

    program_id: int
    instructions: tuple[spec.Instruction, ...]
    scale: NDArray[np.int64]  # (channels,)
    bias: NDArray[np.int64]  # (channels,)
    weights: NDArray[np.int64]  # (words, 2)
    flags: int  # spec.ImageFlag
    input: Span
    output: Span
    state: Span

    @property
    def sequence(self) -> bool:
        """True if a control beat precedes every image."""
        return bool(self.flags & spec.ImageFlag.SEQUENCE)

    @property
    def u8(self) -> bool:
        """True if the input stream carries bytes."""
        return bool(self.flags & spec.ImageFlag.INPUT_U8)

    @property
    def in_beats(self) -> int:
        """Stream beats of one image in, a control beat included."""
        return (-(-self.input.words // 2) if self.u8 else self.input.words) + self.sequence

    @property
    def out_beats(self) -> int:
        """Stream beats of one image out."""
        return self.output.words


def instructions(segment: Segment, width: int) -> tuple[spec.Instruction, ...]:
    """The segment's layers as instructions; weights and affine tables lie one after another."""
    result = []
    weight_base = affine_base = 0
    for layer in segment.layers:
        result.append(layer.instruction(width, weight_base, affine_base))
        weight_base += result[-1].weight_count
        affine_base += len(layer.scale)
    return tuple(result)


def encode(segment: Segment, width: int) -> Words:
    """The image of `segment` for a core of `width` bits, uint64."""
    code = instructions(segment, width)
    scale = np.concatenate([layer.scale for layer in segment.layers]).astype(np.int64)
    bias = np.concatenate([layer.bias for layer in segment.layers]).astype(np.int64)
    weights = np.concatenate([layer.weights.ravel() for layer in segment.layers]).astype("<i2")
    packed = np.zeros(-(-weights.size // 4) * 4, "<i2")
    packed[: weights.size] = weights
    flags = spec.ImageFlag(0)
    if segment.u8:
        flags |= spec.ImageFlag.INPUT_U8
    if segment.sequence:
        flags |= spec.ImageFlag.SEQUENCE
    spans = [s.words << 32 | s.base for s in (segment.input, segment.output, segment.state)]
    body = np.concatenate(
        [
            np.array([len(code) << 32 | len(scale), int(flags) << 8 | width, *spans, 0], np.uint64),
            np.array([word for instruction in code for word in instruction.encode()], np.uint64),
            (bias << 24 | scale & 0xFFFFFF).view(np.uint64),
            packed.view("<u8").astype(np.uint64),
        ]
    )
    program_id = zlib.crc32(body.astype("<u8").tobytes()) or 1
    header = [spec.SPEC_ID << 32 | spec.MAGIC, weights.size // 2 << 32 | program_id]
    return np.concatenate([np.array(header, np.uint64), body])


def decode(words: Words, config: spec.CoreConfig) -> Image | spec.Status:
    """A streamed image as the core takes it, or the status with which the core refuses it."""
    if len(words) < spec.HEADER_WORDS:
        return spec.Status.BAD_LENGTH
    first, second, third, fourth, *spans = (int(w) for w in words[: spec.HEADER_WORDS - 1])
    if first & 0xFFFFFFFF != spec.MAGIC:
        return spec.Status.BAD_MAGIC
    if first >> 32 != spec.SPEC_ID:
        return spec.Status.SPEC_MISMATCH
    if fourth & 0xFF != config.width:
        return spec.Status.WIDTH_MISMATCH
    flags = fourth >> 8
    input_, output, state = (Span(base=s & 0xFFFFFFFF, words=s >> 32) for s in spans)
    if flags & ~_KNOWN_FLAGS or (flags & spec.ImageFlag.INPUT_U8 and config.width == spec.U8_BITS):
        return spec.Status.BAD_INSTRUCTION
    if not input_.words or not output.words:
        return spec.Status.BAD_INSTRUCTION
    weight_words, program_id = second >> 32, second & 0xFFFFFFFF
    count, channels = third >> 32, third & 0xFFFFFFFF
    if (
        weight_words > config.weight_words
        or channels > config.affine_channels
        or not 0 < count <= config.instructions
        or any((s.base + s.words) * spec.MAP_WORD > config.map_elements for s in (input_, output, state))
    ):
        return spec.Status.TOO_LARGE
    at_affine = spec.HEADER_WORDS + count * spec.INSTRUCTION_WORDS
    at_weights = at_affine + channels
    if len(words) != at_weights + -(-weight_words // 2):
        return spec.Status.BAD_LENGTH
    code_words = words[spec.HEADER_WORDS : at_affine].reshape(count, -1)
    code = tuple(spec.Instruction.decode(tuple(int(w) for w in row)) for row in code_words)
    for i in code:
        if status := check(i, weight_words, channels, config):
            return status
    affine = words[at_affine:at_weights].view(np.int64)
    scale = affine << (64 - spec.SCALE_BITS) >> (64 - spec.SCALE_BITS)
    weights = words[at_weights:].astype("<u8").view("<i2").astype(np.int64).reshape(-1, 2)[:weight_words]
    return Image(program_id, code, scale, affine >> 24, weights, flags, input_, output, state)


def check(i: spec.Instruction, weight_words: int, channels: int, config: spec.CoreConfig) -> spec.Status:
    """The status that an instruction earns: OK, BAD_INSTRUCTION or TOO_LARGE.

    It keeps the core inside its memories. Whether maps overlap sensibly is the business of Layer.validate.
    """
    if (
        i.opcode not in tuple(spec.Opcode)
        or i.activation not in tuple(spec.Activation)
        or i.flags & ~int(spec.LayerFlag.GATHER | spec.LayerFlag.ADD)
        or not all(getattr(i, name) for name in _POSITIVE)
        or i.acc_shift > spec.MAX_ACC_SHIFT
        or i.affine_shift > spec.MAX_AFFINE_SHIFT
        or i.add_shift > spec.MAX_ADD_SHIFT
        or i.ceiling >= 1 << (config.width - 1)
    ):
        return spec.Status.BAD_INSTRUCTION
    circulant = i.opcode == spec.Opcode.CIRCULANT
    if circulant:
        if i.log2_block and not spec.LOG2_BLOCK_MIN <= i.log2_block <= spec.LOG2_BLOCK_MAX:
            return spec.Status.BAD_INSTRUCTION
        if i.gathers and (i.log2_block == 0 or i.in_channels > spec.MAX_GATHER_CHANNELS):
            return spec.Status.BAD_INSTRUCTION
    elif i.log2_block or i.gathers or i.in_channels != i.out_channels:
        return spec.Status.BAD_INSTRUCTION
    if i.opcode == spec.Opcode.PRODUCT and (
        i.taps > 1 or i.stride_rows > 1 or i.stride_columns > 1 or i.pad_top or i.pad_left
    ):
        return spec.Status.BAD_INSTRUCTION
    if (
        (circulant and i.terms > spec.MAX_TERMS)
        or i.weight_base + i.weight_count > weight_words
        or i.affine_base + i.out_channels > channels
    ):
        return spec.Status.BAD_INSTRUCTION
    if (
        i.spectra_words > config.spectra_words
        or max(_ends(i)) * spec.MAP_WORD > config.map_elements
    ):  # fmt: skip
        return spec.Status.TOO_LARGE
    return spec.Status.OK


_POSITIVE = (
    "in_channels", "out_channels", "in_height", "in_width", "out_height", "out_width", "tap_rows", "tap_columns",
    "stride_rows", "stride_columns", "pool_rows", "pool_columns", "in_pitch", "out_pitch",
)  # fmt: skip


def _ends(i: spec.Instruction) -> list[int]:
    """The words behind the maps that an instruction touches."""

    def end(base: int, pixels: int, pitch: int, channels: int) -> int:
        return base + (pixels - 1) * pitch + spec.pixel_words(channels)

    results = i.result_height * i.result_width
    ends = [
        end(i.in_base, i.in_height * i.in_width, i.in_pitch, i.in_channels),
        end(i.out_base, i.out_height * i.out_width, i.out_pitch, i.out_channels),
    ]
    if i.flags & spec.LayerFlag.ADD:
        ends.append(end(i.add_base, results, i.add_pitch, i.out_channels))
    if i.opcode == spec.Opcode.PRODUCT:
        ends.append(end(i.factor_base, results, i.factor_pitch, i.out_channels))
    return ends
