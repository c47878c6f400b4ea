# SPDX-License-Identifier: BSD-3-Clause
"""What the scheduler's queue holds: jobs, their batches, and functions that want the hardware to themselves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BoardError, CircOverlayError
from ..program import Program
from .statistics import Statistics

__all__ = ["Batch", "Exclusive", "Job"]


class Job:
    """Samples of one call, and the future of their results.

    Parameters
    ----------
    program : the network
    x : (n, features) samples, real-valued or already stream elements
    statistics : where to count; may be shared by jobs
    batch : largest batch to use
    finish : makes the result out of the (n, features) int16 outputs
    progress : called with the number of samples that have come back, from the scheduler's thread
    """

    def __init__(
        self,
        program: Program,
        x: NDArray[Any],
        statistics: Statistics,
        batch: int,
        finish: Callable[[NDArray[np.int16]], NDArray[Any]],
        progress: Callable[[int], None] | None,
    ) -> None:
        self.program, self.x, self.statistics = program, x, statistics
        self.batch, self.finish, self.progress = batch, finish, progress
        self.future: Future[NDArray[Any]] = Future()
        self.outputs = np.empty((len(x), program.output.features), program.output.dtype)
        self.packed = 0  # samples handed to the hardware so far
        self.returned = 0

    @property
    def exhausted(self) -> bool:
        """True if nothing of the job is left to pack."""
        return self.packed >= len(self.x) or self.future.done()

    def complete(self) -> None:
        """End the job with its result."""
        try:
            result = self.finish(self.outputs)
        except Exception as error:
            self.fail(error)
        else:
            with suppress(InvalidStateError):
                self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End the job with an error; what is left of it is not run. Later ends do not count."""
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, CircOverlayError):
            cause, error = error, BoardError(f"{type(error).__name__} from the board: {error}")
            error.__cause__ = cause
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Exclusive:
    """A function to call while the hardware is idle, and the future of its end."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.future: Future[None] = Future()

    def run(self) -> None:
        """Call it."""
        try:
            self.function()
        except BaseException as error:
            self.fail(error)
        else:
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End without having called it."""
        self.future.set_exception(error)


class Batch(NamedTuple):
    """`images` samples of a job from `start` on, in the buffers of `parity`."""

    job: Job
    start: int
    images: int
    parity: int
