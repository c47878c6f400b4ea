# SPDX-License-Identifier: BSD-3-Clause
"""Programs put together by hand for the driver's and the emulated board's tests. They compute nothing sensible."""

from dataclasses import replace

import numpy as np

from circ_overlay import golden, spec
from circ_overlay.program import Layer, Map, Port, Program, Segment, Slice, Span, Tensor

C, A = spec.Opcode, spec.Activation


def layer(rng, source, target, *, k=1, width=12, name=None, **fields):
    """A layer with random numbers, whose shifts keep the results in range."""
    opcode = fields.get("opcode", C.CIRCULANT)
    drawn = Layer(
        source=source,
        target=target,
        block_size=k,
        scale=rng.integers(1 << 9, 1 << 12, target.channels).astype(np.int32),
        bias=rng.integers(-1 << 16, 1 << 16, target.channels),
        acc_shift=fields.pop("acc_shift", width - 4 if opcode in (C.CIRCULANT, C.PRODUCT) else 0),
        affine_shift=fields.pop("affine_shift", 13 if opcode == C.CIRCULANT else 11),
        out_frac=width - 1 if fields.get("activation") in (A.SIGMOID, A.TANH) else 0,
        name=name or f"{opcode.name.lower()}{k}",
        **fields,
    )
    if opcode != C.CIRCULANT:
        return drawn
    i = drawn.instruction(width)
    shape = (i.out_blocks, i.row_blocks, i.block_words, 2)
    limit = 1 << (width - 2)
    return replace(drawn, weights=rng.integers(-limit, limit, shape).astype(np.int16))


def words(m):
    """Map words of a map without gaps."""
    return m.pixels * m.pixel_words


def span(m):
    return Span(base=m.base, words=words(m))


def vectors(*sizes, base=0):
    """Maps of one pixel, one behind the other."""
    maps = []
    for n in sizes:
        maps.append(Map(channels=n, base=base))
        base = maps[-1].end
    return maps


def mlp(seed=7, sizes=(30, 50, 20, 5), blocks=(16, 8, 4), *, width=12, name="small", shape=None, u8=False):
    """A fully connected network with every kind of raggedness."""
    rng = np.random.default_rng(seed)
    maps = vectors(*sizes)
    curves = (A.RELU, A.TANH, A.IDENTITY)
    layers = [
        layer(rng, a, b, k=k, width=width, activation=c, name=f"{c.name.lower()}{k}")
        for a, b, k, c in zip(maps, maps[1:], blocks, curves)
    ]
    port = Port(shape=shape or (sizes[0],), frac=0 if u8 else width - 1, storage="uint8" if u8 else "int16")
    out = Port(shape=(sizes[-1],), frac=4)
    return Program.chain(name=name, width=width, input=port, output=out, layers=layers)


def split_mlp(seed=3, *, width=12, name="split"):
    """Three segments: the first one's output and the input go to the third (a skip); two segments write the output."""
    rng = np.random.default_rng(seed)
    x, hidden = vectors(30, 40)
    first = Segment(
        layers=(layer(rng, x, hidden, k=8, width=width, activation=A.RELU, name="hidden"),),
        input=span(x), output=span(hidden),
        reads=(Slice(tensor="input", channels=30),), writes=(Slice(tensor="hidden", channels=40),),
    )  # fmt: skip
    h, deep, a = vectors(40, 24, 3)
    second = Segment(
        layers=(
            layer(rng, h, deep, k=4, width=width, activation=A.TANH, name="deep"),
            layer(rng, deep, a, k=1, width=width, name="head a"),
        ),
        input=span(h), output=Span(base=deep.base, words=words(deep) + words(a)),
        reads=(Slice(tensor="hidden", channels=40),),
        writes=(Slice(tensor="deep", channels=24), Slice(tensor="output", first=0, channels=3)),
    )  # fmt: skip
    # Part of the skipped tensor, the input again, and what the second one made; side by side as one vector.
    d, _, i, sums, b = vectors(24, 10, 30, 24, 5)
    everything = Map(channels=4 * (i.end - d.base), base=d.base)
    third = Segment(
        layers=(
            layer(rng, everything, sums, k=16, width=width, activation=A.RELU, residual=d, add_shift=4, name="sums"),
            layer(rng, sums, b, k=4, width=width, name="head b"),
        ),
        input=Span(base=0, words=i.end), output=span(b),
        reads=(
            Slice(tensor="deep", channels=24), Slice(tensor="hidden", first=17, channels=10),
            Slice(tensor="input", channels=30),
        ),
        writes=(Slice(tensor="output", first=3, channels=5),),
    )  # fmt: skip
    return Program(
        name=name, width=width, input=Port(shape=(30,), frac=width - 1), output=Port(shape=(8,), frac=4),
        segments=(first, second, third),
        tensors={"hidden": Tensor(pixels=1, channels=40), "deep": Tensor(pixels=1, channels=24)},
    )  # fmt: skip


