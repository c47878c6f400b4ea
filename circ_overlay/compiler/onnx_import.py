# SPDX-License-Identifier: BSD-3-Clause
"""Import of an ONNX model: fold what is constant, hand the rest to the Builder node by node."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling an ONNX model needs onnx: pip install circ-overlay[onnx]") from error

from .builder import BlockSizes, Builder, Value
from .graph import CompileError, Network, Shape
from .onnx_layouts import Layouts
from .onnx_node import FLOATS, SUPPORTED, Steps, attributes
from .onnx_operators import Operators

__all__ = ["from_onnx"]

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
_INTEGERS = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16)


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


class _Importer(Operators, Layouts):
    def __init__(self, model: onnx.ModelProto, name: str, channels_last: bool, block_size: BlockSizes) -> None:
        self.graph, self.name = model.graph, name
        self.opsets = model.opset_import
        super().__init__()
        try:
            for tensor in self.graph.initializer:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
        except (OSError, ValueError, TypeError) as error:
            raise CompileError(f"{name}: the weights cannot be read ({error}); large ones lie in a file of their own "
                               "beside the model") from error  # fmt: skip
        for node in self.graph.node:
            for given in dict.fromkeys(node.input):
                self.readers[given] = self.readers.get(given, 0) + 1
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
        if self.elements not in (*FLOATS, *_INTEGERS):
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
        start: Value | Steps
        if self.sequence:
            if len(dims) != 3:
                raise CompileError(f"input {self.input.name!r} has {len(dims)} dimensions: sequences have 3")
            self.builder = Builder((1, 1, sizes[0]), channels_first=False, block_size=self.block_size)
            start = Steps(self.builder.input, "01f")
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
            n.op_type == "Transpose" and tuple(attributes(n).get("perm", ())) == (0, 3, 1, 2) for n in users
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
        value = result.value if isinstance(result, Steps) else result
        return self.builder.network(value, self.name, {"host": host} if host else None)

    # ---- constants -------------------------------------------------------------------------------------------
    def _constant(self, node: onnx.NodeProto) -> bool:
        """Work out a node that depends on no input."""
        if node.op_type == "Shape" and node.input[0] in self.values:
            shape = self._shape(self.values[node.input[0]])
            if shape is None:
                return False
            start, end = attributes(node).get("start", 0), attributes(node).get("end", None)
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

    def _shape(self, found: Value | Steps) -> list[int] | None:
        """Shape of a tensor, for one sample."""
        if isinstance(found, Steps):
            return [found.value.channels if axis == "f" else 1 for axis in found.axes]
        height, width, channels = found.shape
        if found.flat:
            return [1, found.features] if self.rank == 4 else None
        return [1, channels, height, width] if height * width > 1 else [1, channels]

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
