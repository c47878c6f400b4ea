# SPDX-License-Identifier: BSD-3-Clause
"""How a job is cut up: rounds, in which each segment is loaded once, and the DMA batches that stream through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..image import instructions
from ..perf.cycles import layer_cycles, load_cycles, run_cycles
from .stage import Stage

__all__ = ["Part", "Plan", "Planner"]


class Part(NamedTuple):
    """Samples `start` to `stop` through one segment, as one DMA batch of the round `begin` to `end`."""

    segment: int
    start: int
    stop: int
    begin: int
    end: int


class Planner:
    """Makes plans for one program on one core.

    Parameters
    ----------
    stages : the program's segments
    config : build parameters of the core
    batch : largest DMA batch of each segment, in samples
    host_bytes : what the tensors between segments may take of the host's memory
    """

    def __init__(self, stages: Sequence[Stage], config: spec.CoreConfig, batch: Sequence[int], host_bytes: int) -> None:
        self.stages, self.config, self.batch, self.host_bytes = tuple(stages), config, tuple(batch), host_bytes
        self.tensor_bytes, self.last_use = _live(self.stages)
        self.round_limit = max(1, host_bytes // self.tensor_bytes) if self.tensor_bytes else None
        """Samples whose tensors fit in `host_bytes`; None: any number."""

    def plan(self, images: int, ends: NDArray[np.int64] | None = None) -> Plan:
        """The plan for so many samples; with `ends`, for sequences that end behind those steps."""
        return Plan(self, images, self._round(images), ends)

    def _round(self, images: int) -> int:
        """Samples of a round: those that take the least modelled time, and of these the fewest."""
        limit = self.round_limit
        if limit is None or images <= limit:
            return images
        # Fewer rounds mean fewer loads, so only sizes that need the least number of rounds come into question:
        # as large as may be, even ones, and even ones of whole DMA batches.
        even = -(-images // -(-images // limit))
        sizes = {limit, even, *(-(-even // b) * b for b in self.batch)}
        return min((n for n in sizes if n <= limit), key=lambda n: (sum(self.cycles(images, n)), n))

    def cycles(self, images: int, size: int) -> tuple[int, int]:
        """Modelled cycles of loading and of running, in rounds of `size` samples."""
        if not images:
            return 0, 0
        rounds, rest = divmod(images, size)
        loads = sum(load for load, _ in self._costs) * (rounds + bool(rest))
        runs = sum(rounds * self._run(n, size) + (self._run(n, rest) if rest else 0) for n in range(len(self.stages)))
        return loads, runs

    @cached_property
    def _costs(self) -> list[tuple[int, int]]:
        """Cycles of loading a segment, and of one sample's layers in it."""
        return [
            (
                load_cycles(len(s.image) // spec.STREAM_BYTES),
                sum(layer_cycles(self.config, i) for i in instructions(s.segment, s.program.width)),
            )
            for s in self.stages
        ]

    def _run(self, index: int, images: int) -> int:
        """Modelled cycles of a segment's runs on so many samples, batch by batch."""
        beats = self.stages[index].segment.in_beats, self.stages[index].segment.out_beats
        full, rest = divmod(images, self.batch[index])
        cycles = full * run_cycles(self._costs[index][1], self.batch[index], *beats)
        return cycles + (run_cycles(self._costs[index][1], rest, *beats) if rest else 0)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a job is cut up; `str()` tells.

    Attributes
    ----------
    planner : what it follows from
    images : samples of the job; steps, if they are sequences
    round : largest number of samples for which every segment is loaded once
    ends : of the sequences, in steps; None: samples may be cut anywhere
    """

    planner: Planner
    images: int
    round: int
    ends: NDArray[np.int64] | None = None

    def parts(self) -> Iterator[Part]:
        """DMA batches in the order in which they run."""
        for begin, end in self._cut(0, self.images, self.round):
            for segment, limit in enumerate(self.planner.batch):
                for start, stop in self._cut(begin, end, limit):
                    yield Part(segment, start, stop, begin, end)

    def _cut(self, start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
        """Runs of up to `limit` samples; of whole sequences, and of one at least."""
        while start < stop:
            end = min(start + limit, stop)
            if self.ends is not None and end < stop:
                ended = int(np.searchsorted(self.ends, end, "right"))
                end = int(self.ends[ended - 1]) if ended else 0
                if end <= start:
                    end = int(self.ends[ended])
            yield start, end
            start = end

    @property
    def rounds(self) -> int:
        """Times that every segment is loaded."""
        return sum(1 for _ in self._cut(0, self.images, self.round))

    def summary(self) -> dict[str, Any]:
        """The figures behind :meth:`__str__`."""
        load, run = self.planner.cycles(self.images, self.round)
        return {
            "images": self.images,
            "segments": len(self.planner.stages),
            "rounds": self.rounds,
            "round": self.round,
            "batch": self.planner.batch,
            "tensor_bytes": self.planner.tensor_bytes * self.round,
            "host_bytes": self.planner.host_bytes,
            "load_cycles": load,
            "run_cycles": run,
            "cycles_provenance": "modelled",
        }

    def __str__(self) -> str:
        s = self.summary()
        unit = "samples" if self.ends is None else "steps"
        batches = ", ".join(str(b) for b in s["batch"])
        if s["segments"] == 1:
            return f"{s['images']} {unit}, one segment that is loaded once, DMA batches of up to {batches}"
        total = s["load_cycles"] + s["run_cycles"]
        share = 100 * s["load_cycles"] / total if total else 0.0
        why = (
            "all in one round"
            if s["rounds"] <= 1
            else f"{s['rounds']} rounds of up to {s['round']}, the fewest whose tensors stay below "
            f"{_size(s['host_bytes'])}"
        )
        return (
            f"{s['images']} {unit} through {s['segments']} segments, {why}; tensors between segments take "
            f"{_size(s['tensor_bytes'])} of the host's memory, loading {share:.2g} % of {total:,} modelled cycles; "
            f"DMA batches of up to {batches}"
        )

    def __repr__(self) -> str:
        return f"<Plan: {self}>"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB" if nbytes >= 1 << 20 else f"{nbytes / 2**10:.1f} KiB"


def _live(stages: Sequence[Stage]) -> tuple[int, dict[str, int]]:
    """Bytes of a sample's tensors that wait at a time, and the last segment that reads or writes each."""
    program = stages[0].program
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for stage in stages:
        for name in (*stage.reads, *stage.writes):
            if name in program.tensors:
                first.setdefault(name, stage.index)
                last[name] = stage.index
    sizes = {name: 2 * t.pixels * t.channels for name, t in program.tensors.items()}
    peak = max(sum(sizes[n] for n in first if first[n] <= s.index <= last[n]) for s in stages)
    return peak, last
