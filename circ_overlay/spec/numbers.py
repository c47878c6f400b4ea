# SPDX-License-Identifier: BSD-3-Clause
"""Widths, limits and codes, and the three sums that follow from them."""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "ACC_BITS",
    "ACTIVATIONS",
    "ACTIVATION_FRAC_BITS",
    "ACTIVATION_LOG2_SEGMENTS",
    "ALL_CAPABILITIES",
    "Activation",
    "BIAS_BITS",
    "BLOCK_SIZES",
    "CORE_VLNV",
    "Capability",
    "Command",
    "HEADER_WORDS",
    "INSTRUCTION_WORDS",
    "LOG2_BLOCK_MAX",
    "LOG2_BLOCK_MIN",
    "ImageFlag",
    "LayerFlag",
    "MAGIC",
    "MAP_WORD",
    "MAX_ACC_SHIFT",
    "MAX_ADD_SHIFT",
    "MAX_AFFINE_SHIFT",
    "MAX_GATHER_CHANNELS",
    "MAX_LAYERS",
    "MAX_TERMS",
    "Opcode",
    "PREACT_GUARD_BITS",
    "REGISTER_SPACE",
    "SCALE_BITS",
    "SPEC_VERSION",
    "STREAM_BYTES",
    "SUM_BITS",
    "Status",
    "TIME_BITS",
    "TWIDDLE_FRAC_BITS",
    "U8_BITS",
    "WIDTHS",
    "pixel_words",
    "spectrum_bits",
    "spectrum_order",
    "u8_shift",
]

SPEC_VERSION = 2
"""Raised by one with every change of this contract, so that of two hashes the older side is known."""

MAGIC = 0x43495243  # "CIRC", read as big-endian ASCII
CORE_VLNV = "circ-overlay:hls:circ_core:1.0"

# ---- numbers (docs/numerics.md says where each one acts) -------------------------------------------------
WIDTHS = range(8, 17)  # W: bits of an activation and of a spectral weight, a build parameter of the core
LOG2_BLOCK_MIN, LOG2_BLOCK_MAX = 2, 7  # besides 0: k = 1, an uncompressed layer
BLOCK_SIZES = tuple(1 << n for n in range(LOG2_BLOCK_MIN, LOG2_BLOCK_MAX + 1))
TWIDDLE_FRAC_BITS = 16  # twiddles are 18-bit signed, so that 1.0 is exact and a DSP48E1's B port takes them
ACC_BITS = 48  # exact accumulator of the spectral products: a DSP48E1's P register
SUM_BITS = 18  # spectral sums after the one rounding shift behind the accumulators
TIME_BITS = 25  # inverse transform's output, saturated: a DSP48E1's A port
SCALE_BITS = 18  # per-channel affine: scale ...
BIAS_BITS = 40  # ... and bias, packed into one 64-bit word
PREACT_GUARD_BITS = 4  # sigmoid and tanh see W + 4 bits: the range [-8, 8) with W fraction bits
ACTIVATION_LOG2_SEGMENTS = 7  # piecewise-linear segments over [0, 8)
ACTIVATION_FRAC_BITS = 18  # fraction bits of the table's entries
U8_BITS = 8  # of an element under INPUT_U8
MAX_ACC_SHIFT = 40
MAX_AFFINE_SHIFT = 40
MAX_ADD_SHIFT = 28  # left shift of a residual operand before it joins the affine's sum
MAX_TERMS = 65536  # real products summed into one output: with more, ACC_BITS would not be exact
MAX_GATHER_CHANNELS = 4  # of a map whose patches are gathered into one vector

# ---- maps ------------------------------------------------------------------------------------------------
MAP_WORD = 4  # elements of a word of map memory; a pixel begins on a word
# ---- streams ---------------------------------------------------------------------------------------------
STREAM_BYTES = 8  # one beat of both AXI4-Streams
HEADER_WORDS = 8  # 64-bit words before the first instruction of a program image
INSTRUCTION_WORDS = 8  # 64-bit words of an instruction
MAX_LAYERS = 64
REGISTER_SPACE = 0x200  # bytes of registers that decode; the block design maps 64 KiB


class Command(IntEnum):
    """What an ``ap_start`` does (register ``command``)."""

    IDENTIFY = 0
    LOAD = 1
    RUN = 2


class Status(IntEnum):
    """Outcome of the last command (register ``status``)."""

    OK = 0
    BAD_COMMAND = 1
    BAD_MAGIC = 2
    SPEC_MISMATCH = 3
    TOO_LARGE = 4
    BAD_LENGTH = 5
    BAD_INSTRUCTION = 6
    NO_PROGRAM = 7
    BAD_BATCH = 8
    WIDTH_MISMATCH = 9


class Opcode(IntEnum):
    """Operation of an instruction: how the taps of a pixel become the value that the affine takes."""

    CIRCULANT = 1
    MAX = 2
    SUM = 3
    PRODUCT = 4


class Activation(IntEnum):
    """Function behind the per-channel affine."""

    IDENTITY = 0
    RELU = 1
    SIGMOID = 2
    TANH = 3


ACTIVATIONS = tuple(a.name.lower() for a in Activation)


class LayerFlag(IntFlag):
    """Bits of an instruction's ``flags``."""

    GATHER = 1  # CIRCULANT: the pixel's patch (row, column, channel) is one vector, transformed as a whole
    ADD = 2  # the residual operand joins the affine's sum


class ImageFlag(IntFlag):
    """Bits of a program image's ``flags``."""

    INPUT_U8 = 1  # the stream carries unsigned bytes n, taken as n << u8_shift(W)
    SEQUENCE = 2  # a control beat precedes every image; its bit 0 clears the state


class Capability(IntFlag):
    """Bits of the register ``capability``: what this build of the core can execute."""

    CIRCULANT = 1
    SIGMOID_TANH = 2
    INPUT_U8 = 4
    POOLING = 8
    PRODUCT = 16
    UNCOMPRESSED = 32
    GATHER = 64
    SEQUENCE = 128


ALL_CAPABILITIES = Capability(255)


def pixel_words(channels: int) -> int:
    """Words of map memory that a pixel of `channels` fills; surplus elements are zero on the streams."""
    return -(-channels // MAP_WORD)


def u8_shift(width: int) -> int:
    """Left shift of an unsigned byte entering a core of `width` bits: its top bit comes to lie below the sign.

    Bytes are exact, so without these extra bits the forward transform's rounding would be their only noise.
    """
    return width - U8_BITS - 1


def spectrum_bits(width: int, block_size: int) -> int:
    """Bits of each part of an activation's spectral word: W + log2 k, unscaled."""
    return width + block_size.bit_length() - 1


def spectrum_order(block_size: int) -> tuple[int, ...]:
    """Bin held by each of the k/2 complex words of a block's spectrum, in the core's order.

    Word 0 packs the two real bins: bin 0 in its real and bin k/2 in its imaginary part (0 is returned for
    it). Words m .. 2m-1 (m a power of two) come from the transform's level of length 4m: word m + t holds
    bin (k / 4m) * (4 * bitreverse(t) + 1), which may lie above k/2; it is then the conjugate of bin k - b.
    """
    order = [0]
    m = 1
    while m < block_size // 2:
        bits = m.bit_length() - 1
        for t in range(m):
            reverse = int(f"{t:b}".zfill(bits)[::-1], 2) if bits else 0
            order.append(block_size // (4 * m) * (4 * reverse + 1))
        m *= 2
    return tuple(order)
