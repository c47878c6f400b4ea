# SPDX-License-Identifier: BSD-3-Clause
"""Builder of random networks over all of the core's operators: behind tests/strategies.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circ_overlay import golden, spec
from circ_overlay.fixedpoint import limits, round_shift, saturate
from circ_overlay.program import Layer, Map, Port, Program, Segment, Slice, Span

Ints = NDArray[np.int64]
Shape = tuple[int, int, int]


def random_integers(rng: np.random.Generator, bits: int, shape: tuple[int, ...], mode: str) -> Ints:
    """Signed integers of `bits` bits."""
    low, high = limits(bits)
    if mode == "extreme":
        return rng.choice(np.array([low, low + 1, -1, 0, 1, high - 1, high]), shape)
    if mode == "bell":
        return np.clip(rng.normal(0, high / 4, shape), low, high).astype(np.int64)
    if mode == "small":
        return rng.integers(-2, 3, shape)
    values = rng.integers(low, high + 1, shape)
    return values * (rng.random(shape) < 0.1) if mode == "sparse" else values


def out_frac(activation: spec.Activation, width: int) -> int:
    """Fraction bits of a layer's outputs: 0, but for the curves, whose format is fixed."""
    return width - 1 if activation in (spec.Activation.SIGMOID, spec.Activation.TANH) else 0


def _bits(values: Ints) -> int:
    """Bits of the magnitude that nine values in ten stay below."""
    return int(np.quantile(np.abs(values), 0.9)).bit_length()


def live_shifts(
    rng: np.random.Generator, layer: Layer, x: Ints, width: int,
    residual: Ints | None = None, factor: Ints | None = None,
) -> Layer:  # fmt: skip
    """`layer` with shifts and a bias that bring what `x` causes to about the output's range."""
    y = golden.reduce(layer, x, factor)
    if layer.opcode == spec.Opcode.CIRCULANT:
        acc_shift = _bits(y) - spec.SUM_BITS + 1 + int(rng.integers(-1, 3))
        acc_shift = min(max(acc_shift, 0), spec.MAX_ACC_SHIFT)
        y = saturate(round_shift(y, acc_shift), spec.SUM_BITS)
        if layer.block_size > 1:
            y = golden.inverse_transform(y).reshape(*y.shape[:3], -1)[..., : layer.target.channels]
    else:
        y = np.maximum(y, limits(2 * spec.WIDTHS[-1])[0])  # the largest of windows that lie outside
        acc_shift = max(0, _bits(y) - int(rng.integers(width, spec.TIME_BITS + 2)))
        y = saturate(round_shift(y, acc_shift), spec.TIME_BITS)
    product_bits = _bits(y * layer.scale)
    curved = layer.activation in (spec.Activation.SIGMOID, spec.Activation.TANH)
    affine_shift = product_bits - width + 1 - 2 * curved + int(rng.integers(-1, 2))
    add_shift = 0
    if residual is not None:
        add_shift = min(max(product_bits - _bits(residual) + int(rng.integers(-1, 2)), 0), spec.MAX_ADD_SHIFT)
    return replace(
        layer,
        bias=layer.bias >> max(0, spec.BIAS_BITS - product_bits - 1),
        acc_shift=acc_shift,
        affine_shift=min(max(affine_shift, 0), spec.MAX_AFFINE_SHIFT),
        add_shift=add_shift,
    )


class Live(NamedTuple):
    """A map that a later layer may read, and what four samples left in it."""

    place: Map
    values: Ints


