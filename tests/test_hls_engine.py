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
    KINDS,
    MODES,
    SEEDS,
    batches,
    impulse,
    input_words,
    networks,
    output_values,
    programs,
    random_batch,
    random_network,
    random_program,
    random_starts,
    resonant_program,
    vector_layer,
)

from circ_overlay import golden, image, spec
from circ_overlay.engines import create_engine, hls
from circ_overlay.errors import EngineUnavailableError
from circ_overlay.fixedpoint import limits, round_shift, saturate
from circ_overlay.program import Port, Program

needs_engine = pytest.mark.skipif(not hls.available(), reason="the C++ engine is not built for this specification")
WORDS = st.integers(0, 2**64 - 1)


def both(words: NDArray[np.uint64], config: spec.CoreConfig) -> tuple[Any, Any, spec.Status]:
    """Golden and C++ engine after a load on which they agreed."""
    engines = [create_engine(name, config) for name in ("golden", "hls")]
    statuses = [engine.load(words) for engine in engines]
    assert statuses[0] == statuses[1]
    return engines[0], engines[1], statuses[0]


ROOMY = {"weight_words": 1 << 20, "map_elements": 1 << 20, "affine_channels": 1 << 16, "spectra_words": 1 << 20}


def assert_same_bits(program: Program, x: NDArray[Any], starts: NDArray[np.bool_] | None = None) -> None:
    engine = create_engine("hls", spec.CoreConfig(width=program.width, **ROOMY))
    assert engine.load(program.image) == spec.Status.OK
    words = input_words(program, x, starts)
    want = golden.run(program, x, starts=starts)
    for _ in range(2):  # the second run meets the first one's maps
        np.testing.assert_array_equal(output_values(program, engine.run(len(x), words)), want)


@needs_engine
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_same_bits_of_fully_connected_programs(data: st.DataObject) -> None:
    program = data.draw(programs())
    assert_same_bits(program, data.draw(batches(program)))


@needs_engine
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_same_bits_of_networks(data: st.DataObject) -> None:
    program = data.draw(networks())
    x = data.draw(batches(program, max_batch=20))
    starts = random_starts(np.random.default_rng(data.draw(SEEDS)), len(x)) if program.sequence else None
    assert_same_bits(program, x, starts)


@needs_engine
@pytest.mark.parametrize("block", [1, *spec.BLOCK_SIZES])
@pytest.mark.parametrize("mode", MODES)
def test_convolutions(block: int, mode: str) -> None:
    """Each block size over maps from a pixel to more than the lanes of a vector, at each batch size of interest."""
    rng = np.random.default_rng([block, MODES.index(mode)])
    for shape in ((1, 1, 3), (2, 2, 40), (3, 7, 5), (8, 8, 4), (5, 21, 12), (17, 18, 2)):
        for kind in ("dense",) if block == 1 else ("circulant", "gather"):
            width = int(rng.integers(8, 17))
            program = random_network(rng, width=width, kinds=(kind,), shape=shape, mode=mode, block=block)
            for batch in (1, 3, 18):
                assert_same_bits(program, random_batch(rng, program, batch, mode))


@needs_engine
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_every_width(kind: str) -> None:
    for width in spec.WIDTHS:
        rng = np.random.default_rng([width, KINDS.index(kind)])
        for storage in ("int16", "uint8") if width > spec.U8_BITS else ("int16",):
            program = random_network(rng, width=width, kinds=("circulant", kind, kind), storage=storage)
            assert_same_bits(program, random_batch(rng, program, 3, "uniform"))
            sequence = random_network(rng, width=width, kinds=(kind,), storage=storage, sequence=True)
            assert_same_bits(sequence, random_batch(rng, sequence, 9, "uniform"), random_starts(rng, 9))


@needs_engine
def test_a_sequence_goes_on_in_the_next_run() -> None:
    rng = np.random.default_rng(3)
    program = random_network(rng, width=12, kinds=("circulant",), sequence=True)
    x, starts = random_batch(rng, program, 8, "uniform"), np.arange(8) == 0
    engine = create_engine("hls", spec.CoreConfig(width=12, **ROOMY))
    engine.load(program.image)
    words = input_words(program, x, starts)
    half = len(words) // 2
    parts = [engine.run(4, words[:half]), engine.run(4, words[half:])]
    np.testing.assert_array_equal(output_values(program, np.concatenate(parts)), golden.run(program, x, starts=starts))


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
@pytest.mark.parametrize("block", [1, *spec.BLOCK_SIZES])
def test_largest_accumulators(block: int) -> None:
    """Full-scale weights and inputs of equal sign over many blocks: the sums that narrow accumulators lose."""
    for width in (8, 12, 16):
        base = random_program(
            np.random.default_rng(width), width=width, features=(40 * block, 2 * block), blocks=(block,),
            activations=(spec.Activation.IDENTITY,), modes=("uniform",),
        )  # fmt: skip
        for weight in (-(1 << (width - 1)), (1 << (width - 1)) - 1):
            full = replace(base.layers[0], weights=np.full_like(base.layers[0].weights, weight))
            program = replace(base, segments=(replace(base.segments[0], layers=(full,)),))
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
        sums = golden.reduce(layer, x.reshape(2, 1, 1, -1).astype(np.int64))
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
    program = draw(st.one_of(programs(max_features=40, max_layers=3), networks(max_layers=3)))
    words = program.image.copy()
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["bit", "word", "header", "field", "cut", "extend"]))
        at = draw(st.integers(0, len(words) - 1))
        if kind == "bit":
            words[min(at, draw(st.sampled_from([24, 24, 1 << 20])))] ^= np.uint64(1 << draw(st.integers(0, 63)))
        elif kind == "word":
            words[at] = draw(WORDS)
        elif kind == "header" and len(words) >= spec.HEADER_WORDS:
            n, half = draw(st.integers(0, 7)), draw(st.booleans())
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
        spectra_words=draw(st.sampled_from([8192, 8192, 20])),
    )
    return words, config


