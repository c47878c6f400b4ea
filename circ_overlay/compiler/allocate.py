# SPDX-License-Identifier: BSD-3-Clause
"""Places in map memory for the maps of one segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .. import spec
from ..layer import Layer, Map
from ..program import Segment, Slice, Span
from .graph import CompileError, Operation, Shape, filled

__all__ = ["Item", "place"]

_LADDER = ((True, False), (False, False), (False, True))
"""(input and output words have no other tenant, a sum may overwrite its residual): dearest in memory first."""


@dataclass(frozen=True)
class Item:
    """A layer with the tensors that it touches; `first` is the first channel of the target that it writes."""

    layer: Layer
    op: Operation
    first: int = 0

    @property
    def operands(self) -> list[str]:
        """Tensors that are read."""
        return [*self.op.sources, *(name for name in (self.op.residual, self.op.factor) if name is not None)]


class _Local(NamedTuple):
    """A tensor in this segment: its pixels, the channels that are here, and where it lies in its object."""

    height: int
    width: int
    first: int
    channels: int
    thing: str
    offset: int
    pitch: int


class _Placement:
    """One attempt."""

    def __init__(
        self,
        items: Sequence[Item],
        reads: Sequence[str],
        writes: Sequence[str],
        shapes: Mapping[str, Shape],
        states: Mapping[str, int],
    ) -> None:
        self.items, self.reads, self.writes, self.shapes, self.states = items, reads, writes, shapes, states
        self.local: dict[str, _Local] = {}
        self.sizes: dict[str, int] = {}
        self._groups()
        for name in dict.fromkeys([*reads, *(n for item in items for n in (*item.operands, item.op.target))]):
            if name not in self.local:
                self._single(name)
        self.input = self._block("input block", reads)
        self.output = self._block("output block", writes)

    def _groups(self) -> None:
        """Tensors that are read as one vector lie side by side."""
        for sources, align in dict.fromkeys(
            (item.op.sources, item.op.block_size) for item in self.items if len(item.op.sources) > 1
        ):
            words = [filled(self.shapes[name][2], align) // spec.MAP_WORD for name in sources]
            words[-1] = spec.pixel_words(self.shapes[sources[-1]][2])
            thing, pitch, offset = "+".join(sources), sum(words), 0
            height, width, _ = self.shapes[sources[0]]
            for name, part in zip(sources, words):
                entry = _Local(height, width, 0, self.shapes[name][2], thing, offset, pitch)
                if self.local.setdefault(name, entry) != entry:
                    raise CompileError(f"tensor {name!r} is joined with others in two ways; copy it first")
                offset += part
            self.sizes[thing] = height * width * pitch

    def _single(self, name: str) -> None:
        """A tensor, or those of its channels that this segment's items write."""
        height, width, channels = self.shapes[name]
        first = 0
        parts = [item for item in self.items if item.op.target == name]
        if parts and name not in self.reads:
            first = min(item.first for item in parts)
            channels = max(item.first + item.layer.target.channels for item in parts) - first
        pitch = spec.pixel_words(channels)
        self.local[name] = _Local(height, width, first, channels, name, 0, pitch)
        self.sizes[name] = height * width * pitch

    def _block(self, title: str, names: Sequence[str]) -> tuple[str, int, int]:
        """(object, offset, words) of the tensors that a stream carries, which lie one behind the other."""
        if len(names) == 1:
            t = self.local[names[0]]
            pixels, words = t.height * t.width, spec.pixel_words(t.channels)
            if pixels == 1 or t.pitch == words:
                return t.thing, t.offset, pixels * words
        offset = 0
        for name in names:
            t = self.local[name]
            if t.thing != name:
                raise CompileError(f"tensor {name!r} is joined with others, and cannot also travel in a stream")
            self.local[name] = t._replace(thing=title, offset=offset)
            offset += self.sizes.pop(name)
        self.sizes[title] = offset
        return title, 0, offset

    def lifetimes(self, exclusive: bool) -> dict[str, tuple[int, int]]:
        """First and last item between which each object holds something."""
        spans: dict[str, tuple[int, int]] = {}

        def use(thing: str, when: int) -> None:
            first, last = spans.get(thing, (when, when))
            spans[thing] = min(first, when), max(last, when)

        end = len(self.items)
        for name in self.reads:
            use(self.local[name].thing, -1)
        for when, item in enumerate(self.items):
            for name in (*item.operands, item.op.target):
                use(self.local[name].thing, when)
        for name in self.writes:
            use(self.local[name].thing, end)
        whole = [self.local[name].thing for name in self.states if name in self.local]
        if exclusive:
            whole += [self.input[0], self.output[0]]
        for thing in whole:
            spans[thing] = -1, end
        return spans

    def merge_in_place(self) -> None:
        """Let a sum lie on its residual where nobody needs that any more."""
        for when, item in enumerate(self.items):
            name, target = item.op.residual, item.op.target
            if name is None or name in self.reads or {name, target} & {*self.writes, *self.states}:
                continue
            a, b = self.local[name], self.local[target]
            later = any(name in other.operands for other in self.items[when + 1 :])
            alike = (a.height, a.width, a.first, a.channels) == (b.height, b.width, b.first, b.channels)
            alone = a.offset == b.offset == 0 and self.sizes.get(a.thing) == self.sizes.get(b.thing)
            if later or not alike or not alone or item.op.pool != (1, 1) or a.thing == b.thing:
                continue
            gone = b.thing
            for other, t in self.local.items():
                if t.thing == gone:
                    self.local[other] = t._replace(thing=a.thing)
            del self.sizes[gone]

    def bases(self, words: int, exclusive: bool) -> dict[str, int] | None:
        """A base for every object, none overlapping another that lives at the same time; None: no room."""
        spans = self.lifetimes(exclusive)
        bases: dict[str, int] = {}
        for thing in sorted(self.sizes, key=lambda t: (-self.sizes[t], t)):
            first, last = spans[thing]
            taken = sorted(
                (bases[other], bases[other] + self.sizes[other])
                for other in bases
                if spans[other][0] <= last and first <= spans[other][1]
            )
            base = 0
            for low, high in taken:
                if low - base >= self.sizes[thing]:
                    break
                base = max(base, high)
            if base + self.sizes[thing] > words:
                return None
            bases[thing] = base
        return bases

    def segment(self, bases: Mapping[str, int], *, u8: bool) -> Segment:
        """The segment with every map in its place."""
        layers = []
        for item in self.items:
            layer, op = item.layer, item.op

            def at(name: str, like: Map, first: int = 0) -> Map:
                t = self.local[name]
                base = bases[t.thing] + t.offset + (first - t.first) // spec.MAP_WORD
                # One pixel has no next one: its pitch is its own size, however it is joined with others.
                pitch = like.pixel_words if like.pixels == 1 else t.pitch
                return replace(like, base=base, pitch=pitch)

            values = dict(vars(layer))
            values["source"] = at(op.sources[0], layer.source)
            values["target"] = at(op.target, layer.target, item.first)
            for what, name in (("residual", op.residual), ("factor", op.factor)):
                if name is not None:
                    values[what] = at(name, getattr(layer, what), item.first)
            layers.append(Layer(**values))

        def slices(names: Sequence[str]) -> tuple[Slice, ...]:
            kept = (self.local[name] for name in names)
            return tuple(Slice(tensor=n, first=t.first, channels=t.channels) for n, t in zip(names, kept))

        def span(thing: str, offset: int, words: int) -> Span:
            return Span(base=bases[thing] + offset, words=words)

        state = [self.local[name].thing for name in self.states]
        low = min((bases[t] for t in state), default=0)
        high = max((bases[t] + self.sizes[t] for t in state), default=0)
        return Segment(
            layers=tuple(layers),
            input=span(*self.input),
            output=span(*self.output),
            reads=slices(self.reads),
            writes=slices(self.writes),
            u8=u8,
            sequence=bool(self.states),
            state=Span(base=low, words=high - low),
        )


def place(
    items: Sequence[Item],
    reads: Sequence[str],
    writes: Sequence[str],
    shapes: Mapping[str, Shape],
    states: Mapping[str, int],
    *,
    words: int,
    u8: bool,
) -> Segment | None:
    """The segment of `items` in a map memory of `words` words, or None if it has no room.

    Parameters
    ----------
    items : layers in the order of execution
    reads, writes : tensors that come from the host and go there
    shapes : of all tensors
    states : channels of the tensors that outlive an image
    u8 : the stream in carries bytes
    """
    for exclusive, in_place in _LADDER:
        placement = _Placement(items, reads, writes, shapes, states)
        if in_place:
            placement.merge_in_place()
        bases = placement.bases(words, exclusive)
        if bases is not None:
            return placement.segment(bases, u8=u8)
    return None
