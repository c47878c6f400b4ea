# SPDX-License-Identifier: BSD-3-Clause
"""How tensors lie on the streams: slice behind slice, pixel behind pixel, each pixel filled up to a map word.

Knows neither buffers nor boards: driver, golden model and tests lay out their arrays with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from . import spec
from .program import Program, Segment, Slice

__all__ = ["pack", "stream_elements", "unpack"]

Tensors = Mapping[str, NDArray[np.generic]]


def stream_elements(segment: Segment) -> tuple[int, int]:
    """Elements of one image on the input and the output stream, control beat not counted."""
    in_beats = segment.in_beats - segment.sequence
    return in_beats * spec.STREAM_BYTES // segment.in_dtype.itemsize, segment.out_beats * spec.MAP_WORD


def _places(program: Program, slices: tuple[Slice, ...]) -> Iterator[tuple[Slice, int, int, int]]:
    """Each slice with its first element on the stream, its pixels and the elements that a pixel takes."""
    first = 0
    for s in slices:
        pixels, room = program.tensor(s.tensor).pixels, spec.MAP_WORD * spec.pixel_words(s.channels)
        yield s, first, pixels, room
        first += pixels * room


def pack(program: Program, segment: Segment, tensors: Tensors, elements: NDArray[np.generic]) -> None:
    """Fill `elements`, (batch, elements of an image), from tensors (batch, pixels, channels)."""
    end = 0
    for s, first, pixels, room in _places(program, segment.reads):
        end = first + pixels * room
        target = elements[:, first:end].reshape(len(elements), pixels, room)
        if len(elements) and not np.may_share_memory(target, elements):  # a copy never lies within
            raise ValueError("elements of an image must lie one behind the other")
        target[..., : s.channels] = tensors[s.tensor][..., s.first : s.first + s.channels]
        target[..., s.channels :] = 0
    elements[:, end:] = 0


def unpack(program: Program, segment: Segment, elements: NDArray[np.int16], tensors: Tensors) -> None:
    """Fill tensors (batch, pixels, channels) from `elements`, (batch, elements of an image)."""
    for s, first, pixels, room in _places(program, segment.writes):
        source = elements[:, first : first + pixels * room].reshape(len(elements), pixels, room)
        tensors[s.tensor][..., s.first : s.first + s.channels] = source[..., : s.channels]
