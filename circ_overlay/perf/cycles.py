# SPDX-License-Identifier: BSD-3-Clause
"""Cycle model of the core: what the emulated board's cycle counters show. Not yet checked against RTL.

Within a layer the forward transform, the multiply-accumulate lanes and the inverse transform are stages of
one pipeline, so the slowest of them sets the pace, and the pipeline fills once per layer and image. Layers
follow one another, and so do the steps of a sequence. Loading the next image and storing the last one overlap
with computing. Residuals and second factors are read through ports of their own and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .. import spec
from ..image import instructions
from ..program import Program

__all__ = ["SegmentCycles", "layer_cycles", "layer_stages", "load_cycles", "model", "run_cycles", "segment_plan"]

FILL_CYCLES = 32
"""Registers between the first sample in and the first result out, besides the transforms' own buffers;
an estimate until the RTL is there to be counted."""


class SegmentCycles(NamedTuple):
    """Modelled cycles of a segment."""

    load: int  # of its program image, once
    run: int  # of the batch
    layers: list[int]  # of each layer, summed over the batch


def layer_stages(config: spec.CoreConfig, i: spec.Instruction) -> dict[str, int]:
    """Cycles that each stage is busy with one image in one layer.

    Parameters
    ----------
    config : build parameters; L = `lanes` complex products a cycle, F = `samples` a cycle and transform.
    i : the layer.

    Returns
    -------
    dict with the keys "forward", "mac", "inverse" and "fill". Where nothing is transformed, "forward" is reading
    the input and "inverse" writing the results, F elements a cycle.
    """
    lanes, samples, k = config.lanes, config.samples, i.block_size
    pixels, results = i.in_height * i.in_width, i.result_height * i.result_width
    mac = inverse = 0
    if i.opcode != spec.Opcode.CIRCULANT:
        elements = spec.MAP_WORD * spec.pixel_words(i.in_channels)
        forward = _up(results * i.taps * elements, samples)
    else:
        mac = results * _up(i.weight_count, lanes)
        if k == 1:
            forward = _up(pixels * i.in_blocks * spec.MAP_WORD, samples)
            inverse = _up(results * i.out_channels, samples)
        else:
            row = i.in_blocks * k
            forward = results * max(i.taps, _up(row, samples)) if i.gathers else _up(pixels * row, samples)
            inverse = _up(results * i.out_blocks * k, samples)
    return {"forward": forward, "mac": mac, "inverse": inverse, "fill": FILL_CYCLES + 2 * _up(k, samples)}


def layer_cycles(config: spec.CoreConfig, i: spec.Instruction) -> int:
    """Cycles of one image in one layer: the slowest stage, and the pipeline's fill."""
    stages = layer_stages(config, i)
    return max(stages["forward"], stages["mac"], stages["inverse"]) + stages["fill"]


def run_cycles(image: int, batch: int, in_beats: int, out_beats: int) -> int:
    """Cycles of a run whose images take `image` cycles to compute, from the first beat in to the last one out."""
    # The first image's load and the last one's store have nothing to overlap with.
    return max(batch * image, batch * in_beats, batch * out_beats) + in_beats + out_beats


def model(
    config: spec.CoreConfig, instructions: Sequence[spec.Instruction], batch: int, in_beats: int, out_beats: int
) -> tuple[int, list[int]]:
    """Modelled clock cycles of a run.

    Parameters
    ----------
    config : build parameters of the core
    instructions : the program
    batch : images of the run
    in_beats, out_beats : stream beats of an image, a control beat included

    Returns
    -------
    total : cycles from the first beat in to the last beat out
    layers : cycles of each layer, summed over the batch
    """
    layers = [layer_cycles(config, i) for i in instructions]
    return run_cycles(sum(layers), batch, in_beats, out_beats), [batch * n for n in layers]


def load_cycles(image_words: int) -> int:
    """Cycles of loading a program image: one beat a cycle."""
    return image_words


def segment_plan(config: spec.CoreConfig, program: Program, batch: int) -> list[SegmentCycles]:
    """What each segment costs if it is loaded once and the batch streams through it in one run.

    The sum of all loads and runs is the time of the whole program.
    """
    result = []
    for segment, image in zip(program.segments, program.images):
        code = instructions(segment, program.width)
        total, layers = model(config, code, batch, segment.in_beats, segment.out_beats)
        result.append(SegmentCycles(load_cycles(len(image)), total, layers))
    return result


def _up(a: int, b: int) -> int:
    return -(-a // b)
