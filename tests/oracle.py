# SPDX-License-Identifier: BSD-3-Clause
"""A second reading of docs/instructions.md, docs/numerics.md and docs/reference.md: the core on Python's integers.

Written from the documents alone and slow on purpose: no machine word can overflow, a transform is the recursion that
numerics.md describes, and nothing is shared with circ_overlay.golden or the package's tables. Where this and the
engines differ, either they or the documents are wrong.
"""

import math

import numpy as np

CIRCULANT, MAX, SUM, PRODUCT = 1, 2, 3, 4
IDENTITY, RELU, SIGMOID, TANH = 0, 1, 2, 3
GATHER, ADD = 1, 2
INPUT_U8, SEQUENCE = 1, 2

# reference.md, "Instruction": lowest bit and width of each field
FIELDS = {
    "opcode": (0, 8), "log2_block": (8, 8), "activation": (16, 8), "flags": (24, 8), "in_channels": (32, 16),
    "out_channels": (48, 16), "weight_base": (64, 32), "affine_base": (96, 32), "acc_shift": (128, 8),
    "affine_shift": (136, 8), "add_shift": (144, 8), "ceiling": (160, 16), "in_base": (192, 32),
    "out_base": (224, 32), "add_base": (256, 32), "factor_base": (288, 32), "in_height": (320, 16),
    "in_width": (336, 16), "out_height": (352, 16), "out_width": (368, 16), "tap_rows": (384, 8),
    "tap_columns": (392, 8), "stride_rows": (400, 8), "stride_columns": (408, 8), "pad_top": (416, 8),
    "pad_left": (424, 8), "pool_rows": (432, 8), "pool_columns": (440, 8), "in_pitch": (448, 16),
    "out_pitch": (464, 16), "add_pitch": (480, 16), "factor_pitch": (496, 16),
}  # fmt: skip


def signed(n, bits):
    """The low `bits` of n as two's complement."""
    n &= (1 << bits) - 1
    return n - (1 << bits) if n >> (bits - 1) else n


def saturate(n, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, n))


def rounded(n, shift):
    return n if shift == 0 else (n + (1 << (shift - 1))) >> shift


def nearest(x):
    return math.floor(x + 0.5)


def rotate(z, turn, bits=16):
    """z, (re, im), times exp(2 pi i turn), rounded once."""
    c, s = nearest(math.cos(2 * math.pi * turn) * 65536), nearest(math.sin(2 * math.pi * turn) * 65536)
    return rounded(z[0] * c - z[1] * s, bits), rounded(z[0] * s + z[1] * c, bits)


def plus(a, b):
    return a[0] + b[0], a[1] + b[1]


def minus(a, b):
    return a[0] - b[0], a[1] - b[1]


def _dft(z):
    """Complex DFT by decimation in frequency, bins in bit-reversed order."""
    n, h = len(z), len(z) // 2
    if n == 1:
        return z
    sums = [plus(z[j], z[j + h]) for j in range(h)]
    return _dft(sums) + _dft([rotate(minus(z[j], z[j + h]), -j / n) for j in range(h)])


def _idft(z):
    n, h = len(z), len(z) // 2
    if n == 1:
        return z
    a, b = _idft(z[:h]), [rotate(v, j / n) for j, v in enumerate(_idft(z[h:]))]
    return [plus(u, v) for u, v in zip(a, b)] + [minus(u, v) for u, v in zip(a, b)]


