# SPDX-License-Identifier: BSD-3-Clause
"""Formats, rounding and saturation: the three things fixed-point numbers need, and nothing else.

Imports nothing of ours. All arithmetic is on NumPy int64, which holds every value of the core exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Format", "limits", "round_shift", "saturate"]

Ints = NDArray[np.int64]


def limits(bits: int) -> tuple[int, int]:
    """Smallest and largest value of a signed integer of `bits` bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def round_shift(x: Ints, shift: int) -> Ints:
    """x / 2**shift, rounded half up (towards plus infinity); `shift` = 0 leaves x as it is."""
    if shift == 0:
        return x
    return (x + (1 << (shift - 1))) >> shift


def saturate(x: Ints, bits: int) -> Ints:
    """x limited to the range of a signed integer of `bits` bits."""
    low, high = limits(bits)
    return np.clip(x, low, high)


@dataclass(frozen=True)
class Format:
    """A signed fixed-point format: `width` bits, of which `frac` stand behind the binary point.

    The value of an integer n is ``n * 2**-frac``. `frac` may be negative or above `width`.

    Raises
    ------
    ValueError
        `width` is outside 2..64 or `frac` outside -64..64.
    """

    width: int
    frac: int

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 64:
            raise ValueError(f"width={self.width}: a format has 2..64 bits")
        if not -64 <= self.frac <= 64:
            raise ValueError(f"frac={self.frac}: a format has -64..64 fraction bits")

    @property
    def step(self) -> float:
        """Value of the least significant bit."""
        return 2.0**-self.frac

    def quantise(self, x: ArrayLike) -> Ints:
        """Integers nearest to `x` (half up), saturated; any shape, dtype int64.

        Raises
        ------
        ValueError
            `x` holds a NaN or an infinity, for which there is no nearest value.
        """
        values: NDArray[Any] = np.asarray(x, np.float64)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values are NaN or infinite; "
                "only finite numbers can be quantised"
            )
        low, high = limits(self.width)
        nearest: Ints = np.clip(np.floor(np.ldexp(values, self.frac) + 0.5), low, high).astype(np.int64)
        return nearest

    def value(self, n: ArrayLike) -> NDArray[np.float64]:
        """Real numbers that the integers `n` stand for, float64."""
        return np.ldexp(np.asarray(n, np.float64), -self.frac)

    @classmethod
    def for_range(cls, width: int, largest: float) -> Format:
        """The finest format of `width` bits in which +-`largest` does not saturate.

        Raises
        ------
        ValueError
            `largest` is negative or not finite.
        """
        if not 0 <= largest < float("inf"):
            raise ValueError(f"largest={largest}: a range is given by a finite magnitude >= 0")
        frac = width - 1
        if largest:
            frac -= int(np.frexp(largest)[1])
            if np.floor(np.ldexp(largest, frac) + 0.5) > limits(width)[1]:
                frac -= 1
        return cls(width, max(-64, min(64, frac)))
