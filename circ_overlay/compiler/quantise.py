# SPDX-License-Identifier: BSD-3-Clause
"""Calibration and quantisation: choose every format and shift, and round the weights, one layer at a time.

Each layer is calibrated on what really reaches it: the integers of the already quantised layers before it.
Docs: docs/numerics.md, "What the compiler chooses".
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import golden, spec
from ..fixedpoint import Format, limits
from ..program import Layer, Port, Program
from .graph import CompileError, Linear, Network

__all__ = ["quantise", "snr_db", "spectral_words"]

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_HEADROOM = 2.0
"""Spectral sums may grow to this multiple of the sample's largest one before they saturate."""

WORST_CHANNEL_DB = 10.0
"""Below this SNR of its worst channel a layer is worth a warning."""

OUTPUT_HEADROOM = 1.125
"""Likewise for a layer's outputs, where headroom costs resolution."""


def spectral_words(weight: Floats) -> Floats:
    """Spectra of circulant blocks in the core's order and packing.

    Parameters
    ----------
    weight : (p, q, k) first columns

    Returns
    -------
    (p, q, k/2, 2) float64
    """
    k = weight.shape[2]
    bins = np.fft.fft(weight)
    words = bins[..., list(spec.spectrum_order(k))]
    result: Floats = np.stack([words.real, words.imag], -1)
    result[..., 0, 1] = bins[..., k // 2].real
    return result


def snr_db(reference: Floats, value: Floats) -> float:
    """Signal-to-noise ratio of `value` against `reference` in dB; infinite if they are equal."""
    noise = float(((value - reference) ** 2).sum())
    signal = float((reference**2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))


def _plain(ratios: list[float]) -> list[float | None]:
    """Two decimals for a JSON file, which knows no infinity: None stands for it."""
    return [round(ratio, 2) if np.isfinite(ratio) else None for ratio in ratios]


def _worst_channel(reference: Floats, outputs: Floats) -> float:
    """SNR in dB of the worst of the channels that give anything at all; infinite if there are none."""
    signal = (reference**2).sum(0)
    noise = ((outputs - reference) ** 2).sum(0)
    live = (signal > 0) & (noise > 0)
    return 10 * float(np.log10((signal[live] / noise[live]).min())) if live.any() else float("inf")


def quantise(
    network: Network,
    sample: ArrayLike,
    *,
    width: int,
    name: str,
    labels: tuple[str, ...],
    metadata: dict[str, Any],
) -> Program:
    """The program that computes `network` in `width` bits; see :func:`circ_overlay.compiler.compile`."""
    x = np.asarray(sample)
    if x.dtype.kind not in "buif":
        raise CompileError(f"sample of dtype {x.dtype}: expected real numbers")
    if width not in spec.WIDTHS:
        raise CompileError(f"width={width}: allowed are {spec.WIDTHS[0]}..{spec.WIDTHS[-1]} bits")
    features = network.layers[0].in_features
    if x.ndim < 2 or len(x) == 0 or x[0].size != features:
        raise CompileError(
            f"sample of shape {x.shape}: expected (n, {features}) or n samples of {features} elements, n > 0"
        )
    port = _input_port(x, width)
    u8 = port.storage == "uint8"
    values = golden.enter(port.quantise(x, width).astype(np.int64), u8, width)
    frac, scale = port.frac + (spec.u8_shift(width) if u8 else 0), network.input_scale
    layers, ratios, worst = [], [], []
    for layer, reference in zip(network.layers, network.forward(x)):
        lowered = _lower(layer, values, reference, frac=frac, input_scale=scale, width=width)
        values = golden.linear(lowered, values, width)
        frac, scale = lowered.out_frac, 1.0
        layers.append(lowered)
        outputs = Format(width, frac).value(values)
        ratios.append(snr_db(reference, outputs))
        worst.append(_worst_channel(reference, outputs))
        if worst[-1] < WORST_CHANNEL_DB:
            _log.warning(
                "%s: layer %r has a channel with an SNR of only %.1f dB, because its outputs are far smaller than the "
                "layer's largest; channels of like size share a format better", name, layer.name, worst[-1],
            )  # fmt: skip
    return Program(
        name=name,
        width=width,
        input=port,
        output=Port(shape=(network.layers[-1].out_features,), frac=frac),
        layers=tuple(layers),
        labels=labels,
        metadata={
            **metadata,
            "snr_db": _plain(ratios),
            "worst_channel_snr_db": _plain(worst),
            "calibration_samples": len(x),
        },
    )


def _input_port(x: NDArray[Any], width: int) -> Port:
    shape = tuple(int(n) for n in x.shape[1:])
    if x.dtype == np.uint8 and width > 8:
        return Port(shape=shape, frac=0, storage="uint8")
    largest = float(np.abs(x.astype(np.float64)).max())
    if not np.isfinite(largest):
        raise CompileError("the sample holds NaN or infinite values")
    if not 2.0**-40 <= largest <= 2.0**40:
        raise CompileError(
            f"the sample's largest magnitude is {largest:.3g}; formats are chosen from what it shows, so give typical "
            f"inputs, scaled to between {2.0**-40:.1g} and {2.0**40:.1g}"
        )
    return Port(shape=shape, frac=Format.for_range(width, largest).frac)


def _lower(
    layer: Linear, x: Ints, reference: Floats, *, frac: int, input_scale: float, width: int
) -> Layer:
    """Quantise one layer whose inputs are the integers `x` with `frac` fraction bits."""
    weight = np.asarray(layer.weight)
    _, q, k = weight.shape
    words = spectral_words(weight)
    # Each row of blocks uses the whole range of the weights' format: the affine undoes its gain for free.
    peaks = np.abs(words).max(axis=(1, 2, 3))
    if peaks.max() > 0 and not 1e-30 < float(peaks.max()) < 1e30:
        raise CompileError(
            f"layer {layer.name!r}: its spectral weights reach {peaks.max():.3g}; "
            "scale weights and data to the order of 1"
        )
    peaks = np.where(peaks > 1e-30, peaks, 0.0)  # a row of rounding noise is a row of zeros
    row_gain = limits(width)[1] / np.where(peaks > 0, peaks, 1.0)
    weights = np.floor(words * row_gain[:, None, None, None] + 0.5).astype(np.int64)

    padded = np.zeros((len(x), q * k), np.int64)
    padded[:, : layer.in_features] = x
    sums = golden.spectral_product(weights, golden.forward_transform(padded.reshape(len(x), q, k)))
    peak = float(np.abs(sums).max()) * SUM_HEADROOM
    if peak == 0 and peaks.max() > 0:
        raise CompileError(
            f"the sample brings only zeros to layer {layer.name!r}; formats are chosen from what it shows, so give "
            "a sample of typical inputs"
        )
    acc_shift = max(0, int(np.ceil(np.log2(max(peak, 1.0) / limits(spec.SUM_BITS)[1]))))

    activation = spec.Activation[layer.activation.upper()]
    if activation in (spec.Activation.SIGMOID, spec.Activation.TANH):
        pre_frac, out_frac = width, width - 1
    else:
        pre_frac = out_frac = Format.for_range(width, OUTPUT_HEADROOM * float(np.abs(reference).max())).frac
    # The core's time-domain integers are k * row_gain * 2**(frac - acc_shift) times W @ x.
    channel_gain = np.repeat(row_gain, k)[: layer.out_features]
    exponent = pre_frac + acc_shift - frac
    multiplier = np.asarray(layer.scale) * input_scale / (k * channel_gain) * 2.0**exponent
    offset = np.asarray(layer.shift) * 2.0**pre_frac
    # A shift beyond all that the product can bring back saturates whatever its size. Cut there, it leaves the
    # fraction bits to the other channels, which share affine_shift.
    reach = np.abs(multiplier) * 2.0 ** (spec.TIME_BITS - 1) + 2.0 ** (width + spec.PREACT_GUARD_BITS)
    offset = np.clip(offset, -reach, reach)
    affine_shift = _affine_shift(multiplier, offset, layer.name)
    return Layer(
        in_features=layer.in_features,
        out_features=layer.out_features,
        weights=weights.astype(np.int16),
        scale=np.floor(np.ldexp(multiplier, affine_shift) + 0.5).astype(np.int32),
        bias=np.floor(np.ldexp(offset, affine_shift) + 0.5).astype(np.int64),
        acc_shift=acc_shift,
        affine_shift=affine_shift,
        activation=activation,
        out_frac=out_frac,
        name=layer.name,
    )


def _affine_shift(multiplier: Floats, offset: Floats, name: str) -> int:
    """The largest shift for which scale and bias fit their fields: the most precise affine."""
    room = [float(spec.MAX_AFFINE_SHIFT)]
    for values, bits in ((multiplier, spec.SCALE_BITS), (offset, spec.BIAS_BITS)):
        largest = float(np.abs(values).max())
        if largest > 0:
            # Half an LSB of margin, so that rounding up cannot leave the field.
            room.append(np.floor(np.log2((limits(bits)[1] - 0.5) / largest)))
    shift = int(min(room))
    if shift < 0:
        raise CompileError(
            f"layer {name!r}: its largest scale or shift is {2.0**-shift:.3g} times what the core's affine can "
            "hold relative to the output; rescale the layer or clip its outliers"
        )
    return shift
