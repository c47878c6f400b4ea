# SPDX-License-Identifier: BSD-3-Clause
"""Plain description of a float network: what importers make and the quantiser takes. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import circulant, spec
from ..errors import CircOverlayError

__all__ = ["CompileError", "Linear", "Network"]

Floats = NDArray[np.float64]
_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "sigmoid": lambda v: 0.5 * (1 + np.tanh(v / 2)),
    "tanh": np.tanh,
}


class CompileError(CircOverlayError, ValueError):
    """A network that cannot be compiled as it stands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """``activation(scale * (W @ x) + shift)`` with a block-circulant W.

    Parameters
    ----------
    weight : (p, q, k) first columns of the blocks, or (out_features, in_features) dense together with
        `block_size`: then the nearest block-circulant matrix is taken (:func:`circ_overlay.circulant.project`).
    in_features, out_features : sizes; default p*k and q*k, or those of the dense matrix.
    scale, shift : (out_features,) or scalar; per-channel affine, into which bias and batch-norm are folded.
    activation : "identity", "relu", "sigmoid" or "tanh".
    block_size : only with a dense weight.
    name : for tables and messages.
    """

    weight: ArrayLike
    in_features: int = 0
    out_features: int = 0
    scale: ArrayLike = 1.0
    shift: ArrayLike = 0.0
    activation: str = "identity"
    block_size: int | None = None
    name: str = "linear"

    def __post_init__(self) -> None:
        where = f"layer {self.name!r}: "
        weight = np.asarray(self.weight, np.float64)
        k = weight.shape[2] if weight.ndim == 3 else self.block_size
        if k is not None and k not in spec.BLOCK_SIZES:
            raise CompileError(f"{where}block size {k}: the core executes {spec.BLOCK_SIZES}")
        if weight.ndim == 2:
            if self.block_size is None:
                raise CompileError(
                    f"{where}a dense weight of shape {weight.shape} needs block_size=k, one of {spec.BLOCK_SIZES}"
                )
            out_features, in_features = weight.shape
            if (self.out_features or out_features, self.in_features or in_features) != weight.shape:
                raise CompileError(f"{where}in_features and out_features differ from the weight {weight.shape}")
            weight = circulant.project(weight, self.block_size)
        elif weight.ndim == 3:
            p, q, k = weight.shape
            if self.block_size not in (None, k):
                raise CompileError(f"{where}block_size={self.block_size}, but the weight has blocks of {k}")
            out_features, in_features = self.out_features or p * k, self.in_features or q * k
            if circulant.block_grid(out_features, in_features, k) != (p, q):
                raise CompileError(
                    f"{where}{p} x {q} blocks of {k} do not make a matrix of {out_features} x {in_features}"
                )
        else:
            raise CompileError(f"{where}weight of shape {weight.shape}: expected (p, q, k) or (out, in)")
        if self.activation not in spec.ACTIVATIONS:
            raise CompileError(f"{where}activation {self.activation!r}: allowed are {spec.ACTIVATIONS}")
        values = {"weight": weight}
        for name in ("scale", "shift"):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape not in ((), (out_features,)):
                raise CompileError(f"{where}{name} of shape {value.shape}: expected () or ({out_features},)")
            values[name] = np.broadcast_to(value, (out_features,)).copy()
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CompileError(f"{where}{name} holds NaN or infinite values")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "in_features", in_features)
        object.__setattr__(self, "out_features", out_features)
        object.__setattr__(self, "block_size", weight.shape[2])

    def forward(self, x: Floats) -> Floats:
        """The layer in float64 on (batch, in_features)."""
        y = circulant.matvec(np.asarray(self.weight), x, self.out_features)
        return _FUNCTIONS[self.activation](y * np.asarray(self.scale) + np.asarray(self.shift))


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A chain of layers.

    Parameters
    ----------
    layers : in the order of execution; sizes must fit.
    input_scale : factor on the inputs before the first layer, e.g. 1/255 for raw pixels.
    name, labels, metadata : handed on to the program.
    """

    layers: tuple[Linear, ...]
    input_scale: float = 1.0
    name: str = "network"
    labels: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise CompileError("the network has no layers")
        for before, after in zip(self.layers, self.layers[1:]):
            if before.out_features != after.in_features:
                raise CompileError(
                    f"layer {after.name!r} takes {after.in_features} features, but layer {before.name!r} "
                    f"gives {before.out_features}"
                )
        if not np.isfinite(self.input_scale) or self.input_scale == 0:
            raise CompileError(f"input_scale={self.input_scale}: expected a finite number other than 0")

    def forward(self, x: ArrayLike) -> list[Floats]:
        """Outputs of every layer in float64; x is (batch, in_features) or has the sample's shape behind batch."""
        array = np.asarray(x, np.float64)
        value = array.reshape(len(array), -1) * self.input_scale
        outputs = []
        for layer in self.layers:
            value = layer.forward(value)
            outputs.append(value)
        return outputs
