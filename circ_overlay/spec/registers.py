# SPDX-License-Identifier: BSD-3-Clause
"""The AXI4-Lite registers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from .numbers import MAX_LAYERS

__all__ = [
    "REGISTERS",
    "Field",
    "Register",
    "register",
]


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
    _whole("map_elements", 0x50, _RO, "Capacity: elements of map memory, all maps together"),
    _whole("affine_channels", 0x58, _RO, "Capacity: channels with an affine entry"),
    _whole("instructions", 0x60, _RO, "Capacity: instructions"),
    _whole("program_id", 0x68, _RO, "Identity of the program on chip, 0 for none"),
    _whole("images", 0x70, _RO, "Images finished in the last run"),
    _whole("cycles_low", 0x78, _RO, "Clock cycles of the last command, bits 31:0"),
    _whole("cycles_high", 0x80, _RO, "Clock cycles of the last command, bits 63:32"),
    _whole("spectra_words", 0x88, _RO, "Capacity: spectral words of the input rows that a row of outputs needs"),
    _whole("layer_cycles", 0x100, _RO, "Clock cycles of each layer in the last run", count=MAX_LAYERS),
)  # fmt: skip


def register(name: str) -> Register:
    """The register called `name`; KeyError lists the names there are."""
    for r in REGISTERS:
        if r.name == name:
            return r
    raise KeyError(f"no register {name!r}; there are {', '.join(r.name for r in REGISTERS)}")
