# SPDX-License-Identifier: BSD-3-Clause
"""Network: a program on an overlay, as the user calls it. Holds no hardware state of its own."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import spec
from ..errors import BoardError
from ..program import Layer, Map, Port
from .job import Job
from .plan import Plan, Planner
from .scheduler import Scheduler
from .sequences import Sequences
from .statistics import Statistics

__all__ = ["Network"]

_log = logging.getLogger(__name__)


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
        self, planner: Planner, overlay: object, scheduler: Scheduler, statistics: Statistics, longest: int
    ) -> None:
        self.program = planner.stages[0].program
        self.batch_size = max(planner.batch)
        self.statistics = statistics
        self._planner = planner
        self._overlay = overlay  # kept alive as long as one of its networks is
        self._scheduler = scheduler
        self._longest = longest  # steps of a sequence that fits in the buffers
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
            `x` has another shape, is not numeric, or holds NaN or infinity; or the network works on sequences.
        CoreTimeoutError, DmaError, CoreError
            The hardware failed; it has been reset and can be used again.
        """
        self._scheduler.refuse_own_thread("predict")
        result: NDArray[Any] = _result(self.submit(x, raw=raw, progress=progress))
        return result

    def submit(
        self, x: ArrayLike, *, raw: bool = False, progress: Callable[[int], None] | None = None
    ) -> Future[NDArray[Any]]:
        """Like :meth:`predict`, but returns at once; do not change `x` before the future is done."""
        if self.program.sequence:
            raise ValueError(
                f"{self.program.name} works on sequences: give predict_sequences a list of (steps, features) arrays"
            )
        samples = self.program.input.flatten(x)
        finish = partial(_values, self.program.output, raw)  # holds neither network nor overlay
        return self._submit(samples, self._planner.plan(len(samples)), finish, progress)

    async def predict_async(self, x: ArrayLike, *, raw: bool = False) -> NDArray[Any]:
        """Like :meth:`predict`, for asyncio: the event loop runs on while the core works."""
        return await asyncio.wrap_future(self.submit(x, raw=raw))

    def predict_sequences(
        self,
        sequences: Iterable[ArrayLike],
        *,
        last: bool = False,
        raw: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        """Outputs for sequences of any lengths, each from a cleared state on.

        Parameters
        ----------
        sequences : arrays (steps, \\*input shape) or (steps, features)
        last : return the last step of each sequence alone.
        raw : return the core's integers instead of real numbers.
        progress : called with the number of sequences answered so far, from another thread.

        Returns
        -------
        A list of (steps, \\*output shape) arrays, with `last` one array (sequences, \\*output shape); float32, or
        int16 with `raw`.

        Raises
        ------
        ValueError
            A sequence is empty, too long for the DMA buffers, of another shape, not numeric, or holds NaN or
            infinity, and which one; or the network does not work on sequences.
        CoreTimeoutError, DmaError, CoreError
            The hardware failed; it has been reset and can be used again.
        """
        self._scheduler.refuse_own_thread("predict_sequences")
        return _result(self.submit_sequences(sequences, last=last, raw=raw, progress=progress))

    def submit_sequences(
        self,
        sequences: Iterable[ArrayLike],
        *,
        last: bool = False,
        raw: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Future[Any]:
        """Like :meth:`predict_sequences`, but returns at once."""
        if not self.program.sequence:
            raise ValueError(f"{self.program.name} does not work on sequences: use predict")
        checked = Sequences(sequences, self.program.input, self._longest)

        values = partial(_values, self.program.output, raw)

        def finish(outputs: NDArray[np.int16]) -> Any:
            return values(checked.last(outputs)) if last else checked.split(values(outputs))

        plan = self._planner.plan(len(checked.steps), checked.ends)
        told = checked.progress(progress) if progress else None
        return self._submit(checked.steps, plan, finish, told, checked.starts)

    async def predict_sequences_async(
        self, sequences: Iterable[ArrayLike], *, last: bool = False, raw: bool = False
    ) -> Any:
        """Like :meth:`predict_sequences`, for asyncio."""
        return await asyncio.wrap_future(self.submit_sequences(sequences, last=last, raw=raw))

    def classify(self, x: ArrayLike | Iterable[ArrayLike]) -> NDArray[np.int64]:
        """Index of the largest output of every sample, or of the last step of every sequence, (n,) int64."""
        if self.program.sequence:
            return _largest(self.predict_sequences(x, last=True, raw=True))  # type: ignore[arg-type]
        return _largest(self.predict(x, raw=True))  # type: ignore[arg-type]

    def plan(self, images: int | None = None) -> Plan:
        """How a call with so many samples is cut up, and what loading costs; None: with as many as fit in a round."""
        return self._planner.plan(images if images is not None else self._planner.round_limit or self.batch_size)

    def _submit(
        self,
        samples: NDArray[Any],
        plan: Plan,
        finish: Callable[[NDArray[np.int16]], Any],
        progress: Callable[[int], None] | None,
        starts: NDArray[np.bool_] | None = None,
    ) -> Future[Any]:
        if self._closed:
            raise BoardError(f"network {self.program.name!r} is closed; load it again")
        if len(self._planner.stages) > 1 and _log.isEnabledFor(logging.INFO):
            _log.info("%s: %s", self.program.name, plan)
        job = Job(self._planner.stages, samples, plan, self.statistics, finish, progress, starts)
        return self._scheduler.submit(job)

    def reset_statistics(self) -> None:
        """Start counting anew."""
        old = self.statistics
        self.statistics = Statistics(
            layers=old.layers, cycles_provenance=old.cycles_provenance, clock_hz=old.clock_hz
        )

    def layer_table(self) -> list[dict[str, Any]]:
        """One row per layer: operation, shapes, block size, parameters, compression, cycles per image, segment."""
        images = self.statistics.images
        layers = [(index, la) for index, s in enumerate(self.program.segments) for la in s.layers]
        return [
            {
                "layer": layer.name,
                "operation": layer.opcode.name.lower(),
                "in": _shape(layer.source),
                "out": _shape(layer.target),
                "k": layer.block_size if layer.opcode == spec.Opcode.CIRCULANT else None,
                "activation": layer.activation.name.lower(),
                "parameters": layer.weights.size,
                "compression": _compression(layer),
                "cycles_per_image": cycles / images if images else None,
                "cycles_provenance": self.statistics.cycles_provenance,
                "segment": segment,
            }
            for (segment, layer), cycles in zip(layers, self.statistics.layer_cycles)
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
        if len(self._planner.stages) > 1:
            limit = self._planner.round_limit
            loads = f", loaded once for every {limit} samples" if limit else ", loaded once for a call"
        else:
            loads = ""
        return f"<Network {self.program!r}, batches of {self.batch_size}{loads}>"


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException:
        # A caller who is interrupted wants no more of it; the batch under way ends, the rest is dropped.
        with suppress(InvalidStateError):
            future.set_exception(CancelledError())
        raise


def _values(port: Port, raw: bool, outputs: NDArray[np.int16]) -> NDArray[Any]:
    return outputs.reshape(len(outputs), *port.shape) if raw else port.value(outputs)


def _largest(outputs: NDArray[Any]) -> NDArray[np.int64]:
    answers: NDArray[np.int64] = outputs.reshape(len(outputs), math.prod(outputs.shape[1:])).argmax(1).astype(np.int64)
    return answers


def _shape(m: Map) -> str:
    """A map's shape, e.g. 28x28x3; a vector's length alone."""
    return str(m.channels) if m.pixels == 1 else f"{m.height}x{m.width}x{m.channels}"


def _compression(layer: Layer) -> float | None:
    """Weights of the same layer uncompressed over those stored; None without weights."""
    if not layer.weights.size:
        return None
    taps = layer.taps[0] * layer.taps[1]
    return layer.source.channels * layer.target.channels * taps / layer.weights.size
