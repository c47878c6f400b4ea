# SPDX-License-Identifier: BSD-3-Clause
"""The C++ engine against the golden one: same bits, same refusals, through the Engine interface."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import (
    SEEDS,
    batches,
    impulse,
    input_words,
    output_values,
    programs,
    random_batch,
    random_program,
    resonant_program,
)

from circ_overlay import golden, spec
from circ_overlay.engines import create_engine, hls
from circ_overlay.errors import EngineUnavailableError
from circ_overlay.fixedpoint import limits, round_shift, saturate
from circ_overlay.program import Layer, Port, Program

needs_engine = pytest.mark.skipif(not hls.available(), reason="the C++ engine is not built for this specification")
WORDS = st.integers(0, 2**64 - 1)


def both(words: NDArray[np.uint64], config: spec.CoreConfig) -> tuple[Any, Any, spec.Status]:
    """Golden and C++ engine after a load on which they agreed."""
    engines = [create_engine(name, config) for name in ("golden", "hls")]
    statuses = [engine.load(words) for engine in engines]
    assert statuses[0] == statuses[1]
    return engines[0], engines[1], statuses[0]


def assert_same_bits(program: Program, x: NDArray[Any]) -> None:
    reference, engine, status = both(program.image, spec.CoreConfig(width=program.width))
    assert status == spec.Status.OK
    words = input_words(program, x)
    got = engine.run(len(x), words)
    np.testing.assert_array_equal(got, reference.run(len(x), words))
    np.testing.assert_array_equal(output_values(program, got), golden.run(program, x))


@needs_engine
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_same_bits(data: st.DataObject) -> None:
    program = data.draw(programs())
    assert_same_bits(program, data.draw(batches(program)))


@needs_engine
@pytest.mark.parametrize("width", spec.WIDTHS)
@pytest.mark.parametrize("block", spec.BLOCK_SIZES)
def test_extremes(width: int, block: int) -> None:
    """Every number at an end of its range: the largest sums that there are, and each activation behind them."""
    for seed, activation in enumerate(spec.Activation):
        rng = np.random.default_rng([seed, width, block])
        program = random_program(
            rng, width=width, features=(2 * block + 1, block + 1), blocks=(block,), activations=(activation,),
            modes=("extreme",), live=bool(seed % 2),
        )  # fmt: skip
        assert_same_bits(program, random_batch(rng, program, 17, "extreme"))


@needs_engine
@pytest.mark.parametrize("block", spec.BLOCK_SIZES)
def test_largest_accumulators(block: int) -> None:
    """Full-scale weights and inputs of equal sign over many blocks: the sums that narrow accumulators lose."""
    for width in (8, 12, 16):
        base = random_program(
            np.random.default_rng(width), width=width, features=(40 * block, 2 * block), blocks=(block,),
            activations=(spec.Activation.IDENTITY,), modes=("uniform",),
        )  # fmt: skip
        for weight in (-(1 << (width - 1)), (1 << (width - 1)) - 1):
            full = replace(base.layers[0], weights=np.full_like(base.layers[0].weights, weight))
            program = replace(base, layers=(full,))
            for value in (-(1 << (width - 1)), (1 << (width - 1)) - 1):
                assert_same_bits(program, np.full((3, 40 * block), value, "<i2"))


@needs_engine
@pytest.mark.parametrize("width", spec.WIDTHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_inverse_transform_saturates(width: int, sign: int) -> None:
    low, high = limits(spec.TIME_BITS)
    seen = set()
    for place in (0, 1, 37, 64, 90, 127):
        program = resonant_program(width, place, sign)
        x = impulse(program)
        assert_same_bits(program, x)
        layer = program.layers[0]
        spectra = golden.forward_transform(x.reshape(2, -1, layer.block_size).astype(np.int64))
        sums = golden.spectral_product(layer.weights.astype(np.int64), spectra)
        y = golden.inverse_transform(saturate(round_shift(sums, layer.acc_shift), spec.SUM_BITS))
        seen |= set(y[..., place].ravel().tolist())
    assert {low, high} <= seen


@needs_engine
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_batches_of_any_size(batch: int) -> None:
    """Images do not meet, whatever the tile: an image's outputs do not depend on its neighbours."""
    rng = np.random.default_rng(batch)
    program = random_program(
        rng, width=12, features=(50, 33, 9), blocks=(16, 8),
        activations=(spec.Activation.RELU, spec.Activation.TANH), modes=("bell", "uniform"), storage="uint8",
    )  # fmt: skip
    x = random_batch(rng, program, batch, "uniform")
    assert_same_bits(program, x)
    engine = create_engine("hls", spec.CoreConfig(width=12))
    engine.load(program.image)
    together = output_values(program, engine.run(batch, input_words(program, x)))
    for n in {0, batch // 2, batch - 1}:
        alone = output_values(program, engine.run(1, input_words(program, x[n : n + 1])))
        np.testing.assert_array_equal(alone[0], together[n])


@needs_engine
@settings(max_examples=30, deadline=None)
@given(programs(max_features=60, storages=("int16",)), SEEDS)
def test_inputs_beyond_the_width(program: Program, seed: int) -> None:
    """int16 elements that the program's width cannot hold mean what they mean to the golden model."""
    shape = (5, program.input.features)
    assert_same_bits(program, np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, shape, np.int16))


