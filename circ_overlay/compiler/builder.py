# SPDX-License-Identifier: BSD-3-Clause
"""Builds a Network from the operations of other frameworks, folding what one instruction can do together.

Importers call it in the order of execution. A convolution or product stays open while its results have one reader:
batch-norm, a residual sum, an activation and a pooling that follow go into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .. import circulant, spec
from .graph import CompileError, Network, Operation, Shape

__all__ = ["Builder", "Value", "structure"]

Floats = NDArray[np.float64]
Pair = tuple[int, int]
TOLERANCE = 1e-6
"""A dense matrix that differs from a block-circulant one by less, relative to its largest entry, is one."""


def structure(kernel: Floats, block_size: int | None = None) -> Floats:
    """First columns (p, q, r, s, k) of a dense kernel (out, in, r, s).

    With `block_size` the nearest block-circulant kernel is taken. Without, the largest k is looked for of which the
    kernel already is; if there is none, k = 1 leaves it as it is.
    """
    if block_size is not None:
        return circulant.project_conv2d(kernel, block_size)
    peak = float(np.abs(kernel).max())
    for k in reversed(spec.BLOCK_SIZES):
        p, q = circulant.block_grid(kernel.shape[0], kernel.shape[1], k)
        if 1.5 * p * q * k > kernel.shape[0] * kernel.shape[1]:
            continue
        columns = circulant.project_conv2d(kernel, k)
        expanded = circulant.expand_conv2d(columns, *kernel.shape[:2])
        if np.abs(expanded - kernel).max() <= TOLERANCE * peak:
            return columns
    return circulant.project_conv2d(kernel, 1)


@dataclass(frozen=True)
class Value:
    """What a node of the imported graph gives.

    Attributes
    ----------
    tensor : its name in the network
    shape : (height, width, channels)
    flat : "" for a map; "chw" or "hwc": its elements as one vector in that order
    op : the record of the operation that gives it, while that may still be changed
    """

    tensor: str
    shape: Shape
    flat: str = ""
    op: dict[str, Any] | None = None

    @property
    def features(self) -> int:
        """Elements."""
        return self.shape[0] * self.shape[1] * self.shape[2]


class Builder:
    """See the module.

    Parameters
    ----------
    input_shape : of the network's input
    channels_first : samples come as (channels, height, width)
    """

    def __init__(self, input_shape: Shape, *, channels_first: bool) -> None:
        self.input_shape, self.channels_first = input_shape, channels_first
        self.records: list[dict[str, Any]] = []
        self.input_scale = 1.0
        self.states: dict[str, int] = {}
        self.input = Value("input", input_shape)
        self.place = "the graph"

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise CompileError about the node at hand."""
        raise CompileError(f"{what} at {self.place!r} cannot be compiled; {instead}")

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it if it is taken."""
        taken = {"input", "output", *self.states, *(r["name"] for r in self.records)}
        if name not in taken:
            return name
        return next(f"{name}_{n}" for n in range(2, len(taken) + 3) if f"{name}_{n}" not in taken)

    def emit(self, name: str, shape: Shape, **fields: Any) -> Value:
        """A new operation, giving a map of `shape`."""
        record = {"name": self.unique(name), **fields}
        self.records.append(record)
        return Value(record.get("target", record["name"]), shape, op=record)

    def network(self, output: Value, name: str) -> Network:
        """What has been built."""
        if not self.records:
            raise CompileError(f"{name} holds no layer that the core could execute")
        return Network(
            layers=tuple(Operation(**{key: r[key] for key in r if key != "frozen"}) for r in self.records),
            input_shape=self.input_shape,
            input_scale=self.input_scale,
            output=output.tensor,
            states=self.states,
            channels_first=self.channels_first,
            name=name,
        )

    # ---- layers with weights ---------------------------------------------------------------------------------
    def conv(
        self, v: Value, columns: Floats, out_channels: int, name: str, *, bias: Floats | None,
        stride: Pair = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0), gather: bool = False,
        taps: Pair | None = None,
    ) -> Value:  # fmt: skip
        """A block-circulant convolution with first columns (p, q, r, s, k)."""
        if v.flat:
            self.refuse("A convolution of a flattened map", "flatten behind the convolutions")
        shift = np.zeros(out_channels) if bias is None else bias
        taps = taps or (columns.shape[2], columns.shape[3])
        op = Operation(name=name, weight=columns, out_channels=out_channels, taps=taps, stride=stride,
                       padding=padding, gather=gather)  # fmt: skip
        _, shape = op.shapes(v.shape)
        return self.emit(
            name, shape, source=v.tensor, weight=columns, in_channels=v.shape[2], out_channels=out_channels, taps=taps,
            stride=stride, padding=padding, gather=gather, scale=np.ones(out_channels), shift=shift,
        )  # fmt: skip

    def linear(self, v: Value, columns: Floats, out_features: int, name: str, *, bias: Floats | None) -> Value:
        """A block-circulant matrix with first columns (p, q, k) on a vector or a flattened map."""
        height, width, channels = v.shape
        k = columns.shape[2]
        if height * width == 1:
            plain = Value(v.tensor, v.shape, op=v.op)
            return self.conv(plain, columns[:, :, None, None, :], out_features, name, bias=bias)
        if not v.flat:
            self.refuse(f"A linear layer on a map of {height} x {width} pixels", "flatten or pool the map first")
        if k == 1:  # a dense matrix: its columns may come in any order
            kernel = columns[..., 0]
            kernel = (
                kernel.reshape(-1, channels, height, width)
                if v.flat == "chw"
                else kernel.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            )
            taps = kernel[..., None]
        elif v.flat == "chw":
            self.refuse(
                "A block-circulant layer on a map flattened channel by channel",
                "flatten in the core's order instead, x.permute(0, 2, 3, 1).flatten(1), or pool to one pixel before",
            )
        elif channels % k == 0:
            taps = columns.reshape(len(columns), height, width, channels // k, k).transpose(0, 3, 1, 2, 4)
        elif channels % spec.MAP_WORD == 0:
            result = self.conv(
                Value(v.tensor, (1, 1, v.features)), columns[:, :, None, None, :], out_features, name, bias=bias
            )
            assert result.op is not None
            result.op["flatten"] = True
            return result
        else:
            self.refuse(
                f"A block-circulant layer with k={k} on a flattened map of {channels} channels",
                f"make the channels a multiple of {spec.MAP_WORD}, or pool to one pixel before",
            )
        return self.conv(Value(v.tensor, v.shape, op=v.op), taps, out_features, name, bias=bias)

    # ---- what goes into the operation before, if that is still open ------------------------------------------
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
        if v.op is None and v.tensor == "input" and np.size(scale) == 1 and not np.any(shift) and not self.records:
            self.input_scale *= float(np.ravel(scale)[0])
            return v
        op = self._open(v, "residual", "activation", "pool")
        if op is None:
            if v.flat:
                self.refuse("An affine of a flattened map", "place it before the flattening")
            channels = (v.shape[2],)
            return self.emit(name, v.shape, kind="sum", source=v.tensor, scale=np.broadcast_to(scale, channels),
                             shift=np.broadcast_to(shift, channels))  # fmt: skip
        if np.any(scale == 0):
            scale = np.where(scale == 0, 1e-30, scale)
        op["scale"], op["shift"] = op.get("scale", 1.0) * scale, op.get("shift", 0.0) * scale + shift
        return v

    def activation(self, v: Value, name: str, function: str, ceiling: float | None = None) -> Value:
        """relu (with a ceiling: clipped), sigmoid or tanh."""
        if v.op is not None and function == "relu" == v.op.get("activation") and not v.op.get("frozen"):
            if ceiling is not None:
                v.op["ceiling"] = min(ceiling, v.op.get("ceiling") or ceiling)
            return v
        op = self._open(v, "activation")  # monotonic, so it may go before a pooling
        if op is None or (op.get("kind") == "max" and "pool" in op):
            if v.flat and v.shape[:2] != (1, 1):
                self.refuse(f"A {function} of a flattened map", "place it before the flattening")
            return self.emit(name, v.shape, kind="sum", source=v.tensor, activation=function, ceiling=ceiling)
        op["activation"], op["ceiling"] = function, ceiling
        return v

    def add(self, a: Value, b: Value, name: str) -> Value:
        """Sum of two maps of one shape."""
        if a.shape != b.shape:
            self.refuse(f"A sum of {a.shape} and {b.shape}", "make the two maps (height, width, channels) agree")
        a, b = (self._copy(v, name) if v.tensor == "input" else v for v in (a, b))
        order = [r["name"] for r in self.records]
        # The later operation takes the earlier one's result; it may also wait until the other is there.
        for host, other in ((b, a), (a, b)):
            op = self._open(host, "residual", "activation", "pool")
            if op is None or other.tensor == host.tensor:
                continue
            made = [order.index(r["name"]) for r in self.records if r.get("target", r["name"]) == other.tensor]
            if made and made[-1] > order.index(op["name"]):
                between = self.records[order.index(op["name"]) + 1 :]
                if any(host.tensor in _reads(r) for r in between):
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
        return self.emit(name, a.shape, kind="sum", source=a.tensor, residual=b.tensor)

    def _copy(self, v: Value, name: str) -> Value:
        return self.emit(f"{name}_input", v.shape, kind="sum", source=v.tensor)

    def product(self, a: Value, b: Value, name: str) -> Value:
        """Element by element product of two maps of one shape."""
        if a.shape != b.shape:
            self.refuse(f"A product of {a.shape} and {b.shape}", "make the two maps (height, width, channels) agree")
        return self.emit(name, a.shape, kind="product", source=a.tensor, factor=b.tensor)

    def max_pool(self, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str) -> Value:
        """Largest of each window."""
        op = self._open(v, "pool")
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
        return self._window("sum", v, taps, stride, padding, name, scale=1 / (taps[0] * taps[1]))

    def _window(
        self, kind: str, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str, **rest: Any
    ) -> Value:
        op = Operation(name=name, kind=kind, taps=taps, stride=stride, padding=padding)
        _, shape = op.shapes(v.shape)
        return self.emit(name, shape, kind=kind, source=v.tensor, taps=taps, stride=stride, padding=padding, **rest)

    def flatten(self, v: Value, order: str) -> Value:
        """The map as one vector, "chw" or "hwc"."""
        return Value(v.tensor, v.shape, "" if v.shape[:2] == (1, 1) else v.flat or order, v.op)


def _reads(record: dict[str, Any]) -> set[str]:
    source = record.get("source")
    names = {source} if isinstance(source, str) else set(source or ())
    return {*names, *(record[key] for key in ("residual", "factor") if record.get(key))}
