# SPDX-License-Identifier: BSD-3-Clause
"""The dense float network of the same topology as an ONNX model: the peer that engines are measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from circ_overlay.compiler import Network, Operation

__all__ = ["dense_onnx"]


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def _kernel(op: Operation, channels: int) -> np.ndarray[Any, Any]:
    """Dense kernel (out, in, r, s), batch-norm's scale folded in."""
    matrices = op.matrices  # (taps, in, out); with gather (1, window, out)
    if op.gather:
        window = matrices[0][: channels * op.taps[0] * op.taps[1]].reshape(*op.taps, channels, -1)
        kernel = window.transpose(3, 2, 0, 1)
    else:
        kernel = matrices[:, :channels].reshape(*op.taps, channels, -1).transpose(3, 2, 0, 1)
    return kernel * np.asarray(op.scale)[:, None, None, None]


def _operation(graph: _Graph, network: Network, op: Operation, batch: int) -> None:
    """The operation on (batch, channels, height, width); what ends as a vector keeps 1 x 1 pixels."""
    height, width, channels = network.source_shape(op, network.shapes)
    source, out = op.sources[0], f"{op.name}:value"
    if op.flatten:
        moved = graph.node("Transpose", [source], f"{op.name}:hwc", perm=[0, 2, 3, 1])
        shape = graph.constant(f"{op.name}:shape", [batch, height * width * channels, 1, 1], np.int64)
        source, channels = graph.node("Reshape", [moved, shape], f"{op.name}:flat"), height * width * channels
    window = {"kernel_shape": op.taps, "strides": op.stride, "pads": op.padding}
    shift = np.broadcast_to(np.asarray(op.shift), network.shapes[op.target][2:])
    if op.kind == "circulant":
        kernel, bias = graph.constant(f"{op.name}:w", _kernel(op, channels)), graph.constant(f"{op.name}:b", shift)
        graph.node("Conv", [source, kernel, bias], out, **window)
    else:
        if op.kind == "max":
            graph.node("MaxPool", [source], f"{op.name}:r", **window)
        elif op.taps != (1, 1):
            graph.node("AveragePool", [source], f"{op.name}:r", count_include_pad=1, **window)
        else:
            graph.node("Identity", [source], f"{op.name}:r")
        factor = np.asarray(op.scale) * (op.taps[0] * op.taps[1] if op.kind == "sum" else 1)
        scaled = f"{op.name}:r"
        if not np.all(factor == 1):
            value = graph.constant(f"{op.name}:s", np.reshape(factor, (-1, 1, 1)))
            scaled = graph.node("Mul", [scaled, value], f"{op.name}:scaled")
        if np.any(shift):
            value = graph.constant(f"{op.name}:b", shift.reshape(-1, 1, 1))
            scaled = graph.node("Add", [scaled, value], f"{op.name}:shifted")
        graph.node("Identity", [scaled], out)
    if op.residual is not None:
        out = graph.node("Add", [out, op.residual], f"{op.name}:sum")
    if op.ceiling is not None:
        limits = [graph.constant(f"{op.name}:low", 0.0), graph.constant(f"{op.name}:high", op.ceiling)]
        out = graph.node("Clip", [out, *limits], f"{op.name}:clip")
    elif op.activation != "identity":
        out = graph.node(op.activation.capitalize(), [out], f"{op.name}:f")
    if op.pool != (1, 1):
        out = graph.node("MaxPool", [out], f"{op.name}:pool", kernel_shape=op.pool, strides=op.pool)
    graph.node("Identity", [out], op.target)


def _lstm(graph: _Graph, network: Network, steps: int) -> None:
    """An LSTM layer and a fully connected one on its last step, as single ONNX operators."""
    gates = {op.name.rpartition(".")[2]: op for op in network.layers}
    classifier = network.layers[-1]
    features, hidden = network.input_shape[2], gates["i"].out_channels  # type: ignore[index]
    order = [gates[name] for name in ("i", "o", "f", "g")]
    matrices = [op.matrices[0].T for op in order]  # (hidden, blocks of x and h)
    first = matrices[0].shape[1] - hidden
    w = np.concatenate([m[:, :features] for m in matrices])[None]
    r = np.concatenate([m[:, first:] for m in matrices])[None]
    bias = np.concatenate([np.asarray(op.shift) for op in order])
    names = [graph.constant("w", w), graph.constant("r", r), graph.constant("b", [[*bias, *np.zeros_like(bias)]])]
    graph.nodes.append(helper.make_node("LSTM", ["input", *names], ["", "h"], hidden_size=hidden))
    kernel = graph.constant("fc:w", classifier.matrices[0][:hidden])
    flat = graph.node("Reshape", ["h", graph.constant("shape", [-1, hidden], np.int64)], "last")
    product = graph.node("MatMul", [flat, kernel], "product")
    graph.node("Add", [product, graph.constant("fc:b", classifier.shift)], "output")
    del steps


def dense_onnx(network: Network, *, batch: int, steps: int = 0) -> bytes:
    """A serialised model of (batch, channels, height, width) float32, or of sequences (steps, batch, features).

    Input scales stay with the host, as they cost the accelerator nothing either.
    """
    graph = _Graph()
    assert network.input_shape is not None
    assert network.output is not None
    height, width, channels = network.input_shape
    if network.sequence:
        _lstm(graph, network, steps)
        shape, output, last = [steps, batch, channels], "output", [batch, network.shapes[network.output][2]]
    else:
        for op in network.layers:
            _operation(graph, network, op, batch)
        shape, output = [batch, channels, height, width], network.output
        rows, columns, outputs = network.shapes[output]
        last = [batch, outputs, rows, columns]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, last)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
