# SPDX-License-Identifier: BSD-3-Clause
"""What stands before a speech network, without torch: the front end against scipy, and augmentation."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.signal

from circ_overlay.models.augment_speech import Alteration, alter_features, alter_recording
from circ_overlay.models.speech import LIMIT, FrontEnd, log_mel, mel_filters, normalise

# --- front end ----------------------------------------------------------------------------------------------


def triangles(front: FrontEnd) -> np.ndarray:
    """Filters entry by entry, from the formulas."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    points = np.linspace(mel(front.low), mel(front.high), front.bands + 2)
    corners = [700 * (10 ** (point / 2595) - 1) for point in points]
    filters = np.zeros((front.bands, front.frame // 2 + 1))
    for band in range(front.bands):
        for number in range(filters.shape[1]):
            hertz = number * front.sample_rate / front.frame
            filters[band, number] = np.interp(hertz, corners[band : band + 3], [0, 1, 0])
    return filters


@pytest.mark.parametrize(
    "front",
    [
        FrontEnd(),
        FrontEnd(frame=200, hop=80, bands=20, low=100, range_db=80),
        FrontEnd(frame=255, hop=255, bands=8, high=3500),
    ],
)
@pytest.mark.parametrize("samples", [1000, 2048, 1])
def test_log_mel_is_scipys(front: FrontEnd, samples: int) -> None:
    sound = np.random.default_rng(samples).normal(0, 3000, samples) + 500
    steps = front.steps(samples)
    padded = np.zeros((steps - 1) * front.hop + front.frame)
    padded[:samples] = sound
    window = scipy.signal.get_window("hann", front.frame)
    if samples == 1:
        padded[0] = 0  # what the window does to it
        expected = np.zeros((1, front.bands))
    else:
        _, _, spectrum = scipy.signal.stft(
            padded, front.sample_rate, window, front.frame, front.frame - front.hop, boundary=None, padded=False,
            detrend=False,
        )  # fmt: skip
        expected = (triangles(front) @ np.abs(spectrum) ** 2).T
    expected = expected / max(expected.max(), 1e-300)
    expected = np.log(np.maximum(expected, 10 ** (-front.range_db / 10)))
    found = log_mel(sound, front)
    assert found.dtype == np.float32
    assert found.shape == (steps, front.bands)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mel_filters() -> None:
    front = FrontEnd()
    np.testing.assert_allclose(mel_filters(front), triangles(front), atol=1e-12)
    assert not mel_filters(front).flags.writeable
    # At 1000 Hz the scale has 1000 mel, by its definition.
    assert 2595 * np.log10(1 + 1000 / 700) == pytest.approx(1000, abs=0.1)


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 257, 384, 385, 18262])
def test_frames_cover_the_recording(samples: int) -> None:
    front = FrontEnd()
    steps = front.steps(samples)
    assert len(log_mel(np.ones(samples), front)) == steps
    assert (steps - 1) * front.hop + front.frame >= samples
    assert steps == 1 or (steps - 2) * front.hop + front.frame < samples


def test_a_tone_is_loudest_in_its_band() -> None:
    front = FrontEnd()
    centres = triangles(front).argmax(axis=1) * front.sample_rate / front.frame
    for band in (3, 12, 25, 31):
        tone = np.sin(2 * np.pi * centres[band] / front.sample_rate * np.arange(1024))
        found = log_mel(tone, front)[1:-1]
        assert (found.argmax(axis=1) == band).all()
        assert found.max() == pytest.approx(0, abs=1e-3)


def test_gain_does_not_count() -> None:
    sound = np.random.default_rng(3).integers(-2000, 2000, 3000).astype(np.int16)
    expected = log_mel(sound)
    np.testing.assert_array_equal(log_mel(sound * np.int16(8)), expected)
    np.testing.assert_array_equal(log_mel(sound / 32768), expected)
    np.testing.assert_allclose(log_mel(sound * 1e-200), expected, atol=1e-5)
    np.testing.assert_allclose(log_mel(sound * 1e200), expected, atol=1e-5)