FIELDS = {f.name: f for f in spec.INSTRUCTION_FIELDS}


@st.composite
def damaged_images(draw: st.DrawFn) -> tuple[NDArray[np.uint64], spec.CoreConfig]:
    """An image with some damage, and a core with room for it or not."""
    program = draw(programs(max_features=40, max_layers=3))
    words = program.image.copy()
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["bit", "word", "header", "field", "cut", "extend"]))
        at = draw(st.integers(0, len(words) - 1))
        if kind == "bit":
            words[min(at, draw(st.sampled_from([8, 1 << 20])))] ^= np.uint64(1 << draw(st.integers(0, 63)))
        elif kind == "word":
            words[at] = draw(WORDS)
        elif kind == "header" and len(words) >= spec.HEADER_WORDS:
            n, half = draw(st.integers(0, 3)), draw(st.booleans())
            value = draw(st.one_of(st.integers(0, 70), st.integers(0, 2**32 - 1)))
            word = int(words[n])
            words[n] = word & ~(0xFFFFFFFF << 32 * half) | value << 32 * half
        elif kind == "field":
            f = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
            first = spec.HEADER_WORDS + draw(st.integers(0, 2)) * spec.INSTRUCTION_WORDS + f.lsb // 64
            if first < len(words):
                top = (1 << f.width) - 1
                value = draw(st.one_of(st.integers(0, min(top, 300)), st.integers(0, top)))
                words[first] = int(words[first]) & ~(top << f.lsb % 64) | value << f.lsb % 64
        elif kind == "cut":
            words = words[:at]
        else:
            words = np.append(words, np.array(draw(st.lists(WORDS, max_size=9)), np.uint64))
        if not len(words):
            break
    config = spec.CoreConfig(
        width=draw(st.sampled_from([program.width] * 9 + [8, 12])),
        weight_words=draw(st.sampled_from([65536, 65536, 200])),
        map_elements=draw(st.sampled_from([8192, 8192, 40])),
        affine_channels=draw(st.sampled_from([4096, 4096, 30])),
        instructions=draw(st.sampled_from([64, 64, 2])),
    )
    return words, config


@needs_engine
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged_images(), SEEDS)
def test_refuses_like_the_reference(case: tuple[NDArray[np.uint64], spec.CoreConfig], seed: int) -> None:
    words, config = case
    reference, engine, status = both(words, config)
    if status != spec.Status.OK:
        assert engine.image is None
        with pytest.raises(RuntimeError, match="no program"):
            engine.run(1, np.zeros(1, np.uint64))
        return
    # Damage that is still a program, weights beyond the width and all, must compute the same.
    code = engine.image.instructions
    beats = spec.beats(code[0].in_features, 1 if code[0].flags & spec.LayerFlag.INPUT_U8 else 2)
    x = np.random.default_rng(seed).integers(0, 1 << 64, 3 * beats, np.uint64)
    np.testing.assert_array_equal(engine.run(3, x), reference.run(3, x))


def small_program(width: int = 12, storage: str = "int16") -> Program:
    return random_program(
        np.random.default_rng(5), width=width, features=(9, 13, 6), blocks=(4, 8),
        activations=(spec.Activation.RELU, spec.Activation.TANH), modes=("bell", "bell"), storage=storage,
    )  # fmt: skip


