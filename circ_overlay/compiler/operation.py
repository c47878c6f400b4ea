# SPDX-License-Identifier: BSD-3-Clause
"""An operation: what one instruction of the core can do (docs/instructions.md), in real numbers. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import circulant, spec
from ..errors import CircOverlayError
from ..windows import windows

__all__ = ["CompileError", "Operation", "Shape", "filled"]

Floats = NDArray[np.float64]
Shape = tuple[int, int, int]
"""(height, width, channels); a plain vector is one pixel."""

_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "sigmoid": lambda v: 0.5 * (1 + np.tanh(v / 2)),
    "tanh": np.tanh,
}
KINDS = tuple(opcode.name.lower() for opcode in spec.Opcode)


class CompileError(CircOverlayError, ValueError):
    """A network that cannot be compiled as it stands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """``pool(activation(scale * reduce(windows of source) + shift + residual))``.

    :func:`Linear`, :func:`Conv2d` and the other functions of :mod:`circ_overlay.compiler.layers` make these.

    Parameters
    ----------
    name : for tables and messages; also the tensor it gives, unless `target` names another.
    kind : reduction over the window: "circulant", "max", "sum" or "product".
    source : tensor, "input" for the network's; None: what the operation before gives. Several ("circulant" only)
        are taken as one vector, each but the last filled up to whole blocks; unless a state is among them, its map
        words have to fill those already.
    residual, factor : tensors: added before the activation; second factor of a "product".
    target : tensor that is written; a state (see Network) may be written again.
    weight : "circulant": (p, q, r, s, k) first columns, q block columns of a pixel; with `gather` (p, q, 1, 1, k),
        q block columns of the window (row, column, channel).
    in_channels : of a "circulant"; 0: as many as arrive, if they fill as many blocks as the weight has.
    out_channels : of a "circulant"; surplus rows of the last block are dropped.
    taps, stride : (rows, columns).
    padding : rows and pixels of zeros (top, left, bottom, right).
    pool : rows and columns of results of which the largest is kept.
    flatten : take the source as one pixel, (row, column, channel).
    scale, shift : (channels,) per-channel affine, into which bias and batch-norm are folded.
    activation : "identity", "relu", "sigmoid" or "tanh".
    ceiling : a relu's upper limit.
    out_range : largest magnitude of the outputs, if it is known better than from the sample.
    """

    name: str
    kind: str = "circulant"
    source: str | tuple[str, ...] | None = None
    residual: str | None = None
    factor: str | None = None
    target: str = ""
    weight: Floats | None = None
    in_channels: int = 0
    out_channels: int = 0
    taps: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool: tuple[int, int] = (1, 1)
    gather: bool = False
    flatten: bool = False
    scale: ArrayLike = 1.0
    shift: ArrayLike = 0.0
    activation: str = "identity"
    ceiling: float | None = None
    out_range: float | None = None

    def __post_init__(self) -> None:
        if not self.target:
            object.__setattr__(self, "target", self.name)
        if self.kind not in KINDS:
            raise CompileError(f"{self.where}kind {self.kind!r}: allowed are {KINDS}")
        if self.activation not in spec.ACTIVATIONS:
            raise CompileError(f"{self.where}activation {self.activation!r}: allowed are {spec.ACTIVATIONS}")
        if (self.kind == "circulant") != (self.weight is not None):
            raise CompileError(f"{self.where}a weight belongs to a circulant operation, and to it alone")
        if self.weight is not None and not np.isfinite(self.weight).all():
            raise CompileError(f"{self.where}weight holds NaN or infinite values")
        for name in ("scale", "shift"):
            value = np.asarray(getattr(self, name), np.float64)
            if not np.isfinite(value).all():
                raise CompileError(f"{self.where}{name} holds NaN or infinite values")
            if self.out_channels:
                if value.shape not in ((), (self.out_channels,)):
                    raise CompileError(
                        f"{self.where}{name} of shape {value.shape}: expected () or ({self.out_channels},)"
                    )
                value = np.broadcast_to(value, (self.out_channels,)).copy()
            object.__setattr__(self, name, value)

    @property
    def where(self) -> str:
        """Begin of a message about this operation."""
        return f"layer {self.name!r}: "

    @property
    def block_size(self) -> int:
        """k; 1 for what has no weights."""
        return 1 if self.weight is None else int(self.weight.shape[4])

    @property
    def sources(self) -> tuple[str, ...]:
        """Source tensors as a tuple; the network has filled in None."""
        assert self.source is not None
        return (self.source,) if isinstance(self.source, str) else self.source

    def shapes(self, source: Shape) -> tuple[Shape, Shape]:
        """Shapes of the results before pooling and of the target, for a source of the given shape.

        Raises
        ------
        CompileError
            The source does not fit the operation.
        """
        if self.flatten:
            source = (1, 1, source[0] * source[1] * source[2])
        height, width, channels = source
        top, left, bottom, right = self.padding
        sizes = (height + top + bottom, width + left + right)
        (rows, columns), (r, s) = (
            [(n - t) // step + 1 for n, t, step in zip(sizes, self.taps, self.stride)],
            self.taps,
        )
        if sizes[0] < r or sizes[1] < s:
            raise CompileError(f"{self.where}a window of {r} x {s} on {sizes[0]} x {sizes[1]} pixels, padding counted")
        out = channels
        if self.in_channels not in (0, channels):
            raise CompileError(f"{self.where}takes {self.in_channels} channels, but {channels} arrive")
        if self.weight is not None:
            _, q, _, _, k = self.weight.shape
            vector = channels * r * s if self.gather else channels
            if -(-vector // k) != q:
                raise CompileError(
                    f"{self.where}{vector} inputs arrive, but its weight has {q} block columns of {k}, for "
                    f"{(q - 1) * k + 1}..{q * k}"
                )
            out = self.out_channels
        elif len(np.shape(self.scale)) and np.shape(self.scale) != (channels,):
            raise CompileError(f"{self.where}scale for {np.shape(self.scale)[0]} channels, {channels} arrive")
        pooled = (rows // self.pool[0], columns // self.pool[1])
        if not all(pooled):
            raise CompileError(f"{self.where}pooling {self.pool} of {rows} x {columns} results leaves nothing")
        return (pooled[0] * self.pool[0], pooled[1] * self.pool[1], out), (*pooled, out)

    @cached_property
    def matrices(self) -> Floats:
        """Dense weights: (taps, in, out), with `gather` (1, in of the window, out)."""
        assert self.weight is not None
        _, q, r, s, k = self.weight.shape
        kernel = circulant.expand_conv2d(self.weight, self.out_channels, q * k)  # (out, in, r, s)
        return np.ascontiguousarray(kernel.reshape(*kernel.shape[:2], r * s).transpose(2, 1, 0))

    def forward(self, x: Floats, residual: Floats | None = None, factor: Floats | None = None) -> Floats:
        """The operation in float64, without its pooling, on (batch, height, width, channels).

        A "circulant" takes (batch, features) too and then gives the like.
        """
        if x.ndim == 2:
            return self.forward(x[:, None, None, :]).reshape(len(x), -1)
        if self.flatten:
            x = x.reshape(len(x), 1, 1, -1)
        (rows, columns, channels), _ = self.shapes(x.shape[1:])  # type: ignore[arg-type]
        outside = -np.inf if self.kind == "max" else 0.0
        views = list(windows(x, (rows, columns), self.taps, self.stride, self.padding[:2], outside))
        if self.kind == "circulant":
            if self.gather:
                views = [np.concatenate(views, -1)]
            y = np.zeros((len(x), rows, columns, channels))
            for view, matrix in zip(views, self.matrices):
                y += view @ matrix[: view.shape[-1]]
        elif self.kind == "max":
            y = np.maximum.reduce(views)
        else:
            y = np.sum(views, 0)
            y = y if factor is None else y * factor
        y = y * np.asarray(self.scale) + np.asarray(self.shift) + (0.0 if residual is None else residual)
        y = _FUNCTIONS[self.activation](y)
        return y if self.ceiling is None else np.minimum(y, self.ceiling)

    def pooled(self, y: Floats) -> Floats:
        """The results of :meth:`forward`, or their integers, pooled."""
        (a, b), (n, h, w, c) = self.pool, y.shape
        return y if (a, b) == (1, 1) else y.reshape(n, h // a, a, w // b, b, c).max((2, 4))


def filled(channels: int, block_size: int) -> int:
    """Channels filled up to whole blocks, or map words if those are larger."""
    align = max(block_size, spec.MAP_WORD)
    return -(-channels // align) * align
