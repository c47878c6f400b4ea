# SPDX-License-Identifier: BSD-3-Clause
"""The documents' core (tests/oracle.py) against the golden model and the C++ engine, bit for bit."""

from dataclasses import replace

import dags
import numpy as np
import oracle
import pytest
from builders import convolution, layer, mlp, recurrent, samples, split_mlp
from strategies import KINDS, MODES, input_words, random_batch, random_network

from circ_overlay import golden, spec, transfer
from circ_overlay.compiler import CompileError
from circ_overlay.engines import available_engines, create_engine
from circ_overlay.program import Map, Port, Program

ENGINES = [name for name, state in available_engines().items() if state == "ready"]
JUNK = 1234
"""What the oracle's map memory holds where nothing has been written: no result may depend on it."""


def check(program, words, batch, runs=1):
    """All engines and the oracle give the same words, run after run."""
    config = spec.CoreConfig(width=program.width, weight_words=1 << 20, spectra_words=1 << 16)
    core = oracle.Core(program.image, program.width, JUNK)
    engines = [create_engine(name, config) for name in ENGINES]
    assert all(engine.load(program.image) == spec.Status.OK for engine in engines)
    for _ in range(runs):
        expected = core.run(batch, words)
        for engine in engines:
            np.testing.assert_array_equal(engine.run(batch, words), expected, engine.name)


@pytest.mark.parametrize("width", spec.WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_networks(width, kind):
    rng = np.random.default_rng([width, KINDS.index(kind)])
    for mode in MODES:
        program = random_network(
            rng, width=width, kinds=[kind, *rng.choice(KINDS, 1)], mode=mode,
            storage="uint8" if width > 8 and rng.random() < 0.3 else "int16",
        )  # fmt: skip
        check(program, input_words(program, random_batch(rng, program, 1, str(rng.choice(MODES)))), 1)


@pytest.mark.parametrize("block", spec.BLOCK_SIZES)
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("width", [8, 12, 16])
def test_every_block_size(block, gather, width):
    rng = np.random.default_rng([block, gather, width])
    program = random_network(
        rng, width=width, kinds=["gather" if gather else "circulant"], shape=(3, 4, 3 if gather else 20), block=block
    )
    check(program, input_words(program, random_batch(rng, program, 1, "uniform")), 1)


@pytest.mark.parametrize("width", [8, 9, 12, 16])
def test_sequences(width):
    rng = np.random.default_rng(width)
    for storage in ("int16", "uint8")[: 1 + (width > 8)]:
        program = random_network(rng, width=width, kinds=["circulant"], sequence=True, storage=storage)
        x = random_batch(rng, program, 6, "uniform")
        words = input_words(program, x, np.array([1, 0, 0, 1, 0, 1], bool)).reshape(6, -1)
        words[1:5, 0] |= np.uint64(1 << 32 | 2)  # only bit 0 of a control beat has a meaning
        check(program, words.ravel(), 6, runs=2)
        words[:, 0] &= ~np.uint64(1)  # goes on where the run before ended
        core = oracle.Core(program.image, program.width)
        engines = [create_engine(name, spec.CoreConfig(width=width)) for name in ENGINES]
        for beats in (input_words(program, x), words.ravel()):
            expected = core.run(6, beats)
            for engine in engines:
                if engine.image is None:
                    engine.load(program.image)
                if beats is words or engine.name == "hls":
                    np.testing.assert_array_equal(engine.run(6, beats), expected)


@pytest.mark.parametrize("activation", [spec.Activation.SIGMOID, spec.Activation.TANH])
@pytest.mark.parametrize("width", spec.WIDTHS)
def test_curves(width, activation):
    v = np.unique(np.r_[np.random.default_rng(0).integers(-(9 << width), 9 << width, 3000), -(8 << width), 8 << width])
    expected = [oracle.curve(int(n), width, activation == spec.Activation.TANH) for n in v]
    np.testing.assert_array_equal(golden.activate(v, activation, width), expected)


@pytest.mark.parametrize(
    "program",
    [mlp(), mlp(width=9, u8=True), split_mlp(), convolution(), convolution(channels_first=True), recurrent(),
     recurrent(segments=2), recurrent(u8=True)],
    ids=lambda p: f"{p.name}{len(p.segments)}{p.input.storage}",
)  # fmt: skip
def test_programs(program):
    x = program.input.quantise(samples(program, 3), program.width)
    starts = np.array([True, False, True]) if program.sequence else None
    np.testing.assert_array_equal(oracle.run_program(program, x, starts), golden.run(program, x, starts=starts))


def test_compiled_networks():
    compared = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        network, lowered, whole = dags.random_case(rng, 5)
        x = dags.inputs(rng, whole, 1)
        expected = oracle.run_program(whole, x)
        np.testing.assert_array_equal(golden.run(whole, x), expected)
        try:
            small = dags.program(network, lowered, dags.tight(rng, whole))
        except CompileError:
            continue
        np.testing.assert_array_equal(oracle.run_program(small, x), expected)
        compared += len(small.segments) > 1
    assert compared >= 5


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("gather", [False, True])
def test_channels_behind_those_of_the_source_do_not_count(k, gather):
    """A layer that reads 3 of 12 channels, with weights that would not let the others pass unnoticed."""
    if gather and k == 1:
        pytest.skip("gather takes k >= 4")
    rng = np.random.default_rng(k)
    x = Map(height=3, width=3, channels=4)
    wide = Map(height=3, width=3, channels=12, base=x.end)
    some = replace(wide, channels=3)
    y = Map(height=3, width=3, channels=6, base=wide.end)
    first = layer(rng, x, wide, k=4)
    second = layer(rng, some, y, k=k, gather=gather, taps=(3, 3), padding=(1, 1), acc_shift=9)
    port, out = Port(shape=(3, 3, 4), frac=0, pixels=9), Port(shape=(3, 3, 6), frac=0, pixels=9)
    program = Program.chain(name="some", width=12, input=port, output=out, layers=(first, second))
    check(program, input_words(program, random_batch(rng, program, 2, "uniform")), 2)


def test_nothing_stale_travels_with_an_image():
    """Buffers are used again: the elements beyond a pixel's channels, and half of the last beat, are made zero."""
    x = Map(height=3, width=1, channels=3)
    la = layer(np.random.default_rng(0), x, Map(channels=2, base=x.end), k=8, gather=True, taps=(3, 1))
    program = Program.chain(
        name="odd", width=12, input=Port(shape=(3, 1, 3), frac=0, storage="uint8", pixels=3),
        output=Port(shape=(2,), frac=0), layers=(la,),
    )  # fmt: skip
    elements = np.full((2, 16), 9, np.uint8)
    transfer.pack(program, program.segments[0], {"input": np.ones((2, 3, 3), np.uint8)}, elements)
    assert elements.tolist() == 2 * [3 * [1, 1, 1, 0] + 4 * [0]]
