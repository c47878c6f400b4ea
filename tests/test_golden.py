# SPDX-License-Identifier: BSD-3-Clause
"""The integer model against float references: exact where it must be, by SNR where it rounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import circulant as dense_circulant

from circ_overlay import golden, spec
from circ_overlay.compiler import Linear, Network, Operation, compile
from circ_overlay.compiler.quantise import spectral_words
from circ_overlay.fixedpoint import Format, limits, round_shift
from circ_overlay.program import Layer, Map


def snr(reference, value):
    noise = ((value - reference) ** 2).sum()
    return np.inf if noise == 0 else 10 * np.log10((reference**2).sum() / noise)


def words_of(x):
    """Float spectrum of real blocks in the core's order, by np.fft alone."""
    k = x.shape[-1]
    full = np.fft.fft(x)
    words = full[..., list(spec.spectrum_order(k))]
    out = np.stack([words.real, words.imag], -1)
    out[..., 0, 1] = full[..., k // 2].real
    return out


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
@pytest.mark.parametrize("width", [8, 12, 16])
def test_forward_transform_noise_stays_below_that_of_quantised_inputs(k, width):
    rng = np.random.default_rng(k)
    low, high = limits(width)
    x = rng.integers(low, high + 1, (400, k))
    error = golden.forward_transform(x) - words_of(x)
    # Inputs rounded to integers carry k/12 noise power a bin; the transform must add less than that.
    assert (error**2).sum(-1).mean() < k / 12
    if k == 4:
        assert np.abs(error).max() < 1e-6


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
@pytest.mark.parametrize("width", [8, 12, 16])
def test_spectra_fit_their_bits_at_the_extremes(k, width):
    low, high = limits(width)
    n = np.arange(k)
    extremes = [np.full(k, low), np.full(k, high), np.where(n % 2, low, high), np.where(n % 2, high, low)]
    for b in range(1, k // 2):
        for phase in (0, 0.25, 0.5, 0.75):
            extremes.append(np.where(np.cos(2 * np.pi * (b * n / k + phase)) >= 0, high, low))
    spectra = golden.forward_transform(np.array(extremes))
    bound_low, bound_high = limits(spec.spectrum_bits(width, k))
    assert spectra.min() >= bound_low
    assert spectra.max() <= bound_high


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
def test_inverse_transform_snr(k):
    rng = np.random.default_rng(k)
    limit = limits(spec.SUM_BITS)[1]
    blocks = rng.normal(size=(300, k))
    words = words_of(blocks)
    words = np.round(words * (limit / np.abs(words).max())).astype(np.int64)
    full = np.zeros((300, k), complex)
    for t, b in enumerate(spec.spectrum_order(k)):
        z = words[:, t, 0] + 1j * words[:, t, 1]
        if t == 0:
            full[:, 0], full[:, k // 2] = words[:, 0, 0], words[:, 0, 1]
        else:
            full[:, b], full[:, k - b] = z, z.conj()
    assert snr(k * np.fft.ifft(full).real, golden.inverse_transform(words)) > 90


def test_inverse_transform_saturates():
    top = limits(spec.SUM_BITS)[1]
    # Every bin at full size, with the phase that makes all of them add up at sample 1.
    angle = -2 * np.pi * np.array(spec.spectrum_order(128)) / 128
    words = np.stack([np.copysign(top, np.cos(angle)), np.copysign(top, np.sin(angle))], -1)[None]
    x = golden.inverse_transform(words.astype(np.int64))
    assert x.max() == limits(spec.TIME_BITS)[1]


def test_inverse_transform_negates_after_rounding():
    """Bin 1 of k = 8 alone: its rotations end in exact halves, so the order of negation and rounding shows."""
    words = np.array([[0, 0], [0, 0], [16384, 0], [0, 0]])
    assert golden.inverse_transform(words).tolist() == [32768, 23171, 0, -23171, -32768, -23171, 0, 23171]


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
def test_transforms_are_inverses(k):
    rng = np.random.default_rng(k)
    x = rng.integers(-200, 200, (100, k))
    back = golden.inverse_transform(golden.forward_transform(x))
    assert np.abs(back - k * x).max() <= 2 * k


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([4, 8, 16]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_spectral_product_is_exact(batch, p, q, k, seed):
    rng = np.random.default_rng(seed)
    w = rng.integers(-32768, 32768, (p, q, k // 2, 2))
    x = rng.integers(-(1 << 22), 1 << 22, (batch, q, k // 2, 2))
    got = golden.spectral_product(w, x)
    for n in range(batch):
        for i in range(p):
            for t in range(k // 2):
                if t == 0:
                    want = [sum(int(w[i, j, 0, c]) * int(x[n, j, 0, c]) for j in range(q)) for c in (0, 1)]
                else:
                    pairs = [(w[i, j, t].tolist(), x[n, j, t].tolist()) for j in range(q)]
                    want = [
                        sum(a * c - b * d for (a, b), (c, d) in pairs),
                        sum(a * d + b * c for (a, b), (c, d) in pairs),
                    ]
                assert got[n, i, t].tolist() == want


def test_no_layer_can_overflow_the_accumulators():
    """The widest core, the most products that a sum may have, all values at their largest, any k."""
    width = spec.WIDTHS[-1]
    for k in spec.BLOCK_SIZES:
        blocks = spec.MAX_TERMS // k
        word = 2 * (1 << (width - 1)) * (1 << (spec.spectrum_bits(width, k) - 1))
        assert blocks * word <= 1 << (spec.ACC_BITS - 1)


def test_spectral_weights_follow_the_column_convention():
    """One block, weights without rounding: W @ x of scipy's circulant, and not of its transpose."""
    k = 16
    rng = np.random.default_rng(1)
    w, x = rng.integers(-9, 10, k), rng.integers(-9, 10, k)
    product = golden.spectral_product(
        np.round(spectral_words(w[None, None].astype(float)) * 64).astype(np.int64),
        golden.forward_transform(x[None, None]),
    )
    y = golden.inverse_transform(round_shift(product, 4)) / (4 * k)
    np.testing.assert_allclose(y[0, 0], dense_circulant(w) @ x, atol=6)
    assert np.abs(y[0, 0] - dense_circulant(w).T @ x).max() > 50


# 6 dB a bit, less the peak of a normal distribution over its rms, a format's spare part of a bit, and 3 dB.
@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
@pytest.mark.parametrize("width", spec.WIDTHS)
def test_layer_snr_against_a_dense_float_layer(k, width):
    rng = np.random.default_rng(width * 1000 + k)
    out_features, in_features = 2 * k + 3, 3 * k + 1
    p, q = -(-out_features // k), -(-in_features // k)
    w = rng.normal(size=(p, q, k)) / np.sqrt(in_features)
    dense = np.block([[dense_circulant(w[i, j]) for j in range(q)] for i in range(p)])
    x = np.clip(rng.normal(size=(300, in_features)), -4, 4)
    reference = (dense[:out_features, :in_features] @ x.T).T
    layer = Linear(weight=w, in_features=in_features, out_features=out_features)
    program = compile(Network(layers=(layer,)), x, width=width)
    outputs = program.output.value(golden.run(program, program.input.quantise(x, width)))
    assert snr(reference, outputs) > 6.02 * width - 19


@pytest.mark.parametrize("width", spec.WIDTHS)
@pytest.mark.parametrize(
    ("activation", "function", "bound"),
    [
        # Bounds in LSB of the output, as docs/numerics.md states them, by width 8 ... 16.
        (spec.Activation.SIGMOID, lambda v: 1 / (1 + np.exp(-v)), (0.6, 0.6, 0.6, 0.6, 0.7, 0.8, 1.0, 1.4, 2.3)),
        (spec.Activation.TANH, np.tanh, (0.6, 0.6, 0.6, 1.1, 1.1, 3.1, 6.1, 11.1, 22.1)),
    ],
    ids=["sigmoid", "tanh"],
)  # fmt: skip
def test_activation_error_bound(width, activation, function, bound):
    step = 1 << max(0, width - 12)
    v = np.arange(-(1 << (width + 3)), 1 << (width + 3), step)
    one = 1 << (width - 1)
    got = golden.activate(v, activation, width)
    want = np.minimum(function(v / (1 << width)) * one, one - 1)
    assert np.abs(got - want).max() < bound[width - spec.WIDTHS[0]]


@pytest.mark.parametrize("activation", [spec.Activation.SIGMOID, spec.Activation.TANH])
@pytest.mark.parametrize("width", [8, 12, 16])
def test_activations_are_monotonic_and_saturate(activation, width):
    v = np.arange(-(1 << (width + 4)), 1 << (width + 4), 1 << max(0, width - 11))
    got = golden.activate(v, activation, width)
    assert (np.diff(got) >= 0).all()
    assert got.max() <= limits(width)[1]
    assert got.min() >= (0 if activation == spec.Activation.SIGMOID else limits(width)[0])


def test_relu_and_identity_saturate():
    v = np.array([-5000, -2049, -1, 0, 1, 2047, 2048, 99999])
    assert golden.activate(v, spec.Activation.IDENTITY, 12).tolist() == [-2048, -2048, -1, 0, 1, 2047, 2047, 2047]
    assert golden.activate(v, spec.Activation.RELU, 12).tolist() == [0, 0, 0, 0, 1, 2047, 2047, 2047]


def test_surplus_outputs_do_not_reach_the_next_layer():
    """A sigmoid makes 0.5 of the zeros in surplus channels: they must be dropped, not handed on."""
    rng = np.random.default_rng(0)

    def layer(n_in, n_out, activation):
        return Linear(weight=rng.normal(size=(-(-n_out // 8), -(-n_in // 8), 8)), in_features=n_in,
                      out_features=n_out, activation=activation, scale=0.3)  # fmt: skip

    network = Network(layers=(layer(9, 5, "sigmoid"), layer(5, 3, "identity")))
    x = rng.uniform(-1, 1, (200, 9))
    program = compile(network, x)
    outputs = program.output.value(golden.run(program, program.input.quantise(x, 12)))
    assert snr(network.forward(x), outputs) > 45


def test_bytes_enter_shifted_up():
    x = np.array([[0, 1, 255]])
    np.testing.assert_array_equal(golden.enter(x, True, 12), [[0, 8, 2040]])
    np.testing.assert_array_equal(golden.enter(x, False, 12), x)
    assert Format(12, 0).quantise([2040.0])[0] == 2040


def test_layer_ignores_nothing_of_its_arguments():
    """Each field of a layer changes the result: none is dead."""
    rng = np.random.default_rng(5)
    channels = Map(channels=16, height=6, width=6)
    base = Layer(
        source=channels, target=Map(channels=16, height=3, width=3, base=1000), residual=replace(channels, base=2000),
        block_size=8, taps=(3, 3), stride=(1, 1), padding=(1, 1), pool=(2, 2),
        weights=rng.integers(-2048, 2048, (2, 18, 4, 2)).astype(np.int16),
        scale=rng.integers(-60000, 60000, 16).astype(np.int32), bias=rng.integers(-(1 << 28), 1 << 28, 16),
        acc_shift=8, affine_shift=21, add_shift=20, activation=spec.Activation.RELU, ceiling=2000, out_frac=0,
    )  # fmt: skip
    base.validate(12)
    x, r = rng.integers(-2048, 2048, (2, 20, 6, 6, 16))
    reference = golden.apply(base, x, 12, residual=r)
    for change in (
        {"weights": -base.weights}, {"scale": base.scale // 2}, {"bias": base.bias + (1 << 25)}, {"add_shift": 19},
        {"acc_shift": 9}, {"affine_shift": 20}, {"activation": spec.Activation.IDENTITY}, {"ceiling": 1000},
        {"padding": (0, 1)}, {"padding": (1, 0)}, {"stride": (2, 1)}, {"stride": (1, 2)},
        {"taps": (9, 1)}, {"taps": (1, 9)}, {"opcode": spec.Opcode.SUM}, {"opcode": spec.Opcode.MAX},
    ):  # fmt: skip
        assert (golden.apply(replace(base, **change), x, 12, residual=r) != reference).any(), change


def reference_layer(layer, x, width, residual=None, factor=None):
    """The instruction page, one result at a time, in Python's integers; dense transforms where none may round."""
    rows, columns, channels = layer.result_shape
    top, bottom = limits(width)[1], limits(width)[0]
    out = np.zeros((len(x), rows, columns, channels), object)
    for n, y, u in np.ndindex(len(x), rows, columns):
        window = []
        for i, j in np.ndindex(layer.taps):
            a, b = y * layer.stride[0] + i - layer.padding[0], u * layer.stride[1] + j - layer.padding[1]
            inside = 0 <= a < x.shape[1] and 0 <= b < x.shape[2]
            window.append([int(v) for v in x[n, a, b]] if inside else None)
        for c in range(channels):
            values = [w[c] for w in window if w is not None and c < len(w)]
            if layer.opcode == spec.Opcode.MAX:
                v = max(values, default=bottom)
            elif layer.opcode == spec.Opcode.SUM:
                v = sum(values)
            elif layer.opcode == spec.Opcode.PRODUCT:
                v = (values or [0])[0] * int(factor[n, y, u, c])
            else:  # k = 1
                padded = [(w or []) + [0] * (layer.weights.shape[1] * 4 // len(window) - len(w or [])) for w in window]
                weights = layer.weights[c].reshape(len(window), -1).tolist()
                v = sum(a * b for w, ws in zip(padded, weights) for a, b in zip(w, ws))
            half = 1 << layer.acc_shift >> 1
            v = (v + half) >> layer.acc_shift
            bits = spec.SUM_BITS if layer.opcode == spec.Opcode.CIRCULANT else spec.TIME_BITS
            if layer.opcode != spec.Opcode.MAX:
                v = min(max(v, -(1 << bits - 1)), (1 << bits - 1) - 1)
            v = v * int(layer.scale[c]) + int(layer.bias[c])
            if residual is not None:
                v += int(residual[n, y, u, c]) << layer.add_shift
            v = (v + (1 << layer.affine_shift >> 1)) >> layer.affine_shift
            low = 0 if layer.activation == spec.Activation.RELU else bottom
            out[n, y, u, c] = min(max(v, low), top if layer.ceiling is None else layer.ceiling)
    (a, b), (h, w) = layer.pool, (rows // layer.pool[0], columns // layer.pool[1])
    return out.reshape(len(x), h, a, w, b, channels).max((2, 4)).astype(np.int64)


@pytest.mark.parametrize("opcode", spec.Opcode)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_layers_without_transforms_are_the_instruction_page(opcode, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.sampled_from([8, 12, 16]))
    low, high = limits(width)
    product = opcode == spec.Opcode.PRODUCT
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    taps, stride, pool = ((1, 1), (1, 1), (1, 1)) if product else (draw(pair), draw(pair), draw(pair))
    padding = (0, 0) if product else draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    height, columns, channels = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    out = draw(st.integers(1, 5)) if opcode == spec.Opcode.CIRCULANT else channels
    target = (height, columns) if product else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    result = Map(height=target[0] * pool[0], width=target[1] * pool[1], channels=out, base=4000)
    weights = np.zeros((0, 0, 0, 2), np.int16)
    if opcode == spec.Opcode.CIRCULANT:
        words = taps[0] * taps[1] * spec.pixel_words(channels)
        weights = rng.integers(low, high + 1, (out, words, 2, 2)).astype(np.int16)
    relu = draw(st.booleans())
    layer = Layer(
        opcode=opcode, source=Map(height=height, width=columns, channels=channels),
        target=Map(height=target[0], width=target[1], channels=out, base=2000),
        residual=draw(st.sampled_from([None, result])), factor=result if product else None,
        taps=taps, stride=stride, padding=padding, pool=pool, weights=weights,
        scale=rng.integers(-(1 << 17), 1 << 17, out).astype(np.int32), bias=rng.integers(-(1 << 39), 1 << 39, out),
        acc_shift=draw(st.integers(0, 12)), affine_shift=draw(st.integers(10, 40)), add_shift=draw(st.integers(0, 28)),
        activation=spec.Activation.RELU if relu else spec.Activation.IDENTITY,
        ceiling=draw(st.integers(1, high)) if relu else None, out_frac=0,
    )  # fmt: skip
    layer.validate(width)
    x = rng.integers(low, high + 1, (2, height, columns, channels))
    r, f = rng.integers(low, high + 1, (2, 2, *layer.result_shape))
    operands = {"residual": None if layer.residual is None else r, "factor": f if product else None}
    np.testing.assert_array_equal(
        golden.apply(layer, x, width, **operands), reference_layer(layer, x, width, **operands)
    )


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
@pytest.mark.parametrize("gather", [False, True])
def test_convolution_against_a_dense_float_one(k, gather):
    rng = np.random.default_rng(k)
    channels, out, (r, s) = (3 if gather else k + k // 2 + 1), k + 3, (3, 2)
    q = -(-channels * (r * s if gather else 1) // k)
    w = rng.normal(size=(-(-out // k), q, *((1, 1) if gather else (r, s)), k))
    kernel = np.zeros((out, channels, r, s))
    for i, j in np.ndindex(r, s):
        if gather:
            first = (i * s + j) * channels
            whole = np.block([[dense_circulant(b) for b in row] for row in w[:, :, 0, 0]])
            kernel[:, :, i, j] = whole[:out, first : first + channels]
        else:
            whole = np.block([[dense_circulant(b) for b in row] for row in w[:, :, i, j]])
            kernel[:, :, i, j] = whole[:out, :channels]
    x = rng.uniform(-1, 1, (8, 7, 6, channels))
    padded = np.pad(x, [(0, 0), (1, 1), (0, 1), (0, 0)])
    y = np.zeros((8, 4, 6, out))
    for a, b in np.ndindex(4, 6):
        y[:, a, b] = np.einsum("nijc,ocij->no", padded[:, 2 * a : 2 * a + r, b : b + s], kernel)
    operation = Operation(
        name="conv", weight=w, out_channels=out, taps=(r, s), stride=(2, 1), padding=(1, 0, 1, 1), gather=gather,
        pool=(2, 2),
    )  # fmt: skip
    program = compile(Network(layers=(operation,), input_shape=(7, 6, channels)), x)
    got = program.output.value(golden.run(program, program.input.quantise(x, 12)))
    assert snr(y.reshape(8, 2, 2, 3, 2, out).max((2, 4)), got) > 50