def forward(x):
    """The k/2 complex words of a block of k integers."""
    k, h = len(x), len(x) // 2
    if k == 2:
        return [(x[0] + x[1], x[0] - x[1])]
    d = [x[j] - x[j + h] for j in range(h)]
    c = [rotate((d[j], -d[j + h // 2]), -j / k) for j in range(h // 2)]
    return forward([x[j] + x[j + h] for j in range(h)]) + _dft(c)


def inverse(words):
    """k integers from k/2 complex words: k times the time domain."""
    k = 2 * len(words)
    if k == 2:
        return [words[0][0] + words[0][1], words[0][0] - words[0][1]]
    c = [rotate(z, j / k, 15) for j, z in enumerate(_idft(words[k // 4 :]))]
    s, d = inverse(words[: k // 4]), [re for re, _ in c] + [-im for _, im in c]
    return [a + b for a, b in zip(s, d)] + [a - b for a, b in zip(s, d)]


def curve(v, width, tanh):
    """Sigmoid or tanh of v, which has `width` fraction bits."""
    v = saturate(v, width + 4)
    size = min(abs(v) << tanh, (8 << width) - 1)
    segment, part = size >> (width - 4), size & ((1 << (width - 4)) - 1)
    low, high = (nearest((1 / (1 + math.exp(-n / 16)) - 0.5) * 2**18) for n in (segment, segment + 1))
    half = low + ((high - low) * part >> (width - 4))
    half = -half if v < 0 else half
    return saturate(rounded(2 * half if tanh else half + (1 << 17), 19 - width), width)


def activate(v, kind, ceiling, width):
    if kind == RELU:
        return min(max(v, 0), ceiling)
    return saturate(v, width) if kind == IDENTITY else curve(v, width, kind == TANH)


class Core:
    """A core of `width` bits with a program image on chip."""

    def __init__(self, image, width, junk=0):
        words = [int(w) for w in image]
        count, channels = words[2] >> 32, words[2] & 0xFFFFFFFF
        assert words[3] & 0xFF == width
        self.width, self.flags = width, words[3] >> 8
        self.input, self.output, self.state = ((w & 0xFFFFFFFF, w >> 32) for w in words[4:7])
        code = [sum(w << 64 * n for n, w in enumerate(words[at : at + 8])) for at in range(8, 8 + 8 * count, 8)]
        self.code = [{f: c >> lsb & ((1 << n) - 1) for f, (lsb, n) in FIELDS.items()} for c in code]
        affine = words[8 + 8 * count :][:channels]
        self.scale, self.bias = [signed(w, 18) for w in affine], [signed(w >> 24, 40) for w in affine]
        parts = [signed(w >> 16 * n, 16) for w in words[8 + 8 * count + channels :] for n in range(4)]
        self.weights = list(zip(parts[::2], parts[1::2]))
        self.memory, self.junk = {}, junk

    def run(self, batch, stream):
        """Words of the output stream."""
        beats, out = (int(w) for w in stream), []
        for _ in range(batch):
            if self.flags & SEQUENCE and next(beats) & 1:
                self._put(self.state, [0] * 4 * self.state[1])
            elements = []
            while len(elements) < 4 * self.input[1]:
                beat = next(beats)
                if self.flags & INPUT_U8:
                    elements += [(beat >> 8 * n & 0xFF) << (self.width - 9) for n in range(8)]
                else:
                    elements += [saturate(signed(beat >> 16 * n, 16), self.width) for n in range(4)]
            self._put(self.input, elements)
            for i in self.code:
                self._execute(i)
            for word in range(self.output[0], sum(self.output)):
                out.append(sum((self._get(4 * word + n) & 0xFFFF) << 16 * n for n in range(4)))
        assert next(beats, None) is None
        return np.array(out, np.uint64)

    def _put(self, span, elements):
        self.memory.update(zip(range(4 * span[0], 4 * sum(span)), elements))

    def _get(self, at):
        return self.memory.get(at, self.junk)

    def _pixel(self, base, pitch, index, channels):
        return [self._get(4 * (base + index * pitch) + c) for c in range(channels)]

    def _execute(self, i):
        rows, columns = i["out_height"] * i["pool_rows"], i["out_width"] * i["pool_columns"]
        channels, self._spectra = i["out_channels"], {}
        results = {}
        for oy in range(rows):
            for ox in range(columns):
                window = []
                for ty in range(i["tap_rows"]):
                    for tx in range(i["tap_columns"]):
                        y, x = oy * i["stride_rows"] + ty - i["pad_top"], ox * i["stride_columns"] + tx - i["pad_left"]
                        inside = 0 <= y < i["in_height"] and 0 <= x < i["in_width"]
                        window.append(y * i["in_width"] + x if inside else None)
                values = self._reduce(i, window, oy * columns + ox)
                add = [0] * channels
                if i["flags"] & ADD:
                    add = self._pixel(i["add_base"], i["add_pitch"], oy * columns + ox, channels)
                for c in range(channels):
                    at = i["affine_base"] + c
                    v = values[c] * self.scale[at] + self.bias[at] + (add[c] << i["add_shift"])
                    assert -(1 << 45) <= v < 1 << 45, "46 bits"
                    v = activate(rounded(v, i["affine_shift"]), i["activation"], i["ceiling"], self.width)
                    key = oy // i["pool_rows"], ox // i["pool_columns"], c
                    results[key] = max(results.get(key, v), v)
        words = -(-channels // 4)
        for y in range(i["out_height"]):
            for x in range(i["out_width"]):
                base = i["out_base"] + (y * i["out_width"] + x) * i["out_pitch"]
                self._put((base, words), [results.get((y, x, c), 0) for c in range(4 * words)])

    def _reduce(self, i, window, result):
        pixels = [
            None if p is None else self._pixel(i["in_base"], i["in_pitch"], p, i["in_channels"]) for p in window
        ]
        zero, shift = [0] * i["in_channels"], i["acc_shift"]
        if i["opcode"] == MAX:
            inside = [p for p in pixels if p is not None] or [[-(1 << (self.width - 1))] * i["in_channels"]]
            return [rounded(max(c), shift) for c in zip(*inside)]
        if i["opcode"] == SUM:
            return [saturate(rounded(sum(c), shift), 25) for c in zip(*(p or zero for p in pixels))]
        if i["opcode"] == PRODUCT:
            other = self._pixel(i["factor_base"], i["factor_pitch"], result, i["out_channels"])
            return [saturate(rounded(a * b, shift), 25) for a, b in zip(pixels[0], other)]
        if i["log2_block"] == 0:
            return self._dense(i, [p or zero for p in pixels])
        k = 1 << i["log2_block"]
        if i["flags"] & GATHER:
            blocks = self._blocks([v for p in pixels for v in p or zero], k)
        else:
            blocks = []
            for at, pixel in zip(window, pixels):
                if at not in self._spectra:
                    self._spectra[at] = self._blocks(pixel or zero, k)
                blocks += self._spectra[at]
        out, at = [], i["weight_base"]
        for _ in range(-(-i["out_channels"] // k)):
            total = [(0, 0)] * (k // 2)
            for block in blocks:
                for n, (x, w) in enumerate(zip(block, self.weights[at : at + k // 2])):
                    product = x[0] * w[0] - x[1] * w[1], x[0] * w[1] + x[1] * w[0]
                    total[n] = plus(total[n], product if n else (x[0] * w[0], x[1] * w[1]))
                at += k // 2
            out += inverse([tuple(saturate(rounded(part, shift), 18) for part in word) for word in total])
        return [saturate(v, 25) for v in out]

    def _blocks(self, vector, k):
        vector = vector + [0] * (-len(vector) % k)
        return [forward(vector[n : n + k]) for n in range(0, len(vector), k)]

    def _dense(self, i, pixels):
        flat = [v for p in pixels for v in p + [0] * (-len(p) % 4)]
        out, at = [], i["weight_base"]
        for _ in range(i["out_channels"]):
            weights = [part for word in self.weights[at : at + len(flat) // 2] for part in word]
            out.append(saturate(rounded(sum(a * b for a, b in zip(flat, weights)), i["acc_shift"]), 18))
            at += len(flat) // 2
        return out


def run_program(program, x, starts=None):
    """Outputs (batch, features) of a program for quantised inputs: its segments, and the tensors between them.

    Tensors travel slice behind slice and pixel behind pixel, each pixel filled up to a map word.
    """
    samples = [[int(v) for v in row] for row in np.asarray(x).reshape(len(x), -1)]
    begins = [n == 0 for n in range(len(samples))] if starts is None else list(starts)
    tensors = {"input": [_pixels(program.input, row) for row in samples]}
    for name, tensor in [("output", program.tensor("output")), *program.tensors.items()]:
        tensors[name] = [[[None] * tensor.channels for _ in range(tensor.pixels)] for _ in samples]
    for segment, image in zip(program.segments, program.images):
        core, stream = Core(image, program.width, junk=-77), []
        bits = 8 if core.flags & INPUT_U8 else 16
        for n in range(len(samples)):
            elements = []
            for s in segment.reads:
                for pixel in tensors[s.tensor][n]:
                    part = pixel[s.first : s.first + s.channels]
                    elements += part + [0] * (-len(part) % 4)
            elements += [0] * (-len(elements) % (64 // bits))
            stream += [2 + begins[n]] if core.flags & SEQUENCE else []  # bit 1 of a control beat means nothing
            for at in range(0, len(elements), 64 // bits):
                beat = elements[at : at + 64 // bits]
                stream.append(sum((v & ((1 << bits) - 1)) << bits * m for m, v in enumerate(beat)))
        words = [int(w) for w in core.run(len(samples), stream)]
        got = iter([signed(w >> 16 * m, 16) for w in words for m in range(4)])
        for n in range(len(samples)):
            for s in segment.writes:
                for pixel in tensors[s.tensor][n]:
                    taken = [next(got) for _ in range(-(-s.channels // 4) * 4)]
                    assert not any(taken[s.channels :]), "a pixel's last word ends in zeros"
                    pixel[s.first : s.first + s.channels] = taken[: s.channels]
        assert next(got, None) is None
    return np.array([_features(program.output, pixels) for pixels in tensors["output"]])


def _pixels(port, row):
    if port.channels_first:
        return [row[p :: port.pixels] for p in range(port.pixels)]
    return [row[p * port.channels : (p + 1) * port.channels] for p in range(port.pixels)]


def _features(port, pixels):
    return [v for part in (zip(*pixels) if port.channels_first else pixels) for v in part]
