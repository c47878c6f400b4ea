# SPDX-License-Identifier: BSD-3-Clause
"""Import of a PyTorch module: trace it with torch.fx and hand its operations to the Builder."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from torch import fx, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling a PyTorch module needs PyTorch: pip install circ-overlay[train]") from error

from .. import nn as ours
from .builder import BlockSizes, Builder, Value
from .cells import recurrent
from .graph import CompileError, Network
from .torch_functions import ACTIVATIONS, Functions
from .torch_operands import PASS, SUPPORTED, State, array, title

__all__ = ["from_torch"]

Array = NDArray[np.float64]
_LEAVES = (
    ours.BlockCirculantLinear, ours.BlockCirculantConv2d, ours.BlockCirculantPatchConv2d,
    ours.BlockCirculantLSTM, ours.BlockCirculantGRU,
)  # fmt: skip
_RECURRENT = (ours.BlockCirculantLSTM, ours.BlockCirculantGRU, nn.LSTM, nn.GRU)
class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, qualified_name)


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
        if not isinstance(sample, (list, tuple)) and np.ndim(sample) < 2:
            raise CompileError(f"a sample of type {type(sample).__name__}: expected a list of (steps, features) arrays")
        if len(sample) == 0:
            raise CompileError("the sample holds no sequences; give a list of (steps, features) arrays")
        shape = np.shape(sample[0])
        if len(shape) != 2:
            raise CompileError(f"a sequence of shape {shape}: expected a list of (steps, features) arrays")
        return (1, 1, int(shape[1])), False
    if isinstance(sample, (list, tuple)) and len({np.shape(s) for s in sample}) > 1:
        raise CompileError(
            f"the samples have shapes such as {np.shape(sample[0])} and "
            f"{next(np.shape(s) for s in sample if np.shape(s) != np.shape(sample[0]))}: give samples of one shape; "
            "sequences of several lengths are for networks with an LSTM or GRU"
        )
    if np.ndim(sample) < 2:
        what = f"shape {np.shape(sample)}" if np.ndim(sample) else f"type {type(sample).__name__}"
        raise CompileError(f"a sample of {what}: expected an array of typical inputs, (n, *shape of one)")
    shape = np.shape(sample)[1:]
    if len(shape) == 3:
        c, h, w = (shape[2], shape[0], shape[1]) if channels_last else shape
        return (int(h), int(w), int(c)), not channels_last
    return (1, 1, int(np.prod(shape))), False


class _Importer(Functions):
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
        self.output_shape: tuple[int, ...] = ()
        self.channels_last = channels_last
        self.sample_shape = () if self.sequence else tuple(int(n) for n in np.shape(sample)[1:])

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
                self.builder.input_readers = self.readers(node)
            elif node.op == "output":
                result = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if not isinstance(result, Value):
                    self.refuse("An output other than one tensor", "return one tensor")
                host = self.host.get(node.args[0])  # type: ignore[arg-type]
                if host == "reshape":
                    shape = self.builder.layout(self.output_shape, self.channels_last)
                    return self.builder.network(result, name, output_shape=shape)
                return self.builder.network(result, name, {"host": host} if host else None)
            elif node.op != "get_attr":
                value = self.fold(node)
                changed = self.changed(node)
                readers = max(self.readers(node), 0 if changed is None else self.readers(changed))
                if isinstance(value, Value) and readers > 1:
                    value = self.builder.close(value)
                    if value.tensor == "input":
                        self.builder.input_readers += self.readers(node) - 1
                self.values[node] = value
                if changed is not None:  # whoever reads the operand from here on, reads this result
                    self.values[changed] = value
        raise CompileError(f"{name} gives nothing")

    def readers(self, node: fx.Node) -> int:
        """Nodes that read its values."""
        return sum(not self.of_size(user) for user in node.users)

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

    def fold(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self.fold_module(node, self.modules[str(node.target)])
        target = node.target
        if target in ACTIVATIONS:
            return self.activate(self.value(node), node.name, ACTIVATIONS[target])
        for names, method in self.methods().items():
            if target in names:
                return method(node)
        return self.refuse(f"Operation {title(node)}", f"supported are {SUPPORTED}")

    # ---- modules ---------------------------------------------------------------------------------------------
    def fold_module(self, node: fx.Node, m: nn.Module) -> Any:
        name = str(node.target)
        own = next((c for c in (*_LEAVES, nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, *PASS)
                    if isinstance(m, c)), None)  # fmt: skip
        if own is not None and type(m).forward is not own.forward:
            self.refuse(
                f"Module {name!r}, whose forward is not {own.__name__}'s,", "make the change a module of its own"
            )
        if m._forward_hooks or m._forward_pre_hooks:
            self.refuse(f"Module {name!r} with forward hooks", "remove them: the core runs none")
        v = self.value(node)
        bias = None if getattr(m, "bias", None) is None or isinstance(m, _RECURRENT) else array(m.bias)  # type: ignore[arg-type]
        if isinstance(m, ours.BlockCirculantLinear) and v.features != m.in_features:
            self.refuse(f"A layer for {m.in_features} features on {v.features}", "check what arrives")
        if isinstance(m, ours.BlockCirculantLinear):
            return self.builder.linear(v, array(m.weight), m.out_features, name, bias=bias)
        if isinstance(m, (ours.BlockCirculantConv2d, ours.BlockCirculantPatchConv2d)):
            self.builder.expect(v, m.in_channels)
        if isinstance(m, ours.BlockCirculantConv2d):
            pads = (m.padding[0], m.padding[1]) * 2
            return self.builder.conv(v, array(m.weight), m.out_channels, name, bias=bias, stride=m.stride, padding=pads)
        if isinstance(m, ours.BlockCirculantPatchConv2d):
            pads = (m.padding[0], m.padding[1]) * 2
            return self.builder.conv(
                v, array(m.weight)[:, :, None, None, :], m.out_channels, name, bias=bias, stride=m.stride,
                padding=pads, gather=True, taps=m.kernel_size,
            )  # fmt: skip
        if isinstance(m, nn.Linear):
            return self.builder.dense_linear(v, array(m.weight), name, bias=bias)
        if isinstance(m, nn.Conv2d):
            return self.conv2d(v, m, name, bias)
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            return self.batch_norm(v, m, name)
        if isinstance(m, _RECURRENT):
            if len(node.args) > 1 or node.kwargs:
                self.refuse(f"{name!r} with initial states", "leave them out: every sequence begins with zeros")
            y = recurrent(self.builder, v, m, name)
            return y, State(y, m.num_layers, pair=isinstance(m, (nn.LSTM, ours.BlockCirculantLSTM)))
        if type(m) in ACTIVATIONS:
            return self.activate(v, node.name, ACTIVATIONS[type(m)])
        if isinstance(m, nn.Hardtanh):
            return self.clip(v, node.name, m.min_val, m.max_val)
        if isinstance(m, nn.MaxPool2d):
            if m.return_indices:
                self.refuse("A pooling that returns indices", "use return_indices=False")
            return self.pool(node, "max", m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
        if isinstance(m, nn.AvgPool2d):
            self.divisor(m.divisor_override)
            return self.pool(node, "avg", m.kernel_size, m.stride, m.padding, 1, m.ceil_mode, m.count_include_pad)
        if isinstance(m, nn.AdaptiveAvgPool2d):
            return self.adaptive(node, "avg", m.output_size)
        if isinstance(m, nn.AdaptiveMaxPool2d):
            return self.adaptive(node, "max", m.output_size)
        if isinstance(m, nn.Flatten):
            if (m.start_dim, m.end_dim) != (1, -1):
                self.refuse("A flatten that joins the batch", "use nn.Flatten()")
            return self.builder.flatten(v, v.flat or "chw")
        if isinstance(m, nn.Unflatten):
            if m.dim != 1:
                self.refuse(f"An Unflatten of dimension {m.dim}", "use nn.Unflatten(1, sizes)")
            return self.image(node, v, [int(n) for n in m.unflattened_size])  # type: ignore[arg-type]
        if isinstance(m, (nn.Softmax, nn.LogSoftmax)):
            return self.softmax(node, "softmax" if isinstance(m, nn.Softmax) else "log_softmax", m.dim)
        if isinstance(m, nn.ZeroPad2d):
            left, right, top, bottom = m.padding
            return self.builder.pad(v, (top, left, bottom, right))
        if isinstance(m, PASS):
            return v
        return self.refuse(f"Module {name!r} of type {type(m).__name__}", f"supported are {SUPPORTED}")

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
        return self.builder.dense_conv(v, array(m.weight), name, bias=bias, stride=stride, padding=pads)

    def batch_norm(self, v: Value, m: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> Value:
        if m.running_mean is None or m.running_var is None:
            self.refuse(f"A {type(m).__name__} without running statistics", "train it with track_running_stats=True")
        if v.flat and v.shape[:2] != (1, 1):
            self.refuse("A batch-norm of a flattened map", "place it before the flattening")
        gamma = np.ones(m.num_features) if m.weight is None else array(m.weight)
        beta = np.zeros(m.num_features) if m.bias is None else array(m.bias)
        scale = gamma / np.sqrt(array(m.running_var) + m.eps)
        return self.builder.affine(v, scale, beta - scale * array(m.running_mean), name)
