# SPDX-License-Identifier: BSD-3-Clause
"""The fabric's hardware thread: jobs in order, on a daemon thread that never keeps the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Worker"]


class Worker:
    """One thread, started with the first job; it ends when the worker retires or is dropped."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; what it raises is its own affair."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._jobs,), name="emulated fabric", daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def retire(self) -> None:
        """Let the thread end behind the jobs that it has."""
        self._jobs.put(None)

    def __del__(self) -> None:
        self.retire()


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Do the jobs; holds neither the worker nor, while it waits, the last job, through which a fabric would live on."""
    while (job := jobs.get()) is not None:
        job()
        del job
