# SPDX-License-Identifier: BSD-3-Clause
"""Recordings as a data set: wav files written here, read back, checked, split; damage is noticed."""

import dataclasses
import functools
import hashlib
import http.server
import tarfile
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from circ_overlay import datasets
from circ_overlay.audio import folder_digest, read_spoken_digits, read_wav, unpack_wavs
from circ_overlay.datasets import DataUnavailableError


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype({1: "u1", 2: "<i2"}[width]).tobytes())


def make_folder(folder: Path, indices: tuple[int, ...] = (0, 4, 5, 49)) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    rng, written = np.random.default_rng(0), {}
    for speaker in ("zoe", "adam"):
        for digit in (3, 0):
            for index in indices:
                sound = rng.integers(-32768, 32768, int(rng.integers(50, 400)))
                written[f"{digit}_{speaker}_{index}.wav"] = sound
                write_wav(folder / f"{digit}_{speaker}_{index}.wav", sound)
    return written


def test_official_split_and_order(tmp_path):
    written = make_folder(tmp_path / "recordings")
    (tmp_path / "recordings" / "README.txt").write_text("left alone")
    test = read_spoken_digits(tmp_path / "recordings", "test")
    train = read_spoken_digits(tmp_path / "recordings", "train")
    assert (len(test), len(train)) == (8, 8)
    assert set(test.indices) == {0, 4}
    assert set(train.indices) == {5, 49}
    assert test.speakers == ("adam",) * 4 + ("zoe",) * 4
    assert test.labels.tolist() == [0, 0, 3, 3] * 2
    for part in (test, train):
        for sound, label, speaker, index in zip(part.recordings, part.labels, part.speakers, part.indices):
            assert sound.dtype == np.int16
            np.testing.assert_array_equal(sound, written[f"{label}_{speaker}_{index}.wav"])


def test_select(tmp_path):
    make_folder(tmp_path / "recordings")
    test = read_spoken_digits(tmp_path / "recordings", "test")
    chosen = test.select(test.labels == 3, "threes")
    assert (chosen.split, len(chosen)) == ("threes", 4)
    assert chosen.recordings[0] is test.recordings[2]
    assert chosen.speakers == ("adam", "adam", "zoe", "zoe")
    with pytest.raises(ValueError, match=r"chosen has shape \(2,\); there are 8 recordings"):
        test.select([True, False], "wrong")
    with pytest.raises(dataclasses.FrozenInstanceError):
        test.split = "other"


def test_wav_of_another_kind_is_refused(tmp_path):
    sound = np.arange(100)
    write_wav(tmp_path / "fast.wav", sound, rate=16000)
    with pytest.raises(DataUnavailableError, match="fast.wav has 1 channels of 16 bits at 16000 Hz; .* at 8000 Hz"):
        read_wav(tmp_path / "fast.wav", 8000)
    write_wav(tmp_path / "stereo.wav", sound, channels=2)
    with pytest.raises(DataUnavailableError, match="has 2 channels"):
        read_wav(tmp_path / "stereo.wav", 8000)
    write_wav(tmp_path / "coarse.wav", sound, width=1)
    with pytest.raises(DataUnavailableError, match="of 8 bits"):
        read_wav(tmp_path / "coarse.wav", 8000)
    write_wav(tmp_path / "empty.wav", sound[:0])
    with pytest.raises(DataUnavailableError, match="0 bytes of sound"):
        read_wav(tmp_path / "empty.wav", 8000)
    (tmp_path / "text.wav").write_text("no sound at all")
    with pytest.raises(DataUnavailableError, match="text.wav is no readable wav file"):
        read_wav(tmp_path / "text.wav", 8000)


def test_truncated_wav_is_refused_wherever_it_ends(tmp_path):
    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    write_wav(whole, np.arange(60))
    raw = whole.read_bytes()
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(DataUnavailableError, match="cut.wav"):
            read_wav(cut, 8000)


def test_no_recordings(tmp_path):
    with pytest.raises(DataUnavailableError, match="holds no recordings .* of the test part"):
        read_spoken_digits(tmp_path, "test")


def test_folder_digest_is_that_of_sha256sum(tmp_path):
    for name, content in (("b.wav", b"two"), ("B.wav", b"one"), ("a.txt", b"not counted")):
        (tmp_path / name).write_bytes(content)
    printed = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("B.wav", b"one"), ("b.wav", b"two"))
    )
    assert folder_digest(tmp_path) == hashlib.sha256(printed.encode()).hexdigest()


