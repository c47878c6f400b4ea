# SPDX-License-Identifier: BSD-3-Clause
"""Data sets: found, or downloaded and checked, and loaded as arrays. None is part of the package.

Looked for in this order: ``$CIRC_OVERLAY_DATA/<name>/``, the cache folder, the network (pooch).
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._pictures import FormatError, load_svhn, read_cifar10
from .audio import DataUnavailableError, Recordings, folder_digest, read_spoken_digits, unpack_wavs
from .files import cache_directory

__all__ = [
    "DATASETS", "DataUnavailableError", "Dataset", "Recordings", "Source", "at_hand", "load", "load_recordings",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split of a data set.

    Attributes
    ----------
    images : (n, height, width) uint8
    labels : (n,) int64
    classes : name of each label
    published : how many the published split has; more than `len` where only its first part is here
    """

    name: str
    split: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    published: int = 0

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a data set before it is loaded."""

    title: str
    terms: str
    files: dict[str, str]  # file or folder name -> SHA-256, or md5:...; empty for what comes with a package
    urls: tuple[str, ...] = ()
    archive: tuple[str, str] | None = None  # tar file at the URLs that holds the files, and its checksum
    sound: bool = False  # recordings, for load_recordings, instead of images


DATASETS: dict[str, Source] = {
    "digits": Source(
        title="Optical recognition of handwritten digits, 8 x 8, 1,797 images (comes with scikit-learn)",
        terms="CC BY 4.0, Alpaydin and Kaynak 1998",
        files={},
    ),
    "mnist": Source(
        title="MNIST handwritten digits, 28 x 28, 60,000 + 10,000 images",
        terms="CC BY-SA 3.0, LeCun, Cortes and Burges",
        files={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fsdd": Source(
        title="Free Spoken Digit Dataset v1.0.10, 6 speakers, 8 kHz, 2,700 + 300 recordings",
        terms="CC BY-SA 4.0, Jackson and contributors",
        # Of the content (see audio.folder_digest), that of the tag v1.0.10: GitHub packs archives anew at will.
        files={"recordings": "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"},
        urls=("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",),
        sound=True,
    ),
    "cifar10": Source(
        title="CIFAR-10 pictures of ten kinds of things, 32 x 32 colour, 50,000 + 10,000 images",
        terms="published for research, Krizhevsky 2009",
        files={
            f"cifar-10-batches-bin/{name}.bin": checksum
            for name, checksum in (
                ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
                ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
                ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
                ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
                ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
                ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
            )
        },
        urls=("https://www.cs.toronto.edu/~kriz/",),
        archive=("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    "svhn": Source(
        title="SVHN cropped house-number digits, 32 x 32 colour, 73,257 + 26,032 images",
        terms="non-commercial use only, Netzer et al. 2011",
        files={
            "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
        },
        urls=("http://ufldl.stanford.edu/housenumbers/",),
    ),
}

_CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
_PUBLISHED = {("svhn", "test"): 26_032}


def at_hand(name: str) -> bool:
    """True if `name` can be loaded without the network."""
    source = _source(name)
    if not source.files:
        try:
            import sklearn  # noqa: F401
        except ImportError:
            return False
    return all(_local(name, file) is not None for file in source.files)


def load(name: str, split: str = "test") -> Dataset:
    """Load one split.

    Parameters
    ----------
    name : one of :data:`DATASETS`
    split : "train" or "test"; for digits a fixed quarter of each class is the test part

    Raises
    ------
    ValueError
        Unknown name or split, or it holds recordings.
    DataUnavailableError
        Neither here nor to be downloaded, or a file's checksum is wrong.
    """
    if _source(name, split).sound:
        raise ValueError(f"data set {name!r} holds recordings, not images: use load_recordings")
    loaders = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "svhn": _svhn}
    images, labels = loaders[name](split)
    return Dataset(
        name=name,
        split=split,
        images=images,
        labels=labels.astype(np.int64),
        classes=_CLASSES.get(name, tuple(str(n) for n in range(10))),
        published=_PUBLISHED.get((name, split), len(images)),
    )


def load_recordings(name: str, split: str = "test") -> Recordings:
    """Load one split of a data set of sound.

    Parameters
    ----------
    name : "fsdd"
    split : "train" or "test", the official ones

    Raises
    ------
    ValueError
        Unknown name or split, or it holds images.
    DataUnavailableError
        Neither here nor to be downloaded, or the content's checksum is wrong.
    """
    source = _source(name, split)
    if not source.sound:
        raise ValueError(f"data set {name!r} holds images, not recordings: use load")
    folder = _local(name, "recordings") or _fetch_recordings(name, source)
    found = folder_digest(folder)
    if found != source.files["recordings"]:
        raise DataUnavailableError(
            f"{folder} is not as published: its wav files have SHA-256 {found[:16]}..., expected "
            f"{source.files['recordings'][:16]}...; remove it to fetch it again"
        )
    return read_spoken_digits(folder, split)


def _source(name: str, split: str = "test") -> Source:
    if name not in DATASETS:
        raise ValueError(f"data set {name!r}: there are {', '.join(DATASETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r}: allowed are 'train' and 'test'")
    return DATASETS[name]


def _fetch_recordings(name: str, source: Source) -> Path:
    """Download and unpack into the cache; returns the folder, whose content the caller checks."""
    hint = f"put the folder recordings/ into a folder {name}/ and set CIRC_OVERLAY_DATA to the folder above it"
    try:
        import pooch
    except ImportError as error:
        raise DataUnavailableError(
            f"{name} is not here: pip install circ-overlay[data] to download it, or {hint}"
        ) from error
    folder = cache_directory() / "data" / name / "recordings"
    errors = []
    for url in source.urls:
        try:
            archive = Path(pooch.retrieve(url, known_hash=None, fname=url.rsplit("/", 1)[-1], path=folder.parent))
        except Exception as error:  # whatever the network layer raises
            errors.append(f"{url}: {error}")
            continue
        try:
            unpack_wavs(archive, folder)
        finally:
            archive.unlink(missing_ok=True)
        return folder
    raise DataUnavailableError(f"{name} could not be downloaded ({'; '.join(errors)}); {hint}")


def _digits(split: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataUnavailableError("digits come with scikit-learn: pip install circ-overlay[data]") from error
    flat, labels = load_digits(return_X_y=True)
    images = flat.reshape(-1, 8, 8).astype(np.uint8)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    index = 0 if split == "train" else 1
    return parts[index], parts[2 + index]


def _mnist(split: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(_fetch("mnist", f"{prefix}-images-idx3-ubyte.gz"))
    return images, _read_idx(_fetch("mnist", f"{prefix}-labels-idx1-ubyte.gz"))


def _cifar10(split: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    files = [file for file in DATASETS["cifar10"].files if ("test" in file) == (split == "test")]
    return read_cifar10([_fetch("cifar10", file) for file in files])


def _svhn(split: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        return load_svhn(_local("svhn", f"{split}_32x32.mat") or _fetch("svhn", f"{split}_32x32.mat"))
    except FormatError as error:
        raise DataUnavailableError(str(error)) from error


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes: 0, 0, 8, number of axes; big-endian lengths; the entries."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise DataUnavailableError(f"{path} is no IDX file of bytes (starts with {raw[:4].hex()}); remove it")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()


def _local(name: str, file: str) -> Path | None:
    """Where `file` lies, or None."""
    own = os.environ.get("CIRC_OVERLAY_DATA")
    if own and (Path(own) / name / file).exists():
        return Path(own) / name / file
    cached = cache_directory() / "data" / name / file
    return cached if cached.exists() else None


def _fetch(name: str, file: str) -> Path:
    source = _source(name)
    path = _local(name, file)
    if path is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found == source.files[file]:
            return path
        raise DataUnavailableError(
            f"{path} has SHA-256 {found[:16]}..., expected {source.files[file][:16]}...; remove it to fetch it again"
        )
    try:
        import pooch
    except ImportError as error:
        raise DataUnavailableError(
            f"{name} is not here: pip install circ-overlay[data] to download it, or put {file} into "
            f"a folder {name}/ and set CIRC_OVERLAY_DATA to the folder above it"
        ) from error
    errors = []
    folder = cache_directory() / "data" / name
    remote, checksum = source.archive or (file, source.files[file])
    unpack = pooch.Untar(extract_dir=".") if source.archive else None
    for url in source.urls:
        try:
            fetched = pooch.retrieve(
                url + remote,
                known_hash=checksum if ":" in checksum else f"sha256:{checksum}",
                fname=remote,
                path=folder,
                processor=unpack,
                progressbar=True,
            )
            return folder / file if source.archive else Path(fetched)
        except Exception as error:  # whatever the network layer raises, the next mirror may serve
            errors.append(f"{url}: {error}")
    raise DataUnavailableError(
        f"{name} could not be downloaded ({'; '.join(errors)}); put {', '.join(source.files)} into a folder "
        f"{name}/ and set CIRC_OVERLAY_DATA to the folder above it"
    )
