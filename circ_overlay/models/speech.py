# SPDX-License-Identifier: BSD-3-Clause
"""From a recording to the sequence of feature vectors that a speech network takes; NumPy only.

A recording s becomes overlapping frames of N samples, one every H samples, the last padded with zeros. Of frame t::

    X[t, b] = sum_n w[n] s[t H + n] exp(-2 pi i n b / N)      w[n] = (1 - cos(2 pi n / N)) / 2, Hann's window
    E[t, m] = sum_b F[m, b] |X[t, b]|^2                       F: triangles, equally wide in mel
    L[t, m] = ln max(E[t, m] / max E, 10^(-range / 10))       relative to the recording's loudest entry
    x[t, m] = clip((L[t, m] - mean[m]) / deviation[m])        with constants stored with the network

with ``mel(f) = 2595 log10(1 + f / 700)``, f in Hz. Source: S. Davis, P. Mermelstein, "Comparison of Parametric
Representations for Monosyllabic Word Recognition in Continuously Spoken Sentences", IEEE Trans. ASSP 28(4), 1980,
without its cosine transform; the mel formula is D. O'Shaughnessy's (Speech Communication, 1987, p. 150), as in
The HTK Book, section 5.4.

Dividing by the loudest entry makes the features independent of the recording's gain: it needs the whole recording,
which a host has before it sends the first step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "FrontEnd", "log_mel", "mel_filters", "normalise"]

LIMIT = 4.0
"""Normalised features are clipped to -LIMIT ... LIMIT: what fixed-point inputs of the accelerator have to hold."""


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Sizes of the front end.

    Attributes
    ----------
    sample_rate : int
        Samples a second of the recordings.
    frame, hop : int
        N and H, samples.
    bands : int
        Features of a step.
    low, high : float
        Hz, lower edge of the first triangle and upper edge of the last.
    range_db : float
        dB below the loudest entry that still count; what is weaker counts as that.

    Raises
    ------
    ValueError
        If a size is out of range, or the frame is so short that a band falls between two of its frequencies.
    """

    sample_rate: int = 8000
    frame: int = 256
    hop: int = 128
    bands: int = 32
    low: float = 60.0
    high: float = 4000.0
    range_db: float = 60.0

    def __post_init__(self) -> None:
        if not (self.sample_rate > 0 and self.frame >= 2 and 1 <= self.hop <= self.frame and self.bands >= 1):
            raise ValueError(f"{self}: allowed are sample_rate > 0, frame >= 2, 1 <= hop <= frame and bands >= 1")
        if not 0 <= self.low < self.high <= self.sample_rate / 2 or not 0 < self.range_db <= 150:
            raise ValueError(f"{self}: allowed are 0 <= low < high <= sample_rate / 2 and 0 < range_db <= 150")
        empty = np.flatnonzero(~mel_filters(self).any(axis=1))
        if len(empty):
            raise ValueError(
                f"{self}: no frequency of the frame falls into band {empty[0]}: take a longer frame or fewer bands"
            )

    def steps(self, samples: int) -> int:
        """Frames of a recording of `samples` samples: at least one."""
        return 1 + max(0, -(-(samples - self.frame) // self.hop))


@functools.lru_cache(maxsize=16)
def mel_filters(front: FrontEnd) -> NDArray[np.float64]:
    """Triangles F, (bands, frame // 2 + 1): each rises from its neighbour's middle to 1 and falls to the next's.

    The middles, with the two edges, are equally far apart in mel; the sides are straight in Hz. Not to be written to.
    """
    edges = 2595.0 * np.log10(1.0 + np.array([front.low, front.high]) / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(edges[0], edges[1], front.bands + 2) / 2595.0) - 1.0)
    bins = np.arange(front.frame // 2 + 1) * (front.sample_rate / front.frame)
    left, middle, right = (corners[i : i + front.bands, None] for i in range(3))
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    filters: NDArray[np.float64] = np.minimum(rising, falling).clip(min=0.0)
    filters.flags.writeable = False
    return filters


def log_mel(recording: NDArray[Any], front: FrontEnd | None = None) -> NDArray[np.float32]:
    """Logarithmic mel energies L of a recording, relative to its loudest entry.

    Parameters
    ----------
    recording : numpy.ndarray
        (samples,), at least one, integers or floats of any scale; one shorter than a frame is padded with zeros.
    front : FrontEnd, optional
        Sizes; the default ones if not given.

    Returns
    -------
    numpy.ndarray
        (frames, bands) float32, from -range_db * ln(10) / 10 to 0; silence gives the lowest value everywhere.

    Raises
    ------
    ValueError
        If the recording is not one row of finite real numbers.
    """
    front = front or FrontEnd()
    recording = np.asarray(recording)
    if recording.ndim != 1 or not recording.size or recording.dtype.kind not in "iuf":
        raise ValueError(
            f"the recording has shape {recording.shape} and dtype {recording.dtype}; allowed is (samples,), at least "
            "one, of integers or floats: choose one channel"
        )
    samples = recording.astype(np.float64)
    if not np.isfinite(samples).all():
        raise ValueError("the recording holds NaN or infinity: take those samples out")
    lowest = -front.range_db * np.log(10.0) / 10.0
    steps = front.steps(len(samples))
    loudest = np.abs(samples).max()
    if loudest == 0.0:
        return np.full((steps, front.bands), lowest, np.float32)
    padded = np.zeros((steps - 1) * front.hop + front.frame)
    padded[: len(samples)] = samples / loudest
    frames = np.lib.stride_tricks.sliding_window_view(padded, front.frame)[:: front.hop]
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(front.frame) / front.frame)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    energy = power @ mel_filters(front).T
    peak = energy.max()
    if peak == 0.0:  # all that sounds lies where the window is zero
        return np.full((steps, front.bands), lowest, np.float32)
    levels: NDArray[np.float32] = np.log(np.maximum(energy / peak, 10.0 ** (-front.range_db / 10.0))).astype(np.float32)
    return levels


def normalise(
    features: NDArray[np.float32], mean: NDArray[np.float32], deviation: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Features x as a network takes them: centred, scaled, and clipped to -LIMIT ... LIMIT.

    Parameters
    ----------
    features : numpy.ndarray
        (frames, bands), of :func:`log_mel`.
    mean, deviation : numpy.ndarray
        (bands,), taken over all frames of the training recordings; deviation above 0.

    Returns
    -------
    numpy.ndarray
        (frames, bands) float32.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if features.ndim != 2 or mean.shape != features.shape[1:] or deviation.shape != mean.shape:
        raise ValueError(
            f"features have shape {features.shape}, mean {mean.shape} and deviation {deviation.shape}; allowed are "
            "(frames, bands), (bands,) and (bands,): take the constants stored with the network"
        )
    scaled: NDArray[np.float32] = ((features - mean) / deviation).clip(-LIMIT, LIMIT).astype(np.float32)
    return scaled
