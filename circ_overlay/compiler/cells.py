# SPDX-License-Identifier: BSD-3-Clause
"""LSTM and GRU layers as operations on states; docs/instructions.md lists the same in the core's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import circulant
from .builder import Builder, Value
from .graph import filled
from .structure import TOLERANCE, structure

__all__ = ["columns", "gru", "lstm", "recurrent"]

Floats = NDArray[np.float64]
Weights = Mapping[str, Floats]


def _joined(of_x: Floats, of_h: Floats, features: int) -> Floats:
    """One matrix (p, q, 1, 1, k) on [x | h] of two on x and h, x being filled up to whole blocks or map words."""
    k = of_x.shape[2]
    gap = np.zeros((len(of_x), filled(features, k) // k - of_x.shape[1], k))
    joined: Floats = np.concatenate([of_x, gap, of_h], 1)[:, :, None, None, :]
    return joined


def _gates(weights: Weights, part: str, count: int) -> list[Floats]:
    """The matrices of the gates, which lie one above the other."""
    return list(np.split(weights[part], count))


def _own(builder: Builder, v: Value, name: str) -> Value:
    """`v`, or a copy if it is a state: that already lies beside another vector."""
    if v.tensor in builder.states:
        return builder.emit(f"{name}.x", v.shape, kind="sum", source=v.tensor)
    return v


def lstm(builder: Builder, v: Value, weights: Weights, name: str) -> Value:
    """A long short-term memory cell.

    Parameters
    ----------
    v : the step's input vector
    weights : "ih" and "hh" (4 p, q, k), gates i, f, g, o one above the other; "bias" (4 hidden,); and if there are,
        "peephole" (3, hidden) for i, f, o and "hr" (p, q, k), the projection, with "outputs" its features
    name : prefix of the operations

    Returns
    -------
    h of this step.
    """
    hidden = len(weights["bias"]) // 4
    outputs = int(weights["outputs"]) if "outputs" in weights else hidden
    h, c = builder.unique(f"{name}.h"), builder.unique(f"{name}.c")
    v = _own(builder, v, name)
    builder.states |= {h: outputs, c: hidden}
    shape, bias = (1, 1, hidden), np.split(weights["bias"], 4)
    matrices = [
        _joined(a, b, v.shape[2]) for a, b in zip(_gates(weights, "ih", 4), _gates(weights, "hh", 4))
    ]

    def gate(index: int, title: str, function: str, peephole: int | None) -> str:
        residual = None
        if "peephole" in weights and peephole is not None:
            seen = builder.emit(f"{name}.p{title}", shape, kind="sum", source=c, scale=weights["peephole"][peephole])
            residual = seen.tensor
        return builder.emit(
            f"{name}.{title}", shape, source=(v.tensor, h), weight=matrices[index], out_channels=hidden,
            shift=bias[index], activation=function, residual=residual,
        ).tensor  # fmt: skip

    i, f, g = gate(0, "i", "sigmoid", 0), gate(1, "f", "sigmoid", 1), gate(2, "g", "tanh", None)
    t = builder.emit(f"{name}.t", shape, kind="product", source=i, factor=g).tensor
    builder.emit(f"{name}.new_c", shape, kind="product", source=f, factor=c, residual=t, target=c)
    o = gate(3, "o", "sigmoid", 2)
    u = builder.emit(f"{name}.u", shape, kind="sum", source=c, activation="tanh").tensor
    if "hr" not in weights:
        builder.emit(f"{name}.new_h", shape, kind="product", source=o, factor=u, target=h)
    else:
        m = builder.emit(f"{name}.m", shape, kind="product", source=o, factor=u).tensor
        builder.emit(f"{name}.new_h", (1, 1, outputs), source=m, weight=weights["hr"][:, :, None, None, :],
                     out_channels=outputs, target=h)  # fmt: skip
    return Value(h, (1, 1, outputs))


def gru(builder: Builder, v: Value, weights: Weights, name: str) -> Value:
    """A gated recurrent unit, the reset gate behind the product as in PyTorch.

    Parameters
    ----------
    v : the step's input vector
    weights : "ih" and "hh" (3 p, q, k), gates r, z, n one above the other; "bias_ih", "bias_hh" (3 hidden,)
    name : prefix of the operations

    Returns
    -------
    h of this step.
    """
    hidden = len(weights["bias_ih"]) // 3
    h = builder.unique(f"{name}.h")
    v = _own(builder, v, name)
    builder.states[h] = hidden
    shape = (1, 1, hidden)
    of_x, of_h = _gates(weights, "ih", 3), _gates(weights, "hh", 3)
    b_x, b_h = np.split(weights["bias_ih"], 3), np.split(weights["bias_hh"], 3)

    def gate(index: int, title: str, sign: float) -> str:
        return builder.emit(
            f"{name}.{title}", shape, source=(v.tensor, h), weight=_joined(of_x[index], of_h[index], v.shape[2]),
            out_channels=hidden, scale=sign, shift=sign * (b_x[index] + b_h[index]), activation="sigmoid",
        ).tensor  # fmt: skip

    r, z1 = gate(0, "r", 1.0), gate(1, "z1", -1.0)  # z1 = 1 - z
    u = builder.emit(f"{name}.u", shape, source=h, weight=of_h[2][:, :, None, None, :], out_channels=hidden,
                     shift=b_h[2]).tensor  # fmt: skip
    t = builder.emit(f"{name}.t", shape, kind="product", source=r, factor=u).tensor
    n = builder.emit(f"{name}.n", shape, source=v.tensor, weight=of_x[2][:, :, None, None, :], out_channels=hidden,
                     shift=b_x[2], residual=t, activation="tanh").tensor  # fmt: skip
    d = builder.emit(f"{name}.d", shape, kind="sum", source=h, scale=-1.0, residual=n).tensor
    builder.emit(f"{name}.new_h", shape, kind="product", source=z1, factor=d, residual=h, target=h)
    return Value(h, shape)


def recurrent(builder: Builder, v: Value, m: Any, name: str) -> Value:
    """A PyTorch LSTM or GRU, ours or torch's own, of any number of layers; h of its last layer."""
    if getattr(m, "bidirectional", False):
        builder.refuse(f"The bidirectional {name!r}", "steps come one by one: use one direction")
    if not getattr(m, "batch_first", True):
        builder.refuse(f"{name!r} with batch_first=False", "sequences come one by one, (steps, features)")
    builder.expect(v, m.input_size)
    peephole = bool(getattr(m, "peephole", False))
    for layer in range(m.num_layers):

        def array(part: str, layer: int = layer) -> Floats:
            value: Floats = getattr(m, f"{part}_l{layer}").detach().cpu().double().numpy()
            return value

        title = name if m.num_layers == 1 else f"{name}.{layer}"
        gated = hasattr(m, f"weight_ih_l{layer}") and "GRU" in type(m).__name__
        gates = 3 if gated else 4
        parts = ["ih", "hh", *(["hr"] if getattr(m, "proj_size", 0) else [])]
        weights: dict[str, Floats] = {part: array(f"weight_{part}") for part in parts}
        if weights["ih"].ndim == 2:  # torch's own: dense
            weights = columns(weights, gates, builder.chosen(title))
        hidden = m.hidden_size
        bias = [array(f"bias_{part}") if m.bias else np.zeros(gates * hidden) for part in ("ih", "hh")]
        if gated:
            v = gru(builder, v, {**weights, "bias_ih": bias[0], "bias_hh": bias[1]}, title)
            continue
        weights["bias"] = bias[0] + bias[1]
        if peephole:
            weights["peephole"] = array("peephole")
        if getattr(m, "proj_size", 0):
            weights["outputs"] = np.array(m.proj_size)
        v = lstm(builder, v, weights, title)
    return v


