# SPDX-License-Identifier: BSD-3-Clause
"""Plain description of a float network: what importers make and the quantiser takes. NumPy only.

A network is a list of operations, in the order of execution, on named tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .operation import CompileError, Operation, Shape, filled

__all__ = ["CompileError", "Network", "Operation", "Shape", "filled"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """Operations on named tensors.

    Parameters
    ----------
    layers : in the order of execution. Each reads tensors that one before has written, the input, or states. Names
        that occur twice get a number behind them.
    input_shape : of the input map; None: a vector as the first layer takes it.
    input_scale : factor on the inputs before the first layer, e.g. 1/255 for raw pixels.
    output : tensor that is the network's; None: the last operation's.
    output_shape : of one output, where it is the elements of the map in another shape; None: the map's own.
    states : channels of tensors that keep their value from a sequence's step to the next, zero at its begin. With
        any, samples are steps of sequences.
    channels_first : samples have the channels before rows and columns.
    name, labels, metadata : handed on to the program.
    """

    layers: tuple[Operation, ...]
    input_shape: Shape | None = None
    input_scale: float = 1.0
    output: str | None = None
    output_shape: tuple[int, ...] | None = None
    states: Mapping[str, int] = field(default_factory=dict)
    channels_first: bool = False
    name: str = "network"
    labels: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise CompileError("the network has no layers")
        for op in self.layers:
            if not isinstance(op, Operation):
                raise CompileError(
                    f"a list with a {type(op).__name__} was given: expected operations, such as Linear or Conv2d of "
                    "circ_overlay.compiler; give a module by itself (compress gives a module and a report)"
                )
        if not np.isfinite(self.input_scale) or self.input_scale == 0:
            raise CompileError(f"input_scale={self.input_scale}: expected a finite number other than 0")
        if self.input_shape is None:
            first = self.layers[0]
            if first.weight is None or first.taps != (1, 1):
                raise CompileError(f"{first.where}give the network's input_shape")
            features = first.in_channels or first.weight.shape[1] * first.block_size
            object.__setattr__(self, "input_shape", (1, 1, features))
        last, named, taken = "input", [], set[str]()
        for op in self.layers:
            if op.name in taken:  # the tensor follows, unless others were told its name
                name = next(f"{op.name}_{n}" for n in range(2, len(self.layers) + 2) if f"{op.name}_{n}" not in taken)
                op = replace(op, name=name, target=name if op.target == op.name else op.target)
            taken.add(op.name)
            op = op if op.source is not None else replace(op, source=last)
            last = op.target
            if op.kind == "circulant" and op.target in op.sources:  # a state: it is still read while it is made
                named.append(replace(op, target=f"{op.name}.next"))
                op = Operation(name=f"{op.name}.copy", kind="sum", source=f"{op.name}.next", target=op.target)
            named.append(op)
        object.__setattr__(self, "layers", tuple(named))
        object.__setattr__(self, "output", self.output or last)
        _ = self.shapes

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor.

        Raises
        ------
        CompileError
            Tensors do not fit together.
        """
        assert self.input_shape is not None
        shapes: dict[str, Shape] = {"input": self.input_shape}
        shapes |= {name: (1, 1, channels) for name, channels in self.states.items()}
        for op in self.layers:
            for name in (*op.sources, op.residual, op.factor):
                if name is not None and name not in shapes:
                    raise CompileError(f"{op.where}reads {name!r}, which nothing before it gives")
            result, target = op.shapes(self.source_shape(op, shapes))
            for what, name in (("residual", op.residual), ("factor", op.factor)):
                if name is not None and shapes[name] != result:
                    raise CompileError(f"{op.where}{what} {name!r} has shape {shapes[name]}, the result {result}")
            if shapes.setdefault(op.target, target) != target or op.target == "input":
                raise CompileError(f"{op.where}gives {target}, but {op.target!r} has shape {shapes[op.target]}")
        if self.output not in shapes:
            raise CompileError(f"nothing gives the output {self.output!r}")
        return shapes

    def source_shape(self, op: Operation, shapes: Mapping[str, Shape]) -> Shape:
        """Shape of what `op` reads, several sources taken together."""
        parts = [shapes[name] for name in op.sources]
        if len({part[:2] for part in parts}) > 1:
            raise CompileError(f"{op.where}its sources have shapes {parts}: pixels must agree")
        *whole, last = (part[2] for part in parts)
        return (*parts[0][:2], sum(filled(n, op.block_size) for n in whole) + last)

    @property
    def sequence(self) -> bool:
        """True if samples are steps of sequences."""
        return bool(self.states)

    def joined(self, op: Operation, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """What `op` reads, from the values, real or integer, of its sources."""
        whole = [np.pad(p, [(0, 0)] * 3 + [(0, filled(p.shape[3], op.block_size) - p.shape[3])]) for p in parts[:-1]]
        return np.concatenate([*whole, parts[-1]], -1) if whole else parts[0]

    def step(self, x: Floats, states: dict[str, Floats]) -> dict[str, Floats]:
        """All tensors for inputs (batch, height, width, channels), already scaled; states are taken and not changed."""
        values: dict[str, Floats] = {"input": x, **states}
        for op in self.layers:
            operands = [None if name is None else values[name] for name in (op.residual, op.factor)]
            y = op.forward(self.joined(op, [values[name] for name in op.sources]), *operands)
            values[op.target] = op.pooled(y)
        return values

    def pixels(self, x: ArrayLike) -> Floats:
        """Samples of any layout as scaled (batch, height, width, channels) float64."""
        array = np.asarray(x, np.float64)
        assert self.input_shape is not None
        height, width, channels = self.input_shape
        if self.channels_first:
            array = array.reshape(len(array), channels, height, width).transpose(0, 2, 3, 1)
        return array.reshape(len(array), height, width, channels) * self.input_scale

    def forward(self, x: ArrayLike) -> Floats:
        """Outputs in float64, (batch, features); x is (batch, features) or has the sample's shape behind batch.

        For a network on sequences, x is one sequence.
        """
        pixels = self.pixels(x)
        assert self.output is not None
        if self.sequence:
            states = {name: np.zeros((1, 1, 1, n)) for name, n in self.states.items()}
            outputs = []
            for t in range(len(pixels)):
                values = self.step(pixels[t : t + 1], states)
                states = {name: values[name] for name in states}
                outputs.append(values[self.output])
            y = np.concatenate(outputs)
        else:
            y = self.step(pixels, {})[self.output]
        return (y.transpose(0, 3, 1, 2) if self.channels_first else y).reshape(len(y), -1)
