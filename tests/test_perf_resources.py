# SPDX-License-Identifier: BSD-3-Clause
"""Resource model: numbers worked out by hand, counts taken from the golden model, and what must never decrease."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circ_overlay import spec
from circ_overlay.golden import transform
from circ_overlay.perf.parts import PARTS, Part
from circ_overlay.perf.resources import (
    Resources,
    brams,
    core_resources,
    multiplier_dsps,
    rotations,
    rotators,
    shared_rotators,
    total_resources,
    utilisation,
)

DEFAULT = spec.CoreConfig()
SMALL = replace(DEFAULT, lanes=48, weight_words=65536)


def counted(monkeypatch, direction, k):
    """Rotations of one block by other than 1 and -i (or i), as the golden model does them."""
    total = 0
    real = transform._rotate

    def rotate(re, im, w_re, w_im, shift):
        nonlocal total
        one = 1 << spec.TWIDDLE_FRAC_BITS
        plain = (np.abs(w_re) == one) | (np.abs(w_im) == one)
        total += int(np.broadcast_to(~plain, np.shape(re)).sum())
        return real(re, im, w_re, w_im, shift)

    monkeypatch.setattr(transform, "_rotate", rotate)
    if direction == "forward":
        transform.forward_transform(np.ones(k, np.int64))
    else:
        transform.inverse_transform(np.ones((k // 2, 2), np.int64))
    return total


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
def test_rotations_are_those_of_the_golden_model(monkeypatch, direction, k):
    assert sum(rotations(k)) == counted(monkeypatch, direction, k)


def test_rotations_by_hand():
    # k = 16: 3 of 4 differences; then 1 of the next split's 2, the transform of 4 words has only 1 and -i.
    assert rotations(16) == (3, 1, 0)
    # k = 32: 7; then 3 and half of 8 words rotated without n = 0 and n = 2, 4 - 2.
    assert rotations(32) == (7, 5, 1, 0)
    assert sum(rotations(128)) == 103


def test_rotators_by_hand():
    # F = 4, k = 128: a block takes 32 cycles, every level at most 31 rotations: one rotator each of five levels.
    assert rotators(4) == 5
    # F = 8: 31, 15, 7, 3 of 16, 8, 4, 2 cycles need two each; the level of k = 8 has 1 a cycle.
    assert rotators(8) == 9
    assert shared_rotators(4) == 4  # 103 / 32, rounded up
    for n in range(8):
        assert shared_rotators(1 << n) <= rotators(1 << n)


def test_multipliers():
    assert multiplier_dsps(25, 18) == multiplier_dsps(18, 25) == 1
    assert multiplier_dsps(26, 18) == 2
    assert multiplier_dsps(20, 20) == 2
    assert multiplier_dsps(32, 32) == 4
    assert multiplier_dsps(8, 8) == 1


@pytest.mark.parametrize("width", spec.WIDTHS)
def test_a_lane_and_a_rotator_take_three_dsps_at_every_width(width):
    core = core_resources(replace(DEFAULT, width=width))
    assert core["lanes"].dsp == 3 * 52
    assert core["forward"].dsp == core["inverse"].dsp == 15


def test_block_rams_by_hand():
    assert brams(72, 512) == brams(36, 1024) == brams(18, 2048) == 1
    assert brams(36, 512) == 0.5
    assert brams(24, 512) == 0.5
    assert brams(73, 512) == 1.5
    assert brams(1, 32769) == 1.5
    assert brams(0, 100) == brams(12, 0) == 0
    # 52 lanes of 24 bits, 1536 words of each: 17.5 columns of three.
    assert core_resources(DEFAULT)["weights"].bram == 52.5
    # Four elements of 12 bits, 32768 words: 48 columns of one bit, or three of 18 bits by 16.
    assert core_resources(DEFAULT)["maps"].bram == 48
    assert core_resources(SMALL)["weights"].bram == core_resources(replace(SMALL, weight_words=73728))["weights"].bram


def test_totals_of_the_default_core():
    total = total_resources(DEFAULT)
    assert total.dsp == 3 * 52 + 2 * 15 + 3 * 4 == 198
    assert total.bram == 52.5 + 48 + 8.5 + 6.5 + 1 + 3 == 119.5
    assert sum(core_resources(DEFAULT).values(), Resources(dsp=0, bram=0, lut=0, ff=0)) == total
    without = replace(DEFAULT, capability=int(spec.Capability.CIRCULANT))
    assert total_resources(without).dsp == 198 - 8


def test_the_default_core_on_the_boards_part():
    use = utilisation(total_resources(DEFAULT), PARTS["xc7z020"])
    assert use["dsp"] == pytest.approx(1)
    assert use["bram"] < 1
    assert use["lut"] < 1
    assert max(utilisation(total_resources(DEFAULT), PARTS["xc7z020"], usable=1.0).values()) < 1
    assert max(utilisation(total_resources(SMALL), PARTS["xc7z020"]).values()) < 1


def test_parts():
    assert PARTS["xc7z020"] == Part(
        title="Pynq-Z1, Pynq-Z2", dsp=220, bram=140, lut=53200, ff=106400, source="DS190"
    )
    assert {part.source for part in PARTS.values()} == {"DS180", "DS190", "DS890", "DS891"}
    json.dumps({name: vars(part) for name, part in PARTS.items()})


configs = st.builds(
    spec.CoreConfig,
    width=st.sampled_from(spec.WIDTHS),
    lanes=st.integers(1, 254),
    samples=st.sampled_from([1 << n for n in range(7)]),
    weight_words=st.integers(1, 1 << 20),
    map_elements=st.integers(1, 1 << 20),
    spectra_words=st.integers(1, 1 << 16),
)


@given(config=configs)
def test_more_parallelism_never_takes_less(config):
    base = total_resources(config)
    for more in (replace(config, lanes=config.lanes + 1), replace(config, samples=2 * config.samples)):
        other = total_resources(more)
        assert other.dsp > base.dsp
        assert other.lut > base.lut
        assert other.ff > base.ff


memories = st.sampled_from(["weight_words", "map_elements", "spectra_words"])


@given(config=configs, name=memories, n=st.integers(1, 1 << 20))
def test_more_memory_never_takes_less(config, name, n):
    more = replace(config, **{name: getattr(config, name) + n})
    assert total_resources(more).bram >= total_resources(config).bram
    assert total_resources(more).dsp == total_resources(config).dsp


@given(bits=st.integers(1, 2000), words=st.integers(1, 1 << 17))
def test_block_rams_hold_the_bits(bits, words):
    assert brams(bits, words) * 36 * 1024 >= bits * words
    assert brams(bits, words) <= brams(bits + 1, words)
    assert brams(bits, words) <= brams(bits, words + 1)
