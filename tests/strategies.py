# SPDX-License-Identifier: BSD-3-Clause
"""Random programs and inputs for bit-exactness tests: `programs()` and `batches()` draw them in hypothesis,
`random_program()` and `random_batch()` make them from a NumPy generator.

Numbers come from their whole ranges, so that every saturation, rounding and sign is met; the networks
compute nothing sensible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from circ_overlay import golden, spec
from circ_overlay.fixedpoint import limits, round_shift, saturate
from circ_overlay.program import Layer, Port, Program

MODES = ("uniform", "extreme", "bell", "small", "sparse")
"""How the numbers of a layer are distributed over their range."""


def random_integers(
    rng: np.random.Generator, bits: int, shape: tuple[int, ...], mode: str
) -> NDArray[np.int64]:
    """Signed integers of `bits` bits."""
    low, high = limits(bits)
    if mode == "extreme":
        return rng.choice(np.array([low, low + 1, -1, 0, 1, high - 1, high]), shape)
    if mode == "bell":
        return np.clip(rng.normal(0, high / 4, shape), low, high).astype(np.int64)
    if mode == "small":
        return rng.integers(-2, 3, shape)
    values = rng.integers(low, high + 1, shape)
    return values * (rng.random(shape) < 0.1) if mode == "sparse" else values


def out_frac(activation: spec.Activation, width: int) -> int:
    """Fraction bits of a layer's outputs: 0, but for the curves, whose format is fixed."""
    return width - 1 if activation in (spec.Activation.SIGMOID, spec.Activation.TANH) else 0


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
    """A program of layers `features[n]` to `features[n + 1]`.

    Parameters
    ----------
    live : choose shifts and bias so that typical outputs use the width instead of being all 0 or all saturated.
    """
    layers: list[Layer] = []
    x = random_integers(rng, width, (4, features[0]), "uniform")
    for n, (k, activation, mode) in enumerate(zip(blocks, activations, modes, strict=True)):
        inputs, outputs = features[n], features[n + 1]
        grid = (-(-outputs // k), -(-inputs // k))
        layer = Layer(
            in_features=inputs,
            out_features=outputs,
            weights=random_integers(rng, width, (*grid, k // 2, 2), mode).astype(np.int16),
            scale=random_integers(rng, spec.SCALE_BITS, (outputs,), mode).astype(np.int32),
            bias=random_integers(rng, spec.BIAS_BITS, (outputs,), mode),
            acc_shift=int(rng.integers(0, spec.MAX_ACC_SHIFT + 1)),
            affine_shift=int(rng.integers(0, spec.MAX_AFFINE_SHIFT + 1)),
            activation=activation,
            out_frac=out_frac(activation, width),
            name=f"layer{n}",
        )
        layers.append(_with_live_shifts(rng, layer, x, width) if live else layer)
        x = golden.linear(layers[-1], x, width)
    return Program(
        name="random",
        width=width,
        input=Port(shape=(features[0],), frac=0, storage=storage),
        output=Port(shape=(features[-1],), frac=out_frac(activations[-1], width)),
        layers=tuple(layers),
    )


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
    layer = Layer(
        in_features=blocks * k,
        out_features=k,
        weights=np.tile(weights, (1, blocks, 1, 1)),
        scale=np.full(k, 1 << (spec.SCALE_BITS - 2), np.int32),
        bias=np.zeros(k, np.int64),
        acc_shift=0,
        # One bit more than the saturated value needs: without that saturation another value would come out.
        affine_shift=spec.TIME_BITS + spec.SCALE_BITS - 2 - width + 1,
        activation=spec.Activation.IDENTITY,
        out_frac=0,
    )
    return Program(
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


def _with_live_shifts(
    rng: np.random.Generator, layer: Layer, x: NDArray[np.int64], width: int
) -> Layer:
    """`layer` with shifts and a bias that bring what `x` causes to about the output's range."""
    k, (p, q) = layer.block_size, layer.weights.shape[:2]
    padded = np.zeros((len(x), q * k), np.int64)
    padded[:, : layer.in_features] = x
    spectra = golden.forward_transform(padded.reshape(len(x), q, k))
    sums = golden.spectral_product(layer.weights.astype(np.int64), spectra)
    acc_shift = _bits(sums) - spec.SUM_BITS + 1 + int(rng.integers(-1, 3))
    acc_shift = min(max(acc_shift, 0), spec.MAX_ACC_SHIFT)
    sums = saturate(round_shift(sums, acc_shift), spec.SUM_BITS)
    y = golden.inverse_transform(sums).reshape(len(x), p * k)[:, : layer.out_features]
    product_bits = _bits(y * layer.scale)
    curved = layer.activation in (spec.Activation.SIGMOID, spec.Activation.TANH)
    affine_shift = product_bits - width + 1 - 2 * curved + int(rng.integers(-1, 2))
    return replace(
        layer,
        bias=layer.bias >> max(0, spec.BIAS_BITS - product_bits - 1),
        acc_shift=acc_shift,
        affine_shift=min(max(affine_shift, 0), spec.MAX_AFFINE_SHIFT),
    )


def _bits(values: NDArray[np.int64]) -> int:
    """Bits of the magnitude that nine values in ten stay below."""
    return int(np.quantile(np.abs(values), 0.9)).bit_length()


def random_batch(rng: np.random.Generator, program: Program, batch: int, mode: str) -> NDArray[Any]:
    """Stream elements for `program`, (batch, features) of its input's dtype; extreme ones exceed its width."""
    shape = (batch, program.input.features)
    if program.input.storage == "uint8":
        return (random_integers(rng, spec.U8_BITS, shape, mode) & 0xFF).astype(np.uint8)
    bits = 16 if mode == "extreme" else program.width
    return random_integers(rng, bits, shape, mode).astype("<i2")


def input_words(program: Program, x: NDArray[Any]) -> NDArray[np.uint64]:
    """Inputs as the stream carries them: each image from a new beat on."""
    room = np.zeros((len(x), program.input.beats * spec.STREAM_BYTES // x.itemsize), x.dtype)
    room[:, : x.shape[1]] = x
    return room.view("<u8").astype(np.uint64).ravel()


def output_values(program: Program, words: NDArray[np.uint64]) -> NDArray[np.int16]:
    """Outputs (batch, features) from the stream's words."""
    per_image = program.output.beats * spec.STREAM_BYTES // 2
    return words.astype("<u8").view("<i2").reshape(-1, per_image)[:, : program.output.features]


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def programs(
    draw: st.DrawFn,
    *,
    widths: Sequence[int] = tuple(spec.WIDTHS),
    blocks: Sequence[int] = spec.BLOCK_SIZES,
    activations: Sequence[spec.Activation] = tuple(spec.Activation),
    max_features: int = 300,
    max_layers: int = 4,
    storages: Sequence[str] = ("int16", "uint8"),
) -> Program:
    """Programs of 1 to `max_layers` layers of any shape; the numbers follow from one drawn seed."""
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
def batches(draw: st.DrawFn, program: Program, *, max_batch: int = 40) -> NDArray[Any]:
    """Quantised inputs of `program`: 1 to `max_batch` images."""
    rng = np.random.default_rng(draw(SEEDS))
    return random_batch(rng, program, draw(st.integers(1, max_batch)), draw(st.sampled_from(MODES)))
