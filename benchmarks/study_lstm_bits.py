# SPDX-License-Identifier: BSD-3-Clause
"""What a few bits cost an LSTM of the zoo: its float steps beside a simulation with rounded values.

    python benchmarks/study_lstm_bits.py FILE.npz [--split test] [--bits 8 10 12 16] [--golden]

FILE.npz is what `circ_overlay.models.train_speech` writes. Rounded to W bits are the spectra of the weights (scaled row
of blocks by row of blocks), x, h, c and the gates; what the gates' functions take has W + 4 bits from -8 to 8 and goes
through the core's own integer table. The product itself is computed in float64: the rounding inside the core's
transforms is left out, being smaller (docs/numerics.md). Ranges are those of the float run. --golden also compiles the
network for 12 bits, on every 27th training recording, and runs the core's golden model: every bit; it needs PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circ_overlay import datasets, golden, spec
from circ_overlay.fixedpoint import Format
from circ_overlay.models.speech import FrontEnd, log_mel, normalise

Reals = NDArray[np.float64]


@dataclass
class Cell:
    """Steps of the whole network; `bits` 0 computes in float. Formats: fraction bits of x, h and c less than `bits`."""

    arrays: dict[str, NDArray[Any]]
    bits: int = 0
    x_integer: int = 3
    h_integer: int = 1
    c_integer: int = 4
    seen: dict[str, list[Reals]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = sum(name.startswith("lstm.weight_hh_l") for name in self.arrays)
        self.spectra = {
            name: self.rounded_rows(np.fft.rfft(w.astype(np.float64)))
            for name, w in self.arrays.items() if name.startswith(("lstm.weight", "fc.weight"))
        }  # fmt: skip

    def rounded_rows(self, spectra: NDArray[np.complex128]) -> NDArray[np.complex128]:
        if not self.bits:
            return spectra
        largest = np.maximum(np.abs(spectra.real), np.abs(spectra.imag)).max(axis=(1, 2), keepdims=True)
        unit = np.maximum(largest, 1e-30) / (2 ** (self.bits - 1) - 1)
        return (np.rint(spectra.real / unit) + 1j * np.rint(spectra.imag / unit)) * unit

    def rounded(self, name: str, value: Reals, integer: int) -> Reals:
        """Value in `bits` bits, of which `integer`, with the sign, stand before the point."""
        self.seen.setdefault(name, []).append(np.abs(value).ravel())
        if not self.bits:
            return value
        form = Format(self.bits, self.bits - integer)
        return form.value(form.quantise(value))

    def function(self, value: Reals, kind: str) -> Reals:
        if not self.bits:
            return np.tanh(value) if kind == "tanh" else 1.0 / (1.0 + np.exp(-value))
        units = Format(self.bits + spec.PREACT_GUARD_BITS, self.bits).quantise(value)
        activation = spec.Activation.TANH if kind == "tanh" else spec.Activation.SIGMOID
        return golden.activate(units, activation, self.bits) / 2.0 ** (self.bits - 1)

    def product(self, name: str, x: Reals, groups: int) -> Reals:
        """(batch, groups, rows padded to blocks) of a matrix by name, or of several stacked."""
        k = self.arrays[name].shape[2]
        blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % k))).reshape(len(x), -1, k)
        bins = np.einsum("pqb,nqb->npb", self.spectra[name], np.fft.rfft(blocks))
        return np.fft.irfft(bins, k).reshape(len(x), groups, -1)

    def classify(self, x: Reals, lengths: NDArray[np.int64]) -> Reals:
        """(batch, steps, features) and (batch,) to outputs (batch, classes) of each sequence's last step."""
        cells = len(self.arrays["lstm.bias_hh_l0"]) // 4
        h = [np.zeros((len(x), cells)) for _ in range(self.layers)]
        c = [np.zeros((len(x), cells)) for _ in range(self.layers)]
        for t in range(x.shape[1]):
            alive = np.flatnonzero(t < lengths)
            below = self.rounded("x", x[alive, t], self.x_integer)
            for layer in range(self.layers):
                gates = self.product(f"lstm.weight_ih_l{layer}", below, 4)
                gates = (gates + self.product(f"lstm.weight_hh_l{layer}", h[layer][alive], 4))[..., :cells]
                bias = self.arrays[f"lstm.bias_ih_l{layer}"].astype(np.float64)
                gates = gates + (bias + self.arrays[f"lstm.bias_hh_l{layer}"]).reshape(4, cells)
                self.seen.setdefault("gate", []).append(np.abs(gates).ravel())
                i, f, g, o = (self.function(gates[:, n], "tanh" if n == 2 else "sigmoid") for n in range(4))
                c[layer][alive] = self.rounded("c", f * c[layer][alive] + i * g, self.c_integer)
                out = o * self.function(c[layer][alive], "tanh")
                h[layer][alive] = below = self.rounded("h", out, self.h_integer)
        return self.product("fc.weight", h[-1], 1)[:, 0, : len(self.arrays["fc.bias"])] + self.arrays["fc.bias"]


