# SPDX-License-Identifier: BSD-3-Clause
"""Networks as the search sees them: shapes, and weights if there are any, for every choice of block sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import circulant, spec
from ..compiler.graph import Network, Operation
from ..errors import CircOverlayError

__all__ = ["BLOCKS", "Topology", "TopologyError", "load_topology"]

BLOCKS = (1, *spec.BLOCK_SIZES)
Floats = NDArray[np.float64]
_KINDS = ("conv", "max_pool", "avg_pool", "gap", "add", "fc")
_FIELDS = {
    "kind", "name", "source", "residual", "out", "taps", "stride", "padding", "pool", "activation", "k", "gather",
}  # fmt: skip


class TopologyError(CircOverlayError, ValueError):
    """A description of a network that cannot be understood."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """A network whose block sizes are free.

    Attributes
    ----------
    network : its operations; those with weights have the block sizes of `default`
    choices : block sizes allowed, for each operation with weights
    trained : weights are real ones; False: only their shapes mean anything
    model : the name in the zoo, or ""
    """

    network: Network
    choices: tuple[tuple[int, ...], ...]
    trained: bool
    model: str = ""

    @property
    def name(self) -> str:
        """The network's name."""
        return self.network.name

    @cached_property
    def weighted(self) -> tuple[int, ...]:
        """Indices of the operations with weights."""
        return tuple(n for n, op in enumerate(self.network.layers) if op.weight is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the operations with weights."""
        return tuple(self.network.layers[n].name for n in self.weighted)

    @property
    def default(self) -> tuple[int, ...]:
        """Block sizes that the network came with."""
        return tuple(self.network.layers[n].block_size for n in self.weighted)

    @cached_property
    def kernels(self) -> tuple[Floats, ...]:
        """Dense weights (out, in, r, s) of each operation with weights; with gather (out, in of the window, 1, 1)."""
        return tuple(_dense(self.network.layers[n], self._inputs(n)) for n in self.weighted)

    def _inputs(self, n: int) -> int:
        """Elements of the vector that a tap of operation n takes."""
        op = self.network.layers[n]
        height, width, channels = self.network.source_shape(op, self.network.shapes)
        if op.flatten:
            channels *= height * width
        return channels * op.taps[0] * op.taps[1] if op.gather else channels

    @property
    def dense_parameters(self) -> int:
        """Weights of the uncompressed network."""
        return sum(
            self._inputs(n) * self.network.layers[n].out_channels * (1 if op.gather else op.taps[0] * op.taps[1])
            for n, op in ((n, self.network.layers[n]) for n in self.weighted)
        )

    def parameters(self, blocks: Sequence[int]) -> int:
        """Free weights with the given block sizes: p q k for each tap."""
        total = 0
        for n, k in zip(self.weighted, blocks):
            op = self.network.layers[n]
            p, q = circulant.block_grid(op.out_channels, self._inputs(n), k)
            total += p * q * k * (1 if op.gather else op.taps[0] * op.taps[1])
        return total

    def errors(self, blocks: Sequence[int]) -> tuple[float, ...]:
        """Relative error (Frobenius) of each layer's weights when they are projected, 0 to 1; needs `trained`."""
        return tuple(_error(kernel, k) for kernel, k in zip(self.kernels, blocks))

    def build(self, blocks: Sequence[int], *, weights: bool = False) -> Network:
        """The network with the given block sizes.

        Parameters
        ----------
        blocks : a block size for each operation with weights
        weights : project the weights; False: leave them zero, shapes are enough for counting cycles
        """
        layers = list(self.network.layers)
        for place, (n, k) in enumerate(zip(self.weighted, blocks)):
            op = layers[n]
            p, q = circulant.block_grid(op.out_channels, self._inputs(n), k)
            taps = (1, 1) if op.gather else op.taps
            weight = (
                circulant.project_conv2d(self.kernels[place], k) if weights else np.zeros((p, q, *taps, k))
            )
            layers[n] = replace(op, weight=weight)
        return replace(self.network, layers=tuple(layers))


def _dense(op: Operation, inputs: int) -> Floats:
    assert op.weight is not None
    return circulant.expand_conv2d(op.weight, op.out_channels, inputs)


def _error(kernel: Floats, k: int) -> float:
    if k == 1:
        return 0.0
    near = circulant.expand_conv2d(circulant.project_conv2d(kernel, k), *kernel.shape[:2])
    return float(np.linalg.norm(kernel - near) / max(float(np.linalg.norm(kernel)), 1e-300))


def load_topology(source: str | Path) -> Topology:
    """A network of the zoo by its name, or a description in a JSON file (docs/codesign.md).

    Raises
    ------
    TopologyError
        It is neither, or the file does not describe a network.
    """
    from .. import models

    if str(source) in models.MODELS:
        network = models.load_float(str(source))
        count = sum(op.weight is not None for op in network.layers)
        return Topology(network=network, choices=_choices(network, (BLOCKS,) * count), trained=True, model=str(source))
    path = Path(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TopologyError(
            f"{source!r} is neither a model ({', '.join(models.MODELS)}) nor a file that can be read ({error})"
        ) from error
    except ValueError as error:
        raise TopologyError(f"{path}: not JSON: {error}") from error
    return parse(content, str(path))


def _choices(network: Network, given: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Choices without block sizes of at least twice the inputs, which only add zeros, and without 1 for gather."""
    result = []
    operations = [op for op in network.layers if op.weight is not None]
    for op, ks in zip(operations, given):
        channels = network.source_shape(op, network.shapes)[2]
        inputs = channels * op.taps[0] * op.taps[1] if op.gather else channels
        kept = tuple(k for k in ks if k < 2 * inputs and (k > 1 or not op.gather))
        result.append(kept or (op.block_size,))
    return tuple(result)


def parse(content: Any, where: str = "topology") -> Topology:
    """A topology from what stood in its JSON file."""
    if not isinstance(content, Mapping) or not isinstance(content.get("layers"), list) or not content["layers"]:
        raise TopologyError(f'{where}: expected {{"input": [height, width, channels], "layers": [...]}}')
    shape = content.get("input")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise TopologyError(f"{where}: input {shape!r}: expected [height, width, channels]")
    operations: list[Operation] = []
    choices: list[tuple[int, ...]] = []
    shapes: dict[str, tuple[int, int, int]] = {"input": (shape[0], shape[1], shape[2])}
    last = "input"
    for index, entry in enumerate(content["layers"]):
        place = f"{where}: layer {index}"
        kind = entry.get("kind") if isinstance(entry, Mapping) else entry
        if not isinstance(entry, Mapping) or kind not in _KINDS:
            raise TopologyError(f"{place}: kind {kind!r}: allowed are {_KINDS}")
        if unknown := entry.keys() - _FIELDS:
            names = (", ".join(sorted(some)) for some in (unknown, _FIELDS))
            raise TopologyError("{}: unknown {}; known are {}".format(place, *names))
        source = entry.get("source", last)
        if source not in shapes:
            raise TopologyError(f"{place}: reads {source!r}, which nothing before it gives")
        try:
            op, ks = _operation(entry, f"layer{index}", source, shapes[source])
            shapes[op.target] = op.shapes(shapes[source])[1]
        except (TypeError, ValueError) as error:
            raise TopologyError(f"{place}: {error}") from error
        operations.append(op)
        choices += [ks] if op.weight is not None else []
        last = op.target
    network = Network(layers=tuple(operations), input_shape=shapes["input"], name=str(content.get("name", "network")))
    return Topology(network=network, choices=_choices(network, choices), trained=False)


def _operation(
    entry: Mapping[str, Any], name: str, source: str, shape: tuple[int, int, int]
) -> tuple[Operation, tuple[int, ...]]:
    kind = entry["kind"]
    name = str(entry.get("name", f"{kind}{name[5:]}"))
    activation = entry.get("activation", "relu" if kind == "conv" else "identity")
    common = {
        "name": name, "source": source, "residual": entry.get("residual"), "activation": activation,
        "pool": _pair(entry.get("pool", 1)),
    }  # fmt: skip
    taps = _pair(entry.get("taps", 1))
    padding = _pair(entry.get("padding", 0)) * 2
    if kind == "add":
        return Operation(kind="sum", **common), ()
    if kind == "gap":
        taps = stride = shape[:2]
        return Operation(kind="sum", taps=taps, stride=stride, scale=1 / (taps[0] * taps[1]), **common), ()
    if kind in ("max_pool", "avg_pool"):
        stride = _pair(entry.get("stride", entry.get("taps", 1)))
        scale = 1 / (taps[0] * taps[1]) if kind == "avg_pool" else 1.0
        reduce = "max" if kind == "max_pool" else "sum"
        return Operation(kind=reduce, taps=taps, stride=stride, padding=padding, scale=scale, **common), ()
    out = entry.get("out")
    if not isinstance(out, int) or out < 1:
        raise TopologyError(f"out={out!r}: expected the number of output channels")
    flatten = kind == "fc" and shape[0] * shape[1] > 1
    gather = bool(entry.get("gather", False))
    channels = shape[0] * shape[1] * shape[2] if flatten else shape[2]
    inputs = channels * taps[0] * taps[1] if gather else channels
    given = entry.get("k", list(BLOCKS))
    ks = tuple(given) if isinstance(given, list) else (given,)
    if not ks or any(k not in BLOCKS for k in ks):
        raise TopologyError(f"k={given!r}: allowed are {BLOCKS}, one or a list")
    fitting = [k for k in ks if k <= 16 and k <= min(inputs, out)] or [min(ks)]
    k = max(fitting)
    p, q = circulant.block_grid(out, inputs, k)
    weight = np.zeros((p, q, *((1, 1) if gather else taps), k))
    stride = _pair(entry.get("stride", 1))
    operation = Operation(
        weight=weight, in_channels=channels, out_channels=out, taps=taps, stride=stride, padding=padding,
        gather=gather, flatten=flatten, **common,
    )  # fmt: skip
    return operation, ks


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair):
        raise TopologyError(f"{value!r}: expected a number or two")
    return pair
