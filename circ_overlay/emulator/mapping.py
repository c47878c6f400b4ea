# SPDX-License-Identifier: BSD-3-Clause
"""A window of the bus that looks like the uint32 array which pynq maps on a board.

Reading or writing an item is an access on the bus. Slices of one or two words stay windows, as
pynq.registers needs them; longer ones are read at once, because NumPy offers no later moment.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BusArray"]


class _BusMaster(Protocol):
    def read(self, address: int) -> int:
        """A 32-bit read."""

    def write(self, address: int, value: int) -> None:
        """A 32-bit write."""


class BusArray(np.ndarray[Any, np.dtype[Any]]):
    """See the module. Items are 32-bit words, or pairs of them after ``view("u8")``."""

    _bus: _BusMaster
    _address: int

    @classmethod
    def open(cls, bus: _BusMaster, address: int, length: int) -> BusArray:
        """The window of `length` bytes from `address`, rounded down to whole words."""
        if address % 4:
            raise ValueError(f"address {address:#x}: the emulated bus takes 32-bit accesses only")
        array = np.zeros(length >> 2, np.uint32).view(cls)
        array._bus, array._address = bus, address
        return array

    def __array_finalize__(self, parent: NDArray[Any] | None) -> None:
        if isinstance(parent, BusArray) and hasattr(parent, "_bus"):
            self._bus = parent._bus
            shift: int = self.__array_interface__["data"][0] - parent.__array_interface__["data"][0]
            self._address = parent._address + shift

    def _read(self, index: int) -> Any:
        address = self._address + index * self.strides[0]
        if self.itemsize == 4:
            return np.uint32(self._bus.read(address))
        if self.itemsize == 8:
            return np.uint64(self._bus.read(address) | self._bus.read(address + 4) << 32)
        raise TypeError("the emulated bus takes 32-bit accesses only")

    def _write(self, index: int, value: int) -> None:
        address = self._address + index * self.strides[0]
        if self.itemsize not in (4, 8):
            raise TypeError("the emulated bus takes 32-bit accesses only")
        for part in range(self.itemsize // 4):
            self._bus.write(address + 4 * part, value >> 32 * part & 0xFFFFFFFF)

    def _index(self, key: Any) -> int:
        index = int(key)
        size = self.shape[0]
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of bounds for a window of {size} words")
        return index + size if index < 0 else index

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)):
            return self._read(self._index(key))
        part = super().__getitem__(key)
        if not isinstance(key, slice):
            # A list or a mask selects words that form no window any more.
            picked = np.arange(self.size)[key]
            return np.array([self._read(int(i)) for i in picked.ravel()], self.dtype).reshape(picked.shape)
        if part.size > 2:
            for index in range(part.size):
                super(BusArray, part).__setitem__(index, part._read(index))  # type: ignore[no-untyped-call]
        return part

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, (int, np.integer)):
            self._write(self._index(key), int(value))
            return
        picked = np.arange(self.size)[key]
        source = [value[i] for i in range(value.size)] if isinstance(value, BusArray) else value
        for index, item in zip(picked.ravel(), np.broadcast_to(np.asarray(source), picked.shape).ravel()):
            self._write(int(index), int(item))
