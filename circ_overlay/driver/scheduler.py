# SPDX-License-Identifier: BSD-3-Clause
"""Batch scheduler: one thread owns the hardware and keeps it busy with the jobs of all networks and threads.

A job is cut into batches that fit the buffers, see :mod:`.plan`. While the core works on one batch, the next
one is packed, from the same job or from the one behind it, whichever network that belongs to. Jobs are never
interleaved: their segments would be loaded over and over. Whatever happens to the thread, no future is left
without an end.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from ..errors import BoardError
from .hardware import Hardware
from .job import Batch, Exclusive, Job

__all__ = ["Scheduler"]


class Scheduler:
    """See the module. The thread starts with the first job and ends with :meth:`close`."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._jobs: queue.SimpleQueue[Job | Exclusive | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = ""  # why no more jobs are taken
        self._cancelling = False
        self._current: Job | None = None
        self._deferred: Exclusive | None = None
        self._parity = 0

    def submit(self, job: Job) -> Future[NDArray[Any]]:
        """Queue a job.

        Raises
        ------
        BoardError
            The overlay has been closed, or belongs to the process that this one was forked from.
        """
        self._put(job)
        return job.future

    def exclusively(self, function: Callable[[], None]) -> Future[None]:
        """Call `function` after all queued jobs, on the scheduler's thread, with nothing running in the core."""
        task = Exclusive(function)
        self._put(task)
        return task.future

    def refuse_own_thread(self, what: str) -> None:
        """Raise BoardError if called from the scheduler's thread, which would then wait for itself."""
        if threading.current_thread() is self._thread:
            raise BoardError(
                f"{what} was called from a callback of this overlay, which runs on the thread that it would wait "
                "for; call it from another thread, or use submit()"
            )

    def close(self, wait: bool = True, cancel: bool = False) -> None:
        """Finish the queued jobs, or with `cancel` drop all but the batch under way, and end the thread.

        With `wait`, return only when the thread has ended; may be called again if that was interrupted.
        """
        with self._lock:
            self._closed = self._closed or "the overlay is closed; open it again with CirculantOverlay()"
            self._cancelling = self._cancelling or cancel
            thread = self._thread
        if thread is not None and self._process == os.getpid():
            self._jobs.put(None)
            if wait:
                thread.join()

    def _put(self, item: Job | Exclusive) -> None:
        if self._process != os.getpid():
            raise BoardError("this overlay belongs to the parent process; open one in this process")
        with self._lock:
            if self._closed:
                raise BoardError(self._closed)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="circ-overlay", daemon=True)
                self._thread.start()
            self._jobs.put(item)

    def _serve(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            with self._lock:
                self._closed = f"the overlay's scheduler has failed ({error!r}); open the overlay again"
            if self._hardware.held:  # a batch is under way, for nobody
                self._hardware.recover()
                self._hardware.release()
        finally:
            self._abandon_rest()

    def _loop(self) -> None:
        flying: Batch | None = None
        while True:
            batch = self._next(wait=flying is None)
            if batch is None and flying is None:
                return
            landed = flying if flying is not None and self._land(flying) else None
            flying = batch if batch is not None and self._launch(batch) else None
            if landed is not None:
                self._unpack(landed)
            batch = landed = None  # a finished job's samples are not kept while waiting

    def _abandon_rest(self) -> None:
        """End every job that is still there; the thread is about to."""
        with self._lock:
            error = BoardError(self._closed or "the overlay is closed")
        if self._current is not None:
            self._current.fail(error)
        with suppress(queue.Empty):
            while True:
                item = self._jobs.get_nowait()
                if item is not None:
                    item.fail(error)

    def _next(self, wait: bool) -> Batch | None:
        """The next batch, packed; None if there is none now or, after waiting, never again."""
        while True:
            if self._cancelling and self._current is not None:
                self._current.fail(CancelledError())
            if self._current is None or self._current.exhausted:
                self._current = None  # a finished job's samples are not kept while waiting
                if not self._take(wait):
                    return None
            elif not self._current.ready:
                return None  # it reads what is still flying
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
        if isinstance(item, Exclusive):
            self._deferred = item
            return wait  # if a batch is flying, it has to land first
        if item.future.set_running_or_notify_cancel():
            self._current = item
            if item.exhausted:
                item.complete()
        return True

    def _pack(self, job: Job) -> Batch | None:
        began = time.perf_counter()
        try:
            part = job.pack(self._hardware.pair(self._parity).input)
        except Exception as error:  # whatever the user's array does, the scheduler lives on
            job.fail(error)
            return None
        job.statistics.pack_s += time.perf_counter() - began
        batch = Batch(job, part, self._parity)
        self._parity ^= 1
        return batch

    def _launch(self, batch: Batch) -> bool:
        """Start a batch; True if the hardware is ours and at work on it."""
        job = batch.job
        if job.future.done():  # an earlier batch of this job has failed, or its caller has gone
            return False
        began = time.perf_counter()
        self._hardware.acquire()
        try:
            if loaded := self._hardware.load(batch.stage, batch.parity):
                job.statistics.add_load(loaded, self._hardware.core.cycles(), self._hardware.clock_hz())
            self._hardware.start(batch.stage, batch.parity, batch.images)
        except BaseException as error:
            self._failed(job, error)
            return False
        finally:
            job.statistics.wait_s += time.perf_counter() - began
        return True

    def _land(self, batch: Batch) -> bool:
        """Wait for a batch; True if its results are in the buffer."""
        job = batch.job
        began = time.perf_counter()
        try:
            stage, images = batch.stage, batch.images
            self._hardware.finish(stage, images)
            core = self._hardware.core
            job.statistics.add(
                images=images if stage is job.stages[-1] else 0,
                cycles=core.cycles(),
                clock_hz=self._hardware.clock_hz(),
                layer_cycles=core.layer_cycles(len(stage.segment.layers)),
                first_layer=stage.first_layer,
                bytes_in=images * stage.in_bytes,
                bytes_out=images * stage.out_bytes,
            )
        except BaseException as error:
            self._failed(job, error)
            return False
        finally:
            job.statistics.wait_s += time.perf_counter() - began
        self._hardware.release()
        return True

    def _unpack(self, batch: Batch) -> None:
        job = batch.job
        if job.future.done():
            return
        began = time.perf_counter()
        try:
            job.unpack(batch.part, self._hardware.pair(batch.parity).output)
        except Exception as error:  # such as a host without memory for the tensors
            job.fail(error)
            return
        job.statistics.unpack_s += time.perf_counter() - began
        if batch.stage is not job.stages[-1]:
            return
        if job.progress is not None:
            with suppress(BaseException):  # whatever a progress bar does must not cost the results
                job.progress(job.answered)
        if job.answered == len(job.x):
            job.complete()

    def _failed(self, job: Job, error: BaseException) -> None:
        job.statistics.failures += 1
        try:
            self._hardware.recover()
        finally:
            self._hardware.release()
            job.fail(error)