def convolution(seed=5, *, channels_first=False, segments=2, width=12, name="conv"):
    """9 x 10 x 3 bytes: gather, pooling, residual, k = 1; in one segment, or with the map split over two more."""
    rng = np.random.default_rng(seed)
    x = Map(height=9, width=10, channels=3)
    y = Map(height=4, width=5, channels=10, base=x.end)
    first = layer(rng, x, y, k=8, width=width, gather=True, taps=(3, 3), padding=(1, 1), pool=(2, 2),
                  activation=A.RELU, acc_shift=9, name="conv1")  # fmt: skip
    shape = (3, 9, 10) if channels_first else (9, 10, 3)
    port = Port(shape=shape, frac=0, storage="uint8", pixels=90, channels_first=channels_first)
    out_shape = (6, 4, 5) if channels_first else (4, 5, 6)
    out = Port(shape=out_shape, frac=2, pixels=20, channels_first=channels_first)

    def rest(source, base, channels):
        """3 x 3 with a residual, then 1 x 1 into some of the output's channels."""
        z = Map(height=4, width=5, channels=10, base=base)
        o = Map(height=4, width=5, channels=channels, base=z.end)
        return (
            layer(rng, source, z, k=4, width=width, taps=(3, 3), padding=(1, 1), residual=source, add_shift=3,
                  activation=A.RELU, name="conv2"),
            layer(rng, z, o, k=1, width=width, name="head"),
        )  # fmt: skip

    if segments == 1:
        layers = (first, *rest(y, y.end, 6))
        return Program.chain(name=name, width=width, input=port, output=out, layers=layers)
    begin = Segment(
        layers=(first,), input=span(x), output=span(y), u8=True,
        reads=(Slice(tensor="input", channels=3),), writes=(Slice(tensor="map", channels=10),),
    )  # fmt: skip
    inner = Map(height=4, width=5, channels=10)
    parts = []
    for start, channels in ((0, 4), (4, 2)):
        layers = rest(inner, inner.end, channels)
        parts.append(
            Segment(
                layers=layers, input=span(inner), output=span(layers[-1].target),
                reads=(Slice(tensor="map", channels=10),),
                writes=(Slice(tensor="output", first=start, channels=channels),),
            )
        )  # fmt: skip
    return Program(
        name=name, width=width, input=port, output=out, segments=(begin, *parts),
        tensors={"map": Tensor(pixels=20, channels=10)},
    )  # fmt: skip


def cut(program, name="cut"):
    """A program of one segment with every layer in a segment of its own."""

    def apart(la):
        source = replace(la.source, base=0, pitch=0)
        target = replace(la.target, base=source.end, pitch=0)
        return replace(la, source=source, target=target, residual=source if la.residual == la.source else None)

    layers = [apart(la) for la in program.layers]
    names = ["input", *(f"t{n}" for n in range(1, len(layers))), "output"]
    segments = tuple(
        Segment(
            layers=(la,), input=span(la.source), output=span(la.target), u8=program.segments[0].u8 and n == 0,
            reads=(Slice(tensor=names[n], channels=la.source.channels),),
            writes=(Slice(tensor=names[n + 1], channels=la.target.channels),),
        )
        for n, la in enumerate(layers)
    )  # fmt: skip
    tensors = {
        n: Tensor(pixels=la.target.pixels, channels=la.target.channels) for n, la in zip(names[1:], layers[:-1])
    }
    return replace(program, name=name, segments=segments, tensors=tensors)


def recurrent(seed=11, *, segments=1, features=6, u8=False, width=12, name="recurrent"):
    """A gated cell of 8 units and a head; with two segments the second one is such a cell too."""
    rng = np.random.default_rng(seed)

    def cell(inputs, outputs):
        x = Map(channels=inputs)
        h = Map(channels=8, base=x.end)
        both = Map(channels=4 * (h.end - x.base), base=x.base)
        gate, new, out = vectors(8, 8, outputs, base=h.end)
        layers = (
            layer(rng, both, gate, k=4, width=width, activation=A.SIGMOID, name="gate"),
            layer(rng, both, new, k=8, width=width, activation=A.TANH, name="new"),
            # In place, with what was there: the state matters for good.
            layer(rng, gate, h, opcode=C.PRODUCT, factor=new, residual=h, add_shift=10, width=width, name="h"),
            layer(rng, h, out, k=4, width=width, name="out"),
        )
        return layers, span(x), span(out), Span(base=h.base, words=words(h))

    port = Port(shape=(features,), frac=0 if u8 else width - 1, storage="uint8" if u8 else "int16")
    names = ["input", *(f"t{n}" for n in range(segments - 1)), "output"]
    sizes = [features, *[9] * (segments - 1), 3]
    made, tensors = [], {}
    for n in range(segments):
        layers, into, sent, state = cell(sizes[n], sizes[n + 1])
        made.append(
            Segment(
                layers=layers, input=into, output=sent, state=state, sequence=True, u8=u8 and n == 0,
                reads=(Slice(tensor=names[n], channels=sizes[n]),),
                writes=(Slice(tensor=names[n + 1], channels=sizes[n + 1]),),
            )
        )  # fmt: skip
        if n + 1 < segments:
            tensors[names[n + 1]] = Tensor(pixels=1, channels=sizes[n + 1])
    return Program(
        name=name, width=width, input=port, output=Port(shape=(3,), frac=3), segments=tuple(made), tensors=tensors
    )


def samples(program, n, seed=0):
    """Real-valued samples (bytes for a port of bytes), (n, *shape)."""
    rng = np.random.default_rng(seed)
    shape = (n, *program.input.shape)
    if program.input.storage == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def reference(program, x, starts=None):
    """The golden model's answers to real-valued samples, (n, *output shape)."""
    outputs = golden.run(program, program.input.quantise(x, program.width), starts=starts)
    return outputs.reshape(len(outputs), *program.output.shape)
