# SPDX-License-Identifier: BSD-3-Clause
"""Random programs and inputs for bit-exactness tests: `programs()`, `networks()` and `batches()` draw them in
hypothesis; `random_program()` (fully connected), `random_network()` (all operators) and `random_batch()` make them
from a NumPy generator.

Numbers come from their whole ranges, so that every saturation, rounding and sign is met; the networks
compute nothing sensible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from networks import NetworkBuilder, live_shifts, out_frac, random_integers
from numpy.typing import NDArray

from circ_overlay import golden, spec, transfer
from circ_overlay.fixedpoint import limits
from circ_overlay.program import Layer, Map, Port, Program

__all__ = [
    "KINDS",
    "MODES",
    "SEEDS",
    "batches",
    "impulse",
    "input_words",
    "networks",
    "out_frac",
    "output_values",
    "programs",
    "random_batch",
    "random_integers",
    "random_network",
    "random_program",
    "random_starts",
    "resonant_program",
    "vector_layer",
]

MODES = ("uniform", "extreme", "bell", "small", "sparse")
"""How the numbers of a layer are distributed over their range."""
KINDS = ("circulant", "dense", "gather", "max", "sum", "product", "concat", "flatten", "residual")
"""What a random network is made of, see NetworkBuilder."""


def vector_layer(
    inputs: int, outputs: int, k: int, weights: NDArray[Any], *, source: int = 0, target: int | None = None, **rest: Any
) -> Layer:
    """A fully connected layer from map word `source` to `target`, by default behind its source."""
    words = spec.pixel_words(inputs)
    numbers: dict[str, Any] = {
        "scale": np.zeros(outputs, np.int32), "bias": np.zeros(outputs, np.int64), "out_frac": 0, **rest
    }  # fmt: skip
    return Layer(
        source=Map(channels=inputs, base=source),
        target=Map(channels=outputs, base=source + words if target is None else target),
        block_size=k, weights=weights.astype(np.int16), **numbers,
    )  # fmt: skip


def random_program(
    rng: np.random.Generator,
    *,
    width: int,
    features: Sequence[int],
    blocks: Sequence[int],
    activations: Sequence[spec.Activation],
    modes: Sequence[str],
    storage: str = "int16",
    live: bool = True,
) -> Program:
    """A program of fully connected layers `features[n]` to `features[n + 1]`.

    Parameters
    ----------
    live : choose shifts and bias so that typical outputs use the width instead of being all 0 or all saturated.
    """
    layers: list[Layer] = []
    x = random_integers(rng, width, (4, 1, 1, features[0]), "uniform")
    at = 0
    for n, (k, activation, mode) in enumerate(zip(blocks, activations, modes, strict=True)):
        inputs, outputs = features[n], features[n + 1]
        shape = (-(-outputs // k), spec.pixel_words(inputs) if k == 1 else -(-inputs // k), max(k // 2, 2), 2)
        layer = vector_layer(
            inputs, outputs, k, random_integers(rng, width, shape, mode), source=at, activation=activation,
            scale=random_integers(rng, spec.SCALE_BITS, (outputs,), mode).astype(np.int32),
            bias=random_integers(rng, spec.BIAS_BITS, (outputs,), mode),
            acc_shift=int(rng.integers(0, spec.MAX_ACC_SHIFT + 1)),
            affine_shift=int(rng.integers(0, spec.MAX_AFFINE_SHIFT + 1)),
            out_frac=out_frac(activation, width), name=f"layer{n}",
        )  # fmt: skip
        layers.append(live_shifts(rng, layer, x, width) if live else layer)
        x = golden.apply(layers[-1], x, width)
        at = layer.target.base
    return Program.chain(
        name="random",
        width=width,
        input=Port(shape=(features[0],), frac=0, storage=storage),
        output=Port(shape=(features[-1],), frac=out_frac(activations[-1], width)),
        layers=layers,
    )


def random_network(
    rng: np.random.Generator,
    *,
    width: int,
    kinds: Sequence[str],
    shape: tuple[int, int, int] | None = None,
    storage: str = "int16",
    sequence: bool = False,
    mode: str = "bell",
    block: int | None = None,
    activation: spec.Activation | None = None,
) -> Program:
    """A program that applies `kinds` of operators one behind the other.

    Parameters
    ----------
    kinds : of :data:`KINDS`
    shape : rows, columns and channels of the input; None: any
    sequence : the network carries a state from step to step
    mode : how weights, scales and biases are distributed
    block : block size of its circulant layers; None: any for each
    activation : of all layers; None: any for each
    """
    builder = NetworkBuilder(rng, width, mode, block, activation)
    return builder.build(kinds, shape, storage, sequence)


def resonant_program(width: int, place: int, sign: int = 1) -> Program:
    """A layer of 128 x 128 blocks whose inverse transform leaves TIME_BITS at output `place`.

    Its weights have the phases that meet there, so full-scale impulses as its blocks' first inputs saturate the
    sums and then the transform's output, which random numbers do not reach.
    """
    k = spec.BLOCK_SIZES[-1]
    low, high = limits(width)
    blocks = 1 << max(0, 2 * (10 - width))  # as many as it takes to saturate the sums
    angle = 2 * np.pi * place / k * np.array(spec.spectrum_order(k))
    parts = np.stack([np.cos(angle), -np.sin(angle)], -1)
    parts[0] = 1, (-1) ** place
    weights = np.where(sign * parts >= 0, high, low).astype(np.int16)
    layer = vector_layer(
        blocks * k, k, k, np.tile(weights, (1, blocks, 1, 1)),
        scale=np.full(k, 1 << (spec.SCALE_BITS - 2), np.int32),
        # One bit more than the saturated value needs: without that saturation another value would come out.
        affine_shift=spec.TIME_BITS + spec.SCALE_BITS - 2 - width + 1,
    )  # fmt: skip
    return Program.chain(
        name="resonant",
        width=width,
        input=Port(shape=(blocks * k,), frac=0),
        output=Port(shape=(k,), frac=0),
        layers=(layer,),
    )


def impulse(program: Program) -> NDArray[Any]:
    """Two inputs for `resonant_program`: the largest and the smallest number at each block's begin, else 0."""
    x = np.zeros((2, program.input.features), "<i2")
    x[:, :: spec.BLOCK_SIZES[-1]] = np.array(limits(program.width))[::-1, None]
    return x


