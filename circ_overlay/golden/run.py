# SPDX-License-Identifier: BSD-3-Clause
"""A program, segment by segment, on the core's map memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import spec, transfer
from ..program import Layer, Map, Program, Segment
from .operations import apply, enter

__all__ = ["execute", "run"]

Ints = NDArray[np.int64]
_CHUNK_ELEMENTS = 1 << 21
"""Map elements that are worked on at a time: the arrays between operations then stay small."""


class _MapMemory:
    """Map memory of `images` cores side by side."""

    def __init__(self, images: int, words: int) -> None:
        self.words = np.zeros((images, words, spec.MAP_WORD), np.int16)

    def _view(self, m: Map, rows: slice) -> NDArray[np.int16]:
        """The map as a view (images, height, width, elements of a pixel's words)."""
        step, shape = self.words.strides, (m.height, m.width, m.pixel_words * spec.MAP_WORD)
        strides = (step[0], m.width * m.pitch * step[1], m.pitch * step[1], step[2])
        part = self.words[rows, m.base : m.end]
        return np.lib.stride_tricks.as_strided(part, (len(part), *shape), strides)

    def read(self, m: Map | None, rows: slice) -> Ints | None:
        return None if m is None else self._view(m, rows)[..., : m.channels].astype(np.int64)

    def write(self, m: Map, rows: slice, values: Ints) -> None:
        view = self._view(m, rows)
        view[..., : m.channels] = values
        view[..., m.channels :] = 0


def _layer(memory: _MapMemory, layer: Layer, width: int, rows: slice) -> None:
    x = memory.read(layer.source, rows)
    assert x is not None
    residual, factor = memory.read(layer.residual, rows), memory.read(layer.factor, rows)
    memory.write(layer.target, rows, apply(layer, x, width, residual=residual, factor=factor))


def execute(
    segment: Segment, elements: NDArray[np.generic], width: int, starts: NDArray[np.bool_] | None = None
) -> NDArray[np.int16]:
    """A segment on a batch, as the core sees it.

    Parameters
    ----------
    segment : what runs
    elements : (batch, elements of an image) of the input stream, see :func:`transfer.stream_elements`
    width : W of the core
    starts : (batch,) for a segment on sequences: True where one begins; None: only at the first image.

    Returns
    -------
    (batch, elements of an image) int16 of the output stream.
    """
    batch, words = len(elements), segment.input.words
    entering = enter(elements[:, : words * spec.MAP_WORD].astype(np.int64), segment.u8, width)
    out = np.empty((batch, segment.output.words, spec.MAP_WORD), np.int16)
    memory = _MapMemory(1 if segment.sequence else batch, segment.map_words)
    into = slice(segment.input.base, segment.input.base + words)
    sent = slice(segment.output.base, segment.output.base + segment.output.words)
    for n, rows in _turns(segment, batch):
        if segment.sequence and (n.start == 0 if starts is None else starts[n.start]):
            memory.words[:, segment.state.base : segment.state.base + segment.state.words] = 0
        memory.words[rows, into] = entering[n].reshape(-1, words, spec.MAP_WORD)
        for layer in segment.layers:
            _layer(memory, layer, width, rows)
        out[n] = memory.words[rows, sent]
    return out.reshape(batch, segment.output.words * spec.MAP_WORD)


def _turns(segment: Segment, batch: int) -> Iterator[tuple[slice, slice]]:
    """Images that are computed at a time, and the rows of the memory that they have."""
    chunk = 1 if segment.sequence else max(1, _CHUNK_ELEMENTS // (segment.map_words * spec.MAP_WORD))
    for first in range(0, batch, chunk):
        images = slice(first, min(first + chunk, batch))
        yield images, slice(0, 1) if segment.sequence else images


def run(program: Program, x: ArrayLike, *, starts: ArrayLike | None = None) -> Ints:
    """A program on a batch of quantised inputs.

    Parameters
    ----------
    program : the compiled network
    x : (batch, in_features) or (batch, *input shape) integers in the program's input format
    starts : for a network on sequences, (batch,) booleans: True where a sequence begins; samples are steps, one
        sequence behind the other. None: one sequence.

    Returns
    -------
    (batch, out_features) int64.

    Raises
    ------
    ValueError
        `x` has another shape, or a value that the input format cannot hold.
    """
    checked = program.input.check(np.asarray(x))
    batch = len(checked)
    begins = np.arange(batch) == 0 if starts is None else np.asarray(starts, np.bool_)
    if begins.shape != (batch,):
        raise ValueError(f"starts of shape {begins.shape}: one boolean for each of the {batch} steps is needed")
    if program.sequence and batch and not begins[0]:
        raise ValueError("starts[0] is False: the first step begins a sequence")
    tensors: dict[str, NDArray[np.generic]] = {"input": program.input.to_pixels(checked)}
    for name in ("output", *program.tensors):
        tensor = program.tensor(name)
        tensors[name] = np.zeros((batch, tensor.pixels, tensor.channels), np.int16)
    for segment in program.segments:
        elements = np.zeros((batch, transfer.stream_elements(segment)[0]), np.int64)
        transfer.pack(program, segment, tensors, elements)
        transfer.unpack(program, segment, execute(segment, elements, program.width, begins), tensors)
    return program.output.from_pixels(tensors["output"]).astype(np.int64)
