# SPDX-License-Identifier: BSD-3-Clause
"""THE hardware contract: the only place where a width, an offset, an opcode or a limit is written.

Everything else that needs one of these numbers imports this module or is generated from it by
``python -m circ_overlay.codegen`` (C++ header, Tcl variables, ``.hwh`` register section, tables in docs/).
This module never computes with data: arithmetic is in :mod:`circ_overlay.golden`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, IntFlag

__all__ = [
    "ACTIVATIONS",
    "BLOCK_SIZES",
    "Activation",
    "Capability",
    "Command",
    "CoreConfig",
    "Field",
    "INSTRUCTION_FIELDS",
    "Instruction",
    "LayerFlag",
    "Opcode",
    "REGISTERS",
    "Register",
    "SPEC_HASH",
    "SPEC_ID",
    "SPEC_VERSION",
    "Status",
    "WIDTHS",
    "beats",
    "register",
    "spectrum_bits",
    "spectrum_order",
    "u8_shift",
]

SPEC_VERSION = 1
"""Raised by one with every change of this contract, so that of two hashes the older side is known."""

MAGIC = 0x43495243  # "CIRC", read as big-endian ASCII
CORE_VLNV = "circ-overlay:hls:circ_core:1.0"

# ---- numbers (docs/numerics.md says where each one acts) -------------------------------------------------
WIDTHS = range(8, 17)  # W: bits of an activation and of a spectral weight, a build parameter of the core
LOG2_BLOCK_MIN, LOG2_BLOCK_MAX = 2, 7
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

# ---- streams ---------------------------------------------------------------------------------------------
STREAM_BYTES = 8  # one beat of both AXI4-Streams
HEADER_WORDS = 4  # 64-bit words before the first instruction of a program image
INSTRUCTION_WORDS = 4  # 64-bit words of an instruction


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
    """Operation of an instruction."""

    LINEAR = 1


class Activation(IntEnum):
    """Function behind the per-channel affine."""

    IDENTITY = 0
    RELU = 1
    SIGMOID = 2
    TANH = 3


ACTIVATIONS = tuple(a.name.lower() for a in Activation)


class LayerFlag(IntFlag):
    """Bits of an instruction's ``flags``."""

    INPUT_U8 = 1  # first layer only: the stream carries unsigned bytes n, taken as n << u8_shift(W)


class Capability(IntFlag):
    """Bits of the register ``capability``: what this build of the core can execute."""

    LINEAR = 1
    SIGMOID_TANH = 2
    INPUT_U8 = 4


ALL_CAPABILITIES = Capability.LINEAR | Capability.SIGMOID_TANH | Capability.INPUT_U8


@dataclass(frozen=True, kw_only=True)
class Field:
    """A named run of bits in a register or in an instruction."""

    name: str
    lsb: int
    width: int
    description: str
    access: str = "read-write"
    enum: type[IntEnum] | type[IntFlag] | None = None


@dataclass(frozen=True, kw_only=True)
class Register:
    """A 32-bit AXI4-Lite register, or ``count`` of them in a row."""

    name: str
    offset: int
    access: str
    description: str
    count: int = 1
    fields: tuple[Field, ...] = field(default=())


def _bit(name: str, lsb: int, access: str, description: str) -> Field:
    return Field(name=name, lsb=lsb, width=1, access=access, description=description)


def _whole(name: str, offset: int, access: str, description: str, *parts: Field, count: int = 1) -> Register:
    return Register(
        name=name, offset=offset, access=access, description=description, count=count, fields=parts
    )


_RO, _RW, _WO = "read-only", "read-write", "write-only"

MAX_LAYERS = 64