def random_batch(rng: np.random.Generator, program: Program, batch: int, mode: str) -> NDArray[Any]:
    """Stream elements for `program`, (batch, features) of its input's dtype; extreme ones exceed its width."""
    shape = (batch, program.input.features)
    if program.input.storage == "uint8":
        return (random_integers(rng, spec.U8_BITS, shape, mode) & 0xFF).astype(np.uint8)
    bits = 16 if mode == "extreme" else program.width
    return random_integers(rng, bits, shape, mode).astype("<i2")


def random_starts(rng: np.random.Generator, batch: int) -> NDArray[np.bool_]:
    """Where sequences begin: at the first step, and here and there."""
    starts = rng.random(batch) < 0.3
    starts[0] = True
    return starts


def input_words(
    program: Program, x: NDArray[Any], starts: NDArray[np.bool_] | None = None
) -> NDArray[np.uint64]:
    """Inputs as the stream of a program of one segment carries them: each image from a new beat on.

    Parameters
    ----------
    starts : for a program on sequences, where they begin; None: at the first step
    """
    (segment,) = program.segments
    elements = np.zeros((len(x), transfer.stream_elements(segment)[0]), segment.in_dtype)
    transfer.pack(program, segment, {"input": program.input.to_pixels(x)}, elements)
    words = elements.view("<u8").astype(np.uint64)
    if program.sequence:
        begins = np.arange(len(x)) == 0 if starts is None else starts
        words = np.concatenate([begins[:, None].astype(np.uint64), words], 1)
    return words.ravel()


def output_values(program: Program, words: NDArray[np.uint64]) -> NDArray[np.int16]:
    """Outputs (batch, features) from the stream's words."""
    (segment,) = program.segments
    elements = words.astype("<u8").view("<i2").reshape(-1, transfer.stream_elements(segment)[1])
    out = np.zeros((len(elements), program.output.pixels, program.output.channels), np.int16)
    transfer.unpack(program, segment, elements, {"output": out})
    return program.output.from_pixels(out)


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def programs(
    draw: st.DrawFn,
    *,
    widths: Sequence[int] = tuple(spec.WIDTHS),
    blocks: Sequence[int] = (1, *spec.BLOCK_SIZES),
    activations: Sequence[spec.Activation] = tuple(spec.Activation),
    max_features: int = 300,
    max_layers: int = 4,
    storages: Sequence[str] = ("int16", "uint8"),
) -> Program:
    """Fully connected programs of 1 to `max_layers` layers of any shape; the numbers follow from one drawn seed."""
    width = draw(st.sampled_from(widths))
    count = draw(st.integers(1, max_layers))

    def each(options: Sequence[Any]) -> Any:
        return draw(st.lists(st.sampled_from(options), min_size=count, max_size=count))

    return random_program(
        np.random.default_rng(draw(SEEDS)),
        width=width,
        features=draw(st.lists(st.integers(1, max_features), min_size=count + 1, max_size=count + 1)),
        blocks=each(blocks),
        activations=each(activations),
        modes=each(MODES),
        storage=draw(st.sampled_from(storages)) if width > spec.U8_BITS else "int16",
        live=draw(st.booleans()),
    )


@st.composite
def networks(
    draw: st.DrawFn,
    *,
    widths: Sequence[int] = tuple(spec.WIDTHS),
    kinds: Sequence[str] = KINDS,
    max_layers: int = 4,
    storages: Sequence[str] = ("int16", "uint8"),
    sequence: bool | None = None,
) -> Program:
    """Programs of all operators; what each layer looks like follows from one drawn seed."""
    width = draw(st.sampled_from(widths))
    return random_network(
        np.random.default_rng(draw(SEEDS)),
        width=width,
        kinds=draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=max_layers)),
        storage=draw(st.sampled_from(storages)) if width > spec.U8_BITS else "int16",
        sequence=draw(st.booleans()) if sequence is None else sequence,
        mode=draw(st.sampled_from(MODES)),
    )


@st.composite
def batches(draw: st.DrawFn, program: Program, *, max_batch: int = 40) -> NDArray[Any]:
    """Quantised inputs of `program`: 1 to `max_batch` images."""
    rng = np.random.default_rng(draw(SEEDS))
    return random_batch(rng, program, draw(st.integers(1, max_batch)), draw(st.sampled_from(MODES)))
