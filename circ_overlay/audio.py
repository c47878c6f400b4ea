# SPDX-License-Identifier: BSD-3-Clause
"""Recordings as a data set: read from wav files, checked, split. NumPy and the standard library only.

The Free Spoken Digit Dataset (Z. Jackson and contributors, https://github.com/Jakobovski/free-spoken-digit-dataset,
CC BY-SA 4.0) names its files ``{digit}_{speaker}_{index}.wav``; its README makes indices 0 to 4 the test part.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import CircOverlayError

__all__ = ["DataUnavailableError", "Recordings", "folder_digest", "read_spoken_digits", "read_wav", "unpack_wavs"]

TEST_INDICES = range(5)
_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]{1,4})\.wav")
_LARGEST = 16 << 20  # bytes of one file; the longest recording of the data set has 37 kB


class DataUnavailableError(CircOverlayError, OSError):
    """A data set is not here and could not be fetched, or is not whole; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """One split of a data set of sound.

    Attributes
    ----------
    recordings : one (samples,) int16 array each, of different lengths; full scale is 32768
    labels : (n,) int64
    speakers : who speaks, by name, one each
    indices : (n,) int64, number of the take among those of its speaker and label
    sample_rate : samples a second
    classes : name of each label
    """

    name: str
    split: str
    recordings: tuple[NDArray[np.int16], ...]
    labels: NDArray[np.int64]
    speakers: tuple[str, ...]
    indices: NDArray[np.int64]
    sample_rate: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.recordings)

    def select(self, chosen: Sequence[bool] | NDArray[np.bool_], split: str) -> Recordings:
        """The recordings for which `chosen` (n,) is true, as a data set of its own called `split`.

        Raises
        ------
        ValueError
            `chosen` has another length.
        """
        mask = np.asarray(chosen, dtype=bool)
        if mask.shape != (len(self),):
            raise ValueError(f"chosen has shape {mask.shape}; there are {len(self)} recordings: give one truth each")
        at = np.flatnonzero(mask)
        return Recordings(
            name=self.name, split=split, recordings=tuple(self.recordings[i] for i in at), labels=self.labels[at],
            speakers=tuple(self.speakers[i] for i in at), indices=self.indices[at], sample_rate=self.sample_rate,
            classes=self.classes,
        )  # fmt: skip


def read_wav(path: Path, sample_rate: int) -> NDArray[np.int16]:
    """Read a wav file of one channel of 16-bit PCM; returns its (samples,) int16, at least one.

    Raises
    ------
    DataUnavailableError
        It is no such file, has another sample rate, is empty or ends before its header says.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            count, raw = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise DataUnavailableError(f"{path} is no readable wav file ({error or 'it ends early'}); remove it") from error
    if found != (1, 16, sample_rate):
        raise DataUnavailableError(
            f"{path} has {found[0]} channels of {found[1]} bits at {found[2]} Hz; needed is 1 of 16 bits at "
            f"{sample_rate} Hz"
        )
    if not count or len(raw) != 2 * count:
        raise DataUnavailableError(f"{path} holds {len(raw)} bytes of sound, its header says {2 * count}; remove it")
    return np.frombuffer(raw, "<i2").astype(np.int16)


def folder_digest(folder: Path) -> str:
    """SHA-256 of what ``LC_ALL=C sha256sum *.wav`` prints in `folder`: names and content of all its wav files."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.wav"), key=lambda path: path.name):
        total.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n".encode())
    return total.hexdigest()


def read_spoken_digits(folder: Path, split: str, sample_rate: int = 8000) -> Recordings:
    """Read one official split ("train" or "test") from a folder of ``{digit}_{speaker}_{index}.wav``.

    Ordered by speaker, digit and index. Files with other names are left alone.

    Raises
    ------
    DataUnavailableError
        There is none of the split, or a file is not as `read_wav` needs it.
    """
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and (int(match[3]) in TEST_INDICES) == (split == "test"):
            found.append((match[2], int(match[1]), int(match[3]), path))
    if not found:
        raise DataUnavailableError(
            f"{folder} holds no recordings {{digit}}_{{speaker}}_{{index}}.wav of the {split} part"
        )
    found.sort()
    return Recordings(
        name="fsdd", split=split, recordings=tuple(read_wav(path, sample_rate) for *_, path in found),
        labels=np.array([digit for _, digit, _, _ in found], np.int64), speakers=tuple(name for name, *_ in found),
        indices=np.array([index for _, _, index, _ in found], np.int64), sample_rate=sample_rate,
        classes=tuple(str(n) for n in range(10)),
    )  # fmt: skip


def unpack_wavs(archive: Path, folder: Path) -> None:
    """Make `folder` of an archive's files ``.../recordings/*.wav``: whole, or not at all.

    Raises
    ------
    DataUnavailableError
        It is no tar archive, ends early or has none of them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(archive) as files:
            for member in files:
                name = Path(member.name)
                if not (member.isfile() and name.parent.name == "recordings" and _NAME.fullmatch(name.name)):
                    continue
                source = files.extractfile(member)
                if source is not None and member.size <= _LARGEST:
                    (partial / name.name).write_bytes(source.read())
        if not any(partial.iterdir()):
            raise DataUnavailableError(f"{archive} holds no recordings/*.wav; remove it")
        partial.chmod(0o755)
        partial.rename(folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, DataUnavailableError):
            raise
        raise DataUnavailableError(f"{archive} could not be unpacked into {folder} ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