def test_silence_and_full_scale() -> None:
    lowest = np.float32(-6 * np.log(10))
    np.testing.assert_array_equal(log_mel(np.zeros(1000, np.int16)), np.full((7, 32), lowest))
    np.testing.assert_array_equal(log_mel(np.eye(1, 900, dtype=np.int16)[0]), np.full((7, 32), lowest))
    assert np.isfinite(log_mel(np.full(1000, -32768, np.int16))).all()


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(0, np.int16), r"shape \(0,\)"),
        (np.zeros((2, 100)), r"shape \(2, 100\) .* choose one channel"),
        (np.zeros(100, complex), "dtype complex128"),
        (np.zeros(100, bool), "dtype bool"),
        (np.array([1.0, np.nan, 2.0]), "NaN or infinity"),
        (np.array([1.0, -np.inf]), "NaN or infinity"),
    ],
)
def test_recordings_that_are_refused(sound: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(sound)


@pytest.mark.parametrize(
    "changes",
    [{"hop": 0}, {"hop": 300}, {"frame": 1, "hop": 1}, {"bands": 0}, {"low": -1}, {"low": 4000}, {"high": 4001},
     {"range_db": 0}, {"sample_rate": 0}],
)  # fmt: skip
def test_sizes_that_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        FrontEnd(**changes)


def test_bands_narrower_than_a_frequency_are_refused() -> None:
    with pytest.raises(ValueError, match="falls into band 0: take a longer frame or fewer bands"):
        FrontEnd(frame=64, hop=32, bands=60)


def test_normalise() -> None:
    features = np.array([[0, 1], [2, 30]], np.float32)
    mean, deviation = np.array([1, 2], np.float32), np.array([0.5, 2], np.float32)
    found = normalise(features, mean, deviation)
    np.testing.assert_array_equal(found, [[-2, -0.5], [2, LIMIT]])
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match=r"mean \(3,\).*constants stored with the network"):
        normalise(features, np.zeros(3, np.float32), deviation)
    with pytest.raises(ValueError, match=r"features have shape \(2,\)"):
        normalise(features[0], mean, deviation)


def test_front_end_does_without_torch() -> None:
    code = "import sys, circ_overlay.models.speech, circ_overlay.datasets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- augmentation -------------------------------------------------------------------------------------------

FULL = Alteration(
    speed=0.2, stretch=0.2, pad=300, crop=200, noise_db=(0.0, 20.0), tilt=2.0, time_mask=5, band_mask=6
)


def test_no_alteration_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    sound = rng.integers(-100, 100, 500).astype(np.int16)
    np.testing.assert_array_equal(alter_recording(sound, Alteration(), rng), sound)
    features = rng.normal(size=(20, 32)).astype(np.float32)
    np.testing.assert_array_equal(alter_features(features, np.ones(32, np.float32), Alteration(), rng), features)


@pytest.mark.parametrize("samples", [1, 2, 7, 4000])
def test_alterations_keep_to_their_bounds_and_their_generator(samples: int) -> None:
    sound = np.random.default_rng(0).integers(-9000, 9000, samples).astype(np.int16)
    kept, deviation = sound.copy(), np.ones(32, np.float32)
    for seed in range(30):
        found, again = (alter_recording(sound, FULL, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(found, again)
        assert found.dtype == np.float32
        assert 1 <= len(found) <= round(samples * 1.2) + 600
        assert np.isfinite(found).all()
        features = log_mel(found)
        altered = alter_features(features, deviation, FULL, np.random.default_rng(seed))
        assert altered.dtype == np.float32
        assert altered.shape[1] == 32
        assert round(len(features) / 1.2) <= max(2, len(altered)) <= max(2, round(len(features) * 1.2))
    np.testing.assert_array_equal(sound, kept)


def test_masks() -> None:
    features, sizes = np.ones((40, 32), np.float32), set()
    for seed in range(200):
        found = alter_features(
            features, np.ones(32, np.float32), Alteration(time_mask=5, band_mask=6), np.random.default_rng(seed)
        )
        hidden = found == 0
        times, bands = hidden.all(axis=1), hidden.all(axis=0)
        np.testing.assert_array_equal(hidden, times[:, None] | bands)
        for mask in (times, bands):
            assert np.abs(np.diff(np.pad(mask.astype(int), 1))).sum() <= 2  # one run
        sizes.add((times.sum(), bands.sum()))
    assert {time for time, _ in sizes} == set(range(6))
    assert {band for _, band in sizes} == set(range(7))
    assert (features == 1).all()


def test_noise_has_the_level_asked_for() -> None:
    sound = (1000 * np.sin(np.arange(20000))).astype(np.int16)
    levels = []
    for seed in range(20):
        noise = alter_recording(sound, Alteration(noise_db=(20.0, 20.0)), np.random.default_rng(seed)) - sound
        levels.append(np.std(noise))
    assert sum(level == 0 for level in levels) in range(4, 17)
    np.testing.assert_allclose([level for level in levels if level], np.std(sound.astype(float)) / 10, rtol=0.05)
