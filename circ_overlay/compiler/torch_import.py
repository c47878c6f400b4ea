# SPDX-License-Identifier: BSD-3-Clause
"""Import of a PyTorch module: trace it with torch.fx and hand its operations to the Builder."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

try:
    import torch
    from torch import fx, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling a PyTorch module needs PyTorch: pip install circ-overlay[train]") from error

from .. import nn as ours
from .builder import BlockSizes, Builder, Value
from .cells import recurrent
from .graph import CompileError, Network

__all__ = ["from_torch"]

Array = NDArray[np.float64]
_ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU6: "relu6",
    torch.relu: "relu", functional.relu: "relu", "relu": "relu", "relu_": "relu",
    torch.sigmoid: "sigmoid", functional.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    torch.tanh: "tanh", functional.tanh: "tanh", "tanh": "tanh", functional.relu6: "relu6",
}  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULS = (operator.mul, operator.imul, torch.mul, operator.truediv, torch.div, "mul", "div", "mul_", "div_")
_SOFTMAX = (torch.softmax, functional.softmax, functional.log_softmax, torch.log_softmax, "softmax", "log_softmax")
_PASS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
_LEAVES = (
    ours.BlockCirculantLinear, ours.BlockCirculantConv2d, ours.BlockCirculantPatchConv2d,
    ours.BlockCirculantLSTM, ours.BlockCirculantGRU,
)  # fmt: skip
_RECURRENT = (ours.BlockCirculantLSTM, ours.BlockCirculantGRU, nn.LSTM, nn.GRU)
_SUPPORTED = (
    "the layers of circ_overlay.nn, Linear, Conv2d, BatchNorm1d/2d, ReLU, ReLU6, clamp, Sigmoid, Tanh, max and average "
    "pooling, sums and products of maps, Flatten, Dropout, Identity, scaling by a number, LSTM and GRU"
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, qualified_name)


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def from_torch(
    module: nn.Module, sample: Any, *, channels_last: bool = False, block_size: BlockSizes = None
) -> Network:
    """The network that `module` computes in eval mode.

    Parameters
    ----------
    module : its forward takes one tensor; docs/compiler.md lists what it may do with it.
    sample : as for :func:`circ_overlay.compiler.compile`; only shapes are looked at.
    channels_last : the sample's images are (height, width, channels).
    block_size : as for :func:`circ_overlay.compiler.compile`.

    Raises
    ------
    CompileError
        Something else was met: the message names it, its place, and what to use instead.
    """
    if not isinstance(module, nn.Module):
        raise CompileError(
            f"a {type(module).__name__} was given; compile takes a torch.nn.Module, the path of an .onnx file, a "
            "Network, or a list of operations"
        )
    tracer = _Tracer()
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        raise CompileError(
            f"{type(module).__name__} cannot be traced ({error}); its forward must not depend on the data"
        ) from error
    finally:
        for m, training in modes:
            m.training = training
    return _Importer(module, graph, sample, channels_last, block_size).network()


def _input_shape(sample: Any, sequence: bool, channels_last: bool) -> tuple[tuple[int, int, int], bool]:
    """Shape of the network's input and whether samples have the channels first."""
    if sequence:
        shape = np.shape(sample[0])
        if len(shape) != 2:
            raise CompileError(f"a sequence of shape {shape}: expected a list of (steps, features) arrays")
        return (1, 1, int(shape[1])), False
    shape = np.shape(sample)[1:]
    if len(shape) == 3:
        c, h, w = (shape[2], shape[0], shape[1]) if channels_last else shape
        return (int(h), int(w), int(c)), not channels_last
    return (1, 1, int(np.prod(shape))), False