def columns(dense: Weights, gates: int, block_size: int | None = None) -> dict[str, Floats]:
    """First columns of dense matrices; those that read [x | h] get one block size."""

    def split(matrix: Floats, count: int, k: int | None) -> list[Floats]:
        return [structure(part[:, :, None, None], k)[:, :, 0, 0] for part in np.split(matrix, count)]

    found = {part: split(matrix, 1 if part == "hr" else gates, block_size) for part, matrix in dense.items()}
    sizes = {columns.shape[2] for part in ("ih", "hh") for columns in found[part]}
    if len(sizes) > 1:  # a few inputs alone do not tell which blocks they are in; k = 1 always is one
        for k in sorted({*sizes, 1}, reverse=True):
            tried = {part: split(dense[part], gates, k) for part in ("ih", "hh")}
            if all(_is(tried[part], np.split(dense[part], gates)) for part in tried):
                found |= tried
                break
    return {part: np.concatenate(columns) for part, columns in found.items()}


def _is(blocks: list[Floats], dense: list[Floats]) -> bool:
    """Whether first columns are those of dense matrices."""
    return all(
        np.abs(circulant.expand(columns, *matrix.shape) - matrix).max() <= TOLERANCE * np.abs(matrix).max()
        for columns, matrix in zip(blocks, dense)
    )
