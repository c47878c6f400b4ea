# SPDX-License-Identifier: BSD-3-Clause
"""Quantisation of one operation: choose its formats and shifts from what reaches it, and round its weights.

Docs: docs/numerics.md, "What the compiler chooses".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import golden, spec
from ..fixedpoint import Format, limits
from ..layer import Layer, Map
from .graph import CompileError, Operation, filled

__all__ = ["Operand", "lower", "snr_db", "spectral_words", "worst_channel_db"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_HEADROOM = 2.0
"""Spectral sums may grow to this multiple of the sample's largest one before they saturate."""

OUTPUT_HEADROOM = 1.125
"""Likewise for a layer's outputs, where headroom costs resolution."""


@dataclass(frozen=True)
class Operand:
    """What a layer reads: integers (batch, height, width, channels) and their fraction bits.

    The real value is ``integers * 2**-frac * scale``.
    """

    integers: Ints
    frac: int
    scale: float = 1.0


def spectral_words(weight: Floats) -> Floats:
    """Spectra of circulant blocks in the core's order and packing.

    Parameters
    ----------
    weight : (..., k) first columns

    Returns
    -------
    (..., k/2, 2) float64
    """
    k = weight.shape[-1]
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


def worst_channel_db(reference: Floats, value: Floats) -> float:
    """SNR in dB of the worst of the last axis's channels that give anything at all; infinite if there are none."""
    axes = tuple(range(reference.ndim - 1))
    signal, noise = (reference**2).sum(axes), ((value - reference) ** 2).sum(axes)
    live = (signal > 0) & (noise > 0)
    return 10 * float(np.log10((signal[live] / noise[live]).min())) if live.any() else float("inf")


