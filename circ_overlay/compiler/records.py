# SPDX-License-Identifier: BSD-3-Clause
"""What the Builder has built so far: values, the operations that give them, and the network they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import spec
from .graph import CompileError, Network, Operation, Shape

__all__ = ["BlockSizes", "Records", "Value", "reads"]

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


class Records:
    """Operations so far, and what is known of the network's input.

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
        self.whole(output)
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
            output = self.copy(output, "output")
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
                needed |= reads(record)
                kept.append(record)
        self.records = kept[::-1]

    def whole(self, *values: Value) -> None:
        """Refuse values whose padding is still to be taken in."""
        if any(any(v.pad) for v in values):
            self.refuse("Padding before anything but a convolution or an average", "give the padding to that layer")

    def copy(self, v: Value, name: str) -> Value:
        """The input, as an operation gives it."""
        return self.emit(f"{name}_input", v.shape, kind="sum", source=v.tensor)


def reads(record: dict[str, Any]) -> set[str]:
    """Tensors that an operation reads."""
    source = record.get("source")
    names = {source} if isinstance(source, str) else set(source or ())
    return {*names, *(record[key] for key in ("residual", "factor") if record.get(key))}
