# SPDX-License-Identifier: BSD-3-Clause
"""The boards that can be emulated, as data. Names are spelled as pynq spells them."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["BOARDS", "Board", "board"]


@dataclass(frozen=True, kw_only=True)
class Board:
    """What the emulation has to know of a board.

    Parameters
    ----------
    name : pynq's name of the board.
    part : FPGA with package and speed grade, as Vivado writes it.
    device, package, speed_grade : the same in the three pieces that a ``.hwh`` holds.
    arch : what ``platform.machine()`` says on the board.
    reference_mhz : crystal of the processing system.
    arm_fdiv, ddr_fdiv, io_fdiv : feedback dividers of the three PLLs after boot.
    cpu_divisor : divider between the ARM PLL and the CPU.
    """

    name: str
    part: str
    device: str
    package: str
    speed_grade: str
    arch: str = "armv7l"
    reference_mhz: float = 50.0
    arm_fdiv: int = 26
    ddr_fdiv: int = 21
    io_fdiv: int = 20
    cpu_divisor: int = 2

    @property
    def io_pll_mhz(self) -> float:
        """Frequency of the PLL that the fabric's clocks are divided from."""
        return self.reference_mhz * self.io_fdiv

    def divisors(self, clock_mhz: float) -> tuple[int, int]:
        """The two 6-bit dividers that make a fabric clock.

        Raises
        ------
        ValueError
            No pair of dividers comes within 1 % of `clock_mhz`; the message names the nearest clock.
        """
        if not clock_mhz > 0:
            raise ValueError(f"clock_mhz={clock_mhz}: a clock is positive")
        pairs = ((a, b) for a in range(1, 64) for b in range(1, a + 1))
        best = min(pairs, key=lambda d: (abs(self.io_pll_mhz / (d[0] * d[1]) - clock_mhz), d[0]))
        near = self.io_pll_mhz / (best[0] * best[1])
        if abs(near - clock_mhz) > 0.01 * clock_mhz:
            raise ValueError(
                f"clock_mhz={clock_mhz}: {self.name} divides {self.io_pll_mhz:g} MHz by whole numbers; "
                f"the nearest clock is {near:.6g} MHz"
            )
        return best


_Z2 = Board(name="Pynq-Z2", part="xc7z020clg400-1", device="7z020", package="clg400", speed_grade="-1")

BOARDS: dict[str, Board] = {b.name: b for b in (replace(_Z2, name="Pynq-Z1"), _Z2)}


def board(name: str) -> Board:
    """The board called `name`; ValueError lists the names there are."""
    if name not in BOARDS:
        raise ValueError(f"board {name!r}: the boards that can be emulated are {', '.join(BOARDS)}")
    return BOARDS[name]
