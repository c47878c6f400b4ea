# SPDX-License-Identifier: BSD-3-Clause
"""Faults that can be injected into the fabric, so that a driver's handling of them can be tested.

A fault acts as long as its ``with fabric.inject(...)`` block. It never changes the state that the block
leaves behind: what the hardware did because of it stays done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from .. import spec

__all__ = [
    "BusError",
    "CoreStatus",
    "CorruptBitstream",
    "Fault",
    "FaultSet",
    "MissingTlast",
    "ShortPacket",
    "StuckChannel",
    "WrongIdentity",
]

CHANNELS = ("mm2s", "s2mm")


@dataclass(kw_only=True)
class Fault:
    """Base of all faults."""


@dataclass
class _ChannelFault(Fault):
    """A fault of one DMA channel.

    Parameters
    ----------
    channel : "mm2s" or "s2mm".
    """

    channel: str

    def __post_init__(self) -> None:
        if self.channel not in CHANNELS:
            raise ValueError(f"channel {self.channel!r}: allowed are {', '.join(CHANNELS)}")


@dataclass
class StuckChannel(_ChannelFault):
    """The channel accepts transfers, but moves no byte."""


@dataclass
class _TransferFault(_ChannelFault):
    """A fault of one transfer.

    Parameters
    ----------
    transfer : which one, counted from 1 at the injection; the later ones are sound again.
    """

    transfer: int = field(default=1, kw_only=True)
    seen: int = field(default=0, init=False, repr=False)

    def hits(self) -> bool:
        """Count a transfer; whether it is the faulty one."""
        self.seen += 1
        return self.seen == self.transfer


@dataclass
class BusError(_TransferFault):
    """The transfer ends with DMADecErr ("decode") or DMASlvErr ("slave"), and the channel halts."""

    kind: str = field(default="decode", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("decode", "slave"):
            raise ValueError(f"kind {self.kind!r}: allowed are decode, slave")


@dataclass
class ShortPacket(_TransferFault):
    """TLAST comes early: the last `drop` bytes of the packet are missing."""

    drop: int = field(default=8, kw_only=True)


@dataclass
class MissingTlast(_TransferFault):
    """The packet's data come, but its TLAST never does."""


@dataclass
class WrongIdentity(Fault):
    """Registers that read other values than the core's own.

    Parameters
    ----------
    registers : value by register name, such as ``{"magic": 0, "spec_id": 1, "config": 2}``.
    """

    registers: dict[str, int]

    def __post_init__(self) -> None:
        for name in self.registers:
            spec.register(name)


@dataclass
class CoreStatus(Fault):
    """Commands end with this status instead of doing their work.

    Parameters
    ----------
    status : the status.
    command : only this command; None for all of them.
    """

    status: spec.Status
    command: spec.Command | None = None


@dataclass
class CorruptBitstream(Fault):
    """The configuration logic refuses every bitstream, as after a CRC error."""


F = TypeVar("F", bound=Fault)


class FaultSet:
    """The faults that act now."""

    def __init__(self) -> None:
        self._active: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let `fault` act."""
        self._active.append(fault)

    def remove(self, fault: Fault) -> None:
        """Let `fault` no longer act. Two equal faults are two faults."""
        self._active = [f for f in self._active if f is not fault]

    def of(self, kind: type[F], channel: str | None = None) -> Iterator[F]:
        """Active faults of a kind, of one channel if given."""
        for fault in self._active:
            if isinstance(fault, kind) and (channel is None or getattr(fault, "channel", None) == channel):
                yield fault

    def describe(self) -> str:
        """The faults for diagnoses; empty without any."""
        return f"injected: {', '.join(map(repr, self._active))}" if self._active else ""