class _Importer:
    def __init__(
        self, module: nn.Module, graph: fx.Graph, sample: Any, channels_last: bool, block_size: BlockSizes
    ) -> None:
        self.module, self.graph = module, graph
        self.modules = dict(module.named_modules())
        self.sequence = any(isinstance(self.modules.get(str(n.target)), _RECURRENT) for n in graph.nodes
                            if n.op == "call_module")  # fmt: skip
        shape, first = _input_shape(sample, self.sequence, channels_last)
        self.builder = Builder(shape, channels_first=first, block_size=block_size)
        self.values: dict[fx.Node, Any] = {}
        self.host: dict[fx.Node, str] = {}  # what the host has to do with a node's value

    def network(self) -> Network:
        name = type(self.module).__name__.lower()
        given = False
        for node in self.graph.nodes:
            self.builder.place = node.name
            if node.op == "placeholder":
                if given:
                    if not node.users:
                        continue
                    self.refuse("A second input", "give the network one input tensor")
                self.values[node], given = self.builder.input, True
                self.builder.input_readers = len(node.users)
            elif node.op == "output":
                result = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if not isinstance(result, Value):
                    self.refuse("An output other than one tensor", "return one tensor")
                host = self.host.get(node.args[0])  # type: ignore[arg-type]
                return self.builder.network(result, name, {"host": host} if host else None)
            elif node.op != "get_attr":
                value = self.fold(node)
                changed = self.changed(node)
                readers = max(len(node.users), 0 if changed is None else len(changed.users))
                if isinstance(value, Value) and readers > 1:
                    value = self.builder.close(value)
                    if value.tensor == "input":
                        self.builder.input_readers += len(node.users) - 1
                self.values[node] = value
                if changed is not None:  # whoever reads the operand from here on, reads this result
                    self.values[changed] = value
        raise CompileError(f"{name} gives nothing")

    def changed(self, node: fx.Node) -> fx.Node | None:
        """The operand that an operation changes in place."""
        operand = node.args[0] if node.args else None
        inplace = node.kwargs.get("inplace", False) or node.target in (operator.iadd, operator.isub, operator.imul)
        inplace = inplace or (node.target in (functional.relu, functional.relu6) and node.args[1:2] == (True,))
        if node.op == "call_module":
            inplace = bool(getattr(self.modules[str(node.target)], "inplace", False))
        elif node.op == "call_method":
            inplace = str(node.target).endswith("_")
        return operand if inplace and isinstance(operand, fx.Node) else None

    def refuse(self, what: str, instead: str) -> NoReturn:
        self.builder.refuse(what, instead)

    # ---- operands --------------------------------------------------------------------------------------------
    def value(self, node: fx.Node, index: int = 0) -> Value:
        """The map that an argument stands for."""
        arg = node.args[index] if index < len(node.args) else None
        found = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(found, Value):
            self.refuse(f"Operation {_title(node)} on something other than a map", f"supported are {_SUPPORTED}")
        if arg in self.host and not self.passes(node):
            self.refuse(f"A {self.host[arg]} before another layer", "use a sigmoid, or leave the rest to the host")
        return found

    def passes(self, node: fx.Node) -> bool:
        """Whether the node leaves values as they are; what the host has to do with its operand remains so."""
        arg, m = node.args[0], self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(m, _PASS) or node.target in ("contiguous", "float", functional.dropout):
            self.host[node] = self.host[arg]  # type: ignore[index]
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
                return _array(found)
        return None

    def option(self, node: fx.Node, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)

    # ---- nodes -----------------------------------------------------------------------------------------------
    def fold(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self.fold_module(node, self.modules[str(node.target)])
        target = node.target
        if target in _ACTIVATIONS:
            return self.activate(self.value(node), node.name, _ACTIVATIONS[target])
        for names, method in self.methods().items():
            if target in names:
                return method(node)
        self.refuse(f"Operation {_title(node)}", f"supported are {_SUPPORTED}")

    def methods(self) -> dict[tuple[Any, ...], Callable[[fx.Node], Any]]:
        return {
            _ADDS: self.add,
            (operator.sub, operator.isub, torch.sub, "sub", "sub_"): self.subtract,
            _MULS: self.multiply,
            _SOFTMAX: lambda node: self.softmax(node, "log_softmax" if "log" in _title(node) else "softmax"),
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
        if function == "relu6":
            return self.builder.activation(v, name, "relu", 6.0)
        return self.builder.activation(v, name, function)

    def add(self, node: fx.Node) -> Value:
        if node.kwargs.get("alpha", 1) != 1:
            self.refuse("A sum with alpha", "scale the summand by itself")
        constants = [self.constant(arg) for arg in node.args]
        if constants[0] is None and constants[1] is None:
            return self.builder.add(self.value(node, 0), self.value(node, 1), node.name)
        v = self.value(node, 0 if constants[0] is None else 1)
        shift = constants[1] if constants[0] is None else constants[0]
        return self.builder.affine(v, np.array(1.0), self.channels(v, shift), node.name)

    def subtract(self, node: fx.Node) -> Value:
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
        widths, mode = self.option(node, 1, "pad", ()), self.option(node, 2, "mode", "constant")
        if mode != "constant" or self.option(node, 3, "value", 0) not in (None, 0) or len(widths) not in (2, 4):
            self.refuse(f"A padding {widths} in mode {mode}", "pad rows and columns with zeros")
        left, right, top, bottom = (*widths, 0, 0)[:4]
        return self.builder.pad(self.value(node), (top, left, bottom, right))

    def multiply(self, node: fx.Node) -> Value:
        divide = "div" in _title(node)
        constants = [self.constant(arg) for arg in node.args]
        if constants[0] is None and constants[1] is None:
            if divide:
                self.refuse("A quotient of maps", "divide on the host")
            return self.builder.product(self.value(node, 0), self.value(node, 1), node.name)
        if node.kwargs or (divide and constants[0] is not None):
            self.refuse("A product or quotient other than of a tensor and a number", f"supported are {_SUPPORTED}")
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
        hard = node.target is functional.hardtanh
        low = self.option(node, 1, "min_val" if hard else "min", -1.0 if hard else None)
        high = self.option(node, 2, "max_val" if hard else "max", 1.0 if hard else None)
        return self.clip(self.value(node), node.name, low, high)

    def clip(self, v: Value, name: str, low: Any, high: Any) -> Value:
        if low != 0 or not (high is None or isinstance(high, (int, float)) and high > 0):
            self.refuse(f"A clamp to {low}..{high}", "the core clips to 0..c: use clamp(0, c), ReLU or ReLU6")
        return self.builder.activation(v, name, "relu", None if high is None else float(high))

    def dropout(self, node: fx.Node) -> Value:
        if self.option(node, 2, "training", True):
            self.refuse("A dropout that is active in eval mode", "pass training=self.training, or use nn.Dropout")
        return self.value(node)

    def flatten(self, node: fx.Node) -> Value:
        if self.option(node, 1, "start_dim", 0) != 1 or self.option(node, 2, "end_dim", -1) != -1:
            self.refuse("A flatten that joins the batch", "use flatten(x, 1)")
        v = self.value(node)
        return self.builder.flatten(v, v.flat or "chw")

    def reshape(self, node: fx.Node) -> Value:
        v, shape = self.value(node), node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple):
            shape = shape[0]
        if len(shape) == 2 and (shape[1] == -1 or shape[1] == v.features):
            return self.builder.flatten(v, v.flat or "chw")
        self.refuse(f"A reshape to {shape}", "only flattening, x.flatten(1), is understood")

    def permute(self, node: fx.Node) -> Value:
        v, order = self.value(node), node.args[1:]
        order = order[0] if len(order) == 1 and isinstance(order[0], (tuple, list)) else order
        if tuple(order) != (0, 2, 3, 1) or v.flat:
            self.refuse(f"A permutation {tuple(order)}", "only x.permute(0, 2, 3, 1).flatten(1) is understood")
        return replace(v, flat="" if v.shape[:2] == (1, 1) else "hwc")

    def pool(
        self, node: fx.Node, kind: str, size: Any, stride: Any, padding: Any,
        dilation: Any = 1, ceil_mode: Any = False, count_include_pad: bool = True,
    ) -> Value:  # fmt: skip
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
        v = self.value(node)
        out = tuple(n if wanted is None else int(wanted) for wanted, n in zip(_pair(size), v.shape))
        if v.shape[0] % out[0] or v.shape[1] % out[1]:
            self.refuse(f"An adaptive pooling of {v.shape[:2]} to {out}", "the sizes must divide")
        taps = (v.shape[0] // out[0], v.shape[1] // out[1])
        return self.pool(node, kind, taps, taps, 0)

    def reduce(self, node: fx.Node, kind: str) -> Value:
        dims = self.option(node, 1, "dim", None)
        v = self.value(node)
        wanted = tuple(sorted(d % 4 for d in dims)) if isinstance(dims, (tuple, list)) else ()
        if wanted != (2, 3) or v.flat:
            self.refuse(f"A {_title(node)} over {dims}", "only over the image's rows and columns, (2, 3)")
        if any(v.pad):
            self.refuse(f"A {_title(node)} of a padded map", "leave the padding out")
        return self.pool(node, kind, v.shape[:2], v.shape[:2], 0)

    def item(self, node: fx.Node) -> Any:
        source, index = node.args[0], node.args[1]
        found = self.values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(found, tuple) and index in (0, 1):
            return found[index]  # the states, which a use would refuse
        # y[:, -1] of a sequence: the core gives every step, the host takes the last.
        if self.sequence and isinstance(found, Value) and index in ((slice(None), -1), (slice(None), -1, slice(None))):
            return found
        self.refuse(f"Indexing with {index}", "take outputs of a recurrent layer, y, _ = lstm(x), or its last step, y[:, -1]")

    # ---- modules ---------------------------------------------------------------------------------------------
    def fold_module(self, node: fx.Node, m: nn.Module) -> Any:
        name = str(node.target)
        own = next((c for c in (*_LEAVES, nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, *_PASS)
                    if isinstance(m, c)), None)  # fmt: skip
        if own is not None and type(m).forward is not own.forward:
            self.refuse(f"Module {name!r}, whose forward is not {own.__name__}'s,", "make the change a module of its own")
        if m._forward_hooks or m._forward_pre_hooks:
            self.refuse(f"Module {name!r} with forward hooks", "remove them: the core runs none")
        v = self.value(node)
        bias = None if getattr(m, "bias", None) is None or isinstance(m, _RECURRENT) else _array(m.bias)  # type: ignore[arg-type]
        if isinstance(m, ours.BlockCirculantLinear) and v.features != m.in_features:
            self.refuse(f"A layer for {m.in_features} features on {v.features}", "check what arrives")
        if isinstance(m, ours.BlockCirculantLinear):
            return self.builder.linear(v, _array(m.weight), m.out_features, name, bias=bias)
        if isinstance(m, (ours.BlockCirculantConv2d, ours.BlockCirculantPatchConv2d)):
            self.builder.expect(v, m.in_channels)
        if isinstance(m, ours.BlockCirculantConv2d):
            pads = (m.padding[0], m.padding[1]) * 2
            return self.builder.conv(v, _array(m.weight), m.out_channels, name, bias=bias, stride=m.stride, padding=pads)
        if isinstance(m, ours.BlockCirculantPatchConv2d):
            pads = (m.padding[0], m.padding[1]) * 2
            return self.builder.conv(
                v, _array(m.weight)[:, :, None, None, :], m.out_channels, name, bias=bias, stride=m.stride,
                padding=pads, gather=True, taps=m.kernel_size,
            )  # fmt: skip
        if isinstance(m, nn.Linear):
            return self.builder.dense_linear(v, _array(m.weight), name, bias=bias)
        if isinstance(m, nn.Conv2d):
            return self.conv2d(v, m, name, bias)
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            return self.batch_norm(v, m, name)
        if isinstance(m, _RECURRENT):
            return recurrent(self.builder, v, m, name), None
        if type(m) in _ACTIVATIONS:
            return self.activate(v, node.name, _ACTIVATIONS[type(m)])
        if isinstance(m, nn.Hardtanh):
            return self.clip(v, node.name, m.min_val, m.max_val)
        if isinstance(m, nn.MaxPool2d):
            return self.pool(node, "max", m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
        if isinstance(m, nn.AvgPool2d):
            return self.pool(node, "avg", m.kernel_size, m.stride, m.padding, 1, m.ceil_mode, m.count_include_pad)
        if isinstance(m, nn.AdaptiveAvgPool2d):
            return self.adaptive(node, "avg", m.output_size)
        if isinstance(m, nn.AdaptiveMaxPool2d):
            return self.adaptive(node, "max", m.output_size)
        if isinstance(m, nn.Flatten):
            if (m.start_dim, m.end_dim) != (1, -1):
                self.refuse("A flatten that joins the batch", "use nn.Flatten()")
            return self.builder.flatten(v, v.flat or "chw")
        if isinstance(m, (nn.Softmax, nn.LogSoftmax)):
            return self.softmax(node, "softmax" if isinstance(m, nn.Softmax) else "log_softmax")
        if isinstance(m, nn.ZeroPad2d):
            left, right, top, bottom = m.padding
            return self.builder.pad(v, (top, left, bottom, right))
        if isinstance(m, _PASS):
            return v
        self.refuse(f"Module {name!r} of type {type(m).__name__}", f"supported are {_SUPPORTED}")

    def conv2d(self, v: Value, m: nn.Conv2d, name: str, bias: Array | None) -> Value:
        if m.groups != 1:
            self.refuse(f"Conv2d {name!r} with groups={m.groups}", "the core sums over all channels: use groups=1")
        if m.dilation != (1, 1) or m.padding_mode != "zeros":
            self.refuse(f"Conv2d {name!r} with dilation or a padding mode", "use dilation=1 and zeros")
        stride = (m.stride[0], m.stride[1])
        if m.padding == "same":  # PyTorch demands stride 1 then
            sums = [n - 1 for n in m.kernel_size]
            pads = (sums[0] // 2, sums[1] // 2, sums[0] - sums[0] // 2, sums[1] - sums[1] // 2)
        else:
            pads = (0, 0, 0, 0) if m.padding == "valid" else (int(m.padding[0]), int(m.padding[1])) * 2
        return self.builder.dense_conv(v, _array(m.weight), name, bias=bias, stride=stride, padding=pads)

    def batch_norm(self, v: Value, m: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> Value:
        if m.running_mean is None or m.running_var is None:
            self.refuse(f"A {type(m).__name__} without running statistics", "train it with track_running_stats=True")
        if v.flat and v.shape[:2] != (1, 1):
            self.refuse("A batch-norm of a flattened map", "place it before the flattening")
        gamma = np.ones(m.num_features) if m.weight is None else _array(m.weight)
        beta = np.zeros(m.num_features) if m.bias is None else _array(m.bias)
        scale = gamma / np.sqrt(_array(m.running_var) + m.eps)
        return self.builder.affine(v, scale, beta - scale * _array(m.running_mean), name)


_POOL_ARGUMENTS = ((1, "kernel_size", 1), (2, "stride", None), (3, "padding", 0), (4, "dilation", 1), (5, "ceil_mode", False))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (value[0], value[1])


def _title(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
