# SPDX-License-Identifier: BSD-3-Clause
"""Register model of xilinx.com:ip:axi_intc:4.1, after AMD's PG099: no cascade, no fast interrupts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["VLNV_PREFIX", "AxiIntc"]

VLNV_PREFIX = "xilinx.com:ip:axi_intc:"
ISR, IPR, IER, IAR, SIE, CIE, IVR, MER = range(0x00, 0x20, 4)
_ALL = 0xFFFFFFFF


class AxiIntc:
    """The interrupt controller.

    Parameters
    ----------
    name : instance in the block design.
    parameters : as in the ``.hwh``; C_KIND_OF_INTR has a 1 for each edge-sensitive input.
    """

    status_offsets = frozenset((ISR, IPR, IVR))

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.name = name
        kind = next((v for k, v in parameters.items() if k.upper() == "C_KIND_OF_INTR"), 0)
        self._edge = int(str(kind), 0) & _ALL
        self._inputs = 0
        self.reset()

    def reset(self) -> None:
        """Power-on values."""
        self._isr = self._ier = self._mer = 0

    @property
    def output(self) -> bool:
        """The irq pin."""
        return bool(self._mer & 1 and self._isr & self._ier)

    def drive(self, inputs: int) -> None:
        """Levels of the inputs, one bit each."""
        rising = inputs & ~self._inputs
        self._inputs = inputs
        if self._mer & 2:
            self._isr |= (inputs & ~self._edge) | (rising & self._edge)

    def read(self, offset: int) -> int:
        """A register; 0 where there is none."""
        pending = self._isr & self._ier
        if offset == IVR:
            return (pending & -pending).bit_length() - 1 if pending else _ALL
        return {ISR: self._isr, IPR: pending, IER: self._ier, MER: self._mer}.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        if offset == ISR:
            if not self._mer & 2:  # software may raise interrupts only until the hardware is enabled
                self._isr = value
        elif offset == IER:
            self._ier = value
        elif offset == IAR:
            self._isr &= ~value
        elif offset == SIE:
            self._ier |= value
        elif offset == CIE:
            self._ier &= ~value
        elif offset == MER:
            self._mer = (value & 3) | (self._mer & 2)  # HIE, once set, stays
        self.drive(self._inputs)  # an input that is still high sets its bit again

    def describe(self) -> str:
        """One line for diagnoses."""
        return f"{self.name}: pending {self._isr:#x}, enabled {self._ier:#x}, master {self._mer:#x}"
