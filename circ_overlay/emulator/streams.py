# SPDX-License-Identifier: BSD-3-Clause
"""AXI4-Streams: what their two ends offer, and a loop for designs that only pass data through a FIFO.

Data are pulled from the source when the sink can take them, which gives back-pressure for nothing.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Loopback", "Sink", "Source"]

Bytes = NDArray[np.uint8]


class Source(Protocol):
    """Where a stream comes from."""

    def take(self, limit: int | None = None) -> tuple[Bytes, bool]:
        """Up to `limit` bytes, and whether a packet ended behind them."""


class Sink(Protocol):
    """Where a stream goes."""

    @property
    def armed(self) -> bool:
        """Whether a packet would be taken."""

    def put(self, packet: Bytes) -> bool:
        """Take a packet; whether all of it fitted. Only when armed."""


class Loopback:
    """Joins a source to a sink, packet by packet.

    Parameters
    ----------
    source, sink : the two ends.
    """

    def __init__(self, source: Source, sink: Sink) -> None:
        self._source = source
        self._sink = sink
        self.reset()

    def reset(self) -> None:
        """Forget a packet that is half through."""
        self._parts: list[Bytes] = []

    def advance(self) -> bool:
        """Move data as far as they go; whether anything moved."""
        if not self._sink.armed:
            return False
        data, last = self._source.take()
        if data.size:
            self._parts.append(data)
        if last:
            packet = np.concatenate(self._parts or [data])
            self.reset()
            self._sink.put(packet)
        return bool(data.size) or last
