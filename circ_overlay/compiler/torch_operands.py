# SPDX-License-Identifier: BSD-3-Clause
"""What the arguments of a node in a traced graph stand for: maps, constants, options, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from .builder import Builder, Value

__all__ = ["PASS", "SUPPORTED", "Array", "Batch", "Operands", "Size", "State", "array", "title"]

Array = NDArray[np.float64]
PASS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
SUPPORTED = (
    "the layers of circ_overlay.nn, Linear, Conv2d, BatchNorm1d/2d, ReLU, ReLU6, clamp, Sigmoid, Tanh, max and average "
    "pooling, sums and products of maps, Flatten, Dropout, Identity, scaling by a number, LSTM and GRU"
)


def array(tensor: torch.Tensor) -> Array:
    """In float64."""
    return tensor.detach().cpu().double().numpy()


class Size:
    """What ``x.shape`` and ``x.size()`` stand for; only the batch may be taken of it."""


class Batch:
    """What ``x.size(0)`` stands for."""


@dataclass(frozen=True)
class State:
    """States of a recurrent layer after the last step: h, for an LSTM both, or None for what cannot be had.

    Attributes
    ----------
    value : h of the last layer, at every step
    layers : how many layers are stacked
    pair : it is the (h, c) of an LSTM
    """

    value: Value
    layers: int
    pair: bool = False


class Operands:
    """What a node's arguments stand for."""

    module: nn.Module
    modules: dict[str, nn.Module]
    builder: Builder
    sequence: bool
    values: dict[fx.Node, Any]
    host: dict[fx.Node, str]  # what the host has to do with a node's value
    channels_last: bool  # of the samples
    sample_shape: tuple[int, ...]  # of one sample
    output_shape: tuple[int, ...]  # of the reshape at the end

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise CompileError about the node at hand."""
        self.builder.refuse(what, instead)

    def value(self, node: fx.Node, index: int = 0) -> Value:
        """The map that an argument stands for."""
        arg = node.args[index] if index < len(node.args) else None
        found = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(found, Value):
            self.refuse(f"Operation {title(node)} on something other than a map", f"supported are {SUPPORTED}")
        if isinstance(arg, fx.Node) and arg in self.host and not self.passes(node):
            instead = "use a sigmoid" if "softmax" in self.host[arg] else "leave it out"
            self.refuse(f"A {self.host[arg]} before another layer", f"{instead}, or leave the rest to the host")
        return found

    def passes(self, node: fx.Node) -> bool:
        """Whether the node leaves values as they are; what the host has to do with its operand remains so."""
        arg: Any = node.args[0]
        m = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(m, PASS) or node.target in ("contiguous", "float", functional.dropout):
            self.host[node] = self.host[arg]
            return True
        return False

    def constant(self, arg: Any) -> Array | None:
        """A number, or a parameter or buffer of the module, as an array; None for anything else."""
        if isinstance(arg, (int, float)) and not isinstance(arg, bool):
            return np.array(float(arg))
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            found: Any = self.module
            for part in str(arg.target).split("."):
                found = getattr(found, part)
            if isinstance(found, torch.Tensor):
                return array(found)
        return None

    def option(self, node: fx.Node, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)

    @staticmethod
    def of_size(node: fx.Node) -> bool:
        """Whether a node asks for a map's size, and does not read its values."""
        return node.target in ("size", torch.Tensor.size) or (node.target is getattr and node.args[1:2] == ("shape",))

    def size(self, node: fx.Node) -> Any:
        """The batch, from ``x.size(0)`` or ``x.shape[0]``: a reshape may use it."""
        dim = self.option(node, 1, "dim", None) if node.target != getattr else None
        if not self.of_size(node):
            self.refuse(f"The attribute {node.args[1]!r}", f"supported are {SUPPORTED}")
        if dim not in (None, 0):
            self.refuse(f"A size({dim})", "write the number itself: only size(0), the batch, may be asked for")
        return Size() if dim is None else Batch()


def title(node: fx.Node) -> str:
    """A function's or method's name."""
    return str(getattr(node.target, "__name__", node.target))