@needs_engine
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged_images(), SEEDS)
def test_refuses_like_the_reference(case: tuple[NDArray[np.uint64], spec.CoreConfig], seed: int) -> None:
    words, config = case
    _, engine, status = both(words, config)
    if status != spec.Status.OK:
        assert engine.image is None
        with pytest.raises(RuntimeError, match="no program"):
            engine.run(1, np.zeros(1, np.uint64))
        return
    # Maps may overlap in it, so its outputs mean nothing; it must only stay within its memories.
    if steps(engine.image) < 3e6:
        x = np.random.default_rng(seed).integers(0, 1 << 64, 3 * engine.image.in_beats, np.uint64)
        assert engine.run(3, x).size == 3 * engine.image.out_beats


def steps(program: image.Image) -> int:
    """About how many products an image takes: damage may ask for more than anyone waits for."""
    return sum(
        i.result_height * i.result_width * (i.taps * (i.in_channels + 99)) * i.out_channels
        + 99 * i.in_height * i.in_width * i.in_channels
        for i in program.instructions
    )


def small_program(width: int = 12, storage: str = "int16") -> Program:
    return random_program(
        np.random.default_rng(5), width=width, features=(9, 13, 6), blocks=(4, 8),
        activations=(spec.Activation.RELU, spec.Activation.TANH), modes=("bell", "bell"), storage=storage,
    )  # fmt: skip


def one_of_each() -> Program:
    """A program with all opcodes, a residual and a window in each."""
    return random_network(
        np.random.default_rng(6), width=12, kinds=("gather", "residual", "product", "max", "sum", "circulant"),
        shape=(6, 7, 3), block=4,
    )  # fmt: skip


@needs_engine
@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_at_its_limits(name: str) -> None:
    """Each field of each instruction one step around every value that anything compares it with."""
    f, program = FIELDS[name], one_of_each()
    top = (1 << f.width) - 1
    seen = set()
    reference = spec.CoreConfig(width=12, map_elements=2048, spectra_words=300)
    engine = create_engine("hls", reference)
    for index in range(len(program.layers)):
        first = spec.HEADER_WORDS + index * spec.INSTRUCTION_WORDS + f.lsb // 64
        old = int(program.image[first]) >> f.lsb % 64 & top
        near = {0, 1, 2, 3, 4, 7, 8, 28, 40, 128, 512, 2047, 8192, old, top, *(1 << n for n in range(f.width))}
        for value in sorted({v + d for v in near for d in (-1, 0, 1) if 0 <= v + d <= top}):
            words = program.image.copy()
            words[first] = int(words[first]) & ~(top << f.lsb % 64) | value << f.lsb % 64
            verdict = image.decode(words, reference)
            status = verdict if isinstance(verdict, spec.Status) else spec.Status.OK
            assert engine.load(words) == status
            seen.add(status)
    assert spec.Status.OK in seen
    assert len(seen) > 1 or name in {"pad_top", "pad_left"} or f.name.startswith(("tap", "stride", "pool"))


@needs_engine
@pytest.mark.parametrize("word", range(spec.HEADER_WORDS))
def test_every_bit_of_the_header(word: int) -> None:
    config = spec.CoreConfig(width=12)
    engine = create_engine("hls", config)
    for bit in range(64):
        words = small_program().image.copy()
        words[word] ^= np.uint64(1 << bit)
        verdict = image.decode(words, config)
        assert engine.load(words) == (verdict if isinstance(verdict, spec.Status) else spec.Status.OK)


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
    need = {
        "weight_words": weight_words, "affine_channels": 19, "instructions": 2, "map_elements": 36, "spectra_words": 8
    }  # fmt: skip
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
    assert engine.image.program_id == int(program.image[1]) & 0xFFFFFFFF
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
    assert library.circ_create(7, 1, 1, 1, 1, 1) == 0


def wide_program(width: int, inputs: int, outputs: int, k: int, value: int) -> Program:
    """One layer whose every weight is `value`."""
    blocks = spec.pixel_words(inputs) if k == 1 else -(-inputs // k)
    layer = vector_layer(
        inputs, outputs, k, np.full((-(-outputs // k), blocks, max(2, k // 2), 2), value),
        scale=np.full(outputs, 1000, np.int32), acc_shift=29, affine_shift=10,
    )  # fmt: skip
    return Program.chain(
        name="wide", width=width, input=Port(shape=(inputs,), frac=0), output=Port(shape=(outputs,), frac=0),
        layers=(layer,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "outputs", "k"), [(1400, 13, 4), (65535, 5, 4), (65535, 130, 128), (65535, 3, 1)], ids=str
)
def test_many_input_blocks_at_their_extremes(inputs: int, outputs: int, k: int) -> None:
    """Over 256 input blocks; and the most inputs there can be, whose sums need all 48 bits."""
    program = wide_program(16, inputs, outputs, k, -32768)
    config = spec.CoreConfig(width=16, **ROOMY)
    rng = np.random.default_rng(0)
    x = np.stack([np.full(inputs, -32768), rng.choice([-32768, 32767], inputs), rng.integers(-32768, 32768, inputs)])
    answers = []
    for name in ("golden", "hls"):
        engine = create_engine(name, config)
        assert engine.load(program.image) == spec.Status.OK
        answers.append(engine.run(len(x), input_words(program, x.astype("<i2"))))
    np.testing.assert_array_equal(*answers)
