# SPDX-License-Identifier: BSD-3-Clause
"""Builds a Network from the operations of other frameworks, folding what one instruction can do together.

Importers call it in the order of execution. A convolution or product stays open while its results have one reader:
batch-norm, a residual sum, an activation and a pooling that follow go into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .. import spec
from .graph import CompileError, Network, Operation, Shape
from .structure import of_kernel

__all__ = ["BlockSizes", "Builder", "Value"]

Floats = NDArray[np.float64]
Pair = tuple[int, int]
BlockSizes = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Value:
    """What a node of the imported graph gives.

    Attributes
    ----------
    tensor : its name in the network
    shape : (height, width, channels)
    flat : "" for a map; "chw" or "hwc": its elements as one vector in that order
    op : the record of the operation that gives it, while that may still be changed
    pad : rows and columns of zeros around it (top, left, bottom, right), for a convolution or average to take in
    """

    tensor: str
    shape: Shape
    flat: str = ""
    op: dict[str, Any] | None = None
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def features(self) -> int:
        """Elements."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def channels(self) -> int:
        """Of a pixel."""
        return self.shape[2]


class Builder:
    """See the module.

    Parameters
    ----------
    input_shape : of the network's input
    channels_first : samples come as (channels, height, width)
    block_size : project dense weights to blocks of this size, or of those that a mapping gives for layers' names
    """

    def __init__(self, input_shape: Shape, *, channels_first: bool, block_size: BlockSizes = None) -> None:
        for k in block_size.values() if isinstance(block_size, Mapping) else (block_size,):
            if k is not None and k != 1 and k not in spec.BLOCK_SIZES:
                raise CompileError(f"block_size={k}: the core executes 1 and {spec.BLOCK_SIZES}")
        self.block_size = block_size
        self.dense: list[str] = []
        self.input_shape, self.channels_first = input_shape, channels_first
        self.records: list[dict[str, Any]] = []
        self.input_scale = 1.0
        self.states: dict[str, int] = {}
        self.input = Value("input", input_shape)
        self.input_readers = 1
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

    def network(self, output: Value, name: str, metadata: Mapping[str, Any] | None = None) -> Network:
        """What has been built, without what the output does not need."""
        self._whole(output)
        if isinstance(self.block_size, Mapping):
            unknown = sorted(self.block_size.keys() - set(self.dense))
            if unknown:
                raise CompileError(
                    f"block_size names {', '.join(unknown)}; the layers with dense weights are "
                    f"{', '.join(self.dense) or 'none'}"
                )
        if output.flat and output.channels > 1 and output.flat != ("chw" if self.channels_first else "hwc"):
            self.refuse(
                f"An output that is a map flattened in the order {output.flat!r}",
                "return the map itself: its layout is that of the samples",
            )
        if not self.records:
            raise CompileError(f"{name} holds no layer that the core could execute")
        if output.tensor == "input":
            output = self._copy(output, "output")
        self._prune(output)
        return Network(
            layers=tuple(Operation(**{key: r[key] for key in r if key != "frozen"}) for r in self.records),
            metadata=dict(metadata or {}),
            input_shape=self.input_shape,
            input_scale=self.input_scale,
            output=output.tensor,
            states=self.states,
            channels_first=self.channels_first,
            name=name,
        )

    def _prune(self, output: Value) -> None:
        """Drop operations that neither the output nor a state depends on."""
        needed, kept = {output.tensor, *self.states}, []
        for record in reversed(self.records):
            if record.get("target", record["name"]) in needed:
                needed |= _reads(record)
                kept.append(record)
        self.records = kept[::-1]

    def _whole(self, *values: Value) -> None:
        if any(any(v.pad) for v in values):
            self.refuse("Padding before anything but a convolution or an average", "give the padding to that layer")

    # ---- layers with weights ---------------------------------------------------------------------------------
    def conv(
        self, v: Value, columns: Floats, out_channels: int, name: str, *, bias: Floats | None,
        stride: Pair = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0), gather: bool = False,
        taps: Pair | None = None,
    ) -> Value:  # fmt: skip
        """A block-circulant convolution with first columns (p, q, r, s, k)."""
        if v.flat:
            self.refuse("A convolution of a flattened map", "flatten behind the convolutions")
        if any(v.pad):
            padding = tuple(a + b for a, b in zip(padding, v.pad))  # type: ignore[assignment]
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
        self._whole(v)
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
        elif channels <= spec.MAX_GATHER_CHANNELS:  # a window as large as the map, its pixels packed
            return self.conv(
                Value(v.tensor, v.shape), columns[:, :, None, None, :], out_features, name, bias=bias, gather=True,
                taps=(height, width),
            )  # fmt: skip
        else:
            self.refuse(
                f"A block-circulant layer with k={k} on a flattened map of {channels} channels",
                f"make the channels a multiple of {spec.MAP_WORD}, or pool to one pixel before",
            )
        return self.conv(Value(v.tensor, v.shape, op=v.op), taps, out_features, name, bias=bias)

    def chosen(self, name: str) -> int | None:
        """The block size that the user wants for a dense layer."""
        self.dense.append(name)
        return self.block_size.get(name) if isinstance(self.block_size, Mapping) else self.block_size

    def dense_conv(
        self, v: Value, kernel: Floats, name: str, *, bias: Floats | None, stride: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Value:  # fmt: skip
        """A convolution with a dense kernel (out, in, r, s), in whose weights blocks are looked for."""
        found = of_kernel(kernel, self.chosen(name))
        result = self.conv(v, found.columns, len(kernel), name, bias=bias, stride=stride, padding=padding,
                           gather=found.gather, taps=(kernel.shape[2], kernel.shape[3]))  # fmt: skip
        self.expect(v, kernel.shape[1])
        return self._gained(result, found.gains)

    def expect(self, v: Value, channels: int) -> None:
        """Refuse a map of other channels: blocks that are filled up with zeros would take it."""
        if v.channels != channels:
            self.refuse(f"A layer for {channels} channels on {v.channels}", "check what arrives")

    def dense_linear(self, v: Value, matrix: Floats, name: str, *, bias: Floats | None) -> Value:
        """A dense matrix (out, in) on a vector or a flattened map; blocks are looked for."""
        self._whole(v)
        height, width, channels = v.shape
        if height * width > 1 and not v.flat:
            self.refuse(f"A linear layer on a map of {height} x {width} pixels", "flatten or pool the map first")
        if matrix.shape[1] != v.features:
            self.refuse(f"A matrix for {matrix.shape[1]} features on {v.features}", "check what arrives")
        if height * width == 1:
            return self.dense_conv(
                Value(v.tensor, v.shape, op=v.op), matrix[:, :, None, None], name, bias=bias
            )
        k = self.chosen(name)
        if v.flat == "hwc":
            found = of_kernel(matrix[:, :, None, None], k)
            size = found.columns.shape[4]
            if size > 1 and (channels % size == 0 or channels % spec.MAP_WORD == 0 or channels < spec.MAP_WORD):
                result = self.linear(v, found.columns[:, :, 0, 0], len(matrix), name, bias=bias)
                return self._gained(result, found.gains)
            kernel = matrix.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        else:
            kernel = matrix.reshape(-1, channels, height, width)
        found = of_kernel(kernel, k)
        result = self.conv(Value(v.tensor, v.shape, op=v.op), found.columns, len(matrix), name, bias=bias,
                           gather=found.gather, taps=(height, width))  # fmt: skip
        return self._gained(result, found.gains)

    def _gained(self, v: Value, gains: Floats | None) -> Value:
        if gains is not None:
            assert v.op is not None
            v.op["scale"] = v.op["scale"] * gains
        return v

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
        self._whole(v)
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
        self._whole(v)
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
        return self._like(a, self.emit(name, a.shape, kind="sum", source=a.tensor, residual=b.tensor))

    def subtract(self, a: Value, b: Value, name: str) -> Value:
        """Difference of two maps of one shape."""
        self._agree("difference", a, b)
        if a.tensor == "input":
            a = self._like(a, self._copy(a, name))
        self.close(a)
        return self._like(a, self.emit(name, a.shape, kind="sum", source=b.tensor, scale=-1.0, residual=a.tensor))

    def _agree(self, what: str, a: Value, b: Value) -> None:
        self._whole(a, b)
        if a.shape != b.shape:
            self.refuse(
                f"A {what} of maps of {a.shape} and {b.shape}", "make the two (height, width, channels) agree"
            )
        if a.flat != b.flat:
            self.refuse(f"A {what} of maps flattened in different ways", "take it before the flattening")

    def _copy(self, v: Value, name: str) -> Value:
        return self.emit(f"{name}_input", v.shape, kind="sum", source=v.tensor)

    def product(self, a: Value, b: Value, name: str) -> Value:
        """Element by element product of two maps of one shape."""
        self._agree("product", a, b)
        return self._like(a, self.emit(name, a.shape, kind="product", source=a.tensor, factor=b.tensor))

    def max_pool(self, v: Value, taps: Pair, stride: Pair, padding: tuple[int, int, int, int], name: str) -> Value:
        """Largest of each window."""
        op = self._open(v, "pool")
        self._whole(v)
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
        return replace(v, pad=tuple(a + b for a, b in zip(v.pad, padding)))

    def flatten(self, v: Value, order: str) -> Value:
        """The map as one vector, "chw" or "hwc"."""
        self._whole(v)
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


def _reads(record: dict[str, Any]) -> set[str]:
    source = record.get("source")
    names = {source} if isinstance(source, str) else set(source or ())
    return {*names, *(record[key] for key in ("residual", "factor") if record.get(key))}
