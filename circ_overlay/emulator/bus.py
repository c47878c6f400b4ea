# SPDX-License-Identifier: BSD-3-Clause
"""The address map: which slave answers at which address. Only 32-bit accesses exist, as on AXI4-Lite.

Unlike on the board, an access that nobody decodes is an exception that names the address and the map.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Container
from typing import NamedTuple, Protocol

from .errors import UnmappedAddressError

__all__ = ["Bus", "Region", "Slave", "Storage"]

_log = logging.getLogger(__name__)


class Slave(Protocol):
    """What a bus can map."""

    @property
    def name(self) -> str:
        """Instance in the block design."""

    @property
    def status_offsets(self) -> Container[int]:
        """Offsets that a host may poll while it waits; the deadlock watch counts their reads."""

    def read(self, offset: int) -> int:
        """The word at `offset`; may have side effects."""

    def write(self, offset: int, value: int) -> None:
        """Store a word, 0 <= value < 2**32."""

    def reset(self) -> None:
        """Power-on values."""

    def describe(self) -> str:
        """One line: what it does and what it waits for."""


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


class Storage:
    """Words that keep what was written: memories, and IP that has no model.

    Parameters
    ----------
    name : instance in the block design.
    vlnv : type of an IP without a model, for the one warning at its first access; None for real memory.
    """

    status_offsets: Container[int] = _Everything()

    def __init__(self, name: str, vlnv: str | None = None) -> None:
        self.name = name
        self._vlnv = vlnv
        self._warned = vlnv is None
        self._words: dict[int, int] = {}

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s (%s) has no model: its registers keep what is written", self.name, self._vlnv)

    def read(self, offset: int) -> int:
        """What was written last, else 0."""
        self._warn()
        return self._words.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Keep a word."""
        self._warn()
        self._words[offset] = value

    def reset(self) -> None:
        """Forget everything."""
        self._words.clear()

    def describe(self) -> str:
        """One line for diagnoses."""
        return f"{self.name} is {'memory' if self._vlnv is None else f'an unmodelled {self._vlnv}'}"


class Region(NamedTuple):
    """A slave and the addresses it answers at: base <= address < end."""

    base: int
    end: int
    slave: Slave


class Bus:
    """Decodes addresses."""

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._bases: list[int] = []
        self._last: Region | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The map, by address."""
        return tuple(self._regions)

    def map(self, base: int, size: int, slave: Slave) -> None:
        """Let `slave` answer at `size` bytes from `base`.

        Raises
        ------
        ValueError
            Not whole words, or the range is taken.
        """
        if base < 0 or size <= 0 or base % 4 or size % 4:
            raise ValueError(f"{slave.name}: {size} bytes at {base:#x} are not whole 32-bit words")
        new = Region(base, base + size, slave)
        for old in self._regions:
            if new.base < old.end and old.base < new.end:
                raise ValueError(f"{slave.name} at {base:#x} overlaps {old.slave.name} at {old.base:#x}")
        self._regions = sorted([*self._regions, new], key=lambda r: r.base)
        self._bases = [r.base for r in self._regions]

    def find(self, address: int) -> Region:
        """The region that decodes `address`.

        Raises
        ------
        UnmappedAddressError
            None does, or the address is not that of a word.
        """
        last = self._last
        if last is not None and last.base <= address < last.end and not address & 3:
            return last
        index = bisect_right(self._bases, address) - 1
        if address % 4 or index < 0 or address >= self._regions[index].end:
            known = [f"{r.slave.name} 0x{r.base:08x}..0x{r.end - 1:08x}" for r in self._regions]
            problem = "is not the address of a 32-bit word" if address % 4 else "is mapped to nothing"
            raise UnmappedAddressError(
                f"address 0x{address:08x} {problem}; mapped are {', '.join(known) or 'no slaves'}"
            )
        self._last = self._regions[index]
        return self._last