@needs_engine
@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("index", [0, 1])
def test_every_field_at_its_limits(name: str, index: int) -> None:
    """Each field of each instruction one step around every value that anything compares it with."""
    f, program = FIELDS[name], small_program()
    first = spec.HEADER_WORDS + index * spec.INSTRUCTION_WORDS + f.lsb // 64
    top = (1 << f.width) - 1
    old = int(program.image[first]) >> f.lsb % 64 & top
    near = {0, 1, 2, 3, 4, 7, 8, 40, 41, 128, 8192, 8193, old, top, *(1 << n for n in range(f.width))}
    seen = set()
    for value in sorted(v + d for v in near for d in (-1, 0, 1) if 0 <= v + d <= top):
        words = program.image.copy()
        words[first] = int(words[first]) & ~(top << f.lsb % 64) | value << f.lsb % 64
        *_, status = both(words, spec.CoreConfig(width=12))
        seen.add(status)
    assert spec.Status.OK in seen
    assert spec.Status.BAD_INSTRUCTION in seen


@needs_engine
@pytest.mark.parametrize("table", ["channels", "weights"])
@pytest.mark.parametrize("less", [-2, -1, 0, 1, 2, 3, 4])
def test_tables_one_entry_short(table: str, less: int) -> None:
    """A packet as long as its header says, but with tables that the instructions reach beyond."""
    words = small_program().image
    channels, weights = int(words[2]) & 0xFFFFFFFF, int(words[1]) >> 32
    at_weights = spec.HEADER_WORDS + 2 * spec.INSTRUCTION_WORDS + channels
    if table == "channels":
        words = np.concatenate([words[: at_weights - max(less, 0)], *[words[:1]] * -less, words[at_weights:]])
        words[2] = int(words[2]) - less
    else:
        length = at_weights + -(-(weights - less) // 2)
        words = np.resize(words, length)
        words[1] = int(words[1]) - (less << 32)
    *_, status = both(words, spec.CoreConfig(width=12))
    assert status == (spec.Status.BAD_INSTRUCTION if less > 0 else spec.Status.OK)


@needs_engine
def test_capacities_at_their_limits() -> None:
    program = small_program()
    weight_words = int(program.image[1]) >> 32
    need = {"weight_words": weight_words, "affine_channels": 19, "instructions": 2, "map_elements": 16}
    for name, value in need.items():
        *_, status = both(program.image, spec.CoreConfig(**{"width": 12, **need}))
        assert status == spec.Status.OK
        *_, status = both(program.image, spec.CoreConfig(**{"width": 12, **need, name: value - 1}))
        assert status == spec.Status.TOO_LARGE


@needs_engine
def test_program_survives_only_a_good_load() -> None:
    program = random_program(
        np.random.default_rng(0), width=12, features=(9, 5), blocks=(4,),
        activations=(spec.Activation.IDENTITY,), modes=("bell",),
    )  # fmt: skip
    engine = create_engine("hls", spec.CoreConfig(width=12))
    assert engine.load(program.image) == spec.Status.OK
    assert engine.image is not None
    assert engine.image.program_id == program.program_id
    assert engine.load(program.image[:-1]) == spec.Status.BAD_LENGTH
    assert engine.image is None
    assert engine.load(np.zeros(0, np.uint64)) == spec.Status.BAD_LENGTH
    assert engine.load(program.image) == spec.Status.OK
    engine.reset()
    assert engine.image is None
    with pytest.raises(RuntimeError, match="no program"):
        engine.run(1, np.zeros(3, np.uint64))


@needs_engine
def test_run_checks_its_arguments() -> None:
    program = random_program(
        np.random.default_rng(0), width=12, features=(9, 5), blocks=(4,),
        activations=(spec.Activation.IDENTITY,), modes=("bell",),
    )  # fmt: skip
    engine = create_engine("hls", spec.CoreConfig(width=12))
    engine.load(program.image)
    with pytest.raises(ValueError, match="4 words for 2 images of 3: 6 are needed"):
        engine.run(2, np.zeros(4, np.uint64))
    with pytest.raises(ValueError, match=r"batch=0: allowed are 1\.\.4294967295"):
        engine.run(0, np.zeros(0, np.uint64))
    # A view with a stride is copied, not misread.
    x = random_batch(np.random.default_rng(1), program, 4, "uniform")
    words = input_words(program, x)
    spread = np.zeros(2 * words.size, np.uint64)
    spread[::2] = words
    np.testing.assert_array_equal(engine.run(4, spread[::2]), engine.run(4, words))


@needs_engine
def test_engines_in_threads() -> None:
    """One engine per thread; the library shares nothing between them."""

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        program = random_program(
            rng, width=8 + seed % 9, features=(64, 48, 10), blocks=(16, 8),
            activations=(spec.Activation.RELU, spec.Activation.SIGMOID), modes=("bell", "bell"),
        )  # fmt: skip
        for _ in range(5):
            assert_same_bits(program, random_batch(rng, program, 20, "uniform"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))


def test_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hls, "library_path", lambda: None)
    hls._library.cache_clear()
    try:
        assert not hls.available()
        with pytest.raises(EngineUnavailableError, match="install a C\\+\\+17 compiler.*engine 'golden'"):
            create_engine("hls")
        broken = tmp_path / "_hls.so"
        broken.write_bytes(b"no library")
        monkeypatch.setattr(hls, "library_path", lambda: broken)
        with pytest.raises(EngineUnavailableError, match="cannot be loaded"):
            create_engine("hls")
    finally:
        hls._library.cache_clear()


