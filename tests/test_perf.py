# SPDX-License-Identifier: BSD-3-Clause
"""The cycle model against numbers worked out by hand."""

import builders
import numpy as np
import pytest

from circ_overlay import spec
from circ_overlay.image import instructions
from circ_overlay.perf.cycles import layer_cycles, layer_stages, load_cycles, model, run_cycles, segment_plan
from circ_overlay.program import Map

CONFIG = spec.CoreConfig(lanes=10, samples=4)
RNG = np.random.default_rng(0)


def stages(source, target, config=CONFIG, **fields):
    layer = builders.layer(RNG, source, target, **fields)
    return tuple(layer_stages(config, layer.instruction(12)).values())


@pytest.mark.parametrize(
    ("source", "target", "fields", "forward", "mac", "inverse", "fill"),
    [
        # 2 x 3 blocks of 8: 24 elements in, 6 blocks of 4 words, 16 elements out; two transforms of 8 fill.
        ((1, 1, 20), (1, 1, 10), {"k": 8}, 6, 3, 4, 32 + 4),
        # 36 pixels of 2 blocks of 4; 16 results of 3 x (9 x 2) blocks of 2 words = 108 words, 11 cycles of 10 lanes.
        ((6, 6, 7), (4, 4, 9), {"k": 4, "taps": (3, 3)}, 36 * 8 // 4, 16 * 11, 16 * 12 // 4, 34),
        # The same with pooling: 4 results out, 16 computed.
        ((6, 6, 7), (2, 2, 9), {"k": 4, "taps": (3, 3), "pool": (2, 2)}, 72, 176, 48, 34),
        # Windows of 27 elements, 4 blocks of 8 or 8 cycles; fewer than the 9 cycles that reading its pixels takes.
        ((6, 6, 3), (4, 4, 8), {"k": 8, "taps": (3, 3), "gather": True}, 16 * 9, 16 * 2, 16 * 8 // 4, 36),
        # 5 x 5 x 4 = 100 elements, 2 blocks of 64: 32 cycles, more than the window's 25 pixels.
        ((5, 5, 4), (1, 1, 8), {"k": 64, "taps": (5, 5), "gather": True}, 32, 7, 16, 32 + 32),
        # k = 1: 16 pixels of 2 map words; 16 results of 5 x 2 x 2 words; 80 elements out.
        ((4, 4, 7), (4, 4, 5), {}, 32, 16 * 2, 20, 34),
        ((8, 8, 5), (4, 4, 5), {"opcode": spec.Opcode.MAX, "taps": (2, 2), "stride": (2, 2)}, 16 * 8, 0, 0, 34),
        ((4, 4, 6), (1, 1, 6), {"opcode": spec.Opcode.SUM, "taps": (4, 4)}, 32, 0, 0, 34),
    ],
)
def test_stages_of_a_layer(source, target, fields, forward, mac, inverse, fill):
    def make(shape):
        return Map(height=shape[0], width=shape[1], channels=shape[2])

    source = make(source)
    target = Map(**{**vars(make(target)), "base": source.end})
    assert stages(source, target, **fields) == (forward, mac, inverse, fill)


def test_products_and_residuals_cost_one_pass():
    a, b, c = builders.vectors(10, 10, 10)
    assert stages(a, b, opcode=spec.Opcode.PRODUCT, factor=c, residual=b) == (3, 0, 0, 34)
    assert stages(a, b, opcode=spec.Opcode.PRODUCT, factor=c) == (3, 0, 0, 34)
    plain, added = (builders.layer(RNG, a, b, k=4, **extra) for extra in ({}, {"residual": c}))
    assert layer_cycles(CONFIG, plain.instruction(12)) == layer_cycles(CONFIG, added.instruction(12))


def test_lanes_and_samples_bind_where_they_should():
    a, b = builders.vectors(64, 64)
    assert stages(a, b, spec.CoreConfig(lanes=1, samples=64), k=8) == (1, 256, 1, 34)
    assert stages(a, b, spec.CoreConfig(lanes=255, samples=1), k=8) == (64, 2, 64, 48)


def test_a_run_is_its_layers_unless_the_streams_are_slower():
    (segment,) = builders.mlp().segments
    code = instructions(segment, 12)
    layers = [layer_cycles(CONFIG, i) for i in code]
    # 2 x 4 blocks of 16: 32 in, 64 words on 10 lanes, 64 out -> 16 + 40. And so on.
    assert layers == [16 + 40, 14 + 36, 5 + 34]
    assert model(CONFIG, code, 7, 8, 2) == (7 * 145 + 10, [7 * n for n in layers])
    assert model(CONFIG, code, 7, 1000, 2)[0] == 7 * 1000 + 1002
    assert model(CONFIG, code, 7, 8, 900)[0] == 7 * 900 + 908
    assert run_cycles(145, 7, 8, 2) == 7 * 145 + 10


def test_segments_are_loaded_and_run():
    program = builders.split_mlp()
    plan = segment_plan(CONFIG, program, 5)
    assert [p.load for p in plan] == [load_cycles(len(image)) for image in program.images]
    assert [len(p.layers) for p in plan] == [1, 2, 2]
    first = program.segments[0]
    # 30 of 32 elements in, 5 x 4 blocks of 4 words on 10 lanes, 40 out: 10 cycles and the fill of k = 8; 8 words
    # of header, 8 an instruction, 40 affine entries and 80 weights in pairs.
    assert plan[0] == (8 + 8 + 40 + 40, 5 * (10 + 36) + first.in_beats + first.out_beats, [5 * 46])
    assert (first.in_beats, first.out_beats) == (8, 10)


def test_sequences_count_their_control_beat():
    (segment,) = builders.recurrent().segments
    assert segment.in_beats == 1 + 2
    (plan,) = segment_plan(CONFIG, builders.recurrent(), 3)
    assert plan.run == sum(plan.layers) + 3 + 1
