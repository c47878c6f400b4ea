# SPDX-License-Identifier: BSD-3-Clause
"""Functions and methods of PyTorch in a traced graph, handed to the Builder."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from .builder import Value
from .torch_operands import SUPPORTED, Array, Batch, Operands, Size, State, title

__all__ = ["ACTIVATIONS", "Functions"]

ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU6: "relu6",
    torch.relu: "relu", functional.relu: "relu", "relu": "relu", "relu_": "relu",
    torch.sigmoid: "sigmoid", functional.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    torch.relu_: "relu", functional.relu_: "relu",
    torch.tanh: "tanh", functional.tanh: "tanh", "tanh": "tanh", functional.relu6: "relu6",
}  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULS = (operator.mul, operator.imul, torch.mul, operator.truediv, torch.div, "mul", "div", "mul_", "div_")
_SOFTMAX = (torch.softmax, functional.softmax, functional.log_softmax, torch.log_softmax, "softmax", "log_softmax")


class Functions(Operands):
    """A method for each kind of function; it gives the result."""

    def negate(self, node: fx.Node) -> Value:
        """Its negative."""
        return self.builder.affine(self.value(node), np.array(-1.0), np.array(0.0), node.name)

    def unsqueeze(self, node: fx.Node) -> Value:
        """Samples (height, width) as images of one channel."""
        v, dim, shape = self.value(node), self.option(node, 1, "dim", None), self.sample_shape
        if dim not in (1, -3) or len(shape) != 2:
            self.refuse(f"An unsqueeze({dim})", "only x.unsqueeze(1) of samples (height, width) is understood")
        return self.image(node, v, [1, *shape])

    def squeeze(self, node: fx.Node) -> Any:
        """``h.squeeze(0)`` of a state."""
        found = self.values.get(cast(fx.Node, node.args[0]))
        if isinstance(found, State) and not found.pair and found.layers == 1 and self.option(node, 1, "dim", None) == 0:
            return found.value
        return self.refuse("A squeeze", "flatten(x, 1) makes vectors; of an LSTM's or GRU's h use h[-1]")

    # ---- nodes -----------------------------------------------------------------------------------------------
    def methods(self) -> dict[tuple[Any, ...], Callable[[fx.Node], Any]]:
        """What folds a function or method, by its names."""
        return {
            _ADDS: self.add,
            (operator.sub, operator.isub, torch.sub, "sub", "sub_"): self.subtract,
            _MULS: self.multiply,
            _SOFTMAX: lambda node: self.softmax(
                node, "log_softmax" if "log" in title(node) else "softmax", self.option(node, 1, "dim", None)
            ),
            (functional.pad, "pad"): self.pad,
            (torch.flatten, "flatten"): self.flatten,
            ("reshape", "view", torch.reshape): self.reshape,
            ("permute", torch.permute): self.permute,
            (functional.max_pool2d, torch.max_pool2d): lambda node: self.pool(
                node, "max", *(self.option(node, n, name, d) for n, name, d in _POOL_ARGUMENTS)
            ),
            (functional.avg_pool2d,): self.average,
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
            ("size", torch.Tensor.size, getattr): self.size,
            (operator.neg, torch.neg, "neg"): self.negate,
            ("unsqueeze", torch.unsqueeze): self.unsqueeze,
            ("squeeze", torch.squeeze): self.squeeze,
            ("unflatten", torch.unflatten): self.unflatten,
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

    def softmax(self, node: fx.Node, function: str, dim: int | None) -> Value:
        """Monotonic over the classes: the host's business, if it comes last."""
        v = self.value(node)
        vector = v.flat or v.shape[:2] == (1, 1)
        if dim not in (None, -1, 2 if self.sequence else 1) and not (dim == 1 or (dim == -3 and not vector)):
            self.refuse(f"A {function} over dimension {dim}", "take it over the classes, or leave it to the host")
        if dim == -1 and not vector:
            self.refuse(f"A {function} over a map's columns", "use dim=1, the channels, or leave it to the host")
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
        v, shape = self.value(node), node.args[1:] or (node.kwargs.get("shape"),)
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        sizes = [self.values.get(n) if isinstance(n, fx.Node) else n for n in shape]
        batch, rest = sizes[:1], sizes[1:]
        open_batch = bool(batch) and (isinstance(batch[0], Batch) or (batch[0] == -1 and -1 not in rest))
        if open_batch and rest in ([-1], [v.features]):
            return self.builder.flatten(v, v.flat or "chw")
        if open_batch and all(isinstance(n, int) for n in rest):
            return self.image(node, v, [int(n) for n in rest])  # type: ignore[arg-type]
        return self.refuse(f"A reshape to {shape}", _RESHAPE)

    def unflatten(self, node: fx.Node) -> Value:
        """A vector as an image."""
        dim, sizes = self.option(node, 1, "dim", None), self.option(node, 2, "sizes", ())
        if dim != 1:
            self.refuse(f"An unflatten of dimension {dim}", _RESHAPE)
        return self.image(node, self.value(node), list(sizes))

    def image(self, node: fx.Node, v: Value, sizes: list[int]) -> Value:
        """A vector as an image: the input, or the output, whose layout is the host's business."""
        rest = math.prod(n for n in sizes if n != -1)
        sizes = [v.features // rest if n == -1 and rest else n for n in sizes]
        if v.flat in ("", "chw") and sizes == [v.shape[2], *v.shape[:2]]:
            return replace(v, flat="")
        if len(sizes) == 3 and math.prod(sizes) == v.features and v.tensor == "input" and self.builder.alone:
            channels, height, width = sizes
            self.builder.input_shape = (height, width, channels)
            self.builder.channels_first = height * width > 1 and not self.channels_last
            return Value("input", self.builder.input_shape)
        if math.prod(sizes) != v.features or min(sizes, default=0) < 1 or v.shape[:2] != (1, 1):
            self.refuse(f"A reshape of {v.features} elements to {tuple(sizes)}", _RESHAPE)
        self.host[node] = "reshape"
        self.output_shape = tuple(sizes)
        return v

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

    def average(self, node: fx.Node) -> Value:
        """An average pooling as a function."""
        size, stride, padding = (self.option(node, n, name, d) for n, name, d in _POOL_ARGUMENTS[:3])
        ceil, count = self.option(node, 4, "ceil_mode", False), self.option(node, 5, "count_include_pad", True)
        self.divisor(self.option(node, 6, "divisor_override", None))
        return self.pool(node, "avg", size, stride, padding, 1, ceil, count)

    def divisor(self, given: Any) -> None:
        """Refuse an average with a divisor of its own."""
        if given is not None:
            self.refuse(f"An average pooling with divisor_override={given}", "scale its result by a number instead")

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
        if isinstance(found, Size) and index == 0:
            return Batch()
        if isinstance(found, tuple) and index in (0, 1):
            return found[index]
        if isinstance(found, State):  # the last step's; as with y[:, -1] the host takes the last one of every step's
            if found.pair and index == 0:
                return replace(found, pair=False)
            if not found.pair and index in (-1, found.layers - 1):
                return found.value
        # y[:, -1] of a sequence: the core gives every step, the host takes the last.
        if self.sequence and isinstance(found, Value) and index in ((slice(None), -1), (slice(None), -1, slice(None))):
            return found
        return self.refuse(
            f"Indexing with {index}",
            "take outputs of a recurrent layer, y, _ = lstm(x), or its last step, y[:, -1] or h[-1]",
        )


_RESHAPE = (
    "only flattening, x.flatten(1), x.view(x.size(0), -1) or x.view(-1, features), is understood, and at the end of a "
    "network a vector made an image"
)

_POOL_ARGUMENTS = (
    (1, "kernel_size", 1), (2, "stride", None), (3, "padding", 0), (4, "dilation", 1), (5, "ceil_mode", False),
)  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (value[0], value[1])
