# SPDX-License-Identifier: BSD-3-Clause
"""One design, a core's build parameters with block sizes for a network, and what the models say of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import spec
from ..compiler.calibrate import Lowered
from ..compiler.graph import CompileError, Network
from ..compiler.segments import cut
from ..image import instructions
from ..layer import Layer, Map
from ..port import Port
from .cycles import layer_stages, model
from .parts import USABLE, Part
from .resources import Resources, total_resources, utilisation
from .topology import Topology

__all__ = ["BATCH", "Design", "Figures", "capacity", "fidelity", "figures", "signal_to_noise", "wants"]

BATCH = 256
"""Images of a batch: what loading a program is spread over."""
STAGES = ("forward", "mac", "inverse")


@dataclass(frozen=True, kw_only=True)
class Design:
    """A core and the block sizes of a network's operations with weights."""

    config: spec.CoreConfig
    blocks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the models say of a design. Cycles and resources are modelled, not yet checked against RTL.

    Attributes
    ----------
    cycles : clock cycles of an image, in a batch of :data:`BATCH`; inf if the compiler finds no place
    images_per_second : at the clock asked for
    segments : program images that the compiler cuts the network into
    layers : name, block size, cycles and stage cycles of each instruction
    bound : share of all cycles spent in layers whose slowest stage is "forward", "mac" or "inverse"
    resources, use : of the design; each as a share of what is usable of the part
    parameters : free weights
    problem : why the network does not fit at all, or ""
    """

    cycles: float
    images_per_second: float
    segments: int
    layers: tuple[dict[str, Any], ...]
    bound: dict[str, float]
    resources: Resources
    use: dict[str, float]
    parameters: int
    problem: str

    @property
    def feasible(self) -> bool:
        """True if the design fits the part and the network the design."""
        return not self.problem and max(self.use.values()) <= 1.0


def _lowered(network: Network, width: int) -> Lowered:
    """Layers of the right shapes and meaningless numbers: enough to place and to count."""
    assert network.input_shape is not None
    assert network.output is not None
    layers = []
    for op in network.layers:
        height, width_, channels = network.source_shape(op, network.shapes)
        if op.flatten:
            height, width_, channels = 1, 1, height * width_ * channels
        result, target = op.shapes((height, width_, channels))

        def shaped(shape: tuple[int, int, int]) -> Map:
            return Map(height=shape[0], width=shape[1], channels=shape[2])

        weights = np.zeros((0, 0, 0, 2), np.int16)
        if op.weight is not None:
            p, q, r, s, k = op.weight.shape
            words = k // 2
            if k == 1:
                q, words = spec.pixel_words(channels), spec.MAP_WORD // 2
            weights = np.zeros((p, q * r * s, words, 2), np.int16)
        layers.append(
            Layer(
                opcode=spec.Opcode[op.kind.upper()], source=shaped((height, width_, channels)), target=shaped(target),
                residual=None if op.residual is None else shaped(result),
                factor=None if op.factor is None else shaped(result),
                block_size=op.block_size, gather=op.gather, taps=op.taps, stride=op.stride, padding=op.padding[:2],
                pool=op.pool, weights=weights, scale=np.zeros(target[2], np.int32), bias=np.zeros(target[2], np.int64),
                activation=spec.Activation[op.activation.upper()], out_frac=0, name=op.name,
            )
        )  # fmt: skip
    inputs, outputs = network.input_shape, network.shapes[network.output]
    storage = "uint8" if width > spec.U8_BITS else "int16"
    ports = [
        Port(shape=(math.prod(shape),), frac=0, storage=kind, pixels=shape[0] * shape[1])
        for shape, kind in ((inputs, storage), (outputs, "int16"))
    ]
    return Lowered(layers, ports[0], ports[1], [], [], 0)


def wants(topology: Topology, blocks: tuple[int, ...]) -> dict[str, int]:
    """What a core needs to hold the whole network at once: capacities by their names in :class:`spec.CoreConfig`.

    `map_elements` is the least with which every layer's own maps are there at a time; the compiler may need more.
    """
    network = topology.build(blocks)
    lowered = _lowered(network, 12)
    code = [layer.instruction(12) for layer in lowered.layers]
    maps = [
        sum(m.pixels * m.pixel_words for m in (la.source, la.target, la.residual, la.factor) if m is not None)
        for la in lowered.layers
    ]
    return {
        "weight_words": sum(i.weight_count for i in code),
        "map_elements": spec.MAP_WORD * max(maps),
        "spectra_words": max([1, *(i.spectra_words for i in code)]),
        "affine_channels": sum(i.out_channels for i in code),
        "instructions": len(code),
    }


def figures(topology: Topology, design: Design, part: Part, *, clock_mhz: float, usable: float = USABLE) -> Figures:
    """What the models say of a design.

    Parameters
    ----------
    topology : the network
    design : core and block sizes
    part : what it has to fit
    clock_mhz : clock of the core in MHz; whether the design reaches it is not modelled
    usable : share of the part that may be taken
    """
    config = design.config
    network = topology.build(design.blocks)
    resources = total_resources(config)
    rest: dict[str, Any] = {
        "resources": resources,
        "use": utilisation(resources, part, usable),
        "parameters": topology.parameters(design.blocks),
    }
    try:
        segments, _ = cut(network, _lowered(network, config.width), config)
    except CompileError as error:
        nothing: dict[str, Any] = {"images_per_second": 0.0, "segments": 0, "layers": (), "bound": {}}
        return Figures(cycles=math.inf, problem=str(error), **nothing, **rest)
    total, rows = 0, []
    bound = dict.fromkeys(STAGES, 0.0)
    for segment in segments:
        code = instructions(segment, config.width)
        run, layers = model(config, code, BATCH, segment.in_beats, segment.out_beats)
        load = (
            spec.HEADER_WORDS
            + sum(spec.INSTRUCTION_WORDS + i.out_channels for i in code)
            + -(-sum(i.weight_count for i in code) // 2)
        )
        total += run + load
        for layer, i, cycles in zip(segment.layers, code, layers):
            stages = layer_stages(config, i)
            slowest = max(STAGES, key=lambda name: stages[name])
            bound[slowest] += cycles / BATCH
            rows.append({"name": layer.name, "k": i.block_size, "cycles": cycles // BATCH, "bound": slowest, **stages})
    spent = sum(bound.values())
    return Figures(
        cycles=total / BATCH, images_per_second=1e6 * clock_mhz * BATCH / total, segments=len(segments),
        layers=tuple(rows), bound={name: n / spent for name, n in bound.items()}, problem="", **rest,
    )  # fmt: skip


# ---- accuracy proxies ----------------------------------------------------------------------------------------
def signal_to_noise(width: int) -> float:
    """Power ratio of a layer's results to their fixed-point noise: the bound 6.02 W - 19 dB of docs/numerics.md."""
    return float(10 ** ((6.02 * width - 19) / 10))


