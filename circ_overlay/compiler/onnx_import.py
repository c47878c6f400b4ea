# SPDX-License-Identifier: BSD-3-Clause
"""Import of an ONNX model: fold what is constant, hand the rest to the Builder node by node."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

try:
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling an ONNX model needs onnx: pip install circ-overlay[onnx]") from error

from .builder import BlockSizes, Builder, Value
from .cells import columns, gru, lstm
from .graph import CompileError, Network, Shape

__all__ = ["from_onnx"]

Floats = NDArray[np.float64]
Pads = tuple[int, int, int, int]
SUPPORTED = (
    "Conv, Gemm, MatMul, BatchNormalization, Relu, Clip, Sigmoid, Tanh, MaxPool, AveragePool, GlobalAveragePool, "
    "GlobalMaxPool, ReduceMean, Add, Sub, Mul, Div, Flatten, Reshape, Transpose, Pad, LSTM, GRU, a Softmax at the end"
)
_INSTEAD = {
    "LeakyRelu": "use Relu or Clip: the core's activations have no slope for negative numbers",
    "PRelu": "use Relu or Clip: the core's activations have no slope for negative numbers",
    "Elu": "use Relu, Sigmoid or Tanh",
    "Selu": "use Relu, Sigmoid or Tanh",
    "Gelu": "use Relu, Sigmoid or Tanh",
    "Erf": "it belongs to a GELU: use Relu, Sigmoid or Tanh",
    "HardSigmoid": "use Sigmoid",
    "HardSwish": "use Relu or Clip(0, 6)",
    "Softplus": "use Relu",
    "Concat": "maps cannot be joined yet: add them, or give one layer all the channels",
    "Split": "maps cannot be taken apart: use a layer for each part",
    "Slice": "maps cannot be cut: cut the samples on the host",
    "ConvTranspose": "the core has no transposed convolution",
    "Resize": "the core cannot enlarge maps",
    "Upsample": "the core cannot enlarge maps",
    "RNN": "use LSTM or GRU",
    "LayerNormalization": "use BatchNormalization, which is folded into the layer before",
    "InstanceNormalization": "use BatchNormalization, which is folded into the layer before",
    "GroupNormalization": "use BatchNormalization, which is folded into the layer before",
    "QuantizeLinear": "export the float model: the compiler chooses its own formats",
    "DequantizeLinear": "export the float model: the compiler chooses its own formats",
    "QLinearConv": "export the float model: the compiler chooses its own formats",
    "If": "export for inference, with nothing that depends on the data",
    "Loop": "export for inference, with nothing that depends on the data",
    "Scan": "export for inference, with nothing that depends on the data",
}
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_INTEGERS = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16)


@dataclass(frozen=True)
class _Steps:
    """The steps of sequences: each is `value`. `axes` names the tensor's axes: two of the input's, "0" and "1", of
    which an LSTM says which one is time; "d", one direction; "f", features.
    """

    value: Value
    axes: str


def from_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto, *, channels_last: bool = False, block_size: BlockSizes = None
) -> Network:
    """The network of an ONNX model.

    Parameters
    ----------
    model : its path, or the model itself.
    channels_last : the samples' images are (height, width, channels), though the model takes the channels first.
    block_size : as for :func:`circ_overlay.compiler.compile`.

    Raises
    ------
    CompileError
        Something else was met: the message names the operator, its node, and what to use instead.
    """
    name = "network"
    if not isinstance(model, onnx.ModelProto):
        path = os.fspath(model)
        name = os.path.splitext(os.path.basename(path))[0] or name
        try:
            model = onnx.load(path)
        except OSError:
            raise
        except Exception as error:  # protobuf raises its own, which have no common base
            raise CompileError(f"{path} is no ONNX model ({error})") from error
    elif model.graph.name:
        name = model.graph.name
    if not model.graph.node:
        raise CompileError(f"{name}: there is no ONNX model, or its graph is empty")
    return _Importer(model, name, channels_last, block_size).network()


class _Importer:
    def __init__(self, model: onnx.ModelProto, name: str, channels_last: bool, block_size: BlockSizes) -> None:
        self.graph, self.name = model.graph, name
        self.opsets = model.opset_import
        self.constants: dict[str, NDArray[Any]] = {}
        try:
            for tensor in self.graph.initializer:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
        except (OSError, ValueError, TypeError) as error:
            raise CompileError(f"{name}: the weights cannot be read ({error}); large ones lie in a file of their own "
                               "beside the model") from error  # fmt: skip
        self.readers: dict[str, int] = {}
        for node in self.graph.node:
            for given in dict.fromkeys(node.input):
                self.readers[given] = self.readers.get(given, 0) + 1
        self.values: dict[str, Value | _Steps] = {}
        self.host: dict[str, str] = {}  # what the host has to do with a value
        self.input = self._only("input", [i for i in self.graph.input if i.name not in self.constants])
        self.output = self._only("output", list(self.graph.output))
        for given in self.graph.output:
            self.readers[given.name] = self.readers.get(given.name, 0) + 1
        self.sequence = any(node.op_type in ("LSTM", "GRU", "RNN") for node in self.graph.node)
        self.block_size, self.channels_last = block_size, channels_last
        self._make_input()

    def _only(self, what: str, found: list[Any]) -> Any:
        if len(found) != 1:
            names = ", ".join(repr(f.name) for f in found)
            raise CompileError(f"{self.name} has {len(found)} {what}s ({names}); export it with one {what}")
        return found[0]

    def _make_input(self) -> None:
        tensor = self.input.type.tensor_type
        self.elements = tensor.elem_type
        if self.elements not in (*_FLOATS, *_INTEGERS):
            kind = onnx.TensorProto.DataType.Name(self.elements)
            raise CompileError(f"input {self.input.name!r} of type {kind}: the core takes floats and small integers")
        dims: list[int | str] = [
            int(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
        ]
        free = dims[-1:] if self.sequence else dims[1:]
        unknown = [str(d) for d in free if not isinstance(d, int) or d <= 0]
        if unknown or not free:
            raise CompileError(
                f"input {self.input.name!r} has the shape ({', '.join(map(str, dims))}): only the batch, the first "
                f"dimension, may be open, not {', '.join(map(repr, unknown)) or 'all'}. Fix it when exporting, or with "
                "python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value N in.onnx out.onnx"
            )
        self.batch = dims[0] if isinstance(dims[0], int) else -1
        sizes = [int(d) for d in free]
        first = not self.channels_last
        self.rank = len(dims)
        start: Value | _Steps
        if self.sequence:
            if len(dims) != 3:
                raise CompileError(f"input {self.input.name!r} has {len(dims)} dimensions: sequences have 3")
            self.builder = Builder((1, 1, sizes[0]), channels_first=False, block_size=self.block_size)
            start = _Steps(self.builder.input, "01f")
        else:
            shape: Shape
            if len(sizes) == 3 and self._takes_channels_last():
                shape, first = (sizes[0], sizes[1], sizes[2]), False
                start = Value("input", shape, "hwc")
            elif len(sizes) == 3:
                shape = (sizes[1], sizes[2], sizes[0])
                start = Value("input", shape)
            elif len(sizes) == 2:  # an image of one channel, or just numbers: seen when something reads it
                shape = (sizes[0], sizes[1], 1)
                start = Value("input", shape, "hwc")
            elif len(sizes) == 1:
                shape, first = (1, 1, sizes[0]), False
                start = Value("input", shape)
            else:
                raise CompileError(f"input {self.input.name!r} has {len(dims)} dimensions: allowed are 2 to 4")
            self.builder = Builder(shape, channels_first=first, block_size=self.block_size)
        self.builder.input_readers = self.readers.get(self.input.name, 0)
        self.values[self.input.name] = start

    def _takes_channels_last(self) -> bool:
        """Whether all that reads the input first brings its channels to the front, as models from TensorFlow do."""
        users = [node for node in self.graph.node if self.input.name in node.input]
        return bool(users) and all(
            n.op_type == "Transpose" and tuple(_attributes(n).get("perm", ())) == (0, 3, 1, 2) for n in users
        )

    def network(self) -> Network:
        for node in self.graph.node:
            self.node = node
            self.builder.place = node.name or (node.output[0] if node.output else node.op_type)
            if self._constant(node):
                continue
            self._fold(node)
        self.builder.place = self.output.name
        result = self.values.get(self.output.name)
        if result is None:
            raise CompileError(f"nothing that depends on the input gives the output {self.output.name!r}")
        host = self.host.get(self.output.name)
        value = result.value if isinstance(result, _Steps) else result
        return self.builder.network(value, self.name, {"host": host} if host else None)

    def refuse(self, what: str, instead: str) -> NoReturn:
        self.builder.refuse(what, instead)

    # ---- constants -------------------------------------------------------------------------------------------
    def _constant(self, node: onnx.NodeProto) -> bool:
        """Work out a node that depends on no input."""
        if node.op_type == "Shape" and node.input[0] in self.values:
            shape = self._shape(self.values[node.input[0]])
            if shape is None:
                return False
            start, end = _attributes(node).get("start", 0), _attributes(node).get("end", None)
            self.constants[node.output[0]] = np.array(shape[start:end], np.int64)
            return True
        if any(name and name not in self.constants for name in node.input):
            return False
        if node.domain not in ("", "ai.onnx") or node.op_type in ("LSTM", "GRU", "RNN", "If", "Loop", "Scan"):
            return False
        graph = onnx.GraphProto()
        used = [name for name in dict.fromkeys(node.input) if name]
        wanted = [name for name in node.output if name]
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in used)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        graph.node.append(node)
        alone = onnx.ModelProto(graph=graph, opset_import=self.opsets, ir_version=8)
        try:
            given = ReferenceEvaluator(alone).run(None, {name: self.constants[name] for name in used})
        except Exception as error:  # the evaluator raises anything
            self.refuse(f"The constant operator {node.op_type} ({error})", "export with constant folding")
        self.constants |= dict(zip(wanted, map(np.asarray, given)))
        return True

    def _shape(self, found: Value | _Steps) -> list[int] | None:
        """Shape of a tensor, for one sample."""
        if isinstance(found, _Steps):
            return [found.value.channels if axis == "f" else 1 for axis in found.axes]
        height, width, channels = found.shape
        if found.flat:
            return [1, found.features] if self.rank == 4 else None
        return [1, channels, height, width] if height * width > 1 else [1, channels]

    # ---- operands --------------------------------------------------------------------------------------------
    def value(self, index: int = 0) -> Value:
        """The map, or a step's vector, that an input of the node stands for."""
        name = self.node.input[index]
        found = self.values.get(name)
        if found is None:
            self.refuse(f"Operator {self.node.op_type} on a constant", f"supported are {SUPPORTED}")
        if name in self.host:
            self.refuse(f"A {self.host[name]} before {self.node.op_type}", "leave all that follows to the host")
        return found.value if isinstance(found, _Steps) else found

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
        return index < len(self.node.input) and self.node.input[index] in self.constants

    def option(self, name: str, index: int | None = None) -> Any:
        """An attribute, or the input that it became in later opsets."""
        attributes = _attributes(self.node)
        if name in attributes:
            return attributes[name]
        return self.number(index) if index is not None else None

    def floats(self, index: int) -> Floats | None:
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
        self.put(self.node.output[0], replace(before, value=value) if isinstance(before, _Steps) else value)

    def put(self, name: str, value: Value | _Steps) -> None:
        inner = value.value if isinstance(value, _Steps) else value
        if self.readers.get(name, 0) > 1:
            self.builder.close(inner)
            if inner.tensor == "input":
                self.builder.input_readers += self.readers[name] - 1
        self.values[name] = value

    # ---- nodes -----------------------------------------------------------------------------------------------
    def _fold(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx"):
            self.refuse(f"Operator {node.domain}.{node.op_type}", "use standard operators")
        fold = _FOLDS.get(node.op_type)
        if fold is None:
            self.refuse(f"Operator {node.op_type}", _INSTEAD.get(node.op_type, f"supported are {SUPPORTED}"))
        if node.op_type not in ("LSTM", "GRU") and any(self.readers.get(name) for name in node.output[1:] if name):
            self.refuse(f"A second output of {node.op_type}", "use the first one alone")
        result = fold(self)
        if result is not None:
            self.give(result)

    def _map_only(self, v: Value) -> Value:
        if v.tensor == "input" and v.flat and self.rank == 3:
            self.refuse(f"Operator {self.node.op_type} on an input of {self.rank} dimensions",
                        "give images a channel: (batch, 1, height, width)")  # fmt: skip
        return v

    def conv(self) -> Value:
        kernel, bias = self.floats(1), self.floats(2)
        assert kernel is not None
        if kernel.ndim != 4:
            self.refuse(f"A {kernel.ndim - 2}-dimensional convolution", "use Conv over rows and columns")
        if (self.option("group") or 1) != 1:
            self.refuse(f"Conv with group={self.option('group')}", "the core sums over all channels: use group=1")
        if any(d != 1 for d in self.option("dilations") or ()):
            self.refuse(f"Conv with dilations {self.option('dilations')}", "use dilation 1")
        v = self._map_only(self.value())
        taps, stride = (kernel.shape[2], kernel.shape[3]), _two(self.option("strides"))
        pads = self._pads(v, taps, stride)
        return self.builder.dense_conv(v, kernel, self.title(), bias=bias, stride=stride, padding=pads)

    def _pads(self, v: Value, taps: tuple[int, int], stride: tuple[int, int]) -> Pads:
        """Padding (top, left, bottom, right)."""
        mode = self.option("auto_pad") or b"NOTSET"
        mode = mode.decode() if isinstance(mode, bytes) else mode
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            extent = (v.shape[0] + v.pad[0] + v.pad[2], v.shape[1] + v.pad[1] + v.pad[3])
            sums = [max(0, (-(-n // s) - 1) * s + t - n) for n, t, s in zip(extent, taps, stride)]
            less, more = [n // 2 for n in sums], [n - n // 2 for n in sums]
            (top, left), (bottom, right) = (less, more) if mode == "SAME_UPPER" else (more, less)
            return top, left, bottom, right
        if mode not in ("NOTSET", "VALID"):
            self.refuse(f"{self.node.op_type} with auto_pad={mode}", "use pads")
        pads = tuple(int(n) for n in (self.option("pads") or (0, 0, 0, 0))) if mode == "NOTSET" else (0, 0, 0, 0)
        if len(pads) != 4 or min(pads) < 0:
            self.refuse(f"{self.node.op_type} with pads {pads}", "use four numbers from 0 on")
        return pads

    def gemm(self) -> Value:
        matrix, bias = self.floats(1), self.floats(2)
        assert matrix is not None
        alpha, beta = (1.0 if self.option(name) is None else self.option(name) for name in ("alpha", "beta"))
        if self.option("transA"):
            self.refuse("Gemm with transA", "give samples as rows")
        matrix = alpha * (matrix if self.option("transB") else matrix.T)
        return self._matrix(self.value(), matrix, None if bias is None else beta * bias)

    def matmul(self) -> Value:
        if self.given(0):
            self.refuse("MatMul with the constant on the left", "samples are rows: multiply from the right")
        matrix = self.floats(1)
        assert matrix is not None
        if matrix.ndim != 2:
            self.refuse(f"MatMul with a constant of shape {matrix.shape}", "use a matrix (in, out)")
        return self._matrix(self.value(), matrix.T, None)

    def _matrix(self, v: Value, matrix: Floats, bias: Floats | None) -> Value:
        if bias is not None:
            if bias.size not in (1, len(matrix)):
                self.refuse(f"A bias of shape {bias.shape}", f"use one number for each of the {len(matrix)} outputs")
            bias = np.broadcast_to(bias.reshape(-1), (len(matrix),)).copy()
        return self.builder.dense_linear(self._map_only(v), matrix, self.title(), bias=bias)

    def batch_norm(self) -> Value:
        if self.option("training_mode"):
            self.refuse("BatchNormalization in training mode", "export the model in eval mode")
        gamma, beta, mean, variance = (np.asarray(self.floats(n)) for n in range(1, 5))
        epsilon = self.option("epsilon")
        scale = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        v = self.value()
        if v.flat or v.channels != len(gamma):
            self.refuse("A batch-norm of a flattened map", "place it before the flattening")
        return self.builder.affine(v, scale, beta - scale * mean, self.title())

    def clip(self) -> Value:
        low, high = self.option("min", 1), self.option("max", 2)
        low = -np.inf if low is None else float(np.ravel(low)[0])
        high = np.inf if high is None else float(np.ravel(high)[0])
        low = -np.inf if low < -1e30 else low
        high = np.inf if high > 1e30 else high
        v = self.value()
        if (low, high) == (-np.inf, np.inf):
            return v
        positive = v.op is not None and v.op.get("activation") == "relu"
        if not (low == 0 or (low < 0 and positive)) or high <= 0:
            self.refuse(f"Clip to {low:g}..{high:g}", "the core clips to 0..c: use Relu, or Clip with min=0")
        return self.builder.activation(v, self.title(), "relu", None if high == np.inf else high)

    def activation(self, function: str) -> Value:
        return self.builder.activation(self.value(), self.title(), function)

    def pool(self, kind: str) -> Value:
        taps = self.option("kernel_shape")
        if len(taps) != 2:
            self.refuse(f"{self.node.op_type} over {len(taps)} dimensions", "pool over rows and columns")
        taps, stride = _two(taps), _two(self.option("strides"))
        if any(d != 1 for d in self.option("dilations") or ()):
            self.refuse(f"{self.node.op_type} with dilations", "use dilation 1")
        v = self._map_only(self.value())
        pads = self._pads(v, taps, stride)
        if self.option("ceil_mode"):
            extent = (v.shape[0] + pads[0] + pads[2], v.shape[1] + pads[1] + pads[3])
            if any((n - t) % step for n, t, step in zip(extent, taps, stride)):
                self.refuse(f"{self.node.op_type} with ceil_mode whose last window is cut", "pad the map instead")
        if kind == "max":
            return self.builder.max_pool(v, taps, stride, pads, self.title())
        if any(pads) and not self.option("count_include_pad"):
            self.refuse("AveragePool with pads that do not count", "use count_include_pad=1, or no padding")
        return self.builder.average_pool(v, taps, stride, pads, self.title())

    def whole(self, kind: str) -> Value:
        """A pooling over the whole map."""
        v = self._map_only(self.value())
        taps = v.shape[:2]
        method = self.builder.max_pool if kind == "max" else self.builder.average_pool
        return method(v, taps, taps, v.pad if any(v.pad) else (0, 0, 0, 0), self.title())

    def reduce(self, kind: str) -> Value:
        axes = self.option("axes", 1)
        v = self.value()
        where = sorted(int(a) % 4 for a in np.ravel(axes)) if axes is not None else []
        if where != [2, 3] or any(v.pad):
            self.refuse(f"{self.node.op_type} over the axes {where}", "only over an image's rows and columns, (2, 3)")
        return self.whole(kind)

    def add(self) -> Value:
        if not self.given(0) and not self.given(1):
            return self.builder.add(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        return self.builder.affine(v, np.array(1.0), constant, self.title())

    def subtract(self) -> Value:
        if not self.given(0) and not self.given(1):
            return self.builder.subtract(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        if self.given(0):
            return self.builder.affine(v, np.array(-1.0), constant, self.title())
        return self.builder.affine(v, np.array(1.0), -constant, self.title())

    def multiply(self) -> Value:
        if not self.given(0) and not self.given(1):
            return self.builder.product(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        return self.builder.affine(v, constant, np.array(0.0), self.title())

    def divide(self) -> Value:
        if self.given(0) or not self.given(1):
            self.refuse("A division by a map", "divide by constants, or on the host")
        v, constant = self._split()
        if np.any(constant == 0):
            self.refuse("A division by 0", "divide by another number")
        return self.builder.affine(v, 1 / constant, np.array(0.0), self.title())

    def negative(self) -> Value:
        return self.builder.affine(self.value(), np.array(-1.0), np.array(0.0), self.title())

    def _split(self) -> tuple[Value, Floats]:
        at = 0 if self.given(0) else 1
        v, constant = self.value(1 - at), self.floats(at)
        assert constant is not None
        return v, self.builder.per_channel(v, constant)

    def passes(self) -> None:
        """The value as it is; what the host has to do with it remains so."""
        name, given = self.node.input[0], self.node.output[0]
        if name not in self.values:
            self.refuse(f"Operator {self.node.op_type} on a constant", f"supported are {SUPPORTED}")
        if name in self.host:
            self.host[given] = self.host[name]
        self.put(given, self.values[name])

    def dropout(self) -> None:
        if self.given(2) and bool(np.ravel(self.number(2))[0]):
            self.refuse("Dropout in training mode", "export the model in eval mode")
        self.passes()

    def cast(self) -> None:
        if self.option("to") not in _FLOATS:
            kind = onnx.TensorProto.DataType.Name(self.option("to"))
            self.refuse(f"Cast to {kind}", "the network computes with real numbers")
        self.passes()

    def softmax(self) -> None:
        """Monotonic over the classes: the host's business."""
        v = self.value()
        if v.shape[:2] != (1, 1):
            self.refuse(f"{self.node.op_type} of a map", "pool or flatten first, or leave it to the host")
        self.passes()
        self.host[self.node.output[0]] = {"LogSoftmax": "log_softmax"}.get(self.node.op_type, self.node.op_type.lower())

    def arg_max(self) -> None:
        name = self.node.input[0]
        self.host.pop(name, None)  # the largest is the largest before a softmax, too
        self.softmax()

    def pad(self) -> Value:
        mode = self.option("mode") or b"constant"
        fill = self.option("value", 2)
        pads = self.option("pads", 1)
        axes = self.number(3)
        if mode not in (b"constant", "constant") or fill is not None and np.any(np.asarray(fill) != 0):
            self.refuse(f"Pad in mode {mode!r}", "pad rows and columns with zeros")
        widths = [int(n) for n in np.ravel(pads)]
        begins, ends = widths[: len(widths) // 2], widths[len(widths) // 2 :]
        where = list(range(len(begins))) if axes is None else [int(a) % 4 for a in axes]
        sizes = {a: (b, e) for a, b, e in zip(where, begins, ends)}
        if any(sizes.get(a, (0, 0)) != (0, 0) for a in (0, 1)):
            self.refuse("Pad of the batch or of channels", "pad rows and columns")
        (top, bottom), (left, right) = sizes.get(2, (0, 0)), sizes.get(3, (0, 0))
        return self.builder.pad(self._map_only(self.value()), (top, left, bottom, right))

    # ---- shapes ----------------------------------------------------------------------------------------------
    def flatten(self) -> Value | None:
        axis = self.option("axis")
        steps = self._steps()
        if steps is not None:
            self.refuse("Flatten of a sequence", "a step's vector is what layers take")
        if axis not in (None, 1, 1 - self.rank, -3, -1):
            self.refuse(f"Flatten with axis={axis}", "use axis=1")
        v = self.value()
        return self.builder.flatten(v, "chw")

    def reshape(self) -> Value | None:
        wanted_shape = self.number(1)
        assert wanted_shape is not None
        shape = [int(n) for n in wanted_shape.ravel()]
        steps = self._steps()
        if steps is not None:
            size = steps.value.channels
            if shape[-1:] in ([size], [-1]) and len(shape) == len(steps.axes) and "d" not in steps.axes:
                self.passes()
                return None
            self.refuse(f"A Reshape of a sequence to {shape}", "leave steps and features as they are")
        v = self.value()
        batch = shape[:1] in ([0], [-1], [1], [self.batch])
        if batch and len(shape) == 2 and shape[1] in (-1, v.features):
            return self.builder.flatten(v, "chw")
        height, width, channels = v.shape
        image = [channels, height, width]
        fits = batch and len(shape) == 4 and all(n in (wanted, -1) for n, wanted in zip(shape[1:], image))
        if fits and v.flat in ("", "chw"):
            return replace(v, flat="")
        plain = self.rank == 2 or (self.rank == 3 and tuple(shape[1:]) == (1, height, width))
        if batch and plain and len(shape) == 4 and min(shape[1:]) > 0 and v.tensor == "input" and self.builder.alone:
            return self._image(shape[1], shape[2], shape[3])
        self.refuse(f"A Reshape to {shape}", "only flattening, to (batch, -1), is understood")

    def _image(self, channels: int, height: int, width: int) -> Value:
        """The input as an image, where the model itself makes it one."""
        self.builder.input_shape = (height, width, channels)
        self.builder.channels_first = channels > 1 and height * width > 1
        return Value("input", self.builder.input_shape)

    def _steps(self) -> _Steps | None:
        found = self.values.get(self.node.input[0])
        return found if isinstance(found, _Steps) else None

    def transpose(self) -> Value | None:
        perm = tuple(self.option("perm") or ())
        steps = self._steps()
        if steps is not None:
            perm = perm or tuple(reversed(range(len(steps.axes))))
            self.put(self.node.output[0], replace(steps, axes="".join(steps.axes[n] for n in perm)))
            return None
        v = self.value()
        if perm == (0, 2, 3, 1) and not v.flat and not any(v.pad):
            return replace(v, flat="" if v.shape[:2] == (1, 1) else "hwc")
        if perm == (0, 3, 1, 2) and (v.flat == "hwc" or v.shape[:2] == (1, 1)) and self.rank == 4:
            return replace(v, flat="")
        self.refuse(f"A Transpose {perm}", "only (0, 2, 3, 1) before a flattening is understood")

    def squeeze(self) -> Value | None:
        steps, axes = self._steps(), self._axes()
        if steps is not None:
            gone = [steps.axes[a] for a in axes] if axes else ["d"] if "d" in steps.axes else []
            if gone != ["d"]:
                self.refuse(f"Squeeze of the axes {axes} of a sequence", "only the direction of an LSTM goes")
            self.put(self.node.output[0], replace(steps, axes=steps.axes.replace("d", "")))
            return None
        v = self.value()
        if v.shape[:2] != (1, 1) or any(a in (0, 1) for a in axes):
            self.refuse(f"Squeeze of the axes {axes}", "flatten instead")
        return v

    def unsqueeze(self) -> Value | None:
        steps, axes = self._steps(), self._axes()
        if steps is not None:
            self.refuse("Unsqueeze of a sequence", "leave steps and features as they are")
        v = self.value()
        if v.tensor == "input" and self.rank == 3 and v.flat and axes in ([1], [-3]) and not self.builder.records:
            return replace(v, flat="")
        if v.shape[:2] != (1, 1) or axes not in ([2, 3], [-2, -1], [2], [3]):
            self.refuse(f"Unsqueeze at the axes {axes}", "leave the layout to flattening and pooling")
        return v

    def _axes(self) -> list[int]:
        axes = self.option("axes", 1)
        return [] if axes is None else [int(a) for a in np.ravel(axes)]

    def gather(self) -> None:
        """The last step of a sequence: the core gives every step, the host takes the last one."""
        steps, index = self._steps(), self.number(1)
        axis = int(self.option("axis") or 0)
        if steps is None or steps.axes[axis] == "f" or index is None or index.size != 1:
            self.refuse("Gather", "only the last step of an LSTM's or GRU's outputs can be taken")
        taken = steps.axes[axis % len(steps.axes)]
        if (taken, int(index.ravel()[0])) in (("d", 0), (self.time, -1)):
            kept = [a for n, a in enumerate(steps.axes) if n != axis % len(steps.axes)]
            self.put(self.node.output[0], replace(steps, axes="".join(kept)))
            return
        self.refuse(f"Gather of step {int(index.ravel()[0])}", "only the last step, -1, can be taken")

    # ---- recurrent layers ------------------------------------------------------------------------------------
    time = ""

    def recurrent(self) -> None:
        kind, steps = self.node.op_type, self._steps()
        if steps is None or sorted(steps.axes) != ["0", "1", "f"] or steps.axes[2] != "f":
            self.refuse(f"{kind} on something other than a sequence", "feed it (steps, batch, features)")
        direction = self.option("direction") or b"forward"
        if direction not in (b"forward", "forward"):
            self.refuse(f"{kind} with direction={direction.decode()}", "steps come one by one: use the forward one")
        attributes = _attributes(self.node)
        usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}[kind]
        chosen = [a.decode().lower() for a in attributes.get("activations", ())] or usual
        if chosen != usual or any(attributes.get(n) for n in ("activation_alpha", "activation_beta")):
            self.refuse(f"{kind} with the activations {chosen}", f"use the usual ones, {usual}")
        for name, default in (("clip", 0), ("input_forget", 0)):
            if attributes.get(name, default) != default:
                self.refuse(f"{kind} with {name}={attributes[name]}", "leave it out")
        if kind == "GRU" and not attributes.get("linear_before_reset", 0):
            self.refuse(
                "GRU with linear_before_reset=0",
                "it would multiply the state before the matrix: train with the reset gate behind the product, "
                "linear_before_reset=1, as PyTorch has it, or Keras with reset_after=True",
            )
        if len(self.node.input) > 4 and self.node.input[4]:
            self.refuse(f"{kind} with sequence_lens", "sequences come one by one, each as long as it is")
        for index in (5, 6) if kind == "LSTM" else (5,):
            begin = self.number(index)
            if begin is not None and np.any(begin):
                self.refuse(f"{kind} that begins with a state other than 0", "leave initial_h and initial_c out")
        layout = attributes.get("layout", 0)
        time, batch = steps.axes[0], steps.axes[1]
        if layout:
            time, batch = batch, time
        if self.time not in ("", time):
            self.refuse(f"{kind} along another axis than the one before", "use one layout")
        self.time = time
        h = self._cell(kind, steps.value)
        whole = f"{batch}{time}df" if layout else f"{time}d{batch}f"
        last = f"{batch}df" if layout else f"d{batch}f"
        names = [*self.node.output, "", ""]
        if len(names) > 2 and kind == "LSTM" and names[2] and self.readers.get(names[2]):
            self.refuse("The cell state of an LSTM as a result", "use its outputs")
        both = [name for name in names[:2] if name and self.readers.get(name)]
        for name, axes in ((names[0], whole), (names[1], last)):
            if name:
                self.put(name, _Steps(self.builder.close(h) if len(both) > 1 else h, axes))

    def _cell(self, kind: str, v: Value) -> Value:
        gates = 4 if kind == "LSTM" else 3
        w, r, b = self.floats(1), self.floats(2), self.floats(3)
        assert w is not None
        assert r is not None
        order = (0, 2, 3, 1) if kind == "LSTM" else (1, 0, 2)  # to i, f, g, o; to r, z, n

        def ordered(a: Floats) -> Floats:
            parts = np.split(a, gates)
            return np.concatenate([parts[n] for n in order])

        hidden = r.shape[2]
        if v.channels != w.shape[2]:
            self.refuse(f"{kind} for {w.shape[2]} features on {v.channels}", "check what arrives")
        name = self.title()
        weights: dict[str, Floats] = columns(
            {"ih": ordered(w[0]), "hh": ordered(r[0])}, gates, self.builder.chosen(name)
        )
        both = np.zeros((2, gates * hidden)) if b is None else b.reshape(2, -1)
        bias = [ordered(part) for part in both]
        if kind == "GRU":
            return gru(self.builder, v, {**weights, "bias_ih": bias[0], "bias_hh": bias[1]}, name)
        weights["bias"] = bias[0] + bias[1]
        peephole = self.floats(7)
        if peephole is not None and np.any(peephole):
            i, o, f = np.split(peephole.ravel(), 3)
            weights["peephole"] = np.stack([i, f, o])
        return lstm(self.builder, v, weights, name)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _two(pair: Sequence[int] | None) -> tuple[int, int]:
    return (int(pair[0]), int(pair[1])) if pair else (1, 1)


_FOLDS: dict[str, Callable[[_Importer], Value | None]] = {
    "Add": _Importer.add,
    "ArgMax": _Importer.arg_max,
    "AveragePool": lambda i: i.pool("average"),
    "BatchNormalization": _Importer.batch_norm,
    "Cast": _Importer.cast,
    "Clip": _Importer.clip,
    "Conv": _Importer.conv,
    "Div": _Importer.divide,
    "Dropout": _Importer.dropout,
    "Flatten": _Importer.flatten,
    "GRU": _Importer.recurrent,
    "Gather": _Importer.gather,
    "Gemm": _Importer.gemm,
    "GlobalAveragePool": lambda i: i.whole("average"),
    "GlobalMaxPool": lambda i: i.whole("max"),
    "Identity": _Importer.passes,
    "LSTM": _Importer.recurrent,
    "LogSoftmax": _Importer.softmax,
    "MatMul": _Importer.matmul,
    "MaxPool": lambda i: i.pool("max"),
    "Mul": _Importer.multiply,
    "Neg": _Importer.negative,
    "Pad": _Importer.pad,
    "ReduceMax": lambda i: i.reduce("max"),
    "ReduceMean": lambda i: i.reduce("average"),
    "Relu": lambda i: i.activation("relu"),
    "Reshape": _Importer.reshape,
    "Sigmoid": lambda i: i.activation("sigmoid"),
    "Softmax": _Importer.softmax,
    "Squeeze": _Importer.squeeze,
    "Sub": _Importer.subtract,
    "Tanh": lambda i: i.activation("tanh"),
    "Transpose": _Importer.transpose,
    "Unsqueeze": _Importer.unsqueeze,
}
