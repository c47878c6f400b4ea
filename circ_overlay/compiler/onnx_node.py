# SPDX-License-Identifier: BSD-3-Clause
"""What the folding of ONNX operators stands on: constants and values by name, options, names of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray

from .builder import Builder, Value

__all__ = ["FLOATS", "Floats", "Node", "SUPPORTED", "Steps", "attributes"]

Floats = NDArray[np.float64]
SUPPORTED = (
    "Conv, Gemm, MatMul, BatchNormalization, Relu, Clip, Sigmoid, Tanh, MaxPool, AveragePool, GlobalAveragePool, "
    "GlobalMaxPool, ReduceMean, Add, Sub, Mul, Div, Flatten, Reshape, Transpose, Pad, LSTM, GRU, a Softmax at the end"
)
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Steps:
    """The steps of sequences: each is `value`. `axes` names the tensor's axes: two of the input's, "0" and "1", of
    which an LSTM says which one is time; "d", one direction; "f", features.
    """

    value: Value
    axes: str


class Node:
    """A node, and what is known when its turn comes."""

    builder: Builder
    node: onnx.NodeProto
    rank: int  # dimensions of the model's input
    batch: int  # first dimension of the model's input, -1 if it is open

    def __init__(self) -> None:
        self.constants: dict[str, NDArray[Any]] = {}
        self.readers: dict[str, int] = {}
        self.values: dict[str, Value | Steps] = {}
        self.host: dict[str, str] = {}  # what the host has to do with a value

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise CompileError about the node."""
        self.builder.refuse(what, instead)

    def value(self, index: int = 0) -> Value:
        """The map, or a step's vector, that an input of the node stands for."""
        name = self.node.input[index]
        found = self.values.get(name)
        if found is None:
            self.refuse(f"Operator {self.node.op_type} on a constant", f"supported are {SUPPORTED}")
        if name in self.host:
            self.refuse(f"A {self.host[name]} before {self.node.op_type}", "leave all that follows to the host")
        return found.value if isinstance(found, Steps) else found

    def number(self, index: int) -> NDArray[Any] | None:
        """A constant input; None if it is left out."""
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        name = self.node.input[index]
        if name not in self.constants:
            self.refuse(
                f"Operator {self.node.op_type} whose input {name!r} is not constant",
                "make its weights and options initialisers",
            )
        return self.constants[name]

    def given(self, index: int) -> bool:
        """Whether an input is a constant."""
        return index < len(self.node.input) and self.node.input[index] in self.constants

    def option(self, name: str, index: int | None = None) -> Any:
        """An attribute, or the input that it became in later opsets."""
        given = attributes(self.node)
        if name in given:
            return given[name]
        return self.number(index) if index is not None else None

    def floats(self, index: int) -> Floats | None:
        """A constant input in float64."""
        number = self.number(index)
        return None if number is None else np.asarray(number, np.float64)

    def title(self) -> str:
        """A layer's name, as the framework that exported it had it, as far as that can be seen."""
        name = self.node.name.strip("/")
        for ending in (f"/{self.node.op_type}", f"_{self.node.op_type}"):
            name = name.removesuffix(ending)
        if not name or name == self.node.op_type:
            weight = next((i for i in self.node.input[1:] if i in self.constants), "")
            name = weight.removesuffix(".weight") if weight.endswith(".weight") else name or self.node.output[0]
        return str(name).replace("/", ".")

    def give(self, value: Value) -> None:
        """What the node gives; steps remain steps."""
        before = next((self.values[i] for i in self.node.input if i in self.values), None)
        self.put(self.node.output[0], replace(before, value=value) if isinstance(before, Steps) else value)

    def put(self, name: str, value: Value | Steps) -> None:
        """Name a value, and close its operation if several read it."""
        inner = value.value if isinstance(value, Steps) else value
        if self.readers.get(name, 0) > 1:
            self.builder.close(inner)
            if inner.tensor == "input":
                self.builder.input_readers += self.readers[name] - 1
        self.values[name] = value

    def map_only(self, v: Value) -> Value:
        """`v`, unless it is an input without a dimension for channels."""
        if v.tensor == "input" and v.flat and self.rank == 3:
            self.refuse(f"Operator {self.node.op_type} on an input of {self.rank} dimensions",
                        "give images a channel: (batch, 1, height, width)")  # fmt: skip
        return v

    def steps(self) -> Steps | None:
        """The sequence that the node reads; None if it is none."""
        found = self.values.get(self.node.input[0])
        return found if isinstance(found, Steps) else None

    def passes(self) -> None:
        """The value as it is; what the host has to do with it remains so."""
        name, given = self.node.input[0], self.node.output[0]
        if name not in self.values:
            self.refuse(f"Operator {self.node.op_type} on a constant", f"supported are {SUPPORTED}")
        if name in self.host:
            self.host[given] = self.host[name]
        self.put(given, self.values[name])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
