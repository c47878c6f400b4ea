# SPDX-License-Identifier: BSD-3-Clause
"""Random networks that are no chains: several readers, residuals, sums, products, joined sources, poolings."""

from dataclasses import replace

import numpy as np

from circ_overlay import spec
from circ_overlay.compiler import CompileError, Network, Operation
from circ_overlay.compiler.calibrate import Lowered, calibrate
from circ_overlay.compiler.segments import cut
from circ_overlay.program import Program

BITS = 12
HUGE = spec.CoreConfig(width=BITS, weight_words=1 << 20, map_elements=1 << 20)
ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh")


def _weight(rng, source, out, k, taps):
    shape = -(-out // k), -(-source // k), taps, taps, k
    return rng.normal(size=shape) / np.sqrt(shape[1] * k * taps * taps)


def random_dag(rng, layers=6, side=4):
    """A network of about so many operations on maps of side x side, some of them pooled; every tensor counts."""
    shapes = {"input": (side, side, int(rng.integers(1, 4)) * 4)}
    unread, made = {"input"}, []

    def add(name, shape, **fields):
        made.append(Operation(name=name, **fields))
        for tensor in (*made[-1].sources, made[-1].residual, made[-1].factor):
            unread.discard(tensor)
        shapes[name] = shape
        unread.add(name)

    def pick(shape=None, channels=None):
        """A tensor, preferably one that nobody has read yet."""
        fits = [n for n, s in shapes.items() if (shape is None or s[:2] == shape[:2]) and channels in (None, s[2])]
        new = [n for n in fits if n in unread]
        options = new if new and rng.random() < 0.5 else fits
        return options[int(rng.integers(len(options)))] if options else None

    def circulant(name, source, out, **fields):
        k = int(rng.choice([1, 4, 8]))
        sources = (source,)
        if k < 8 and rng.random() < 0.3:  # side by side with another one, if that is not joined in another way
            other = pick(shapes[source])
            taken = {n for op in made for n in (*op.sources, op.residual, op.factor) if len(op.sources) > 1}
            if not {source, other} & {*taken, "input"} and source != other and shapes[source][2] % 4 == 0:
                sources = (source, other)
        channels = sum(shapes[n][2] for n in sources)
        taps = int(rng.choice([1, 3])) if shapes[source][0] > 1 else 1
        pad = (taps // 2,) * 4
        add(name, (*shapes[source][:2], out), source=sources if len(sources) > 1 else source, taps=(taps, taps),
            weight=_weight(rng, channels, out, k, taps), in_channels=channels, out_channels=out, padding=pad,
            activation=str(rng.choice(ACTIVATIONS)), **fields)  # fmt: skip

    for n in range(layers):
        name, source = f"t{n}", pick()
        height, width, channels = shapes[source]
        kind = str(rng.choice(["circulant", "residual", "residual", "sum", "product", "max", "pool"]))
        same = pick((height, width), channels)
        if kind == "residual":
            residual = pick((height, width))
            circulant(name, source, shapes[residual][2], residual=residual)
        elif kind == "sum":
            taps = 3 if height > 1 and rng.random() < 0.5 else 1
            add(name, shapes[source], kind="sum", source=source, residual=same, taps=(taps, taps),
                padding=(taps // 2,) * 4, scale=rng.normal(size=channels))  # fmt: skip
        elif kind == "product":
            add(name, shapes[source], kind="product", source=source, factor=same)
        elif kind in ("max", "pool") and height > 1:
            shape = (height // 2, width // 2, channels)
            if kind == "max":
                add(name, shape, kind="max", source=source, taps=(3, 3), stride=(2, 2), padding=(1, 1, 0, 0))
            else:
                add(name, shape, kind="sum", source=source, residual=same, pool=(2, 2))
        else:
            circulant(name, source, int(rng.integers(1, 12)))
    # What nobody reads goes into the output, summed up pixel by pixel or over all of a map.
    rest = sorted(unread - {"input"})
    last = None
    for n, name in enumerate(rest):
        height, width, channels = shapes[name]
        add(f"o{n}", (1, 1, 12), source=name, flatten=True, in_channels=height * width * channels, out_channels=12,
            weight=_weight(rng, height * width * channels, 12, 4, 1), residual=last)  # fmt: skip
        last = f"o{n}"
    return Network(layers=tuple(made), input_shape=shapes["input"])


def lower(network, samples) -> Lowered:
    return calibrate(network, samples, BITS)


def program(network, lowered, config) -> Program:
    """The network cut for a core of `config`; CompileError where that is too small."""
    segments, tensors = cut(network, lowered, config)
    return Program(
        name="dag", width=BITS, input=lowered.input, output=lowered.output, segments=segments, tensors=tensors
    )


def random_case(rng, layers):
    """A random network, quantised, and its program for a core on which it needs no cut."""
    while True:
        network = random_dag(rng, layers)
        try:
            shape = (4, *network.input_shape)
            sample = rng.normal(size=shape) if rng.random() < 0.7 else rng.integers(0, 256, shape).astype(np.uint8)
            lowered = lower(network, sample)
        except CompileError:  # a relu of nothing but negative numbers
            continue
        return network, lowered, program(network, lowered, HUGE)


def inputs(rng, whole, count):
    """Quantised inputs from the whole range of the program's port."""
    low, high = (0, 256) if whole.input.storage == "uint8" else (-(1 << (BITS - 1)), 1 << (BITS - 1))
    return rng.integers(low, high, (count, whole.input.features))


def tight(rng, whole: Program) -> spec.CoreConfig:
    """A core that is smaller than `whole` needs in some of its memories."""
    code = [la.instruction(BITS) for la in whole.layers]
    needs = {
        "map_elements": spec.MAP_WORD * whole.segments[0].map_words,
        "weight_words": sum(i.weight_count for i in code),
        "affine_channels": sum(i.out_channels for i in code),
        "instructions": len(code),
    }
    config = HUGE
    for name, need in needs.items():
        if rng.random() < (0.8 if name == "map_elements" else 0.4):
            config = replace(config, **{name: max(1, int(need * rng.uniform(0.2, 1)))})
    return config
