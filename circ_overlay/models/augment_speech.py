# SPDX-License-Identifier: BSD-3-Clause
"""Random changes to recordings and to their features while a speech network trains; NumPy only.

Masks in time and frequency are those of D. Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic
Speech Recognition", Interspeech 2019; the change of speed is that of T. Ko et al., "Audio Augmentation for Speech
Recognition", Interspeech 2015.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alteration", "alter_features", "alter_recording"]


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """How far recordings may be altered; each is the bound of a uniform draw unless said otherwise.

    Attributes
    ----------
    speed : float
        Relative: 0.1 lets a recording become up to 10 % faster or slower, and higher or lower with it.
    stretch : float
        Relative: the same for time alone, without pitch.
    pad : int
        Samples of silence put before, and after.
    crop : int
        Samples cut off at either end, at most an eighth of the recording.
    noise_db : tuple of float
        Signal-to-noise ratio in dB, lowest and highest, of the white noise that half of the recordings get.
    tilt : float
        Natural logarithm of power that the top band gains or loses over the lowest, and the middle over both.
    time_mask, band_mask : int
        Longest run of steps, and of bands, that is set to 0; never more than a quarter of either.
    """

    speed: float = 0.0
    stretch: float = 0.0
    pad: int = 0
    crop: int = 0
    noise_db: tuple[float, float] | None = None
    tilt: float = 0.0
    time_mask: int = 0
    band_mask: int = 0


def alter_recording(
    recording: NDArray[Any], alteration: Alteration, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a recording, (samples,) of numbers, cropped, at another speed, padded and with noise: float32."""
    sound = recording.astype(np.float32)
    if alteration.crop:
        before, after = rng.integers(0, min(alteration.crop, len(sound) // 8) + 1, 2)
        sound = sound[before : len(sound) - after]
    if alteration.speed:
        factor = np.exp(rng.uniform(-1, 1) * np.log1p(alteration.speed))
        places = np.linspace(0, len(sound) - 1, max(1, round(len(sound) / factor)))
        sound = np.interp(places, np.arange(len(sound)), sound).astype(np.float32)
    if alteration.pad:
        sound = np.pad(sound, rng.integers(0, alteration.pad + 1, 2))
    if alteration.noise_db and rng.random() < 0.5:
        level = np.sqrt(np.mean(sound**2)) * 10 ** (-rng.uniform(*alteration.noise_db) / 20)
        sound = sound + level * rng.standard_normal(len(sound), np.float32)
    return sound.astype(np.float32)


def alter_features(
    features: NDArray[np.float32], deviation: NDArray[np.float32], alteration: Alteration, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return normalised features (steps, bands) stretched in time, tilted and masked, float32.

    `deviation` (bands,) is what they were divided by; a mask sets them to 0, their mean.
    """
    steps, bands = features.shape
    if alteration.stretch:
        steps = max(1, round(steps * np.exp(rng.uniform(-1, 1) * np.log1p(alteration.stretch))))
        places = np.linspace(0, len(features) - 1, steps)
        below = places.astype(np.int64)
        part = (places - below).astype(np.float32)[:, None]
        above = np.minimum(below + 1, len(features) - 1)
        features = features[below] * (1 - part) + features[above] * part
    if alteration.tilt:
        along = np.linspace(-0.5, 0.5, bands, dtype=np.float32)
        slope, bend = rng.uniform(-alteration.tilt, alteration.tilt, 2).astype(np.float32)
        features = features + (slope * along + bend * (0.25 - 2 * along**2)) / deviation
    features = features.copy()  # the masks write into it
    for axis, longest in ((0, alteration.time_mask), (1, alteration.band_mask)):
        length = int(rng.integers(0, min(longest, features.shape[axis] // 4) + 1))
        start = int(rng.integers(0, features.shape[axis] - length + 1))
        features[(slice(None),) * axis + (slice(start, start + length),)] = 0
    return features
