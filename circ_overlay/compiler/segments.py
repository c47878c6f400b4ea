# SPDX-License-Identifier: BSD-3-Clause
"""Cut a quantised network into segments that fit on the chip.

Where to cut is found by dynamic programming: of all ways, the one that moves the fewest words for a batch, program
images once and the tensors between segments for every image. A layer whose weights alone do not fit is first cut
by output channels into parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from .. import spec
from ..image import instructions
from ..layer import Layer
from ..program import Segment, Tensor
from .allocate import Item, place
from .calibrate import Lowered
from .graph import CompileError, Network

__all__ = ["cut"]

BATCH = 256
"""Images that a program image is loaded for, when places to cut are weighed."""


def cut(
    network: Network, lowered: Lowered, config: spec.CoreConfig
) -> tuple[tuple[Segment, ...], dict[str, Tensor]]:
    """Segments of a network for a core of `config`, and the tensors between them.

    Raises
    ------
    CompileError
        A layer cannot be made to fit; the message says which memory is too small.
    """
    planner = _Planner(network, lowered, config)
    if network.sequence:
        whole = planner.segment(0, len(planner.items))
        if whole is None:
            raise CompileError(
                f"{network.name} does not fit this core at once ({planner.needs(0, len(planner.items))}), and a "
                "network on sequences cannot be cut: its state stays on chip. Use larger blocks or fewer channels, or "
                "compile it for a larger core with config="
            )
        return (whole,), {}
    segments = planner.best()
    tensors = {}
    for segment in segments:
        for s in segment.writes:
            if s.tensor not in ("input", "output"):
                height, width, channels = planner.shapes[s.tensor]
                tensors[s.tensor] = Tensor(pixels=height * width, channels=channels)
    return tuple(segments), tensors


class _Planner:
    def __init__(self, network: Network, lowered: Lowered, config: spec.CoreConfig) -> None:
        assert network.output is not None
        self.network, self.config = network, config
        self.u8 = lowered.input.storage == "uint8"
        rename = {network.output: "output"}
        self.shapes = {rename.get(name, name): shape for name, shape in network.shapes.items()}
        self.states = {rename.get(name, name): n for name, n in network.states.items()}
        self.items: list[Item] = []
        for layer, op in zip(lowered.layers, network.layers):
            values = dict(vars(op))
            values["source"] = tuple(rename.get(name, name) for name in op.sources)
            for key in ("residual", "factor", "target"):
                values[key] = rename.get(values[key], values[key])
            values.pop("matrices", None)
            self.items += self._split(Item(layer, type(op)(**values)))
        self.segment = cache(self._segment)

    # ---- what a run of items reads and writes --------------------------------------------------------------
    def _edges(self, first: int, end: int) -> tuple[list[str], list[str]] | None:
        """Tensors from and to the host; None if a tensor of which only a part is made here is read here."""
        inside = self.items[first:end]
        made: dict[str, set[int]] = {}
        reads: dict[str, None] = {}
        for item in inside:
            for name in item.operands:
                if name in made:
                    if len(made[name]) < self._parts(name):
                        return None
                elif name not in self.states:
                    reads[name] = None
            made.setdefault(item.op.target, set()).add(item.first)
        later = {name for item in self.items[end:] for name in item.operands} | {"output"}
        writes = [name for name in made if name in later and (name not in self.states or name == "output")]
        return list(reads), writes

    def _parts(self, name: str) -> int:
        return len({item.first for item in self.items if item.op.target == name})

    def _fits(self, items: Sequence[Item]) -> bool:
        code = [item.layer.instruction(self.config.width) for item in items]
        return (
            sum(i.weight_count for i in code) <= self.config.weight_words
            and sum(i.out_channels for i in code) <= self.config.affine_channels
            and len(code) <= self.config.instructions
            and all(i.spectra_words <= self.config.spectra_words for i in code)
        )

    def _segment(self, first: int, end: int) -> Segment | None:
        if not self._fits(self.items[first:end]):
            return None
        edges = self._edges(first, end)
        if edges is None:
            return None
        reads, writes = edges
        u8 = self.u8 and "input" in reads
        if u8 and len(reads) > 1:
            return None  # a stream carries bytes or int16, not both
        words = self.config.map_elements // spec.MAP_WORD
        return place(
            self.items[first:end], reads, writes, self.shapes, self.states, words=words, u8=u8
        )

    def best(self) -> list[Segment]:
        """Segments that move the fewest words."""
        count = len(self.items)
        cost: list[float] = [0.0] + [math.inf] * count
        before = [0] * (count + 1)
        for first in range(count):
            if cost[first] == math.inf:
                continue
            for end in range(first + 1, count + 1):
                if not self._fits(self.items[first:end]):
                    break
                segment = self.segment(first, end)
                if segment is None:
                    continue
                code = instructions(segment, self.config.width)
                words = sum(i.weight_count // 2 + i.out_channels + spec.INSTRUCTION_WORDS for i in code)
                total = cost[first] + words + BATCH * (segment.in_beats + segment.out_beats)
                if total < cost[end]:
                    cost[end], before[end] = total, first
        if cost[count] == math.inf:
            stuck = max(n for n in range(count + 1) if cost[n] < math.inf)
            item = self.items[stuck]
            raise CompileError(f"{item.op.where}does not fit this core: {self.needs(stuck, stuck + 1)}")
        ends, segments = [count], []
        while ends[-1]:
            ends.append(before[ends[-1]])
        for end, first in pairwise(ends):
            segment = self.segment(first, end)
            assert segment is not None
            segments.append(segment)
        return segments[::-1]

    def needs(self, first: int, end: int) -> str:
        """What items need and the core has, for messages."""
        code = [item.layer.instruction(self.config.width) for item in self.items[first:end]]
        # A lower bound: the largest set of maps that one layer touches.
        elements = max(
            sum(self._elements(name) for name in {*item.operands, item.op.target}) for item in self.items[first:end]
        )
        wanted = {
            "weight words": (sum(i.weight_count for i in code), self.config.weight_words),
            "map elements": (elements, self.config.map_elements),
            "affine channels": (sum(i.out_channels for i in code), self.config.affine_channels),
            "instructions": (len(code), self.config.instructions),
            "spectra words": (max(i.spectra_words for i in code), self.config.spectra_words),
        }
        over = [f"{need} {name} of {has}" for name, (need, has) in wanted.items() if need > has]
        return ", ".join(over) if over else "its maps find no place beside each other in map memory"

    def _elements(self, name: str) -> int:
        height, width, channels = self.shapes[name]
        return height * width * spec.MAP_WORD * spec.pixel_words(channels)

    # ---- layers that are too large by themselves -------------------------------------------------------------
    def _split(self, item: Item) -> list[Item]:
        """The item, or its parts by output channels if it is too large for the core."""
        step = math.lcm(item.op.block_size, spec.MAP_WORD)
        channels = item.layer.target.channels
        most = -(-channels // step)
        if item.op.kind != "circulant" or self.network.sequence:
            return [item]
        for parts in range(1, most + 1):
            size = -(-most // parts) * step
            pieces = [_slice(item, first, min(size, channels - first)) for first in range(0, channels, size)]
            if all(self._fits([piece]) and self._has_room(piece) for piece in pieces):
                return pieces
        return [item]  # place() or needs() will say what is wrong

    def _has_room(self, item: Item) -> bool:
        operands = sum(self._elements(name) for name in set(item.operands))
        target = item.layer.target
        words = target.pixels * target.pixel_words
        return operands + words * spec.MAP_WORD <= self.config.map_elements


def _slice(item: Item, first: int, channels: int) -> Item:
    """The part of `item` that gives `channels` output channels from `first` on."""
    layer, k = item.layer, item.op.block_size
    if channels == layer.target.channels:
        return item
    values = dict(vars(layer))
    values["weights"] = layer.weights[first // k : -(-(first + channels) // k)]
    for name in ("scale", "bias"):
        values[name] = getattr(layer, name)[first : first + channels]
    for name in ("target", "residual"):
        m = getattr(layer, name)
        if m is not None:
            values[name] = type(m)(height=m.height, width=m.width, channels=channels)
    values["name"] = f"{layer.name}[{first}:{first + channels}]"
    return Item(Layer(**values), item.op, first)
