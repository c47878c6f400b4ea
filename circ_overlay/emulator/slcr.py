# SPDX-License-Identifier: BSD-3-Clause
"""The clock registers of a Zynq-7000's system-level control block, as pynq.ps.Clocks reads and writes them.

They belong to the processing system, so a download leaves them alone. Every other register of the block
only keeps what is written.
"""

from __future__ import annotations

from .boards import Board
from .bus import Storage

__all__ = ["BASE", "SIZE", "Slcr"]

BASE, SIZE = 0xF800_0000, 0x1000
ARM_PLL, DDR_PLL, IO_PLL, ARM_CLK = 0x100, 0x104, 0x108, 0x120
FPGA_CLK = (0x170, 0x180, 0x190, 0x1A0)


class Slcr(Storage):
    """The registers, with the values that a PYNQ image boots with.

    Parameters
    ----------
    board : whose crystal and PLL settings they are.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        super().__init__("slcr")
        self.reset()

    def reset(self) -> None:
        """Values after boot: all fabric clocks at a tenth of the I/O PLL."""
        board = self._board
        self._words = {
            ARM_PLL: board.arm_fdiv << 12,
            DDR_PLL: board.ddr_fdiv << 12,
            IO_PLL: board.io_fdiv << 12,
            ARM_CLK: 0x1F00_0000 | board.cpu_divisor << 8,
            **dict.fromkeys(FPGA_CLK, 2 << 20 | 5 << 8),
        }

    def fabric_mhz(self, index: int = 0) -> float:
        """Frequency of a fabric clock as the registers stand."""
        value = self.read(FPGA_CLK[index])
        pll = (IO_PLL, IO_PLL, ARM_PLL, DDR_PLL)[value >> 4 & 3]
        divisor = (value >> 8 & 63) * (value >> 20 & 63)
        return self._board.reference_mhz * (self.read(pll) >> 12 & 127) / divisor if divisor else 0.0