def _words(op: Operation, parts: list[Operand], channels: list[int]) -> Floats:
    """Weights as they lie in the core's memory, in real numbers: (p, row blocks, words, 2)."""
    assert op.weight is not None
    weight = op.weight
    p, q, r, s, k = weight.shape
    if len(parts) > 1:
        # One vector has one format: what parts differ by goes into the weights that face them.
        factors, ends = np.ones(q), np.cumsum([filled(c, k) // k for c in channels[:-1]])
        for blocks, part in zip(np.split(np.arange(q), ends), parts):
            factors[blocks] = 2.0 ** (parts[0].frac - part.frac)
        weight = weight * factors[:, None, None, None]
    if k == 1:
        surplus = -q % spec.MAP_WORD
        rows = np.pad(weight[..., 0].transpose(0, 2, 3, 1), [(0, 0)] * 3 + [(0, surplus)])
        return rows[: op.out_channels].reshape(op.out_channels, -1, 2, 2)
    return spectral_words(weight.transpose(0, 2, 3, 1, 4).reshape(p, r * s * q, k))


def _quantise_weights(op: Operation, words: Floats, width: int) -> tuple[Ints, Floats]:
    """Integers, and the gain of each block row: it uses the whole range, the affine undoes it for free."""
    peaks = np.abs(words).max(axis=(1, 2, 3))
    if peaks.max() > 0 and not 1e-30 < float(peaks.max()) < 1e30:
        raise CompileError(
            f"{op.where}its spectral weights reach {peaks.max():.3g}; scale weights and data to the order of 1"
        )
    peaks = np.where(peaks > 1e-30, peaks, 0.0)  # a row of rounding noise is a row of zeros
    gains = limits(width)[1] / np.where(peaks > 0, peaks, 1.0)
    return np.floor(words * gains[:, None, None, None] + 0.5).astype(np.int64), gains


def lower(
    op: Operation,
    parts: list[Operand],
    reference: Floats,
    width: int,
    *,
    residual: Operand | None = None,
    factor: Operand | None = None,
    out_frac: int | None = None,
) -> Layer:
    """The layer that computes `op` in `width` bits; its maps have shapes, but no places yet.

    Parameters
    ----------
    parts : what the op's sources hold on the sample
    reference : (batch, height, width, channels) float results, before pooling
    residual, factor : likewise, for operations that have them
    out_frac : fraction bits of the outputs, where they are not free: a state has one format

    Raises
    ------
    CompileError
        A number is beyond what the core's formats can express.
    """
    whole = [np.pad(p.integers, [(0, 0)] * 3 + [(0, filled(p.integers.shape[3], op.block_size) - p.integers.shape[3])])
             for p in parts[:-1]]  # fmt: skip
    x = np.concatenate([*whole, parts[-1].integers], -1) if whole else parts[0].integers
    if op.flatten:
        x = x.reshape(len(x), 1, 1, -1)
    results, channels = reference.shape[1:3], reference.shape[3]
    pre_frac, frac = _formats(op, reference, width, out_frac)
    weights, gains = np.zeros((0, 0, 0, 2), np.int64), np.ones(1)
    if op.kind == "circulant":
        weights, gains = _quantise_weights(op, _words(op, parts, [p.integers.shape[3] for p in parts]), width)
    layer = Layer(
        opcode=spec.Opcode[op.kind.upper()],
        source=Map(height=x.shape[1], width=x.shape[2], channels=x.shape[3]),
        target=Map(height=results[0] // op.pool[0], width=results[1] // op.pool[1], channels=channels),
        residual=None if residual is None else Map(height=results[0], width=results[1], channels=channels),
        factor=None if factor is None else Map(height=results[0], width=results[1], channels=channels),
        block_size=op.block_size,
        gather=op.gather,
        taps=op.taps,
        stride=op.stride,
        padding=op.padding[:2],
        pool=op.pool,
        weights=weights.astype(np.int16),
        scale=np.zeros(channels, np.int32),
        bias=np.zeros(channels, np.int64),
        activation=spec.Activation[op.activation.upper()],
        ceiling=_ceiling(op, pre_frac, width),
        out_frac=frac,
        name=op.name,
    )
    acc_shift = _acc_shift(op, golden.reduce(layer, x, None if factor is None else factor.integers), width)
    # The integers that the affine takes are this many times the real value of the reduction.
    gain = np.repeat(gains, op.block_size)[:channels] * (op.block_size if op.block_size > 1 else 1)
    unit, real = parts[0].frac - acc_shift, parts[0].scale
    if factor is not None:
        unit, real = unit + factor.frac, real * factor.scale
    multiplier = np.broadcast_to(np.asarray(op.scale) * real / gain * 2.0 ** (pre_frac - unit), (channels,))
    offset = np.broadcast_to(np.asarray(op.shift) * 2.0**pre_frac, (channels,))
    # A shift beyond all that the product can bring back saturates whatever its size. Cut there, it leaves the
    # fraction bits to the other channels, which share affine_shift.
    reach = np.abs(multiplier) * 2.0 ** (spec.TIME_BITS - 1) + 2.0 ** (width + spec.PREACT_GUARD_BITS)
    if residual is not None:
        reach = reach + 2.0 ** (width - 1 + pre_frac - residual.frac)
    offset = np.clip(offset, -reach, reach)
    affine_shift = _affine_shift(op, multiplier, offset, None if residual is None else pre_frac - residual.frac)
    values = dict(vars(layer))
    values |= {
        "acc_shift": acc_shift,
        "affine_shift": affine_shift,
        "add_shift": 0 if residual is None else pre_frac + affine_shift - residual.frac,
        "scale": np.floor(np.ldexp(multiplier, affine_shift) + 0.5).astype(np.int32),
        "bias": np.floor(np.ldexp(offset, affine_shift) + 0.5).astype(np.int64),
    }
    return Layer(**values)


def _formats(op: Operation, reference: Floats, width: int, out_frac: int | None) -> tuple[int, int]:
    """Fraction bits before and behind the activation."""
    if op.activation in ("sigmoid", "tanh"):
        if out_frac not in (None, width - 1):
            raise CompileError(f"{op.where}a {op.activation} gives {width - 1} fraction bits, its state has {out_frac}")
        return width, width - 1
    if out_frac is None:
        largest = op.out_range if op.out_range is not None else OUTPUT_HEADROOM * float(np.abs(reference).max())
        if op.ceiling is not None:
            largest = min(largest, op.ceiling)
        out_frac = Format.for_range(width, largest).frac
    return out_frac, out_frac


def _ceiling(op: Operation, frac: int, width: int) -> int | None:
    """A relu's upper limit as an integer; None if the format saturates below it anyway."""
    if op.ceiling is None:
        return None
    limit = int(np.floor(np.ldexp(op.ceiling, frac) + 0.5))
    if limit < 1:
        raise CompileError(f"{op.where}a ceiling of {op.ceiling:g} leaves nothing of its outputs")
    return limit if limit <= limits(width)[1] else None


def _acc_shift(op: Operation, sums: Ints, width: int) -> int:
    """The smallest shift with which the sample's sums, with some headroom, stay in their bits."""
    peak = float(np.abs(sums).max())
    if op.kind == "circulant":
        assert op.weight is not None
        if peak == 0 and np.abs(op.weight).max() > 1e-30:
            raise CompileError(
                f"the sample brings only zeros to layer {op.name!r}; formats are chosen from what it shows, so give "
                "a sample of typical inputs"
            )
        return max(0, int(np.ceil(np.log2(max(SUM_HEADROOM * peak, 1.0) / limits(spec.SUM_BITS)[1]))))
    # Without weights the largest value is known: no headroom to guess.
    bits = {"product": 2 * width - 1, "max": width, "sum": width + (op.taps[0] * op.taps[1] - 1).bit_length()}[op.kind]
    return max(0, bits - spec.TIME_BITS)


def _affine_shift(op: Operation, multiplier: Floats, offset: Floats, residual: int | None) -> int:
    """The largest shift for which scale, bias and residual fit their fields: the most precise affine.

    `residual` is what the residual's add_shift has more than the affine_shift.
    """
    room = [float(spec.MAX_AFFINE_SHIFT)]
    for values, bits in ((multiplier, spec.SCALE_BITS), (offset, spec.BIAS_BITS)):
        largest = float(np.abs(values).max())
        if largest > 0:
            # Half an LSB of margin, so that rounding up cannot leave the field.
            room.append(np.floor(np.log2((limits(bits)[1] - 0.5) / largest)))
    if residual is not None:
        room.append(spec.MAX_ADD_SHIFT - residual)
    shift = int(min(room))
    if shift < 0:
        raise CompileError(
            f"{op.where}its largest scale or shift is {2.0**-shift:.3g} times what the core's affine can "
            "hold relative to the output; rescale the layer or clip its outliers"
        )
    if residual is not None and shift + residual < 0:
        raise CompileError(
            f"{op.where}its residual {op.residual!r} has {-(shift + residual)} fraction bits more than the sum can "
            "take; bring both to the same order of magnitude"
        )
    return shift
