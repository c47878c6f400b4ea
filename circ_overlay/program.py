# SPDX-License-Identifier: BSD-3-Clause
"""Program: a compiled network, every number already in the core's formats. The only door to a ``.circ`` file.

A program is a row of segments: each fits on the chip, is loaded as one image and streams the whole batch
through before the next one is loaded. Between segments, tensors wait in the host's memory. A Program is
checked when it is made, so whatever holds one may rely on it. It never quantises weights: that is the
compiler's work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import spec
from .errors import require
from .layer import Layer, Map
from .port import Port

__all__ = ["Layer", "Map", "Port", "Program", "Segment", "Slice", "Span", "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What waits in the host's memory between segments: (batch, pixels, channels) int16."""

    pixels: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Channels `first` to `first + channels` of a tensor, as they travel over a stream.

    `tensor` is a name among the program's tensors, or "input" or "output" for its ports.
    """

    tensor: str
    first: int = 0
    channels: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of `words` map words from `base` on."""

    base: int = 0
    words: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """What one program image does to a batch.

    Parameters
    ----------
    layers : in the order of execution.
    input, output : map words that are filled from the input stream, and sent to the output stream.
    reads, writes : the tensors' slices that those words are, one behind the other.
    u8 : the input stream carries bytes.
    sequence : images are steps of sequences; a control beat before each says whether a sequence begins.
    state : map words that are cleared when one does.
    """

    layers: tuple[Layer, ...]
    input: Span
    output: Span
    reads: tuple[Slice, ...]
    writes: tuple[Slice, ...]
    u8: bool = False
    sequence: bool = False
    state: Span = Span()

    @property
    def in_beats(self) -> int:
        """Stream beats of one image in, a control beat included."""
        words = self.input.words
        return (-(-words // 2) if self.u8 else words) + self.sequence

    @property
    def out_beats(self) -> int:
        """Stream beats of one image out."""
        return self.output.words

    @property
    def in_dtype(self) -> np.dtype[Any]:
        """NumPy dtype of an element on the input stream."""
        return np.dtype("u1") if self.u8 else np.dtype("<i2")

    @property
    def map_words(self) -> int:
        """Map words up to the last one in use."""
        maps = [m for la in self.layers for m in (la.source, la.target, la.residual, la.factor) if m is not None]
        spans = (self.input, self.output, self.state)
        return max(*(m.end for m in maps), *(s.base + s.words for s in spans))


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A compiled network.

    Parameters
    ----------
    name : the network's name.
    width : W, bits of activations and weights; the core must be built for the same.
    input, output : ports.
    segments : in the order of execution.
    tensors : what segments hand on to later ones, by name.
    labels : names of the classes, or empty.
    metadata : anything JSON that belongs to the network: where it came from, its accuracy.

    Raises
    ------
    ProgramError
        Something does not fit: a value in its format, a tensor that is read before it is written.
    """

    name: str
    width: int
    input: Port
    output: Port
    segments: tuple[Segment, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            isinstance(self.name, str) and 0 < len(self.name) <= 200 and self.name.isprintable(),
            f"name {self.name!r}: expected up to 200 printable characters",
        )
        require(self.width in spec.WIDTHS, f"width={self.width}: allowed are 8..16 bits")
        require(len(self.segments) > 0, "a program has at least one segment")
        require(self.output.storage == "int16", "outputs travel as int16")
        require(
            self.input.storage == "int16" or self.width > 8,
            "uint8 inputs need activations of at least 9 bits; quantise the input to int16 storage",
        )
        require(
            not self.labels or len(self.labels) == self.output.features,
            f"{len(self.labels)} labels for {self.output.features} outputs",
        )
        require(not {"input", "output"} & self.tensors.keys(), "'input' and 'output' are the ports' names")
        require(len({s.sequence for s in self.segments}) == 1, "either all segments work on sequences or none does")
        written: dict[str, set[int]] = {"input": set(range(self.input.channels))}
        for index, segment in enumerate(self.segments):
            self._validate(segment, f"segment {index}: ", written)
        require(
            written.get("output") == set(range(self.output.channels)),
            f"output of {self.output.channels} channels: the segments do not write all of them",
        )

    def _validate(self, segment: Segment, where: str, written: dict[str, set[int]]) -> None:
        layers = len(segment.layers)
        require(0 < layers <= spec.MAX_LAYERS, f"{where}{layers} layers: allowed are 1..{spec.MAX_LAYERS}")
        for layer in segment.layers:
            layer.validate(self.width)
        for slices, span, what in (
            (segment.reads, segment.input, "input"),
            (segment.writes, segment.output, "output"),
        ):
            require(len(slices) > 0, f"{where}no {what}")
            words = 0
            for s in slices:
                tensor = self.tensor(s.tensor)
                require(
                    s.first >= 0 and s.channels > 0 and s.first + s.channels <= tensor.channels,
                    f"{where}channels {s.first}..{s.first + s.channels - 1} of {s.tensor}: it has {tensor.channels}",
                )
                words += tensor.pixels * spec.pixel_words(s.channels)
                channels = set(range(s.first, s.first + s.channels))
                if what == "input":
                    require(channels <= written.get(s.tensor, set()),
                            f"{where}reads of {s.tensor!r} what no segment before has written")  # fmt: skip
                else:
                    before = written.setdefault(s.tensor, set())
                    require(s.tensor != "input" and not channels & before, f"{where}writes {s.tensor!r} twice")
                    before |= channels
            require(words == span.words, f"{where}{what} of {span.words} words, but its tensors fill {words}")
        bytes_in = self.input.storage == "uint8" and any(s.tensor == "input" for s in segment.reads)
        require(segment.u8 == bytes_in, f"{where}u8={segment.u8}, but the input port carries {self.input.storage}")
        require(not segment.u8 or all(s.tensor == "input" for s in segment.reads),
                f"{where}a stream carries bytes or int16, not both")  # fmt: skip

    @classmethod
    def chain(
        cls, *, name: str, width: int, input: Port, output: Port, layers: Sequence[Layer], **rest: Any
    ) -> Program:
        """A program of one segment: the input fills the first layer's source, the last one's target is sent."""
        first, last = layers[0].source, layers[-1].target
        segment = Segment(
            layers=tuple(layers),
            input=Span(base=first.base, words=first.pixels * first.pixel_words),
            output=Span(base=last.base, words=last.pixels * last.pixel_words),
            reads=(Slice(tensor="input", channels=input.channels),),
            writes=(Slice(tensor="output", channels=output.channels),),
            u8=input.storage == "uint8",
        )
        return cls(name=name, width=width, input=input, output=output, segments=(segment,), **rest)

    def tensor(self, name: str) -> Tensor:
        """A tensor or port by name; ProgramError if there is none."""
        ports = {"input": self.input, "output": self.output}
        if name in ports:
            return Tensor(pixels=ports[name].pixels, channels=ports[name].channels)
        require(name in self.tensors, f"there is no tensor {name!r}")
        return self.tensors[name]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of all segments."""
        return tuple(layer for segment in self.segments for layer in segment.layers)

    @property
    def sequence(self) -> bool:
        """True if samples are steps of sequences."""
        return self.segments[0].sequence

    @property
    def parameters(self) -> int:
        """Stored real numbers: p*q*k of each layer and tap, and scale and bias of each output channel."""
        return sum(la.parameters for la in self.layers)

    @property
    def dense_parameters(self) -> int:
        """What the same layers would store uncompressed."""
        return sum(la.dense_parameters for la in self.layers)

    @cached_property
    def images(self) -> tuple[NDArray[np.uint64], ...]:
        """The program image of every segment, see :mod:`circ_overlay.image`."""
        from .image import encode

        return tuple(encode(segment, self.width) for segment in self.segments)

    @property
    def image(self) -> NDArray[np.uint64]:
        """The program image of a program of one segment; ValueError if there are more."""
        (image,) = self.images
        return image

    def __repr__(self) -> str:
        shapes = [self.input.shape, *(la.target.shape for la in self.layers)]
        sizes = "-".join("x".join(str(n) for n in shape if n > 1) or "1" for shape in shapes)
        blocks = ",".join(str(k) for k in sorted({la.block_size for la in self.layers if la.weights.size}))
        cut = f", {len(self.segments)} segments" if len(self.segments) > 1 else ""
        return f"<Program {self.name}: {sizes}, k={blocks}, {self.width} bits, {self.parameters} parameters{cut}>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.circ`` file; `path` holds the old file or the whole new one, whatever happens."""
        from .circfile import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a ``.circ`` file.

        Raises
        ------
        ProgramFileError
            The file is truncated, altered, not a program, or made for another specification; the message
            says which and what to do.
        """
        from .circfile import load

        return load(path)
