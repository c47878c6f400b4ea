# SPDX-License-Identifier: BSD-3-Clause
"""Integer model of the core: every bit, no speed. The other implementations are measured against it.

The functions take int64 arrays with any leading axes, so a whole batch goes through at once. Where each
rounding happens, and why there, is written in docs/numerics.md; this package is that page in NumPy. It
rounds no float: float64 serves, where sums stay below 2**53, as a fast exact integer.
"""

from .operations import activate, apply, enter, reduce, spectral_product
from .run import execute, run
from .transform import forward_transform, inverse_transform

__all__ = [
    "activate",
    "apply",
    "enter",
    "execute",
    "forward_transform",
    "inverse_transform",
    "reduce",
    "run",
    "spectral_product",
]
