# SPDX-License-Identifier: BSD-3-Clause
"""The bounds of docs/numerics.md for convolutions and recurrent cells, against dense float networks from scipy."""

import numpy as np
import pytest
from scipy.linalg import circulant

from circ_overlay import golden, spec
from circ_overlay.compiler import Conv2d, Linear, Network, Operation, compile


def dense(w):
    return np.block([[circulant(block) for block in row] for row in w])


def snr(reference, value):
    return 10 * np.log10((reference**2).sum() / ((value - reference) ** 2).sum())


@pytest.mark.parametrize("width", [8, 12, 16])
@pytest.mark.parametrize("k", [4, 16, 64])
def test_convolution_snr(k, width):
    rng = np.random.default_rng([k, width])
    channels = max(16, k)
    blocks = channels // k
    w = rng.normal(size=(blocks, blocks, 3, 3, k)) / np.sqrt(9 * channels)
    x = np.clip(rng.normal(size=(20, 6, 6, channels)), -4, 4)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    reference = sum(around[:, i : i + 6, j : j + 6] @ dense(w[:, :, i, j]).T for i in range(3) for j in range(3))
    config = spec.CoreConfig(width=width, spectra_words=1 << 16)
    program = compile(Network(layers=(Conv2d(w, padding=1),), input_shape=x.shape[1:]), x, config=config)
    outputs = program.output.value(golden.run(program, program.input.quantise(x, width)))
    assert snr(reference, outputs.reshape(reference.shape)) > 6.02 * width - 19


# The gain of 6 dB a bit ends at about 65 dB, probably by the curves' table of 128 segments.
@pytest.mark.parametrize(("width", "bound"), [(8, 25), (10, 37), (12, 49), (14, 59), (16, 61)])
def test_lstm_snr(width, bound):
    """The cell of docs/instructions.md over sequences of 25 steps, every step's h counted."""
    rng = np.random.default_rng(width)
    k, n, h = 8, 16, 32
    w = {g: 1.5 * rng.normal(size=(h // k, (n + h) // k, k)) / np.sqrt(n + h) for g in "ifgo"}

    def gate(name, activation, shift=0.0):
        return Linear(w[name], name=name, source=("input", "h"), activation=activation, shift=shift)

    operations = (
        gate("i", "sigmoid"), gate("f", "sigmoid", 1.0), gate("g", "tanh"),
        Operation(name="t", kind="product", source="i", factor="g"),
        Operation(name="new c", kind="product", source="f", factor="c", residual="t", target="c"),
        gate("o", "sigmoid"),
        Operation(name="u", kind="sum", source="c", activation="tanh"),
        Operation(name="new h", kind="product", source="o", factor="u", target="h"),
    )  # fmt: skip
    network = Network(layers=operations, input_shape=(1, 1, n), states={"h": h, "c": h}, output="h")
    sequences = [rng.uniform(-3, 3, (25, n)) for _ in range(6)]
    program = compile(network, sequences, width=width)
    matrices, reference, outputs = {g: dense(w[g]) for g in w}, [], []
    for steps in sequences:
        state = memory = np.zeros(h)
        for x in steps:
            i, f, g, o = (matrices[name] @ np.concatenate([x, state]) for name in "ifgo")
            memory = memory / (1 + np.exp(-f - 1)) + np.tanh(g) / (1 + np.exp(-i))
            state = np.tanh(memory) / (1 + np.exp(-o))
            reference.append(state)
        outputs.append(program.output.value(golden.run(program, program.input.quantise(steps, width))))
    assert snr(np.array(reference), np.concatenate(outputs)) > bound