@needs_engine
def test_refuses_a_library_for_another_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "SPEC_HASH", "0" * 64)
    hls._library.cache_clear()
    try:
        with pytest.raises(EngineUnavailableError, match="built for specification .*this package has 00000000"):
            create_engine("hls")
    finally:
        hls._library.cache_clear()


@needs_engine
def test_abi_refuses_short_buffers() -> None:
    """The C interface checks lengths itself; -2 is its answer, and nothing is touched."""
    program = random_program(
        np.random.default_rng(0), width=12, features=(9, 5), blocks=(4,),
        activations=(spec.Activation.IDENTITY,), modes=("bell",),
    )  # fmt: skip
    engine = hls.HlsEngine(spec.CoreConfig(width=12))
    engine.load(program.image)
    words = np.zeros(6, np.uint64)
    library = ctypes.CDLL(str(hls.library_path()))
    library.circ_run.argtypes = [ctypes.c_void_p, ctypes.c_uint32] + [ctypes.c_void_p, ctypes.c_uint64] * 2
    arguments = (engine._handle, 2, words.ctypes.data)
    assert library.circ_run(*arguments, 5, words.ctypes.data, 6) == -2
    assert library.circ_run(*arguments, 6, words.ctypes.data, 3) == -2
    assert library.circ_create(7, 1, 1, 1, 1) == 0


def wide_program(width: int, inputs: int, outputs: int, k: int, value: int) -> Program:
    """One layer whose every weight is `value`."""
    grid = (-(-outputs // k), -(-inputs // k), k // 2, 2)
    layer = Layer(
        in_features=inputs, out_features=outputs, weights=np.full(grid, value, np.int16),
        scale=np.full(outputs, 1000, np.int32), bias=np.zeros(outputs, np.int64), acc_shift=29, affine_shift=10,
        activation=spec.Activation.IDENTITY, out_frac=0,
    )  # fmt: skip
    return Program(
        name="wide", width=width, input=Port(shape=(inputs,), frac=0), output=Port(shape=(outputs,), frac=0),
        layers=(layer,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "outputs", "k"), [(1400, 13, 4), (65535, 5, 4), (65535, 130, 128)], ids=str
)
def test_many_input_blocks_at_their_extremes(inputs: int, outputs: int, k: int) -> None:
    """Over 256 input blocks; and the most inputs there can be, whose sums need all 48 bits."""
    program = wide_program(16, inputs, outputs, k, -32768)
    config = spec.CoreConfig(width=16, map_elements=65536, weight_words=1 << 20)
    rng = np.random.default_rng(0)
    x = np.stack([np.full(inputs, -32768), rng.choice([-32768, 32767], inputs), rng.integers(-32768, 32768, inputs)])
    answers = []
    for name in ("golden", "hls"):
        engine = create_engine(name, config)
        assert engine.load(program.image) == spec.Status.OK
        answers.append(engine.run(len(x), input_words(program, x.astype("<i2"))))
    np.testing.assert_array_equal(*answers)