# Offsets are those that Vitis HLS gives an ap_ctrl_hs top: control block below 0x10, a scalar every 8 bytes
# (the odd words are its ap_vld bits and stay unused), then the array.
REGISTERS: tuple[Register, ...] = (
    _whole(
        "CTRL", 0x00, _RW, "Control signals of the ap_ctrl_hs handshake",
        _bit("AP_START", 0, _RW, "1 starts the command; clears itself when the core takes it"),
        _bit("AP_DONE", 1, _RO, "the command has ended; cleared by this read"),
        _bit("AP_IDLE", 2, _RO, "no command is executing"),
        _bit("AP_READY", 3, _RO, "the next command may be started; cleared by this read"),
        _bit("AUTO_RESTART", 7, _RW, "start again when ready"),
        _bit("INTERRUPT", 9, _RO, "the interrupt line"),
    ),
    _whole("GIER", 0x04, _RW, "Global interrupt enable", _bit("Enable", 0, _RW, "enable the line")),
    _whole(
        "IP_IER", 0x08, _RW, "Interrupt enable",
        _bit("CHAN0_INT_EN", 0, _RW, "interrupt on ap_done"),
        _bit("CHAN1_INT_EN", 1, _RW, "interrupt on ap_ready"),
    ),
    _whole(
        "IP_ISR", 0x0C, _RW, "Interrupt status: writing 1 toggles a bit",
        _bit("CHAN0_INT_ST", 0, _RW, "ap_done seen"),
        _bit("CHAN1_INT_ST", 1, _RW, "ap_ready seen"),
    ),
    _whole("command", 0x10, _RW, "Command: 0 identify, 1 load a program image, 2 run a batch"),
    _whole("batch", 0x18, _RW, "Images of the next run"),
    _whole("status", 0x20, _RO, "Outcome of the last command, see Status"),
    _whole("magic", 0x28, _RO, "0x43495243, the letters CIRC"),
    _whole("spec_id", 0x30, _RO, "First 32 bits of the specification's SHA-256"),
    _whole(
        "config", 0x38, _RO, "Build parameters",
        Field(name="activation_bits", lsb=0, width=8, access=_RO, description="W, bits of activations and weights"),
        Field(name="lanes", lsb=8, width=8, access=_RO, description="L: complex multiply-accumulate lanes"),
        Field(name="samples", lsb=16, width=8, access=_RO, description="F: transform samples per cycle"),
        Field(name="spec_version", lsb=24, width=8, access=_RO, description="version of the specification"),
    ),
    _whole("capability", 0x40, _RO, "What this build can execute, see Capability"),
    _whole("weight_words", 0x48, _RO, "Capacity: complex spectral weight words"),
    _whole("map_elements", 0x50, _RO, "Capacity: elements of one feature map, whole blocks counted"),
    _whole("affine_channels", 0x58, _RO, "Capacity: channels with an affine entry"),
    _whole("instructions", 0x60, _RO, "Capacity: instructions"),
    _whole("program_id", 0x68, _RO, "Identity of the program on chip, 0 for none"),
    _whole("images", 0x70, _RO, "Images finished in the last run"),
    _whole("cycles_low", 0x78, _RO, "Clock cycles of the last command, bits 31:0"),
    _whole("cycles_high", 0x80, _RO, "Clock cycles of the last command, bits 63:32"),
    _whole("layer_cycles", 0x100, _RO, "Clock cycles of each layer in the last run", count=MAX_LAYERS),
)  # fmt: skip
REGISTER_SPACE = 0x200  # bytes that decode; the block design maps 64 KiB

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


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """Build parameters of a core: what may differ between two cores of the same specification.

    Parameters
    ----------
    width : bits of activations and spectral weights (W), 8..16.
    lanes : complex multiply-accumulate lanes (L), 1..255. Never changes a bit of the results.
    samples : real samples a cycle through each transform (F), a power of two, 1..128. Likewise.
    weight_words, map_elements, affine_channels, instructions : on-chip capacities.
    capability : operations this build has.
    """

    width: int = 12
    lanes: int = 54
    samples: int = 4
    weight_words: int = 65536
    map_elements: int = 8192
    affine_channels: int = 4096
    instructions: int = MAX_LAYERS
    capability: int = int(ALL_CAPABILITIES)

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise ValueError(f"width={self.width}: a core is built for {WIDTHS[0]}..{WIDTHS[-1]} bits")
        if not 1 <= self.lanes <= 255:
            raise ValueError(f"lanes={self.lanes}: allowed are 1..255")
        if self.samples not in {1 << n for n in range(8)}:
            raise ValueError(f"samples={self.samples}: allowed are the powers of two from 1 to 128")
        if not 1 <= self.instructions <= MAX_LAYERS:
            raise ValueError(f"instructions={self.instructions}: allowed are 1..{MAX_LAYERS}")
        for f in fields(self)[3:]:
            if not 0 < getattr(self, f.name) < 1 << 32:
                raise ValueError(f"{f.name}={getattr(self, f.name)}: allowed are 1..{(1 << 32) - 1}")

    def register_values(self) -> dict[str, int]:
        """Values of the identity registers, by register name."""
        packed = self.width | self.lanes << 8 | self.samples << 16 | SPEC_VERSION << 24
        return {
            "magic": MAGIC,
            "spec_id": SPEC_ID,
            "config": packed,
            **{f.name: getattr(self, f.name) for f in fields(self)[3:]},
        }

    @classmethod
    def from_register_values(cls, values: dict[str, int]) -> CoreConfig:
        """The inverse of :meth:`register_values`."""
        packed = values["config"]
        return cls(
            width=packed & 0xFF,
            lanes=packed >> 8 & 0xFF,
            samples=packed >> 16 & 0xFF,
            **{f.name: values[f.name] for f in fields(cls)[3:]},
        )


def register(name: str) -> Register:
    """The register called `name`; KeyError lists the names there are."""
    for r in REGISTERS:
        if r.name == name:
            return r
    raise KeyError(f"no register {name!r}; there are {', '.join(r.name for r in REGISTERS)}")


def beats(elements: int, element_bytes: int) -> int:
    """Stream beats of one image: `elements` of `element_bytes` bytes, filled up to a whole beat."""
    return -(-elements * element_bytes // STREAM_BYTES)


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


def _contract() -> str:
    """Everything two implementations must agree on, as canonical text."""

    def plain(f: Field) -> dict[str, object]:
        values = asdict(f)
        values.pop("description")
        values["enum"] = {e.name: int(e) for e in f.enum} if f.enum else None
        return values

    constants = {
        name: list(value) if isinstance(value, (range, tuple)) else value
        for name, value in globals().items()
        if name.isupper() and isinstance(value, (int, str, range)) and not isinstance(value, IntFlag)
        and not name.startswith(("SPEC_HASH", "SPEC_ID", "_"))
    }  # fmt: skip
    registers = [
        {"name": r.name, "offset": r.offset, "access": r.access, "count": r.count,
         "fields": [plain(f) for f in r.fields]}
        for r in REGISTERS
    ]  # fmt: skip
    enums = {e.__name__: {m.name: int(m) for m in e} for e in (Command, Status, Capability)}
    contract = {
        "constants": constants,
        "registers": registers,
        "instruction": [plain(f) for f in INSTRUCTION_FIELDS],
        "enums": enums,
    }
    return json.dumps(contract, sort_keys=True, separators=(",", ":"))


SPEC_HASH: str = hashlib.sha256(_contract().encode()).hexdigest()
"""SHA-256 of the contract, in hexadecimal: stands in every ``.circ``, ``circ.json`` and core."""

SPEC_ID: int = int(SPEC_HASH[:8], 16)
"""First 32 bits of :data:`SPEC_HASH`: what fits in the identity register."""
