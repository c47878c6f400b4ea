# SPDX-License-Identifier: BSD-3-Clause
"""Network: a program on an overlay, as the user calls it. Holds no hardware state of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BoardError
from ..program import Program
from .job import Job
from .scheduler import Scheduler
from .statistics import Statistics

__all__ = ["Network"]


class Network:
    """A program that runs on an overlay; made by :meth:`CirculantOverlay.load`.

    Several networks may share an overlay and several threads a network: the core is re-programmed when
    another network's batch comes up.

    Attributes
    ----------
    program : what runs
    batch_size : largest number of samples in one DMA transfer
    statistics : totals so far
    """

    def __init__(
        self, program: Program, overlay: object, scheduler: Scheduler, statistics: Statistics, batch_size: int
    ) -> None:
        self.program = program
        self.batch_size = batch_size
        self.statistics = statistics
        self._overlay = overlay  # kept alive as long as one of its networks is
        self._scheduler = scheduler
        self._closed = False

    def predict(
        self, x: ArrayLike, *, raw: bool = False, progress: Callable[[int], None] | None = None
    ) -> NDArray[Any]:
        """Outputs for a batch of any size.

        Parameters
        ----------
        x : (n, \\*input shape) or (n, features) real numbers; uint8 pixels go to a uint8 input untouched.
        raw : return the core's integers instead of real numbers.
        progress : called with the number of samples answered so far, from another thread.

        Returns
        -------
        (n, \\*output shape) float32, or int16 with `raw`.

        Raises
        ------
        ValueError
            `x` has another shape, is not numeric, or holds NaN or infinity.
        CoreTimeoutError, DmaError, CoreError
            The hardware failed; it has been reset and can be used again.
        """
        self._scheduler.refuse_own_thread("predict")
        future = self.submit(x, raw=raw, progress=progress)
        try:
            return future.result()
        except BaseException:
            # A caller who is interrupted wants no more of it; the batch under way ends, the rest is dropped.
            with suppress(InvalidStateError):
                future.set_exception(CancelledError())
            raise

    def submit(
        self, x: ArrayLike, *, raw: bool = False, progress: Callable[[int], None] | None = None
    ) -> Future[NDArray[Any]]:
        """Like :meth:`predict`, but returns at once; do not change `x` before the future is done."""
        if self._closed:
            raise BoardError(f"network {self.program.name!r} is closed; load it again")
        port = self.program.output

        def finish(outputs: NDArray[np.int16]) -> NDArray[Any]:
            return outputs.reshape(len(outputs), *port.shape) if raw else port.value(outputs)

        samples = self.program.input.flatten(x)
        job = Job(self.program, samples, self.statistics, self.batch_size, finish, progress)
        return self._scheduler.submit(job)

    async def predict_async(self, x: ArrayLike, *, raw: bool = False) -> NDArray[Any]:
        """Like :meth:`predict`, for asyncio: the event loop runs on while the core works."""
        return await asyncio.wrap_future(self.submit(x, raw=raw))

    def classify(self, x: ArrayLike) -> NDArray[np.int64]:
        """Index of the largest output of every sample, (n,) int64."""
        outputs = self.predict(x, raw=True)
        answers: NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(1).astype(np.int64)
        return answers

    def reset_statistics(self) -> None:
        """Start counting anew."""
        old = self.statistics
        self.statistics = Statistics(
            layers=old.layers, cycles_provenance=old.cycles_provenance, clock_hz=old.clock_hz
        )

    def layer_table(self) -> list[dict[str, Any]]:
        """One row per layer: name, shape, block size, parameters, compression, cycles per image."""
        images = self.statistics.images
        return [
            {
                "layer": layer.name,
                "in": layer.in_features,
                "out": layer.out_features,
                "k": layer.block_size,
                "activation": layer.activation.name.lower(),
                "parameters": layer.weights.size,
                "compression": layer.in_features * layer.out_features / layer.weights.size,
                "cycles_per_image": cycles / images if images else None,
                "cycles_provenance": self.statistics.cycles_provenance,
            }
            for layer, cycles in zip(self.program.layers, self.statistics.layer_cycles)
        ]

    def close(self) -> None:
        """Refuse further calls; those under way finish. The overlay stays open."""
        self._closed = True

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Network {self.program!r}, batches of {self.batch_size}>"
