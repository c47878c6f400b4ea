# SPDX-License-Identifier: BSD-3-Clause
"""Whether a core can execute a program, and if not, what is missing and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from .. import spec
from ..errors import IncompatibleError
from ..image import instructions
from ..program import Layer, Map, Program, Segment

__all__ = ["check_fits"]

_REMEDY = "compile it for this core: compile(..., config=overlay.config)"


def check_fits(program: Program, config: spec.CoreConfig) -> None:
    """Raise IncompatibleError unless a core of `config` can execute `program`."""
    if program.width != config.width:
        raise IncompatibleError(
            f"{program.name} was compiled for {program.width} bits, this core computes in {config.width}; "
            f"compile it with width={config.width}"
        )
    for index, segment in enumerate(program.segments):
        where = f", segment {index}" if len(program.segments) > 1 else ""
        _check_capacities(program, segment, where, config)
        for wanted, who in _wanted(segment):
            if not wanted & config.capability:
                raise IncompatibleError(
                    f"{program.name}{where}, {who} needs {wanted.name}, which this build of the core lacks; {_REMEDY}"
                )


def _check_capacities(program: Program, segment: Segment, where: str, config: spec.CoreConfig) -> None:
    code = instructions(segment, program.width)
    spans = {"its input": segment.input, "its output": segment.output, "its state": segment.state}
    words = [(m.end, f"layer {layer.name!r}") for layer in segment.layers for m in _maps(layer)]
    words += [(span.base + span.words, name) for name, span in spans.items()]
    map_words, widest = max(words, key=lambda pair: pair[0])
    spectra, deepest = max(
        ((i.spectra_words, layer.name) for i, layer in zip(code, segment.layers)), key=lambda pair: pair[0]
    )
    needs = {
        "weight_words": (sum(i.weight_count for i in code), ""),
        "map_elements": (map_words * spec.MAP_WORD, f", {widest}"),
        "affine_channels": (sum(i.out_channels for i in code), ""),
        "instructions": (len(code), ""),
        "spectra_words": (spectra, f", layer {deepest!r}"),
    }
    for name, (need, who) in needs.items():
        if need > getattr(config, name):
            raise IncompatibleError(
                f"{program.name}{where}{who} needs {need} {name.replace('_', ' ')}, this core has "
                f"{getattr(config, name)}; {_REMEDY}"
            )


def _maps(layer: Layer) -> Iterator[Map]:
    return (m for m in (layer.source, layer.target, layer.residual, layer.factor) if m is not None)


def _wanted(segment: Segment) -> Iterator[tuple[spec.Capability, str]]:
    """Capability bits that a segment needs, each with what needs it."""
    if segment.u8:
        yield spec.Capability.INPUT_U8, "its input"
    if segment.sequence:
        yield spec.Capability.SEQUENCE, "working on sequences"
    for layer in segment.layers:
        who = f"layer {layer.name!r}"
        if layer.opcode == spec.Opcode.CIRCULANT:
            yield spec.Capability.UNCOMPRESSED if layer.block_size == 1 else spec.Capability.CIRCULANT, who
        if layer.gather:
            yield spec.Capability.GATHER, who
        if layer.opcode == spec.Opcode.PRODUCT:
            yield spec.Capability.PRODUCT, who
        windowed = layer.opcode == spec.Opcode.SUM and layer.taps != (1, 1)
        if layer.opcode == spec.Opcode.MAX or layer.pool != (1, 1) or windowed:
            yield spec.Capability.POOLING, who
        if layer.activation in (spec.Activation.SIGMOID, spec.Activation.TANH):
            yield spec.Capability.SIGMOID_TANH, who
