# SPDX-License-Identifier: BSD-3-Clause
"""What a compiled program is made of and what it costs, layer by layer. Cycles are modelled, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import spec
from ..image import instructions
from ..perf import cycles
from ..program import Program, Segment

__all__ = ["layer_table", "summary"]

CAPACITIES = ("weight_words", "map_elements", "affine_channels", "instructions", "spectra_words")


def layer_table(program: Program, config: spec.CoreConfig | None = None) -> list[dict[str, Any]]:
    """One row for each layer that the core executes, in its order.

    Parameters
    ----------
    program : as compiled
    config : the core; None: the default one of the program's width.

    Returns
    -------
    list of dict with the keys "layer", "operation", "in_shape" and "out_shape" (rows, columns, channels), "k",
    "parameters", "dense_parameters", "compression", "weight_words", "map_elements" (of what is written), "cycles" (an
    image, modelled), "snr_db" (against float on the sample, of the whole operation; None: exact or not known) and
    "segment".
    """
    config = _config(program, config)
    ratios = dict(zip(program.metadata.get("operations", ()), program.metadata.get("snr_db", ())))
    rows = []
    for number, segment in enumerate(program.segments):
        for layer, code in zip(segment.layers, instructions(segment, program.width)):
            whole = layer.name if layer.name in ratios else layer.name.rpartition("[")[0]
            source, target = layer.source, layer.target
            rows.append({
                "layer": layer.name,
                "operation": _title(code),
                "in_shape": source.shape,
                "out_shape": target.shape,
                "k": layer.block_size,
                "parameters": layer.parameters,
                "dense_parameters": layer.dense_parameters,
                "compression": layer.dense_parameters / layer.parameters,
                "weight_words": code.weight_count,
                "map_elements": target.pixels * target.pixel_words * spec.MAP_WORD,
                "cycles": _cycles(config, code),
                "snr_db": ratios.get(whole),
                "segment": number,
            })  # fmt: skip
    return rows


def summary(
    program: Program, config: spec.CoreConfig | None = None, *, clock_mhz: float = 100.0, batch: int = 256
) -> dict[str, Any]:
    """Totals of a program.

    Parameters
    ----------
    program : as compiled
    config : the core; None: the default one of the program's width.
    clock_mhz : for the rate
    batch : images of a run, over which loading the segments is shared out

    Returns
    -------
    dict with "parameters", "dense_parameters", "compression", "cycles_per_image" (computing, or a stream if that is
    slower), "load_cycles" (all segments, once), "images_per_second" (loading shared out over the batch),
    "image_bytes" (of the program), "input_bytes" and "output_bytes" (an image of the batch), "uses" (of the fullest
    segment, by memory: (used, capacity)), "segments", "layers", "clock_mhz" and "batch".
    """
    config = _config(program, config)
    per_image, load = 0, 0
    uses = dict.fromkeys(CAPACITIES, 0)
    for segment, image in zip(program.segments, program.images):
        code = instructions(segment, program.width)
        per_image += max(sum(_cycles(config, i) for i in code), segment.in_beats, segment.out_beats)
        load += len(image)
        for name, used in _uses(segment, code).items():
            uses[name] = max(uses[name], used)
    total = load + batch * per_image
    return {
        "name": program.name,
        "layers": len(program.layers),
        "segments": len(program.segments),
        "parameters": program.parameters,
        "dense_parameters": program.dense_parameters,
        "compression": program.dense_parameters / program.parameters,
        "cycles_per_image": per_image,
        "load_cycles": load,
        "images_per_second": 1e6 * clock_mhz * batch / total,
        "clock_mhz": clock_mhz,
        "batch": batch,
        "image_bytes": sum(8 * len(image) for image in program.images),
        "input_bytes": sum(8 * s.in_beats for s in program.segments),
        "output_bytes": sum(8 * s.out_beats for s in program.segments),
        "uses": {name: (used, getattr(config, name)) for name, used in uses.items()},
        "provenance": "modelled",
    }


def _config(program: Program, config: spec.CoreConfig | None) -> spec.CoreConfig:
    return spec.CoreConfig(width=program.width) if config is None else config


def _cycles(config: spec.CoreConfig, code: spec.Instruction) -> int:
    """Of an image: the slowest stage sets the pace, and the pipeline fills once."""
    stages = dict(cycles.layer_stages(config, code))
    fill = stages.pop("fill", 0)
    return int(max(stages.values()) + fill)


def _uses(segment: Segment, code: Sequence[spec.Instruction]) -> dict[str, int]:
    return {
        "weight_words": sum(i.weight_count for i in code),
        "map_elements": segment.map_words * spec.MAP_WORD,
        "affine_channels": sum(i.out_channels for i in code),
        "instructions": len(code),
        "spectra_words": max(i.spectra_words for i in code),
    }


def _title(code: spec.Instruction) -> str:
    """What an instruction does, in a few words."""
    opcode = spec.Opcode(code.opcode)
    window = f" {code.tap_rows} x {code.tap_columns}" if code.taps > 1 else ""
    if opcode == spec.Opcode.CIRCULANT:
        one = code.in_height * code.in_width == 1 and code.taps == 1
        name = "linear" if one else f"{'patch ' if code.gathers else ''}convolution{window}"
    elif opcode == spec.Opcode.MAX:
        name = f"max{window}"
    elif opcode == spec.Opcode.SUM:
        name = f"sum{window}" if window else "scale"
    else:
        name = "product"
    if code.flags & spec.LayerFlag.ADD:
        name += " + map"
    activation = spec.Activation(code.activation)
    if activation != spec.Activation.IDENTITY:
        name += f", {activation.name.lower()}"
    if (code.pool_rows, code.pool_columns) != (1, 1):
        name += f", max {code.pool_rows} x {code.pool_columns}"
    return name
