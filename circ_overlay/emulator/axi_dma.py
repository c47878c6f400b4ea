# SPDX-License-Identifier: BSD-3-Clause
"""Register model of xilinx.com:ip:axi_dma:7.1 in simple (direct register) mode, after AMD's PG021.

Data are pulled: MM2S hands bytes over when the stream's other side takes them, S2MM takes them when it is
armed, so back-pressure is what it is in hardware. Unlike the hardware, MM2S has no FIFO: a transfer that
nobody takes never completes, however short it is.

Without a data realignment engine PG021 calls an unaligned address undefined; here it is DMAIntErr and Halted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ddr import Ddr
from .faults import BusError, FaultSet, MissingTlast, ShortPacket, StuckChannel
from .streams import Bytes

__all__ = ["VLNV", "AxiDma", "Channel"]

VLNV = "xilinx.com:ip:axi_dma:7.1"
_log = logging.getLogger(__name__)

CONTROL, STATUS, ADDRESS, LENGTH = 0x00, 0x04, 0x18, 0x28  # from a channel's first register
OFFSETS = {"mm2s": 0x00, "s2mm": 0x30}
RUN, RESET, IOC_IRQ, ERR_IRQ = 1, 1 << 2, 1 << 12, 1 << 14
HALTED, IDLE, INTERNAL, SLAVE, DECODE = 1, 1 << 1, 1 << 4, 1 << 5, 1 << 6
CONTROL_RESET = 0x0001_0002  # IRQThreshold 1, and a reserved bit that reads 1
IRQS = 0x7000


@dataclass
class _Transfer:
    address: int
    length: int  # bytes to move; for S2MM the room there is
    tlast: bool = True
    done: int = 0


class Channel:
    """One of the two channels.

    Attributes
    ----------
    transfers, moved : transfers completed and bytes moved since the reset of the counters.
    """

    def __init__(
        self, name: str, ddr: Ddr, faults: FaultSet, *, width: int, length_bits: int, dre: bool
    ) -> None:
        self.name = name
        self._ddr = ddr
        self._faults = faults
        self._align = 1 if dre else width
        self._mask = (1 << length_bits) - 1
        self.transfers = 0
        self.moved = 0
        self.reset()

    def reset(self) -> None:
        """Registers as after power-on."""
        self.running = False
        self._control = CONTROL_RESET
        self._idle = False
        self._flags = 0  # errors and interrupts of DMASR
        self._address = 0
        self._length = 0
        self._active: _Transfer | None = None

    @property
    def interrupt(self) -> bool:
        """The channel's introut."""
        return bool(self._control & self._flags & IRQS)

    def read(self, offset: int) -> int:
        """A register, counted from the channel's first one."""
        if offset == CONTROL:
            return self._control | (RUN if self.running else 0)
        if offset == STATUS:
            return self._flags | (0 if self.running else HALTED) | (IDLE if self._idle else 0)
        return {ADDRESS: self._address, LENGTH: self._length}.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write a register; RESET is the engine's to handle."""
        if offset == CONTROL:
            self._control = (value & ~(RUN | RESET)) | 2
            self._run(bool(value & RUN))
        elif offset == STATUS:
            self._flags &= ~(value & IRQS)
        elif offset == ADDRESS:
            self._address = value
        elif offset == LENGTH:
            self._start(value & self._mask)

    def _run(self, run: bool) -> None:
        if run == self.running or (run and self._flags & (INTERNAL | SLAVE | DECODE)):
            return  # after an error only a reset helps
        # Idle stays 0 until a transfer has completed: pynq keeps its own note of the first one.
        self.running, self._idle, self._active = run, False, None

    def _start(self, length: int) -> None:
        if not self.running or self._active or not length:
            why = "a transfer is active" if self._active else "the channel is halted" if length else "it is 0"
            _log.warning("%s: LENGTH %d is ignored, because %s", self.name, length, why)
            return
        self._length = length if self.name == "mm2s" else 0
        self._idle = False
        for fault in self._faults.of(BusError, self.name):
            if fault.hits():
                self._fail(DECODE if fault.kind == "decode" else SLAVE)
                return
        if self._address % self._align:
            _log.warning("%s: address 0x%08x is not a multiple of %d", self.name, self._address, self._align)
            self._fail(INTERNAL)
        elif not self._ddr.contains(self._address, length):
            self._fail(DECODE)
        elif self.name == "mm2s":
            length, tlast = self._packet(length)
            self._active = _Transfer(self._address, length, tlast)
        else:
            self._active = _Transfer(self._address, length)

    def _packet(self, length: int) -> tuple[int, bool]:
        """Length of the next packet, and whether its TLAST comes, as the injected faults leave them."""
        drop = sum(fault.drop for fault in self._faults.of(ShortPacket, self.name) if fault.hits())
        missing = sum(fault.hits() for fault in self._faults.of(MissingTlast, self.name))
        return max(0, length - drop), not missing

    def _fail(self, error: int) -> None:
        self._flags |= error | ERR_IRQ
        self.running, self._idle, self._active = False, False, None

    def _complete(self) -> None:
        self._active, self._idle = None, True
        self._flags |= IOC_IRQ
        self.transfers += 1

    @property
    def _stuck(self) -> bool:
        return any(True for _ in self._faults.of(StuckChannel, self.name))

    @property
    def queued(self) -> int:
        """Bytes that the active transfer has still to move."""
        return self._active.length - self._active.done if self._active else 0

    # ---- MM2S: the stream's source -----------------------------------------------------------------------
    def take(self, limit: int | None = None) -> tuple[Bytes, bool]:
        """Up to `limit` bytes of the stream, and whether a packet ended behind them; a copy."""
        transfer = self._active
        if transfer is None or self._stuck or limit == 0:
            return np.empty(0, np.uint8), False
        count = self.queued if limit is None else min(self.queued, limit)
        data = np.empty(count, np.uint8)
        if count:
            data[:] = self._ddr.view(transfer.address + transfer.done, count)
        transfer.done += count
        self.moved += count
        if transfer.done < transfer.length:
            return data, False
        self._complete()
        return data, transfer.tlast

    # ---- S2MM: the stream's sink -------------------------------------------------------------------------
    @property
    def armed(self) -> bool:
        """Whether a transfer waits for data."""
        return self._active is not None and not self._stuck

    def put(self, packet: Bytes) -> bool:
        """A whole packet into memory; whether the channel took all of it. Call it only when armed."""
        transfer = self._active
        if transfer is None:
            raise RuntimeError("the S2MM channel is not armed")
        length, tlast = self._packet(packet.size)
        packet = packet[:length]
        room = transfer.length - transfer.done
        fits = packet.size <= room
        part = packet if fits else packet[:room]
        if part.size:
            self._ddr.view(transfer.address + transfer.done, part.size)[:] = part
        transfer.done += part.size
        self.moved += part.size
        self._length = transfer.done
        if not fits:
            self._fail(INTERNAL)
        elif tlast:
            self._complete()
        return fits

    def describe(self) -> str:
        """One line: state, and what it waits for."""
        name = self.name.upper()
        stuck = " (stuck: injected)" if self._stuck else ""
        if errors := self._flags & (INTERNAL | SLAVE | DECODE):
            bits = {INTERNAL: "DMAIntErr", SLAVE: "DMASlvErr", DECODE: "DMADecErr"}
            which = ", ".join(text for bit, text in bits.items() if errors & bit)
            return f"{name} halted with {which}; only a reset of the DMA clears that{stuck}"
        if not self.running:
            return f"{name} is halted{stuck}"
        if self._active is None:
            return f"{name} idle, 0 bytes queued{stuck}"
        where = f"0x{self._active.address:08x}"
        if self.name == "mm2s":
            return f"MM2S has {self.queued} of {self._active.length} bytes from {where} left to send{stuck}"
        return f"S2MM waits for {self.queued} bytes to {where}{stuck}"