def _noise(width: int, layers: int) -> float:
    """Factor on a proxy: correlation left after so many layers' noise, taken as independent."""
    return 1 / math.sqrt(1 + layers / signal_to_noise(width))


def fidelity(topology: Topology, blocks: tuple[int, ...], width: int) -> float:
    """Correlation, 0 to 1, of the network with its projection, no retraining: the pessimistic proxy.

    Projection is orthogonal: with white inputs, a layer's results correlate by sqrt(1 - e^2) with the uncompressed
    one's, e being the relative error of its weights; layers are taken as independent. Without trained weights
    e = sqrt(1 - 1/k), that of random ones.
    """
    errors = topology.errors(blocks) if topology.trained else tuple(math.sqrt(1 - 1 / k) for k in blocks)
    kept = math.prod(math.sqrt(max(0.0, 1 - e * e)) for e in errors)
    return kept * _noise(width, len(blocks))


def capacity(topology: Topology, blocks: tuple[int, ...], width: int) -> float:
    """Free weights on a logarithmic scale: 1 for the dense network, 0 for 128 times fewer; for networks retrained.

    It knows nothing of which layer needs its weights most.
    """
    share = topology.parameters(blocks) / topology.dense_parameters
    return max(0.0, min(1.0, 1 + math.log(share) / math.log(spec.BLOCK_SIZES[-1]))) * _noise(width, len(blocks))