def make_archive(tmp_path: Path, inner: str = "fsdd-1/recordings") -> tuple[Path, str]:
    source = tmp_path / "source"
    make_folder(source)
    (source / "notes.txt").write_text("not unpacked")
    archive = tmp_path / "v9.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, inner)
    return archive, folder_digest(source)


def test_unpack(tmp_path):
    archive, digest = make_archive(tmp_path)
    folder = tmp_path / "cache" / "recordings"
    unpack_wavs(archive, folder)
    assert folder_digest(folder) == digest
    assert len(list(folder.iterdir())) == 16
    assert [path.name for path in folder.parent.iterdir()] == ["recordings"]


def test_unpack_is_all_or_nothing(tmp_path):
    archive, _ = make_archive(tmp_path, inner="elsewhere")
    with pytest.raises(DataUnavailableError, match="holds no recordings"):
        unpack_wavs(archive, tmp_path / "cache" / "recordings")
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataUnavailableError, match="could not be unpacked"):
        unpack_wavs(archive, tmp_path / "cache" / "recordings")
    archive.write_bytes(b"not an archive")
    with pytest.raises(DataUnavailableError, match="could not be unpacked"):
        unpack_wavs(archive, tmp_path / "cache" / "recordings")
    assert not list((tmp_path / "cache").iterdir())


def known(monkeypatch, **changes):
    monkeypatch.setitem(datasets.DATASETS, "fsdd", dataclasses.replace(datasets.DATASETS["fsdd"], **changes))


def test_load_recordings_checks_the_content(tmp_path, monkeypatch):
    folder = tmp_path / "fsdd" / "recordings"
    make_folder(folder)
    monkeypatch.setenv("CIRC_OVERLAY_DATA", str(tmp_path))
    assert datasets.at_hand("fsdd")
    with pytest.raises(DataUnavailableError, match="is not as published: .* expected 1801eae0.*remove it"):
        datasets.load_recordings("fsdd")
    known(monkeypatch, files={"recordings": folder_digest(folder)})
    assert len(datasets.load_recordings("fsdd", "train")) == 8
    (folder / "3_zoe_0.wav").unlink()
    with pytest.raises(DataUnavailableError, match="is not as published"):
        datasets.load_recordings("fsdd")


def test_load_recordings_messages():
    with pytest.raises(ValueError, match="'mnist' holds images, not recordings: use load"):
        datasets.load_recordings("mnist")
    with pytest.raises(ValueError, match="'fsdd' holds recordings, not images: use load_recordings"):
        datasets.load("fsdd")
    with pytest.raises(ValueError, match="split 'all'"):
        datasets.load_recordings("fsdd", "all")
    with pytest.raises(ValueError, match="data set 'cats': there are"):
        datasets.load_recordings("cats")


def test_download_unpacks_and_checks(tmp_path, monkeypatch):
    pytest.importorskip("pooch", reason="without pooch nothing is downloaded")
    archive, digest = make_archive(tmp_path)
    monkeypatch.delenv("CIRC_OVERLAY_DATA", raising=False)
    monkeypatch.setenv("CIRC_OVERLAY_CACHE", str(tmp_path / "cache"))
    known(monkeypatch, urls=("http://127.0.0.1:9/v9.tar.gz",), files={"recordings": digest})
    with pytest.raises(DataUnavailableError, match="could not be downloaded.*set CIRC_OVERLAY_DATA"):
        datasets.load_recordings("fsdd")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        known(monkeypatch, urls=(f"http://127.0.0.1:{server.server_address[1]}/{archive.name}",))
        assert len(datasets.load_recordings("fsdd", "train")) == 8
    finally:
        server.shutdown()
    assert len(datasets.load_recordings("fsdd", "test")) == 8  # from the cache now
    assert [path.name for path in (tmp_path / "cache" / "data" / "fsdd").iterdir()] == ["recordings"]


def test_the_published_data_set():
    if not datasets.at_hand("fsdd"):
        pytest.skip("needs the Free Spoken Digit Dataset")
    train, test = (datasets.load_recordings("fsdd", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2700, 300)
    assert np.bincount(test.labels).tolist() == [30] * 10
    assert np.bincount(train.labels).tolist() == [270] * 10
    assert sorted(set(test.speakers)) == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert sum(len(sound) for part in (train, test) for sound in part.recordings) == 10_498_424
    assert set(zip(test.speakers, test.labels, test.indices)).isdisjoint(
        zip(train.speakers, train.labels, train.indices)
    )