class AxiDma:
    """The engine: two channels that one reset resets.

    Parameters
    ----------
    name : instance in the block design.
    parameters : as in the ``.hwh``: c_include_mm2s, c_sg_length_width, ...
    ddr : what the memory ports reach.
    faults : the fabric's.
    on_reset : called at a soft reset: in this project's shell the DMA's prmry_reset_out_n pins are wired to
        the core's reset.
    """

    status_offsets = frozenset((OFFSETS["mm2s"] + STATUS, OFFSETS["s2mm"] + STATUS))

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Any],
        ddr: Ddr,
        faults: FaultSet,
        on_reset: Callable[[], None],
    ) -> None:
        self.name = name
        self._on_reset = on_reset

        def number(key: str, default: int) -> int:
            return int(str(parameters.get(key, default)), 0)

        if number("c_include_sg", 0):
            _log.warning("%s: scatter-gather mode has no model; its descriptor registers do nothing", name)
        self.channels = {
            channel: Channel(
                channel,
                ddr,
                faults,
                width=number(f"c_m_axi_{channel}_data_width", 32) // 8,
                length_bits=number("c_sg_length_width", 14),
                dre=bool(number(f"c_include_{channel}_dre", 0)),
            )
            for channel in OFFSETS
            if number(f"c_include_{channel}", 0)
        }

    @property
    def interrupts(self) -> dict[str, bool]:
        """The output pins."""
        return {f"{name}_introut": channel.interrupt for name, channel in self.channels.items()}

    def _decode(self, offset: int) -> tuple[Channel | None, int]:
        name = "s2mm" if offset >= OFFSETS["s2mm"] else "mm2s"
        return self.channels.get(name), offset - OFFSETS[name]

    def read(self, offset: int) -> int:
        """A register; 0 where there is none."""
        channel, offset = self._decode(offset)
        return channel.read(offset) if channel else 0

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        channel, offset = self._decode(offset)
        if channel is None:
            return
        if offset == CONTROL and value & RESET:
            self.reset()
            self._on_reset()
        else:
            channel.write(offset, value)

    def reset(self) -> None:
        """Both channels as after power-on."""
        for channel in self.channels.values():
            channel.reset()

    def describe(self) -> str:
        """One line: what each channel does."""
        return "; ".join(channel.describe() for channel in reversed(self.channels.values()))
