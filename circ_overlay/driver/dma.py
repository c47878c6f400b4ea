# SPDX-License-Identifier: BSD-3-Clause
"""Both channels of pynq's own AXI DMA driver, used so that no wait is without a limit or a diagnosis.

Register bits: AMD PG021, AXI DMA 7.1, simple mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import CoreTimeoutError, DmaError
from .poll import Poll

__all__ = ["DmaPair", "decode_status"]

_CONTROL, _STATUS, _LENGTH = 0x00, 0x04, 0x28
_S2MM = 0x30
_RUN, _RESET = 1 << 0, 1 << 2
_HALTED, _IDLE = 1 << 0, 1 << 1
_STATUS_BITS = {
    0: "Halted", 1: "Idle", 4: "DMAIntErr", 5: "DMASlvErr", 6: "DMADecErr",
    8: "SGIntErr", 9: "SGSlvErr", 10: "SGDecErr", 12: "IOC_Irq", 13: "Dly_Irq", 14: "Err_Irq",
}  # fmt: skip
_ERRORS = {
    1 << 4: "internal error: the packet is longer than the buffer, or a transfer of length 0",
    1 << 5: "slave error: the memory answered with an error",
    1 << 6: "decode error: the buffer's address is not memory",
}


def decode_status(value: int) -> str:
    """A DMASR value with the names of its set bits, e.g. ``0x00001002 (Idle, IOC_Irq)``."""
    names = [name for bit, name in _STATUS_BITS.items() if value >> bit & 1]
    return f"{value:#010x} ({', '.join(names) or 'running'})"


class DmaPair:
    """The send and the receive channel of one ``pynq.lib.dma.DMA``, moving one packet each at a time."""

    def __init__(self, dma: Any) -> None:
        self._dma = dma
        self.max_bytes = min(int(dma.sendchannel._max_size), int(dma.recvchannel._max_size)) & ~7
        self._asked = {"MM2S": 0, "S2MM": 0}
        self._channels = {"MM2S": (dma.sendchannel, 0), "S2MM": (dma.recvchannel, _S2MM)}

    def ready(self) -> bool:
        """False if another driver of this fabric has reset the DMA since our last transfers: pynq would refuse more.

        Only to be asked when none of our transfers is under way.
        """
        # A reset is one of both channels, and MM2S has a part in every command.
        return not self._asked["MM2S"] or bool(int(self._dma.read(_STATUS)) & _IDLE)

    def receive(self, buffer: Any, nbytes: int) -> None:
        """Let the receive channel fill `buffer` with a packet of `nbytes`."""
        self._transfer("S2MM", buffer, nbytes)

    def send(self, buffer: Any, nbytes: int) -> None:
        """Send the first `nbytes` of `buffer` as one packet."""
        self._transfer("MM2S", buffer, nbytes)

    def _transfer(self, name: str, buffer: Any, nbytes: int) -> None:
        channel, _ = self._channels[name]
        self._asked[name] = nbytes
        try:
            channel.transfer(buffer, 0, nbytes)
        except RuntimeError as error:
            raise DmaError(f"{name} did not take a transfer: {error}; {self.describe()}") from error

    def wait(
        self, names: tuple[str, ...], timeout: float, done: Callable[[], bool], describe: Callable[[], str]
    ) -> None:
        """Wait until the named channels are idle and `done` says that the core is.

        Parameters
        ----------
        names : "MM2S", "S2MM" or both
        timeout : seconds
        done : called while waiting; may raise what it sees
        describe : the core's state, for the message

        Raises
        ------
        DmaError
            A channel reports an error, or moved another number of bytes than asked.
        CoreTimeoutError
            The limit was reached.
        """
        poll = Poll(timeout)
        core_done = False
        while True:
            # The core is asked first: data that it wrote before ending has then reached the channel's counter.
            core_done = core_done or done()
            if self._idle(names) and core_done:
                break
            if poll.expired():
                core = describe()
                raise CoreTimeoutError(
                    f"no end after {timeout:g} s. {self.describe()}. {core}. "
                    f"Likely cause: {self._cause(core, names)}"
                )
        for name in names:
            channel, base = self._channels[name]
            moved = int(self._dma.read(base + _LENGTH)) if name == "S2MM" else self._asked[name]
            channel.wait()  # returns at once: the channel is idle; makes the CPU see what arrived
            if moved != self._asked[name]:
                raise DmaError(
                    f"{name} received a packet of {moved} bytes where {self._asked[name]} were due: "
                    "the stream was cut short"
                )

    def _idle(self, names: tuple[str, ...]) -> bool:
        idle = True
        for name in names:
            status = int(self._dma.read(self._channels[name][1] + _STATUS))
            for bit, meaning in _ERRORS.items():
                if status & bit:
                    raise DmaError(f"{name} stopped with a {meaning}. {self.describe()}")
            idle = idle and bool(status & _IDLE)
        return idle

    def _cause(self, core: str, names: tuple[str, ...]) -> str:
        status = {name: int(self._dma.read(base + _STATUS)) for name, (_, base) in self._channels.items()}
        if any(value & _HALTED for value in status.values()):
            return "a channel is halted: the overlay was downloaded again or the DMA reset behind the driver"
        if not status["MM2S"] & _IDLE:
            if "core busy" not in core:
                return "the core is idle and takes no input: it was reset behind the driver"
            return (
                "the core does not take its input: nothing takes its output, it is stalled, "
                "or the overlay's clock is stopped"
            )
        if "S2MM" in names and not status["S2MM"] & _IDLE:
            return (
                "all input was sent and the core still computes or waits for more: fewer bytes than the batch "
                "needs reached it, or the limit is too short for this network"
                if "core busy" in core
                else "the core has ended without closing its output packet (TLAST)"
            )
        return "all data were moved and the core has not ended: its clock may be stopped, or the limit too short"

    def describe(self) -> str:
        """Both channels' DMASR, bytes asked and moved, in one line."""
        parts = []
        for name, (_, base) in self._channels.items():
            status = int(self._dma.read(base + _STATUS))
            text = f"{name} DMASR={decode_status(status)}, {self._asked[name]} bytes asked"
            if name == "S2MM":
                text += f", LENGTH reads {int(self._dma.read(base + _LENGTH))}"
            else:
                text += ", all moved" if status & _IDLE else ", not all moved"
            parts.append(text)
        return "; ".join(parts)

    def reset(self, timeout: float = 1.0) -> None:
        """Soft-reset the DMA, and with it the core (its reset is wired to the DMA's), and start both channels.

        Raises
        ------
        CoreTimeoutError
            The DMA does not come out of reset.
        """
        self._dma.write(_CONTROL, _RESET)
        self._await(partial(self._clear, _CONTROL, _RESET), timeout, "come out of reset")
        for name, (channel, base) in self._channels.items():
            self._asked[name] = 0
            self._dma.write(base + _CONTROL, _RUN)
            status = base + _STATUS
            self._await(partial(self._clear, status, _HALTED), timeout, f"start {name}")
            channel.start()  # pynq's own bookkeeping; its wait for `running` is already fulfilled

    def _clear(self, offset: int, bit: int) -> bool:
        return not int(self._dma.read(offset)) & bit

    def _await(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        poll = Poll(timeout)
        while not condition():
            if poll.expired():
                raise CoreTimeoutError(
                    f"the DMA did not {what} within {timeout:g} s: {self.describe()}; download the overlay again"
                )
