# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of a call: checked, laid one behind the other, and their results taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..program import Port

__all__ = ["Sequences"]


class Sequences:
    """See the module.

    Parameters
    ----------
    sequences : arrays (steps, \\*input shape) or (steps, features)
    port : the program's input
    limit : steps that one DMA batch can hold at most

    Attributes
    ----------
    steps : (all steps, features), one sequence behind the other
    ends : (sequences,) number of the step behind each one's last
    starts : (all steps,) True where a sequence begins

    Raises
    ------
    ValueError
        A sequence is empty, of another shape, not numeric, too long, or holds NaN or infinity; the message says
        which one.
    """

    def __init__(self, sequences: Iterable[ArrayLike], port: Port, limit: int) -> None:
        arrays = []
        for index, sequence in enumerate(sequences):
            array = np.asarray(sequence)
            if array.ndim == 0 or array.shape[1:] not in (port.shape, (port.features,)):
                hint = "; one sequence is given as a list of one: [x]" if array.shape == port.shape else ""
                raise ValueError(
                    f"sequence {index} has shape {array.shape}: expected (steps, {', '.join(map(str, port.shape))})"
                    + hint
                )
            if not len(array):
                raise ValueError(f"sequence {index} is empty: a sequence has at least one step")
            if array.dtype.kind not in "buif":
                raise ValueError(f"sequence {index} is of dtype {array.dtype}: expected real numbers")
            if len(array) > limit:
                raise ValueError(
                    f"sequence {index} has {len(array)} steps, but the DMA buffers hold {limit}, and what the core "
                    "keeps from step to step is lost between batches: cut it, or open the overlay with larger "
                    "buffer_bytes"
                )
            if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
                step = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
                raise ValueError(f"sequence {index}, step {step} holds NaN or infinite values")
            arrays.append(array.reshape(len(array), port.features))
        self.ends: NDArray[np.int64] = np.cumsum([len(a) for a in arrays], dtype=np.int64)
        self.steps: NDArray[Any] = np.concatenate(arrays) if arrays else np.empty((0, port.features), np.float32)
        self.starts: NDArray[np.bool_] = np.zeros(len(self.steps), np.bool_)
        if arrays:
            self.starts[0] = self.starts[self.ends[:-1]] = True

    def split(self, outputs: NDArray[Any]) -> list[NDArray[Any]]:
        """(all steps, ...) as one array for each sequence."""
        return np.split(outputs, self.ends[:-1]) if len(self.ends) else []

    def last(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Each sequence's last step of (all steps, ...)."""
        result: NDArray[Any] = outputs[self.ends - 1]
        return result

    def progress(self, told: Callable[[int], None]) -> Callable[[int], None]:
        """A function of steps that tells `told` the number of sequences which have ended with them."""
        return lambda steps: told(int(np.searchsorted(self.ends, steps, "right")))
