# SPDX-License-Identifier: BSD-3-Clause
"""ONNX operators on maps and vectors, handed to the Builder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from .builder import Value
from .onnx_node import FLOATS, Floats, Node

__all__ = ["Operators"]

Pads = tuple[int, int, int, int]


class Operators(Node):
    """A method for each operator, or kind of operators; it gives the result, or puts it in its place by itself."""

    def conv(self) -> Value:
        """Conv."""
        kernel, bias = self.floats(1), self.floats(2)
        assert kernel is not None
        if kernel.ndim != 4:
            self.refuse(f"A {kernel.ndim - 2}-dimensional convolution", "use Conv over rows and columns")
        if (self.option("group") or 1) != 1:
            self.refuse(f"Conv with group={self.option('group')}", "the core sums over all channels: use group=1")
        if any(d != 1 for d in self.option("dilations") or ()):
            self.refuse(f"Conv with dilations {self.option('dilations')}", "use dilation 1")
        v = self.map_only(self.value())
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
        """Gemm."""
        matrix, bias = self.floats(1), self.floats(2)
        assert matrix is not None
        alpha, beta = (1.0 if self.option(name) is None else self.option(name) for name in ("alpha", "beta"))
        if self.option("transA"):
            self.refuse("Gemm with transA", "give samples as rows")
        matrix = alpha * (matrix if self.option("transB") else matrix.T)
        return self._matrix(self.value(), matrix, None if bias is None else beta * bias)

    def matmul(self) -> Value:
        """MatMul with a constant."""
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
        return self.builder.dense_linear(self.map_only(v), matrix, self.title(), bias=bias)

    def batch_norm(self) -> Value:
        """BatchNormalization."""
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
        """Clip to 0..c."""
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
        """An activation."""
        return self.builder.activation(self.value(), self.title(), function)

    def pool(self, kind: str) -> Value:
        """MaxPool or AveragePool."""
        taps = self.option("kernel_shape")
        if len(taps) != 2:
            self.refuse(f"{self.node.op_type} over {len(taps)} dimensions", "pool over rows and columns")
        taps, stride = _two(taps), _two(self.option("strides"))
        if any(d != 1 for d in self.option("dilations") or ()):
            self.refuse(f"{self.node.op_type} with dilations", "use dilation 1")
        v = self.map_only(self.value())
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
        v = self.map_only(self.value())
        taps = v.shape[:2]
        method = self.builder.max_pool if kind == "max" else self.builder.average_pool
        return method(v, taps, taps, v.pad if any(v.pad) else (0, 0, 0, 0), self.title())

    def reduce(self, kind: str) -> Value:
        """ReduceMean or ReduceMax over rows and columns."""
        axes = self.option("axes", 1)
        v = self.value()
        where = sorted(int(a) % 4 for a in np.ravel(axes)) if axes is not None else []
        if where != [2, 3] or any(v.pad):
            self.refuse(f"{self.node.op_type} over the axes {where}", "only over an image's rows and columns, (2, 3)")
        return self.whole(kind)

    def add(self) -> Value:
        """Add of maps, or of a map and constants."""
        if not self.given(0) and not self.given(1):
            return self.builder.add(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        return self.builder.affine(v, np.array(1.0), constant, self.title())

    def subtract(self) -> Value:
        """Sub."""
        if not self.given(0) and not self.given(1):
            return self.builder.subtract(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        if self.given(0):
            return self.builder.affine(v, np.array(-1.0), constant, self.title())
        return self.builder.affine(v, np.array(1.0), -constant, self.title())

    def multiply(self) -> Value:
        """Mul."""
        if not self.given(0) and not self.given(1):
            return self.builder.product(self.value(0), self.value(1), self.title())
        v, constant = self._split()
        return self.builder.affine(v, constant, np.array(0.0), self.title())

    def divide(self) -> Value:
        """Div by constants."""
        if self.given(0) or not self.given(1):
            self.refuse("A division by a map", "divide by constants, or on the host")
        v, constant = self._split()
        if np.any(constant == 0):
            self.refuse("A division by 0", "divide by another number")
        return self.builder.affine(v, 1 / constant, np.array(0.0), self.title())

    def negative(self) -> Value:
        """Neg."""
        return self.builder.affine(self.value(), np.array(-1.0), np.array(0.0), self.title())

    def _split(self) -> tuple[Value, Floats]:
        at = 0 if self.given(0) else 1
        v, constant = self.value(1 - at), self.floats(at)
        assert constant is not None
        return v, self.builder.per_channel(v, constant)

    def dropout(self) -> None:
        """Dropout: nothing."""
        training = self.number(2) if self.given(2) else None
        if training is not None and np.any(training):
            self.refuse("Dropout in training mode", "export the model in eval mode")
        self.passes()

    def cast(self) -> None:
        """Cast to a float type: nothing."""
        if self.option("to") not in FLOATS:
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
        """ArgMax, the host's business too."""
        name = self.node.input[0]
        self.host.pop(name, None)  # the largest is the largest before a softmax, too
        self.softmax()

    def pad(self) -> Value:
        """Pad with zeros."""
        mode = self.option("mode") or b"constant"
        fill = self.option("value", 2)
        pads = self.option("pads", 1)
        axes = self.number(3)
        filled = fill is not None and np.any(np.asarray(fill) != 0)
        if mode not in (b"constant", "constant") or filled:
            self.refuse(f"Pad in mode {mode!r}", "pad rows and columns with zeros")
        assert pads is not None
        widths = [int(n) for n in np.ravel(pads)]
        begins, ends = widths[: len(widths) // 2], widths[len(widths) // 2 :]
        where = list(range(len(begins))) if axes is None else [int(a) % 4 for a in axes]
        sizes = {a: (b, e) for a, b, e in zip(where, begins, ends)}
        if any(sizes.get(a, (0, 0)) != (0, 0) for a in (0, 1)):
            self.refuse("Pad of the batch or of channels", "pad rows and columns")
        (top, bottom), (left, right) = sizes.get(2, (0, 0)), sizes.get(3, (0, 0))
        return self.builder.pad(self.map_only(self.value()), (top, left, bottom, right))


def _two(pair: Sequence[int] | None) -> tuple[int, int]:
    return (int(pair[0]), int(pair[1])) if pair else (1, 1)