def compiled(arrays: dict[str, NDArray[Any]], sample: list[NDArray[Any]], rows: list[NDArray[Any]]) -> Reals:
    """Outputs after each sequence's last step, of the network compiled on `sample`, by the golden model."""
    from circ_overlay.compiler import compile
    from circ_overlay.models.networks_speech import EveryStep, SpeechClassifier

    program = compile(EveryStep(SpeechClassifier.from_arrays(arrays)), sample, name="study")
    ends = np.cumsum([len(row) for row in rows])
    starts = np.isin(np.arange(ends[-1]), [0, *ends[:-1]])
    inputs = program.input.quantise(np.concatenate(rows), program.width)
    return golden.run(program, inputs, starts=starts)[ends - 1] / 2.0**program.output.frac


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 10, 12, 16])
    parser.add_argument("--golden", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.file, allow_pickle=False) as file:
        arrays = dict(file)
    front = FrontEnd(**{name: arrays[f"front_{name}"].item() for name in FrontEnd.__dataclass_fields__})

    def features(sound: NDArray[np.int16]) -> NDArray[np.float32]:
        return normalise(log_mel(sound, front), arrays["mean"], arrays["deviation"])

    data = datasets.load_recordings("fsdd", arguments.split)
    rows = [features(sound) for sound in data.recordings]
    lengths = np.array([len(row) for row in rows])
    x = np.zeros((len(rows), lengths.max(), front.bands))
    for place, row in zip(x, rows):
        place[: len(row)] = row
    print(f"{len(rows)} recordings, {lengths.min()} to {lengths.max()} steps, mean {lengths.mean():.1f}")

    exact = Cell(arrays)
    outputs = exact.classify(x, lengths)
    for name, parts in exact.seen.items():
        values = np.concatenate(parts)
        print(f"|{name}|: largest {values.max():.3f}, 99.9 % below {np.quantile(values, 0.999):.3f}")
    print(f"float: {np.sum(outputs.argmax(1) == data.labels)} right")
    runs = [(bits, 1) for bits in arguments.bits] + [(bits, 3) for bits in arguments.bits]
    for bits, h_integer in runs:
        rounded = Cell(arrays, bits, h_integer=h_integer).classify(x, lengths)
        noise = np.mean((rounded - outputs) ** 2) / np.mean(outputs**2)
        print(
            f"{bits} bits, h with {bits - h_integer} fraction bits: {np.sum(rounded.argmax(1) == data.labels)} right, "
            f"{np.sum(rounded.argmax(1) == outputs.argmax(1))} as float, SNR {-10 * np.log10(noise):.1f} dB"
        )
    if arguments.golden:
        sample = [features(sound) for sound in datasets.load_recordings("fsdd", "train").recordings[::27]]
        found = compiled(arrays, sample, rows)
        noise = np.mean((found - outputs) ** 2) / np.mean(outputs**2)
        print(
            f"golden model: {np.sum(found.argmax(1) == data.labels)} right, "
            f"{np.sum(found.argmax(1) == outputs.argmax(1))} as float, SNR {-10 * np.log10(noise):.1f} dB"
        )


if __name__ == "__main__":
    main()
