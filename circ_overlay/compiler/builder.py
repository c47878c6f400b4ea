# SPDX-License-Identifier: BSD-3-Clause
"""Builds a Network from the operations of other frameworks, folding what one instruction can do together.

Importers call it in the order of execution. A convolution or product stays open while its results have one reader:
batch-norm, a residual sum, an activation and a pooling that follow go into it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Operation
from .records import BlockSizes, Value, reads
from .weights import Weighted

__all__ = ["BlockSizes", "Builder", "Value"]

Floats = NDArray[np.float64]
Pair = tuple[int, int]


class Builder(Weighted):
    """See the module, and :class:`.records.Records` for its arguments."""

    def _open(self, v: Value, *keys: str) -> dict[str, Any] | None:
        """The operation that gives `v`, unless it is closed or already has one of `keys`."""
        if v.op is None or v.op.get("frozen") or any(v.op.get(key) not in (None, "identity", (1, 1)) for key in keys):
            return None
        return v.op

    def close(self, v: Value) -> Value:
        """`v` with its operation as it is now: more than one reads it."""
        if v.op is not None:
            v.op["frozen"] = True
        return v

    def affine(self, v: Value, scale: Floats, shift: Floats, name: str) -> Value:
        """``v * scale + shift`` with numbers or one of each per channel."""
        self.whole(v)
        if v.tensor == "input" and np.size(scale) == 1 and np.all(scale > 0) and not np.any(shift) and self.alone:
            self.input_scale *= float(np.ravel(scale)[0])
            return v
        op = self._open(v, "residual", "activation", "pool")
        if op is None:
            channels = (v.shape[2],)
            scale, shift = np.broadcast_to(scale, channels), np.broadcast_to(shift, channels)
            return self._like(v, self.emit(name, v.shape, kind="sum", source=v.tensor, scale=scale, shift=shift))
        if np.any(scale == 0):
            scale = np.where(scale == 0, 1e-30, scale)
        op["scale"], op["shift"] = op.get("scale", 1.0) * scale, op.get("shift", 0.0) * scale + shift
        return v

    @property
    def alone(self) -> bool:
        """Whether the input has one reader, and nothing has read it yet."""
        return self.input_readers == 1 and not self.records

    def _like(self, v: Value, result: Value) -> Value:
        """`result`, flattened as `v` is."""
        return replace(result, flat=v.flat)

    def per_channel(self, v: Value, constant: Floats) -> Floats:
        """A constant operand that varies over channels alone, as () or (channels,)."""
        if constant.size == 1:
            return constant.reshape(())
        image = v.shape[:2] != (1, 1) or constant.ndim >= 3
        expected = (v.shape[2], 1, 1) if image else (v.shape[2],)
        if v.flat or constant.shape[-len(expected) :] != expected or constant.size != v.shape[2]:
            self.refuse(f"An operand of shape {constant.shape}", f"use a number, or one for each channel, {expected}, "
                        "before flattening")  # fmt: skip
        return constant.reshape(-1)

    def activation(self, v: Value, name: str, function: str, ceiling: float | None = None) -> Value:
        """relu (with a ceiling: clipped), sigmoid or tanh."""
        self.whole(v)
        if v.op is not None and function == "relu" == v.op.get("activation") and not v.op.get("frozen"):
            if ceiling is not None:
                v.op["ceiling"] = min(ceiling, v.op.get("ceiling") or ceiling)
            return v
        op = self._open(v, "activation")  # monotonic, so it may go before a pooling
        if op is None or (op.get("kind") == "max" and "pool" in op):
            return self._like(
                v, self.emit(name, v.shape, kind="sum", source=v.tensor, activation=function, ceiling=ceiling)
            )
        op["activation"], op["ceiling"] = function, ceiling
        return v

    def add(self, a: Value, b: Value, name: str) -> Value:
        """Sum of two maps of one shape."""
        self._agree("sum", a, b)
        a, b = (self.copy(v, name) if v.tensor == "input" else v for v in (a, b))
        order = [r["name"] for r in self.records]
        # The later operation takes the earlier one's result; it may also wait until the other is there.
        for host, other in ((b, a), (a, b)):
            op = self._open(host, "residual", "activation", "pool")
            if op is None or other.tensor == host.tensor:
                continue
            made = [order.index(r["name"]) for r in self.records if r.get("target", r["name"]) == other.tensor]
            if made and made[-1] > order.index(op["name"]):
                between = self.records[order.index(op["name"]) + 1 :]
                if any(host.tensor in reads(r) for r in between):
                    continue
                self.records.remove(op)
                self.records.append(op)
            op["residual"] = other.tensor
            if other.op is not None:
                other.op["frozen"] = True
            return host
        for v in (a, b):
            if v.op is not None:
                v.op["frozen"] = True
        return self._like(a, self.emit(name, a.shape, kind="sum", source=a.tensor, residual=b.tensor))

    def subtract(self, a: Value, b: Value, name: str) -> Value:
        """Difference of two maps of one shape."""
        self._agree("difference", a, b)
        if a.tensor == "input":
            a = self._like(a, self.copy(a, name))
        self.close(a)
        return self._like(a, self.emit(name, a.shape, kind="sum", source=b.tensor, scale=-1.0, residual=a.tensor))

    def _agree(self, what: str, a: Value, b: Value) -> None:
        self.whole(a, b)
        if a.shape != b.shape:
            self.refuse(
                f"A {what} of maps of {a.shape} and {b.shape}", "make the two (height, width, channels) agree"
            )
        if a.flat != b.flat:
            self.refuse(f"A {what} of maps flattened in different ways", "take it before the flattening")

    def product(self, a: Value, b: Value, name: str) -> Value:
        """Element by element product of two maps of one shape."""
        self._agree("product", a, b)
        return self._like(a, self.emit(name, a.shape, kind="product", source=a.tensor, factor=b.tensor))

    def max_pool(self, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str) -> Value:
        """Largest of each window."""
        op = self._open(v, "pool")
        self.whole(v)
        if v.flat:
            self.refuse("Pooling of a flattened map", "pool before flattening")
        if op is not None and op.get("kind") != "max" and taps == stride and not any(padding):
            height, width = v.shape[0] // taps[0], v.shape[1] // taps[1]
            exact = (height * taps[0], width * taps[1]) == v.shape[:2]
            if height and width and (exact or op.get("residual") is None):
                op["pool"] = taps
                return Value(v.tensor, (height, width, v.shape[2]), op=op)
        return self._window("max", v, taps, stride, padding, name)

    def average_pool(self, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str) -> Value:
        """Mean of each window, pixels outside counted as zeros."""
        if v.flat:
            self.refuse("Pooling of a flattened map", "pool before flattening")
        if any(v.pad):
            padding = tuple(a + b for a, b in zip(padding, v.pad))  # type: ignore[assignment]
        return self._window("sum", v, taps, stride, padding, name, scale=1 / (taps[0] * taps[1]))

    def _window(
        self, kind: str, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str, **rest: Any
    ) -> Value:
        op = Operation(name=name, kind=kind, taps=taps, stride=stride, padding=padding)
        _, shape = op.shapes(v.shape)
        return self.emit(name, shape, kind=kind, source=v.tensor, taps=taps, stride=stride, padding=padding, **rest)

    def pad(self, v: Value, padding: tuple[int, int, int, int]) -> Value:
        """Zeros around a map, for the convolution or average that follows."""
        if v.flat or min(padding) < 0:
            self.refuse(f"Padding {padding}", "pad maps, by positive numbers")
        top, left, bottom, right = (a + b for a, b in zip(v.pad, padding))
        return replace(v, pad=(top, left, bottom, right))

    def flatten(self, v: Value, order: str) -> Value:
        """The map as one vector, "chw" or "hwc"."""
        self.whole(v)
        order = v.flat or order
        if v.shape[:2] == (1, 1):
            return replace(v, flat="")
        if v.channels == 1:
            order = "hwc"
        if v.tensor == "input" and self.alone and (
            v.channels == 1 or order == ("chw" if self.channels_first else "hwc")
        ):  # as the samples lie: the network's input is the vector itself
            self.input_shape, self.channels_first = (1, 1, v.features), False
            return Value("input", self.input_shape)
        return replace(v, flat=order)
