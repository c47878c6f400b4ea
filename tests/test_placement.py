# SPDX-License-Identifier: BSD-3-Clause
"""Where the compiler puts maps never changes a result: random networks on cores of all sizes."""

import dags
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circ_overlay import golden, spec
from circ_overlay.compiler import CompileError, Conv2d, Network
from circ_overlay.errors import ProgramError
from circ_overlay.program import Layer, Map


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_results_do_not_depend_on_the_size_of_the_core(seed):
    rng = np.random.default_rng(seed)
    network, lowered, whole = dags.random_case(rng, int(rng.integers(2, 8)))
    x = dags.inputs(rng, whole, 3)
    expected = golden.run(whole, x)
    for _ in range(5):
        try:
            small = dags.program(network, lowered, dags.tight(rng, whole))
        except CompileError:
            continue
        assert np.array_equal(golden.run(small, x), expected)



def _conv(rng, source, target, channels, k=4, **fields):
    """8 channels, or `channels`, into 8."""
    return Conv2d(
        rng.normal(size=(8 // k, -(-channels // k), 1, 1, k)) / 4, in_channels=channels, out_channels=8,
        name=target, source=source, **fields,
    )  # fmt: skip


def test_a_sum_moves_onto_no_map_whose_neighbours_are_needed():
    """b would lie on a, and with it d on c, which g still reads."""
    rng = np.random.default_rng(0)
    network = Network(
        layers=(
            _conv(rng, "input", "a", 8), _conv(rng, "input", "c", 8), _conv(rng, ("a", "c"), "e", 16),
            _conv(rng, "e", "b", 8, residual="a"), _conv(rng, "e", "d", 8), _conv(rng, ("b", "d"), "f", 16),
            _conv(rng, "f", "g", 8, residual="c"),
        ),
        input_shape=(4, 4, 8),
    )  # fmt: skip
    lowered = dags.lower(network, rng.normal(size=(4, 4, 4, 8)))
    x = rng.integers(-2048, 2048, (3, 128))
    expected = golden.run(dags.program(network, lowered, dags.HUGE), x)
    fitted = 0
    for words in range(96, 200, 8):
        try:
            program = dags.program(network, lowered, spec.CoreConfig(map_elements=spec.MAP_WORD * words))
        except CompileError:
            continue
        fitted += 1
        assert np.array_equal(golden.run(program, x), expected), words
    assert fitted > 3


def test_a_sum_does_not_overwrite_the_source_of_its_windows():
    rng = np.random.default_rng(0)
    loop = Conv2d(
        rng.normal(size=(2, 2, 3, 3, 4)), in_channels=8, out_channels=8, padding=1, name="b", source="a", residual="a"
    )
    network = Network(
        layers=(_conv(rng, "input", "a", 8), loop, _conv(rng, "b", "c", 8)), input_shape=(4, 4, 8),
    )  # fmt: skip
    lowered = dags.lower(network, rng.normal(size=(4, 4, 4, 8)))
    x = rng.integers(-2048, 2048, (3, 128))
    expected = golden.run(dags.program(network, lowered, dags.HUGE), x)
    program = dags.program(network, lowered, spec.CoreConfig(map_elements=spec.MAP_WORD * 64))
    assert np.array_equal(golden.run(program, x), expected)


def test_words_that_nobody_writes_are_not_read():
    """5 of 16 channels are written; a map word beside them would keep what an earlier map left there."""
    rng = np.random.default_rng(0)
    layers = (
        Conv2d(rng.normal(size=(5, 6, 1, 1)), block_size=1, name="a", source="input"),
        Conv2d(rng.normal(size=(7, 6, 1, 1)), block_size=1, name="b", source="input"),
        Conv2d(rng.normal(size=(1, 2, 1, 1, 16)), in_channels=23, name="c", source=("a", "b")),
    )
    network = Network(layers=layers, input_shape=(3, 3, 6))
    lowered = dags.lower(network, rng.normal(size=(4, 3, 3, 6)))
    with pytest.raises(CompileError, match="'a' of 5 channels is joined with others in blocks of 16"):
        dags.program(network, lowered, dags.HUGE)


def test_overlap_of_interleaved_maps():
    left = Map(height=2, width=2, channels=8, base=0, pitch=5)  # words 0 and 1 of each pixel's 5
    for first, shared in ((0, True), (1, True), (2, False), (3, False), (4, True)):
        other = Map(height=2, width=2, channels=8, base=first, pitch=5)
        assert left.overlaps(other) is other.overlaps(left) is shared
    assert left.overlaps(Map(channels=4, base=2))  # another pitch: by spans alone
    assert not left.overlaps(Map(channels=4, base=left.end))


def test_pooling_in_place_is_refused():
    """Its first result would be written over a pixel that the next one still reads."""
    x = Map(height=2, width=2, channels=4)
    numbers = {"scale": np.ones(4, np.int32), "bias": np.zeros(4, np.int64), "out_frac": 0}
    Layer(opcode=spec.Opcode.SUM, source=x, target=x, **numbers).validate(12)
    with pytest.raises(ProgramError, match="its target overlaps its source"):
        Layer(opcode=spec.Opcode.SUM, source=x, target=x, pool=(2, 2), **numbers).validate(12)
