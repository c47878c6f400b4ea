# SPDX-License-Identifier: BSD-3-Clause
"""Program image: the 64-bit words that a LOAD command streams into the core, and back.

    word 0     spec id << 32 | magic
    word 1     weight words << 32 | program id
    word 2     instructions << 32 | affine entries
    word 3     W, the width that the program was compiled for
    then       instructions, 4 words each (spec.INSTRUCTION_FIELDS)
    then       affine entries, one word each: bias << 24 | scale (SCALE_BITS, two's complement)
    then       weights, two complex words in a 64-bit word: re, im, re, im, 16 bits each, low end first
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import spec
from .program import Program

__all__ = ["Image", "decode", "encode", "instructions"]

Words = NDArray[np.uint64]


class Image(NamedTuple):
    """A decoded program image."""

    program_id: int
    instructions: tuple[spec.Instruction, ...]
    scale: NDArray[np.int64]  # (channels,)
    bias: NDArray[np.int64]  # (channels,)
    weights: NDArray[np.int64]  # (words, 2)


def instructions(program: Program) -> tuple[spec.Instruction, ...]:
    """The program's layers as instructions; weights and affine tables lie one after another."""
    result = []
    weight_base = affine_base = 0
    for index, layer in enumerate(program.layers):
        u8 = index == 0 and program.input.storage == "uint8"
        instruction = spec.Instruction(
            opcode=spec.Opcode.LINEAR,
            log2_block=layer.block_size.bit_length() - 1,
            activation=layer.activation,
            flags=spec.LayerFlag.INPUT_U8 if u8 else 0,
            in_features=layer.in_features,
            out_features=layer.out_features,
            weight_base=weight_base,
            affine_base=affine_base,
            acc_shift=layer.acc_shift,
            affine_shift=layer.affine_shift,
        )
        result.append(instruction)
        weight_base += instruction.weight_count
        affine_base += layer.out_features
    return tuple(result)


def encode(program: Program) -> Words:
    """The image of `program`, uint64."""
    code = instructions(program)
    scale = np.concatenate([layer.scale for layer in program.layers]).astype(np.int64)
    bias = np.concatenate([layer.bias for layer in program.layers]).astype(np.int64)
    weights = np.concatenate([layer.weights.ravel() for layer in program.layers]).astype("<i2")
    complex_words = weights.size // 2
    packed = np.zeros(-(-weights.size // 4) * 4, "<i2")
    packed[: weights.size] = weights
    body = np.concatenate(
        [
            np.array([word for instruction in code for word in instruction.encode()], np.uint64),
            (bias << 24 | scale & 0xFFFFFF).view(np.uint64),
            packed.view("<u8").astype(np.uint64),
        ]
    )
    program_id = zlib.crc32(body.astype("<u8").tobytes()) or 1
    header = [
        spec.SPEC_ID << 32 | spec.MAGIC,
        complex_words << 32 | program_id,
        len(code) << 32 | len(scale),
        program.width,
    ]
    return np.concatenate([np.array(header, np.uint64), body])


def decode(words: Words, config: spec.CoreConfig) -> Image | spec.Status:
    """A streamed image as the core takes it, or the status with which the core refuses it."""
    if len(words) < spec.HEADER_WORDS:
        return spec.Status.BAD_LENGTH
    first, second, third, width = (int(w) for w in words[: spec.HEADER_WORDS])
    if first & 0xFFFFFFFF != spec.MAGIC:
        return spec.Status.BAD_MAGIC
    if first >> 32 != spec.SPEC_ID:
        return spec.Status.SPEC_MISMATCH
    if width != config.width:
        return spec.Status.WIDTH_MISMATCH
    weight_words, program_id = second >> 32, second & 0xFFFFFFFF
    count, channels = third >> 32, third & 0xFFFFFFFF
    if (
        weight_words > config.weight_words
        or channels > config.affine_channels
        or not 0 < count <= config.instructions
    ):
        return spec.Status.TOO_LARGE
    at_affine = spec.HEADER_WORDS + count * spec.INSTRUCTION_WORDS
    at_weights = at_affine + channels
    if len(words) != at_weights + -(-weight_words // 2):
        return spec.Status.BAD_LENGTH
    code_words = words[spec.HEADER_WORDS : at_affine].reshape(count, -1)
    code = tuple(spec.Instruction.decode(tuple(int(w) for w in row)) for row in code_words)
    for index, i in enumerate(code):
        if status := check(i, index, code, weight_words, channels, config):
            return status
    affine = words[at_affine:at_weights].view(np.int64)
    scale = affine << (64 - spec.SCALE_BITS) >> (64 - spec.SCALE_BITS)
    weights = words[at_weights:].astype("<u8").view("<i2").astype(np.int64).reshape(-1, 2)[:weight_words]
    return Image(program_id, code, scale, affine >> 24, weights)


def check(
    i: spec.Instruction,
    index: int,
    code: tuple[spec.Instruction, ...],
    weight_words: int,
    channels: int,
    config: spec.CoreConfig,
) -> spec.Status:
    """The status that instruction `i`, the `index`-th of `code`, earns: OK, BAD_INSTRUCTION or TOO_LARGE."""
    if (
        i.opcode != spec.Opcode.LINEAR
        or not spec.LOG2_BLOCK_MIN <= i.log2_block <= spec.LOG2_BLOCK_MAX
        or i.activation not in tuple(spec.Activation)
        or i.flags & ~(int(spec.LayerFlag.INPUT_U8) if index == 0 else 0)
        or not (i.in_features and i.out_features)
        or i.acc_shift > spec.MAX_ACC_SHIFT
        or i.affine_shift > spec.MAX_AFFINE_SHIFT
        or i.weight_base + i.weight_count > weight_words
        or i.affine_base + i.out_features > channels
        or (index > 0 and i.in_features != code[index - 1].out_features)
        or (i.flags & spec.LayerFlag.INPUT_U8 and config.width == 8)
    ):
        return spec.Status.BAD_INSTRUCTION
    if max(i.in_blocks, i.out_blocks) * i.block_size > config.map_elements:
        return spec.Status.TOO_LARGE
    return spec.Status.OK
