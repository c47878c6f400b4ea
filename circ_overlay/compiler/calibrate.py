# SPDX-License-Identifier: BSD-3-Clause
"""Calibration: run a network on samples, in float and in integers side by side, and lower operation by operation.

Each layer of a plain network is calibrated on what really reaches it: the integers of the already quantised
layers before it. In a network on sequences what reaches a layer depends on all layers, later ones included; there
the float network's values, rounded to their formats, take the place of the integers.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import golden, spec
from ..fixedpoint import Format
from ..layer import Layer
from ..port import Port
from .graph import CompileError, Network, Operation
from .quantise import OUTPUT_HEADROOM, Operand, lower, snr_db, worst_channel_db

__all__ = ["Lowered", "calibrate"]

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]

WORST_CHANNEL_DB = 10.0
"""Below this SNR of its worst channel a layer is worth a warning."""

MAX_ELEMENTS = 1 << 22
"""Elements of the largest tensor on the sample; samples beyond are left out to spare memory."""


class Lowered(NamedTuple):
    """A quantised network before its maps have places.

    Attributes
    ----------
    layers : one for each operation
    input, output : ports
    snr_db, worst_db : of each layer's outputs on the sample; for sequences, of each layer on exact inputs
    samples : how many samples (steps) were looked at
    """

    layers: list[Layer]
    input: Port
    output: Port
    snr_db: list[float]
    worst_db: list[float]
    samples: int


def calibrate(network: Network, sample: Any, width: int) -> Lowered:
    """Lower every operation of `network`; see :func:`circ_overlay.compiler.compile` for the arguments."""
    if network.sequence:
        return _calibrate_sequences(network, sample, width)
    x = _checked(network, sample)
    largest = max(int(np.prod(shape)) for shape in network.shapes.values())
    x = x[: max(16, MAX_ELEMENTS // largest)]
    port = _input_port(network, x, width)
    u8 = port.storage == "uint8"
    integers = golden.enter(port.to_pixels(port.quantise(x, width)).astype(np.int64), u8, width)
    frac = port.frac + (spec.u8_shift(width) if u8 else 0)
    values: dict[str, Floats] = {"input": network.pixels(x)}
    operands = {
        "input": Operand(integers.reshape(values["input"].shape), frac, network.input_scale),
    }
    layers, ratios, worst = [], [], []
    for index, op in enumerate(network.layers):
        parts = [operands[name] for name in op.sources]
        residual, factor = (None if name is None else operands[name] for name in (op.residual, op.factor))
        if residual is not None and residual.scale != 1.0:
            raise CompileError(f"{op.where}adds the network's input, which has an input scale; put a layer between")
        reference = op.forward(
            network.joined(op, [values[name] for name in op.sources]),
            *(None if name is None else values[name] for name in (op.residual, op.factor)),
        )
        layer = lower(op, parts, reference, width, residual=residual, factor=factor)
        layers.append(layer)
        outputs = _apply(layer, network, op, parts, width, residual, factor)
        values[op.target] = op.pooled(reference)
        operands[op.target] = Operand(outputs, layer.out_frac)
        got = Format(width, layer.out_frac).value(outputs)
        ratios.append(snr_db(values[op.target], got))
        worst.append(worst_channel_db(values[op.target], got))
        _forget(network, index, values, operands)
    _warn(network, layers, worst)
    assert network.output is not None
    return Lowered(layers, port, _output_port(network, operands[network.output].frac), ratios, worst, len(x))


def _apply(
    layer: Layer, network: Network, op: Operation, parts: list[Operand], width: int,
    residual: Operand | None, factor: Operand | None,
) -> NDArray[np.int64]:  # fmt: skip
    """The layer on integers, some images at a time."""
    x = network.joined(op, [p.integers for p in parts])
    if op.flatten:
        x = x.reshape(len(x), 1, 1, -1)
    chunk = max(1, (1 << 19) // max(int(np.prod(x.shape[1:])), int(np.prod(layer.result_shape))))
    results = []
    for first in range(0, len(x), chunk):
        rows = slice(first, first + chunk)
        results.append(
            golden.apply(
                layer, x[rows].astype(np.int64), width,
                residual=None if residual is None else residual.integers[rows],
                factor=None if factor is None else factor.integers[rows],
            )
        )  # fmt: skip
    return np.concatenate(results)


def _forget(network: Network, index: int, *tensors: dict[str, Any]) -> None:
    """Drop what no operation behind `index` reads."""
    later = {network.output}
    for op in network.layers[index + 1 :]:
        later |= {*op.sources, op.residual, op.factor}
    for values in tensors:
        for name in values.keys() - later:
            del values[name]


def _warn(network: Network, layers: list[Layer], worst: list[float]) -> None:
    weak = [f"{layer.name!r} ({ratio:.1f} dB)" for layer, ratio in zip(layers, worst) if ratio < WORST_CHANNEL_DB]
    if weak:
        _log.warning(
            "%s: each of these layers has a channel with a low SNR, because its outputs are far smaller than the "
            "layer's largest: %s; channels of like size share a format better", network.name, ", ".join(weak),
        )  # fmt: skip


# ---- sequences -----------------------------------------------------------------------------------------------
def _calibrate_sequences(network: Network, sample: Any, width: int) -> Lowered:
    sequences = [_checked(network, np.asarray(s)) for s in sample]
    if not sequences or sum(map(len, sequences)) == 0:
        raise CompileError("the sample holds no sequences; give a list of (steps, features) arrays")
    everything = np.concatenate(sequences)
    port = _input_port(network, everything, width)
    u8 = port.storage == "uint8"
    frac = port.frac + (spec.u8_shift(width) if u8 else 0)
    reads, results = _record(network, sequences)
    fracs: dict[str, int] = {"input": frac}
    for op in network.layers:  # a state has one format, that of all its writers together
        if op.target in network.states and op.target not in fracs:
            fracs[op.target] = _state_frac(network, op.target, results, width)
    layers, ratios, worst = [], [], []
    for op in network.layers:
        scale = network.input_scale
        operands = {}
        for name in {*op.sources, op.residual, op.factor} - {None}:
            assert name is not None
            of_input = scale if name == "input" else 1.0
            integers = Format(width, fracs[name]).quantise(reads[op.name][name] / of_input)
            operands[name] = Operand(integers, fracs[name], of_input)
        residual, factor = (None if name is None else operands[name] for name in (op.residual, op.factor))
        parts = [operands[name] for name in op.sources]
        if len(parts) > 1 and any(p.scale != parts[0].scale for p in parts):
            raise CompileError(f"{op.where}joins the scaled input with others; scale the samples on the host")
        layer = lower(
            op, parts, results[op.name], width, residual=residual, factor=factor,
            out_frac=fracs.get(op.target) if op.target in network.states else None,
        )  # fmt: skip
        layers.append(layer)
        fracs[op.target] = layer.out_frac
        got = Format(width, layer.out_frac).value(_apply(layer, network, op, parts, width, residual, factor))
        ratios.append(snr_db(op.pooled(results[op.name]), got))
        worst.append(worst_channel_db(op.pooled(results[op.name]), got))
    _warn(network, layers, worst)
    assert network.output is not None
    return Lowered(layers, port, _output_port(network, fracs[network.output]), ratios, worst, len(everything))


def _state_frac(network: Network, state: str, results: dict[str, Floats], width: int) -> int:
    writers = [op for op in network.layers if op.target == state]
    if any(op.activation in ("sigmoid", "tanh") for op in writers):
        return width - 1
    learned = [op.out_range for op in writers if op.out_range is not None]
    shown = OUTPUT_HEADROOM * max(float(np.abs(results[op.name]).max()) for op in writers)
    return Format.for_range(width, max(learned, default=shown)).frac


def _record(
    network: Network, sequences: list[NDArray[Any]]
) -> tuple[dict[str, dict[str, Floats]], dict[str, Floats]]:
    """What every operation reads, by tensor, and gives, on all steps of all sequences."""
    reads: dict[str, dict[str, list[Floats]]] = {op.name: {} for op in network.layers}
    results: dict[str, list[Floats]] = {op.name: [] for op in network.layers}
    longest_first = sorted(sequences, key=len, reverse=True)
    states = {name: np.zeros((len(sequences), 1, 1, n)) for name, n in network.states.items()}
    for t in range(len(longest_first[0])):
        rows = sum(len(s) > t for s in longest_first)
        values: dict[str, Floats] = {"input": network.pixels(np.stack([s[t] for s in longest_first[:rows]]))}
        values |= {name: value[:rows] for name, value in states.items()}
        for op in network.layers:
            for name in {*op.sources, op.residual, op.factor} - {None}:
                assert name is not None
                reads[op.name].setdefault(name, []).append(values[name])
            x = network.joined(op, [values[name] for name in op.sources])
            operands = (None if name is None else values[name] for name in (op.residual, op.factor))
            results[op.name].append(op.forward(x, *operands))
            values[op.target] = op.pooled(results[op.name][-1])
        states = {name: values[name] for name in states}
    return (
        {op: {name: np.concatenate(v) for name, v in tensors.items()} for op, tensors in reads.items()},
        {name: np.concatenate(v) for name, v in results.items()},
    )


# ---- ports ---------------------------------------------------------------------------------------------------
def _checked(network: Network, sample: ArrayLike) -> NDArray[Any]:
    x = np.asarray(sample)
    if x.dtype.kind not in "buif":
        raise CompileError(f"sample of dtype {x.dtype}: expected real numbers")
    assert network.input_shape is not None
    height, width, channels = network.input_shape
    features = height * width * channels
    if x.ndim < 2 or len(x) == 0 or x[0].size != features:
        raise CompileError(
            f"sample of shape {x.shape}: expected (n, {features}) or n samples of {features} elements, n > 0"
        )
    whole: list[tuple[int, ...]] = [(channels, height, width) if network.channels_first else (height, width, channels)]
    if channels == 1:
        whole.append((height, width))
    if height * width > 1 and x.shape[1:] not in whole:
        wanted = " or ".join(str(("n", *shape)).replace("'", "") for shape in whole)
        raise CompileError(f"sample of shape {x.shape}: this network's images are {wanted}")
    return x


def _input_port(network: Network, x: NDArray[Any], width: int) -> Port:
    assert network.input_shape is not None
    shape = tuple(int(n) for n in x.shape[1:])
    pixels, first = network.input_shape[0] * network.input_shape[1], network.channels_first
    if x.dtype == np.uint8 and width > spec.U8_BITS:
        return Port(shape=shape, frac=0, storage="uint8", pixels=pixels, channels_first=first)
    largest = float(np.abs(x.astype(np.float64)).max())
    if not np.isfinite(largest):
        raise CompileError("the sample holds NaN or infinite values")
    if not 2.0**-40 <= largest <= 2.0**40:
        raise CompileError(
            f"the sample's largest magnitude is {largest:.3g}; formats are chosen from what it shows, so give typical "
            f"inputs, scaled to between {2.0**-40:.1g} and {2.0**40:.1g}"
        )
    return Port(shape=shape, frac=Format.for_range(width, largest).frac, pixels=pixels, channels_first=first)


def _output_port(network: Network, frac: int) -> Port:
    assert network.output is not None
    height, width, channels = network.shapes[network.output]
    if height * width == 1:
        return Port(shape=(channels,), frac=frac)
    first = network.channels_first
    shape = (channels, height, width) if first else (height, width, channels)
    return Port(shape=shape, frac=frac, pixels=height * width, channels_first=first)
