# SPDX-License-Identifier: BSD-3-Clause
"""Cycle model of the core: what the emulated board's cycle counters show. Not yet checked against RTL.

Within a layer the forward transform, the multiply-accumulate lanes and the inverse transform are stages of
one pipeline, so the slowest of them sets the pace, and the pipeline fills once per layer and image. Layers
follow one another. Loading the next image and storing the last one overlap with computing.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import spec

__all__ = ["layer_stages", "model"]

FILL_CYCLES = 32
"""Registers between the first sample in and the first result out, besides the transforms' own buffers;
an estimate until the RTL is there to be counted."""


def layer_stages(config: spec.CoreConfig, i: spec.Instruction) -> dict[str, int]:
    """Cycles that each stage is busy with one image in one layer.

    Parameters
    ----------
    config : build parameters; L = `lanes` complex products a cycle, F = `samples` a cycle and transform.
    i : the layer.

    Returns
    -------
    dict with the keys "forward", "mac", "inverse" and "fill".
    """
    k = i.block_size
    return {
        "forward": -(-i.in_blocks * k // config.samples),
        "mac": -(-i.weight_count // config.lanes),
        "inverse": -(-i.out_blocks * k // config.samples),
        "fill": FILL_CYCLES + 2 * -(-k // config.samples),
    }


def model(
    config: spec.CoreConfig, instructions: Sequence[spec.Instruction], batch: int
) -> tuple[int, list[int]]:
    """Modelled clock cycles of a run.

    Parameters
    ----------
    config : build parameters of the core
    instructions : the program
    batch : images of the run

    Returns
    -------
    total : cycles from the first beat in to the last beat out
    layers : cycles of each layer, summed over the batch
    """
    layers = []
    for i in instructions:
        stages = layer_stages(config, i)
        layers.append(batch * (max(stages["forward"], stages["mac"], stages["inverse"]) + stages["fill"]))
    first, last = instructions[0], instructions[-1]
    element = 1 if first.flags & spec.LayerFlag.INPUT_U8 else 2
    beats_in, beats_out = spec.beats(first.in_features, element), spec.beats(last.out_features, 2)
    # The first image's load and the last one's store have nothing to overlap with.
    return max(sum(layers), batch * beats_in, batch * beats_out) + beats_in + beats_out, layers