class NetworkBuilder:
    """Adds random layers to a network, and keeps what a few samples make of it."""

    SAMPLES = 4
    ELEMENTS = 1500  # that a map has at most, about

    def __init__(
        self, rng: np.random.Generator, width: int, mode: str, block: int | None, activation: spec.Activation | None
    ) -> None:
        self.rng, self.width, self.mode = rng, width, mode
        self.block, self.activation = block, activation
        self.layers: list[Layer] = []
        self.live: list[Live] = []
        self.free: list[tuple[int, int]] = []  # base, words
        self.end = int(rng.integers(0, 5))

    # ---- places ------------------------------------------------------------------------------------------
    def allocate(self, words: int) -> int:
        """First of `words` map words that no live map uses."""
        for n, (base, room) in enumerate(self.free):
            if room >= words:
                self.free[n] = (base + words, room - words)
                return base
        base = self.end + int(self.rng.integers(0, 3))
        self.end = base + words
        return base

    def place(self, shape: Shape) -> Map:
        """A map of this shape, now and then with room between its pixels."""
        words = spec.pixel_words(shape[2])
        before, behind = (int(n) for n in self.rng.integers(0, 3, 2) * (self.rng.random() < 0.2))
        pitch = before + words + behind
        base = self.allocate(shape[0] * shape[1] * pitch) + before
        return Map(height=shape[0], width=shape[1], channels=shape[2], base=base, pitch=pitch)

    def drop(self, keep: int) -> None:
        """Forget maps, oldest first; the room of those that lie in one piece is used again."""
        while len(self.live) > keep:
            old = self.live.pop(0)
            if not any(old.place.base < m.place.end and m.place.base < old.place.end for m in self.live):
                self.free.append((old.place.base, old.place.end - old.place.base))

    # ---- layers ------------------------------------------------------------------------------------------
    def _activation(self) -> dict[str, Any]:
        activation = self.activation
        if activation is None:
            activation = spec.Activation(int(self.rng.choice([0, 0, 1, 1, 2, 3])))
        ceiling = None
        if activation == spec.Activation.RELU and self.rng.random() < 0.5:
            ceiling = int(self.rng.integers(1, limits(self.width)[1] + 1))
        return {"activation": activation, "ceiling": ceiling, "out_frac": out_frac(activation, self.width)}

    def add(
        self, opcode: spec.Opcode, source: Live, target: Map, *,
        residual: Live | None = None, factor: Live | None = None, **rest: Any,
    ) -> Live:  # fmt: skip
        """A layer with random numbers; its target becomes a live map."""
        rng, channels = self.rng, target.channels
        layer = Layer(
            opcode=opcode, source=source.place, target=target,
            residual=residual.place if residual else None, factor=factor.place if factor else None,
            scale=random_integers(rng, spec.SCALE_BITS, (channels,), self.mode).astype(np.int32),
            bias=random_integers(rng, spec.BIAS_BITS, (channels,), self.mode),
            acc_shift=int(rng.integers(0, spec.MAX_ACC_SHIFT + 1)),
            affine_shift=int(rng.integers(0, spec.MAX_AFFINE_SHIFT + 1)),
            add_shift=int(rng.integers(0, spec.MAX_ADD_SHIFT + 1)),
            **{**self._activation(), **rest},
        )  # fmt: skip
        extra = residual.values if residual else None, factor.values if factor else None
        if rng.random() < 0.9:
            layer = live_shifts(rng, layer, source.values, self.width, *extra)
        values = golden.apply(layer, source.values, self.width, residual=extra[0], factor=extra[1])
        self.layers.append(layer)
        made = Live(target, values)
        self.live = [m for m in self.live if m.place != target]
        self.live.append(made)
        return made

    def window(self, shape: Shape, largest: int = 3, pooled: bool = True) -> tuple[dict[str, Any], int, int]:
        """Taps, stride, padding and pool that fit a source of this shape, and the output's rows and columns."""
        rng = self.rng
        picked: dict[str, list[int]] = {"taps": [], "stride": [], "padding": [], "pool": []}
        sizes = []
        for size in shape[:2]:
            plain = size == 1 and rng.random() < 0.7
            taps = 1 if plain else int(rng.integers(1, largest + 1))
            stride = 1 if plain else int(rng.choice([1, 1, 1, 2, 3]))
            padding = int(rng.integers(0, taps + 2)) if rng.random() < 0.6 and not plain else 0
            pool = int(rng.choice([1, 1, 2, 3])) if pooled else 1
            # as many results as touch the input, one more or fewer
            results = max(1, (size + padding - taps) // stride + 1 + int(rng.integers(-1, 2)) * (not plain))
            pool = min(pool, results)
            for name, value in (("taps", taps), ("stride", stride), ("padding", padding), ("pool", pool)):
                picked[name].append(value)
            sizes.append(results // pool)
        return {name: tuple(pair) for name, pair in picked.items()}, sizes[0], sizes[1]

    def weights(self, blocks: int, row_blocks: int, words: int) -> NDArray[np.int16]:
        return random_integers(self.rng, self.width, (blocks, row_blocks, words, 2), self.mode).astype(np.int16)

    def circulant(
        self, source: Live, *, block: int, gather: bool = False, window: bool = True,
        channels: int | None = None, target: Map | None = None, residual: Live | None = None,
    ) -> Live:  # fmt: skip
        """A CIRCULANT layer; without `window` pixel by pixel."""
        rng, shape = self.rng, source.place.shape
        geometry, height, width = self.window(shape, 5 if gather else 3) if window else ({}, *shape[:2])
        if target is not None:
            channels = target.channels
        if channels is None:
            largest = max(1, min(2 * block + 9, self.ELEMENTS // (height * width)))
            channels = int(rng.integers(1, largest + 1))
        taps = int(np.prod(geometry.get("taps", (1, 1))))
        if block == 1:
            row_blocks = taps * spec.pixel_words(shape[2])
        elif gather:
            row_blocks = -(-shape[2] * taps // block)
        else:
            row_blocks = taps * -(-shape[2] // block)
        weights = self.weights(-(-channels // block), row_blocks, max(2, block // 2))
        return self.add(
            spec.Opcode.CIRCULANT, source, target or self.place((height, width, channels)),
            block_size=block, gather=gather, weights=weights, residual=residual, **geometry,
        )  # fmt: skip

    def _block(self) -> int:
        return self.block or int(self.rng.choice(spec.BLOCK_SIZES))

    def step(self, kind: str) -> None:
        """One more operator of this kind on the latest map, or what comes next to it where it does not fit."""
        rng, source = self.rng, self.live[-1]
        shape = source.place.shape
        if kind == "gather" and shape[2] <= spec.MAX_GATHER_CHANNELS:
            self.circulant(source, block=self._block(), gather=True)
        elif kind == "dense":
            self.circulant(source, block=1)
        elif kind in ("max", "sum"):
            geometry, height, width = self.window(shape)
            opcode = spec.Opcode.MAX if kind == "max" else spec.Opcode.SUM
            self.add(opcode, source, self.place((height, width, shape[2])), **geometry)
        elif kind == "product":
            same = [m for m in self.live if m.place.shape == shape]
            pool = (2, 2) if min(shape[:2]) > 1 and shape[0] % 2 == shape[1] % 2 == 0 and rng.random() < 0.3 else (1, 1)
            target = self.place((shape[0] // pool[0], shape[1] // pool[1], shape[2]))
            factor = same[int(rng.integers(len(same)))]
            self.add(spec.Opcode.PRODUCT, source, target, factor=factor, pool=pool)
        elif kind == "concat":
            words = [int(n) for n in rng.integers(1, 4, 2)]
            pitch = sum(words)
            base = self.allocate(shape[0] * shape[1] * pitch)
            parts = []
            for first, count in ((0, words[0]), (words[0], words[1])):
                channels = 4 * count - int(rng.integers(0, 4))
                target = Map(height=shape[0], width=shape[1], channels=channels, base=base + first, pitch=pitch)
                parts.append(self.circulant(source, block=int(rng.choice([1, 4, 8])), window=False, target=target))
            gap = 4 * words[0] - parts[0].place.channels
            zeros = np.zeros((*parts[0].values.shape[:3], gap), np.int64)
            values = np.concatenate([parts[0].values, zeros, parts[1].values], 3)
            whole = replace(parts[0].place, channels=4 * words[0] + parts[1].place.channels)
            self.live = [m for m in self.live if m.place not in (parts[0].place, parts[1].place)]
            self.live.append(Live(whole, values))
        elif kind == "flatten" and shape[2] % 4 == 0 and source.place.pitch == source.place.pixel_words:
            vector = Map(channels=int(np.prod(shape)), base=source.place.base)
            self.circulant(Live(vector, source.values.reshape(len(source.values), 1, 1, -1)), block=self._block())
        elif kind == "residual":
            self._residual(source)
        else:
            self.circulant(source, block=self._block())

    def _residual(self, source: Live) -> None:
        """A branch from `source` and back to it or, in place, to an earlier result of the same shape."""
        rng, shape = self.rng, source.place.shape
        branch = self.circulant(source, block=self._block(), window=False, channels=shape[2])
        opcode = spec.Opcode(int(rng.choice([1, 1, 2, 3, 4])))
        target = source.place if rng.random() < 0.5 else self.place(shape)
        if opcode == spec.Opcode.CIRCULANT:
            self.circulant(branch, block=self._block(), window=False, target=target, residual=source)
        else:
            factor = source if opcode == spec.Opcode.PRODUCT else None
            self.add(opcode, branch, target, residual=source, factor=factor)

    # ---- programs ----------------------------------------------------------------------------------------
    def build(self, kinds: Sequence[str], shape: Shape | None, storage: str, sequence: bool) -> Program:
        """The program: input, for a sequence a state that joins it, the operators, and their last map as output."""
        rng = self.rng
        if shape is None:
            rows, columns = (1, 1) if rng.random() < 0.3 else (int(n) for n in rng.integers(1, 10, 2))
            largest = 4 if "gather" in kinds[:1] else 40 if rows * columns > 1 else 200
            shape = (int(rows), int(columns), int(rng.integers(1, largest + 1)))
        base = self.allocate(shape[0] * shape[1] * spec.pixel_words(shape[2]))
        source = Map(height=shape[0], width=shape[1], channels=shape[2], base=base)
        bits = min(self.width, 9) if storage == "uint8" else self.width
        values = random_integers(rng, bits, (self.SAMPLES, *shape), "uniform")
        self.live.append(Live(source, np.abs(values) << spec.u8_shift(self.width) if storage == "uint8" else values))
        state = Span()
        if sequence:
            memory = Map(channels=int(rng.integers(1, 50)), base=self.allocate(13))
            state = Span(base=memory.base, words=memory.pixel_words)
            before = Live(memory, random_integers(rng, self.width, (self.SAMPLES, 1, 1, memory.channels), "bell"))
            entered = self._pooled_vector(self.live[-1], memory.channels)
            block, channels = self._block(), memory.channels
            mixed = self.circulant(before, block=block, window=False, channels=channels, residual=entered)
            self.add(spec.Opcode.PRODUCT, mixed, memory, factor=before, residual=mixed)
            self.free.clear()
        for kind in kinds:
            self.step(kind)
            if not sequence:
                self.drop(3)
        last = self.live[-1]
        if last.place.pitch != last.place.pixel_words:  # what is sent lies in one piece
            whole = Map(**{**vars(last.place), "base": self.end, "pitch": 0})
            self.end = whole.end
            last = self.add(spec.Opcode.SUM, last, whole)
        place = last.place
        segment = Segment(
            layers=tuple(self.layers),
            input=Span(base=source.base, words=source.pixels * source.pixel_words),
            output=Span(base=place.base, words=place.pixels * place.pixel_words),
            reads=(Slice(tensor="input", channels=source.channels),),
            writes=(Slice(tensor="output", channels=place.channels),),
            u8=storage == "uint8",
            sequence=sequence,
            state=state,
        )
        return Program(
            name="random",
            width=self.width,
            input=Port(shape=shape, frac=0, storage=storage, pixels=source.pixels),
            output=Port(shape=place.shape, frac=self.layers[-1].out_frac, pixels=place.pixels),
            segments=(segment,),
        )

    def _pooled_vector(self, source: Live, channels: int) -> Live:
        """The sum over all pixels, brought to as many channels."""
        shape = source.place.shape
        pooled = self.add(spec.Opcode.SUM, source, self.place((1, 1, shape[2])), taps=shape[:2])
        return self.circulant(pooled, block=1, window=False, channels=channels)
