# SPDX-License-Identifier: BSD-3-Clause
"""Functions and methods of PyTorch in a traced graph, handed to the Builder."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from .builder import Builder, Value

__all__ = ["ACTIVATIONS", "Functions", "PASS", "SUPPORTED", "array", "title"]

Array = NDArray[np.float64]
ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU6: "relu6",
    torch.relu: "relu", functional.relu: "relu", "relu": "relu", "relu_": "relu",
    torch.sigmoid: "sigmoid", functional.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    torch.tanh: "tanh", functional.tanh: "tanh", "tanh": "tanh", functional.relu6: "relu6",
}  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULS = (operator.mul, operator.imul, torch.mul, operator.truediv, torch.div, "mul", "div", "mul_", "div_")
_SOFTMAX = (torch.softmax, functional.softmax, functional.log_softmax, torch.log_softmax, "softmax", "log_softmax")
PASS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
SUPPORTED = (
    "the layers of circ_overlay.nn, Linear, Conv2d, BatchNorm1d/2d, ReLU, ReLU6, clamp, Sigmoid, Tanh, max and average "
    "pooling, sums and products of maps, Flatten, Dropout, Identity, scaling by a number, LSTM and GRU"
)


def array(tensor: torch.Tensor) -> Array:
    """In float64."""
    return tensor.detach().cpu().double().numpy()


class Functions:
    """A method for each kind of function; it gives the result."""

    module: nn.Module
    modules: dict[str, nn.Module]
    builder: Builder
    sequence: bool
    values: dict[fx.Node, Any]
    host: dict[fx.Node, str]  # what the host has to do with a node's value

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Raise CompileError about the node at hand."""
        self.builder.refuse(what, instead)

    # ---- operands --------------------------------------------------------------------------------------------
    def value(self, node: fx.Node, index: int = 0) -> Value:
        """The map that an argument stands for."""
        arg = node.args[index] if index < len(node.args) else None
        found = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(found, Value):
            self.refuse(f"Operation {title(node)} on something other than a map", f"supported are {SUPPORTED}")
        if isinstance(arg, fx.Node) and arg in self.host and not self.passes(node):
            self.refuse(f"A {self.host[arg]} before another layer", "use a sigmoid, or leave the rest to the host")
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

    # ---- nodes -----------------------------------------------------------------------------------------------
    def methods(self) -> dict[tuple[Any, ...], Callable[[fx.Node], Any]]:
        """What folds a function or method, by its names."""
        return {
            _ADDS: self.add,
            (operator.sub, operator.isub, torch.sub, "sub", "sub_"): self.subtract,
            _MULS: self.multiply,
            _SOFTMAX: lambda node: self.softmax(node, "log_softmax" if "log" in title(node) else "softmax"),
            (functional.pad, "pad"): self.pad,
            (torch.flatten, "flatten"): self.flatten,
            ("reshape", "view", torch.reshape): self.reshape,
            ("permute", torch.permute): self.permute,
            (functional.max_pool2d, torch.max_pool2d): lambda node: self.pool(
                node, "max", *(self.option(node, n, name, d) for n, name, d in _POOL_ARGUMENTS)
            ),
            (functional.avg_pool2d,): lambda node: self.pool(
                node, "avg", *(self.option(node, n, name, d) for n, name, d in _POOL_ARGUMENTS[:3])
            ),
            (functional.adaptive_avg_pool2d,): lambda node: self.adaptive(
                node, "avg", self.option(node, 1, "output_size", 1)
            ),
            (functional.adaptive_max_pool2d,): lambda node: self.adaptive(
                node, "max", self.option(node, 1, "output_size", 1)
            ),
            ("mean", torch.mean): lambda node: self.reduce(node, "avg"),
            ("amax", torch.amax): lambda node: self.reduce(node, "max"),
            (torch.clamp, "clamp", "clip", torch.clip, functional.hardtanh): self.clamp,
            (functional.dropout, functional.dropout2d): self.dropout,
            (operator.getitem,): self.item,
            ("contiguous", "float"): lambda node: self.value(node),
        }  # fmt: skip

    def activate(self, v: Value, name: str, function: str) -> Value:
        """An activation by name."""
        if function == "relu6":
            return self.builder.activation(v, name, "relu", 6.0)
        return self.builder.activation(v, name, function)

    def add(self, node: fx.Node) -> Value:
        """A sum of maps, or of a map and constants."""
        if node.kwargs.get("alpha", 1) != 1:
            self.refuse("A sum with alpha", "scale the summand by itself")
        constants = [self.constant(arg) for arg in node.args]
        if constants[0] is None and constants[1] is None:
            return self.builder.add(self.value(node, 0), self.value(node, 1), node.name)
        v = self.value(node, 0 if constants[0] is None else 1)
        shift = constants[1] if constants[0] is None else constants[0]
        return self.builder.affine(v, np.array(1.0), self.channels(v, shift), node.name)

    def subtract(self, node: fx.Node) -> Value:
        """A difference."""
        if node.kwargs.get("alpha", 1) != 1:
            self.refuse("A difference with alpha", "scale the subtrahend by itself")
        left, right = self.constant(node.args[0]), self.constant(node.args[1])
        if left is None and right is None:
            return self.builder.subtract(self.value(node, 0), self.value(node, 1), node.name)
        if left is not None:
            v = self.value(node, 1)
            return self.builder.affine(v, np.array(-1.0), self.channels(v, left), node.name)
        v = self.value(node)
        return self.builder.affine(v, np.array(1.0), -self.channels(v, right), node.name)

    def softmax(self, node: fx.Node, function: str) -> Value:
        """Monotonic over the classes: the host's business, if it comes last."""
        v = self.value(node)
        self.host[node] = function
        return v

    def pad(self, node: fx.Node) -> Value:
        """Padding with zeros."""
        widths, mode = self.option(node, 1, "pad", ()), self.option(node, 2, "mode", "constant")
        if mode != "constant" or self.option(node, 3, "value", 0) not in (None, 0) or len(widths) not in (2, 4):
            self.refuse(f"A padding {widths} in mode {mode}", "pad rows and columns with zeros")
        left, right, top, bottom = (*widths, 0, 0)[:4]
        return self.builder.pad(self.value(node), (top, left, bottom, right))

    def multiply(self, node: fx.Node) -> Value:
        """A product, or a quotient with a constant divisor."""
        divide = "div" in title(node)
        constants = [self.constant(arg) for arg in node.args]
        if constants[0] is None and constants[1] is None:
            if divide:
                self.refuse("A quotient of maps", "divide on the host")
            return self.builder.product(self.value(node, 0), self.value(node, 1), node.name)
        if node.kwargs or (divide and constants[0] is not None):
            self.refuse("A product or quotient other than of a tensor and a number", f"supported are {SUPPORTED}")
        v = self.value(node, 0 if constants[0] is None else 1)
        factor = self.channels(v, constants[1] if constants[0] is None else constants[0])
        if divide and np.any(factor == 0):
            self.refuse("A division by 0", "divide by another number")
        return self.builder.affine(v, 1 / factor if divide else factor, np.array(0.0), node.name)

    def channels(self, v: Value, constant: Array | None) -> Array:
        """A number, or an array that varies over channels alone, as () or (channels,)."""
        assert constant is not None
        return self.builder.per_channel(v, constant)

    def clamp(self, node: fx.Node) -> Value:
        """A clamp or hardtanh."""
        hard = node.target is functional.hardtanh
        low = self.option(node, 1, "min_val" if hard else "min", -1.0 if hard else None)
        high = self.option(node, 2, "max_val" if hard else "max", 1.0 if hard else None)
        return self.clip(self.value(node), node.name, low, high)

    def clip(self, v: Value, name: str, low: Any, high: Any) -> Value:
        """A clamp to 0..c."""
        if low != 0 or not (high is None or (isinstance(high, (int, float)) and high > 0)):
            self.refuse(f"A clamp to {low}..{high}", "the core clips to 0..c: use clamp(0, c), ReLU or ReLU6")
        return self.builder.activation(v, name, "relu", None if high is None else float(high))

    def dropout(self, node: fx.Node) -> Value:
        """Nothing in eval mode."""
        if self.option(node, 2, "training", True):
            self.refuse("A dropout that is active in eval mode", "pass training=self.training, or use nn.Dropout")
        return self.value(node)

    def flatten(self, node: fx.Node) -> Value:
        """Flattening behind the batch."""
        if self.option(node, 1, "start_dim", 0) != 1 or self.option(node, 2, "end_dim", -1) != -1:
            self.refuse("A flatten that joins the batch", "use flatten(x, 1)")
        v = self.value(node)
        return self.builder.flatten(v, v.flat or "chw")

    def reshape(self, node: fx.Node) -> Value:
        """A reshape that flattens."""
        v, shape = self.value(node), node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple):
            shape = shape[0]
        if len(shape) == 2 and (shape[1] == -1 or shape[1] == v.features):
            return self.builder.flatten(v, v.flat or "chw")
        return self.refuse(f"A reshape to {shape}", "only flattening, x.flatten(1), is understood")

    def permute(self, node: fx.Node) -> Value:
        """Channels to the end, before flattening."""
        v = self.value(node)
        order: Any = node.args[1:]
        order = order[0] if len(order) == 1 and isinstance(order[0], (tuple, list)) else order
        if tuple(order) != (0, 2, 3, 1) or v.flat:
            self.refuse(f"A permutation {tuple(order)}", "only x.permute(0, 2, 3, 1).flatten(1) is understood")
        return replace(v, flat="" if v.shape[:2] == (1, 1) else "hwc")

    def pool(
        self, node: fx.Node, kind: str, size: Any, stride: Any, padding: Any,
        dilation: Any = 1, ceil_mode: Any = False, count_include_pad: bool = True,
    ) -> Value:  # fmt: skip
        """A pooling."""
        taps, pad = _pair(size), _pair(padding)
        step = taps if stride in (None, [], ()) else _pair(stride)
        v = self.value(node)
        if _pair(dilation) != (1, 1):
            self.refuse("A pooling with dilation", "leave it at 1")
        if ceil_mode and any((n + 2 * p - t) % st for n, p, t, st in zip(v.shape, pad, taps, step)):
            self.refuse("A pooling with ceil_mode whose last window is cut", "pad the map, or use ceil_mode=False")
        if kind == "avg" and any(pad) and not count_include_pad:
            self.refuse("An average pooling that does not count padding", "use count_include_pad=True or no padding")
        method = self.builder.max_pool if kind == "max" else self.builder.average_pool
        return method(v, taps, step, pad * 2, node.name)

    def adaptive(self, node: fx.Node, kind: str, size: Any) -> Value:
        """An adaptive pooling of whole windows."""
        v = self.value(node)
        out = tuple(n if wanted is None else int(wanted) for wanted, n in zip(_pair(size), v.shape))
        if v.shape[0] % out[0] or v.shape[1] % out[1]:
            self.refuse(f"An adaptive pooling of {v.shape[:2]} to {out}", "the sizes must divide")
        taps = (v.shape[0] // out[0], v.shape[1] // out[1])
        return self.pool(node, kind, taps, taps, 0)

    def reduce(self, node: fx.Node, kind: str) -> Value:
        """A mean or maximum over rows and columns."""
        dims = self.option(node, 1, "dim", None)
        v = self.value(node)
        wanted = tuple(sorted(d % 4 for d in dims)) if isinstance(dims, (tuple, list)) else ()
        if wanted != (2, 3) or v.flat:
            self.refuse(f"A {title(node)} over {dims}", "only over the image's rows and columns, (2, 3)")
        if any(v.pad):
            self.refuse(f"A {title(node)} of a padded map", "leave the padding out")
        return self.pool(node, kind, v.shape[:2], v.shape[:2], 0)

    def item(self, node: fx.Node) -> Any:
        """Outputs of a recurrent layer, or their last step."""
        source, index = node.args[0], cast(Any, node.args[1])
        found = self.values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(found, tuple) and index in (0, 1):
            return found[index]  # the states, which a use would refuse
        # y[:, -1] of a sequence: the core gives every step, the host takes the last.
        if self.sequence and isinstance(found, Value) and index in ((slice(None), -1), (slice(None), -1, slice(None))):
            return found
        return self.refuse(
            f"Indexing with {index}", "take outputs of a recurrent layer, y, _ = lstm(x), or its last step, y[:, -1]"
        )


_POOL_ARGUMENTS = (
    (1, "kernel_size", 1), (2, "stride", None), (3, "padding", 0), (4, "dilation", 1), (5, "ceil_mode", False),
)  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (value[0], value[1])


def title(node: fx.Node) -> str:
    """A function's or method's name."""
    return str(getattr(node.target, "__name__", node.target))
