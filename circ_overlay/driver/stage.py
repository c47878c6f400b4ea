# SPDX-License-Identifier: BSD-3-Clause
"""Stage: a segment of a program as the hardware takes it - its image in bytes, its samples in a DMA buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import spec, transfer
from ..program import Program

__all__ = ["Stage"]


class Stage:
    """See the module.

    Parameters
    ----------
    program : the network
    index : which of its segments

    Attributes
    ----------
    segment : what runs
    image : the program image, bytes
    program_id : its identity, as the core's register shows it
    in_bytes, out_bytes : of one sample on the streams, a control beat included
    first_layer : number of the segment's first layer among all of the program's
    """

    def __init__(self, program: Program, index: int) -> None:
        self.program, self.index = program, index
        self.segment = program.segments[index]
        words = program.images[index]
        self.image: NDArray[np.uint8] = words.astype("<u8", copy=False).view(np.uint8)
        self.program_id = int(words[1]) & 0xFFFFFFFF
        self.in_bytes = spec.STREAM_BYTES * self.segment.in_beats
        self.out_bytes = spec.STREAM_BYTES * self.segment.out_beats
        self.first_layer = sum(len(s.layers) for s in program.segments[:index])
        self.reads = tuple(dict.fromkeys(s.tensor for s in self.segment.reads))
        self.writes = tuple(dict.fromkeys(s.tensor for s in self.segment.writes))

    @property
    def name(self) -> str:
        """The program's name, and which segment if there are several."""
        count = len(self.program.segments)
        return self.program.name if count == 1 else f"{self.program.name}, segment {self.index} of {count}"

    def same_as(self, other: Stage | None) -> bool:
        """True if `other` is the same segment of the same program, in whatever network."""
        return other is not None and other.program is self.program and other.index == self.index

    def fill(
        self,
        buffer: Any,
        images: int,
        tensors: Mapping[str, NDArray[np.generic]],
        starts: NDArray[np.bool_] | None = None,
    ) -> None:
        """Lay `images` samples into a buffer: tensors (images, pixels, channels), and where sequences begin."""
        raw = np.asarray(buffer)[: images * self.in_bytes]
        elements = raw.view(self.segment.in_dtype).reshape(images, -1)
        if self.segment.sequence:
            raw.view("<u8").reshape(images, -1)[:, 0] = starts
            elements = elements[:, spec.STREAM_BYTES // self.segment.in_dtype.itemsize :]
        transfer.pack(self.program, self.segment, tensors, elements)

    def take(self, buffer: Any, images: int, tensors: Mapping[str, NDArray[np.int16]]) -> None:
        """Copy `images` results out of a buffer into tensors (images, pixels, channels)."""
        raw = np.asarray(buffer)[: images * self.out_bytes]
        transfer.unpack(self.program, self.segment, raw.view("<i2").reshape(images, -1), dict(tensors))
