# SPDX-License-Identifier: BSD-3-Clause
"""Batch scheduler: one thread owns the hardware and keeps it busy with the jobs of all networks and threads.

A job is cut into batches that fit the buffers. While the core works on one batch, the next one is packed,
from the same job or from the one behind it, whichever network that belongs to.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BoardError, CircOverlayError
from ..program import Program
from .hardware import Hardware
from .statistics import Statistics

__all__ = ["Job", "Scheduler"]


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

    def fail(self, error: BaseException) -> None:
        """End the job with an error; what is left of it is not run."""
        self.packed = len(self.x)
        if not self.future.done():
            self.future.set_exception(error)


class _Exclusive:
    """A function to call while the hardware is idle, and the future of its end."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.future: Future[None] = Future()

    def run(self) -> None:
        try:
            self.function()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(None)


class _Batch:
    """`images` samples of a job from `start` on, in the buffers of `parity`."""

    def __init__(self, job: Job, start: int, images: int, parity: int) -> None:
        self.job, self.start, self.images, self.parity = job, start, images, parity


class Scheduler:
    """See the module. The thread starts with the first job and ends with :meth:`close`."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._jobs: queue.SimpleQueue[Job | _Exclusive | None] = queue.SimpleQueue()
        self._deferred: _Exclusive | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._current: Job | None = None
        self._parity = 0

    def submit(self, job: Job) -> Future[NDArray[Any]]:
        """Queue a job.

        Raises
        ------
        BoardError
            The overlay has been closed.
        """
        self._put(job)
        return job.future

    def exclusively(self, function: Callable[[], None]) -> Future[None]:
        """Call `function` after all queued jobs, on the scheduler's thread, with nothing running in the core."""
        task = _Exclusive(function)
        self._put(task)
        return task.future

    def _put(self, item: Job | _Exclusive) -> None:
        with self._lock:
            if self._closed:
                raise BoardError("the overlay is closed; open it again with CirculantOverlay()")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="circ-overlay", daemon=True)
                self._thread.start()
            self._jobs.put(item)

    def close(self, wait: bool = True) -> None:
        """Finish the queued jobs and end the thread; with `wait`, return only then."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            if wait:
                thread.join()

    def _serve(self) -> None:
        flying: _Batch | None = None
        while True:
            batch = self._next(wait=flying is None)
            if batch is None and flying is None:
                return
            landed = flying if flying is not None and self._land(flying) else None
            flying = batch if batch is not None and self._launch(batch) else None
            if landed is not None:
                self._unpack(landed)

    def _next(self, wait: bool) -> _Batch | None:
        """The next batch, packed; None if there is none now or, after waiting, never again."""
        while True:
            if self._current is None or self._current.packed >= len(self._current.x):
                self._current = None  # a finished job's samples are not kept while waiting
                if not self._take(wait):
                    return None
            elif (batch := self._pack(self._current)) is not None:
                return batch

    def _take(self, wait: bool) -> bool:
        """Make the next job the current one; False if none is there now or, after waiting, none will come."""
        if self._deferred is not None:
            task, self._deferred = self._deferred, None
            task.run()
        try:
            item = self._jobs.get(block=wait)
        except queue.Empty:
            return False
        if item is None:
            self._jobs.put(None)  # for the next look, should a batch still be flying
            return False
        if isinstance(item, _Exclusive):
            self._deferred = item
            return wait  # if a batch is flying, it has to land first
        if item.future.set_running_or_notify_cancel():
            self._current = item
            if not len(item.x):
                self._complete(item)
        return True

    def _pack(self, job: Job) -> _Batch | None:
        images = min(job.batch, len(job.x) - job.packed)
        batch = _Batch(job, job.packed, images, self._parity)
        began = time.perf_counter()
        try:
            view = self._hardware.input_view(batch.parity, job.program.input, images)
            samples = job.x[batch.start : batch.start + images]
            view[...] = job.program.input.quantise(samples, job.program.width)
        except Exception as error:  # whatever the user's array does, the scheduler lives on
            job.fail(error)
            return None
        job.statistics.pack_s += time.perf_counter() - began
        job.packed += images
        self._parity ^= 1
        return batch

    def _launch(self, batch: _Batch) -> bool:
        job = batch.job
        if job.future.done():  # an earlier batch of this job has failed
            return False
        began = time.perf_counter()
        try:
            loaded = self._hardware.load(job.program, batch.parity)
            job.statistics.program_loads += bool(loaded)
            job.statistics.program_bytes += loaded
            self._hardware.start(job.program, batch.parity, batch.images)
        except Exception as error:
            self._failed(job, error)
            return False
        finally:
            job.statistics.wait_s += time.perf_counter() - began
        return True

    def _land(self, batch: _Batch) -> bool:
        job = batch.job
        began = time.perf_counter()
        try:
            self._hardware.finish()
            core = self._hardware.core
            job.statistics.add(
                images=batch.images,
                cycles=core.cycles(),
                layer_cycles=core.layer_cycles(len(job.program.layers)),
                bytes_in=8 * batch.images * job.program.input.beats,
                bytes_out=8 * batch.images * job.program.output.beats,
            )
        except Exception as error:
            self._failed(job, error)
            return False
        finally:
            job.statistics.wait_s += time.perf_counter() - began
        return True

    def _unpack(self, batch: _Batch) -> None:
        job = batch.job
        if job.future.done():
            return
        began = time.perf_counter()
        view = self._hardware.output_view(batch.parity, job.program.output, batch.images)
        job.outputs[batch.start : batch.start + batch.images] = view
        job.returned += batch.images
        job.statistics.unpack_s += time.perf_counter() - began
        if job.progress is not None:
            with suppress(Exception):  # a broken progress bar must not cost the results
                job.progress(job.returned)
        if job.returned == len(job.x):
            self._complete(job)

    def _complete(self, job: Job) -> None:
        try:
            job.future.set_result(job.finish(job.outputs))
        except Exception as error:
            job.fail(error)

    def _failed(self, job: Job, error: Exception) -> None:
        job.statistics.failures += 1
        self._hardware.recover()
        if not isinstance(error, CircOverlayError):
            error = BoardError(f"{type(error).__name__} from the board: {error}")
        job.fail(error)
