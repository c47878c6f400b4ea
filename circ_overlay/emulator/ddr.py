# SPDX-License-Identifier: BSD-3-Clause
"""DDR memory: an allocator of physical addresses, and the bytes that the CPU and the DMA share.

The window is one lazily committed array, so its size costs nothing until it is used. It never knows who
reads or writes; the cached mode is what makes a forgotten flush or invalidate visible.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError

__all__ = ["Allocation", "Ddr"]

Bytes = NDArray[np.uint8]
_log = logging.getLogger(__name__)


class Allocation:
    """A buffer in DDR.

    Attributes
    ----------
    address : physical address.
    nbytes : size that was asked for.
    cpu : the bytes as the CPU sees them; the DDR itself unless the buffer is cached.
    """

    def __init__(self, address: int, nbytes: int, span: int, cpu: Bytes) -> None:
        self.address = address
        self.nbytes = nbytes
        self.span = span
        self.cpu = cpu

    def __repr__(self) -> str:
        return f"<{self.nbytes} bytes at 0x{self.address:08x}>"


class Ddr:
    """The DDR that buffers are allocated in, and that the DMA's memory ports reach.

    Parameters
    ----------
    base : first physical address.
    size : bytes; the window must end below 2**32, where a Zynq-7000's addresses end.
    """

    PAGE = 4096
    name = "ddr"
    status_offsets: frozenset[int] = frozenset()

    def __init__(self, base: int = 0x1000_0000, size: int = 512 << 20) -> None:
        if base % self.PAGE or size % self.PAGE or size <= 0 or not 0 <= base <= (1 << 32) - size:
            raise ValueError(f"DDR of {size} bytes at {base:#x}: whole pages below 2**32 are allowed")
        self.base = base
        self.size = size
        self._bytes: Bytes = np.zeros(size, np.uint8)
        self._words = self._bytes.view(np.uint32)
        self._free: list[tuple[int, int]] = [(0, size)]  # (offset, bytes), by offset, never touching
        self._used: dict[int, Allocation] = {}
        self._returned: deque[Allocation] = deque()
        self._dirty = 0  # offset above which no byte has ever been handed out, so all are still zero

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """The buffers in use, by address."""
        self._reap()
        return tuple(self._used[a] for a in sorted(self._used))

    def allocate(self, nbytes: int, *, cached: bool = False) -> Allocation:
        """A zeroed buffer at the start of a page.

        Parameters
        ----------
        nbytes : size, at least 1.
        cached : give the CPU a memory of its own that only flush and invalidate reconcile with the DDR.

        Raises
        ------
        ValueError
            `nbytes` is not positive.
        MemoryError
            No hole is large enough.
        """
        if nbytes <= 0:
            raise ValueError(f"nbytes={nbytes}: a buffer has at least one byte")
        self._reap()
        span = -(-nbytes // self.PAGE) * self.PAGE
        for index, (offset, hole) in enumerate(self._free):
            if hole >= span:
                self._free[index : index + 1] = [(offset + span, hole - span)] if hole > span else []
                break
        else:
            raise MemoryError(
                f"no {nbytes} contiguous bytes are free in the emulated DDR of {self.size} bytes; "
                f"{len(self._used)} buffers are allocated"
            )
        memory = self._bytes[offset : offset + span]
        memory[: max(0, min(self._dirty - offset, span))] = 0
        self._dirty = max(self._dirty, offset + span)
        cpu = np.zeros(nbytes, np.uint8) if cached else memory[:nbytes]
        allocation = Allocation(self.base + offset, nbytes, span, cpu)
        self._used[allocation.address] = allocation
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Give a buffer back; its address may be handed out again.

        Raises
        ------
        EmulationError
            The buffer is not allocated: freed twice, or another memory's.
        """
        if self._used.get(allocation.address) is not allocation:
            raise EmulationError(f"{allocation!r} is not allocated here; was it freed twice?")
        del self._used[allocation.address]
        offset, span = allocation.address - self.base, allocation.span
        index = bisect.bisect(self._free, (offset, span))
        if index < len(self._free) and self._free[index][0] == offset + span:
            span += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            offset, before = self._free.pop(index - 1)
            span += before
            index -= 1
        self._free.insert(index, (offset, span))

    def release(self, allocation: Allocation) -> None:
        """Give a buffer back, from a finaliser: the garbage collector may interrupt any other method here."""
        self._returned.append(allocation)

    def _reap(self) -> None:
        while self._returned:
            self.free(self._returned.popleft())

    def contains(self, address: int, nbytes: int = 1) -> bool:
        """Whether all of the range decodes."""
        return self.base <= address and address + nbytes <= self.base + self.size

    def view(self, address: int, nbytes: int) -> Bytes:
        """The bytes as a DMA sees them. Access outside every buffer works as in hardware, but is logged."""
        if not self.contains(address, nbytes):
            raise EmulationError(f"0x{address:08x} + {nbytes} bytes is outside the DDR")
        self._reap()
        end = address + nbytes
        if not any(a.address <= address and end <= a.address + a.span for a in self._used.values()):
            _log.warning("DMA touches 0x%08x + %d bytes, which lies in no allocated buffer", address, nbytes)
        return self._bytes[address - self.base : address - self.base + nbytes]

    def flush(self, allocation: Allocation, offset: int, nbytes: int) -> None:
        """Write the CPU's cache back: what the DMA reads from now on is what the CPU wrote."""
        self._sync(allocation, offset, nbytes, to_ddr=True)

    def invalidate(self, allocation: Allocation, offset: int, nbytes: int) -> None:
        """Drop the CPU's cache: what the CPU reads from now on is what the DMA wrote."""
        self._sync(allocation, offset, nbytes, to_ddr=False)

    def _sync(self, allocation: Allocation, offset: int, nbytes: int, *, to_ddr: bool) -> None:
        if offset < 0 or offset + nbytes > allocation.nbytes:
            raise EmulationError(f"{nbytes} bytes at offset {offset} exceed {allocation!r}")
        start = allocation.address - self.base + offset
        cpu, ddr = allocation.cpu[offset : offset + nbytes], self._bytes[start : start + nbytes]
        if np.may_share_memory(cpu, ddr):
            return
        if to_ddr:
            ddr[:] = cpu
        else:
            cpu[:] = ddr

    def read(self, offset: int) -> int:
        """A word by bus access, as through /dev/mem."""
        return int(self._words[offset >> 2])

    def write(self, offset: int, value: int) -> None:
        """Store a word by bus access."""
        self._words[offset >> 2] = value
        self._dirty = max(self._dirty, offset + 4)

    def reset(self) -> None:
        """Nothing: DDR outlives a download."""

    def describe(self) -> str:
        """One line for diagnoses."""
        self._reap()
        total = sum(a.nbytes for a in self._used.values())
        return f"DDR holds {len(self._used)} buffers, {total} bytes"

    def __getstate__(self) -> Any:
        raise TypeError("the emulated DDR cannot be pickled")
