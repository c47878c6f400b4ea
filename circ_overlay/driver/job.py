# SPDX-License-Identifier: BSD-3-Clause
"""What the scheduler's queue holds: jobs, their batches, and functions that want the hardware to themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BoardError, CircOverlayError
from .plan import Part, Plan
from .stage import Stage
from .statistics import Statistics

__all__ = ["Batch", "Exclusive", "Job"]


class Job:
    """Samples of one call, the tensors between their segments, and the future of their results.

    Parameters
    ----------
    stages : the network's segments
    x : (n, features) samples, real-valued or already stream elements
    plan : how they are cut up
    statistics : where to count; may be shared by jobs
    finish : makes the result out of the (n, features) int16 outputs
    progress : called with the number of samples that have come back, from the scheduler's thread
    starts : (n,) True where a sequence begins; None: samples are no steps
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        x: NDArray[Any],
        plan: Plan,
        statistics: Statistics,
        finish: Callable[[NDArray[np.int16]], Any],
        progress: Callable[[int], None] | None,
        starts: NDArray[np.bool_] | None = None,
    ) -> None:
        self.program, self.stages, self.x, self.starts = stages[0].program, stages, x, starts
        self.plan, self.statistics, self.finish, self.progress = plan, statistics, finish, progress
        self.future: Future[Any] = Future()
        port = self.program.output
        self._outputs = np.empty((len(x), port.features), port.dtype)
        self._tensors: dict[str, NDArray[np.int16]] = {}  # of the round under way
        self._parts = plan.parts()
        self._next = next(self._parts, None)
        self._returned = [0] * len(stages)  # samples that each segment has given back

    @property
    def exhausted(self) -> bool:
        """True if nothing of the job is left to pack."""
        return self._next is None or self.future.done()

    @property
    def ready(self) -> bool:
        """True if what the next batch reads has come back from the segment before."""
        part = self._next
        return part is None or part.segment == 0 or self._returned[part.segment - 1] >= part.stop

    def pack(self, buffer: Any) -> Part:
        """Lay the next batch into a buffer; it must be :attr:`ready`, and the job not :attr:`exhausted`."""
        part = self._next
        assert part is not None
        stage, tensors = self.stages[part.segment], {}
        for name in stage.reads:
            if name == "input":
                port = self.program.input
                samples = port.quantise(self.x[part.start : part.stop], self.program.width)
                tensors[name] = port.to_pixels(samples)
            else:
                tensors[name] = self._tensors[name][part.start - part.begin : part.stop - part.begin]
        starts = None if self.starts is None else self.starts[part.start : part.stop]
        stage.fill(buffer, part.stop - part.start, tensors, starts)
        self._next = next(self._parts, None)
        return part

    def unpack(self, part: Part, buffer: Any) -> None:
        """Take a batch's results out of a buffer. Batches come in the order in which they were packed."""
        stage, tensors = self.stages[part.segment], {}
        for name in stage.writes:
            if name == "output":
                tensors[name] = self.program.output.to_pixels(self._outputs[part.start : part.stop])
                continue
            if name not in self._tensors:
                tensor = self.program.tensors[name]
                shape = (part.end - part.begin, tensor.pixels, tensor.channels)
                self._tensors[name] = np.empty(shape, np.int16)
            tensors[name] = self._tensors[name][part.start - part.begin : part.stop - part.begin]
        stage.take(buffer, part.stop - part.start, tensors)
        self._returned[part.segment] = part.stop
        if part.stop == part.end:
            for name, last in self.plan.planner.last_use.items():
                if last == part.segment:
                    self._tensors.pop(name, None)

    @property
    def answered(self) -> int:
        """Samples whose outputs are there."""
        return self._returned[-1]

    def complete(self) -> None:
        """End the job with its result."""
        try:
            result = self.finish(self._outputs)
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
    """Part of a job in the buffers of `parity`."""

    job: Job
    part: Part
    parity: int

    @property
    def stage(self) -> Stage:
        """The segment that it goes through."""
        return self.job.stages[self.part.segment]

    @property
    def images(self) -> int:
        """Samples of the batch."""
        return self.part.stop - self.part.start
