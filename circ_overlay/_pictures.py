# SPDX-License-Identifier: BSD-3-Clause
"""File formats of the colour data sets: CIFAR-10's binary batches, SVHN's MATLAB files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import CircOverlayError

__all__ = ["FormatError", "load_svhn", "read_cifar10", "read_svhn"]

Images = NDArray[np.uint8]


class FormatError(CircOverlayError, OSError):
    """A file is not what its name says."""


_RECORD = 1 + 3 * 32 * 32

# Of each file of SVHN: MD5 of the published one; and the content that others, repacked, must begin with:
# how many images, SHA-256 of their (n, 32, 32, 3) bytes, SHA-256 of the labels' bytes, 0 to 9.
_SVHN = {
    "train_32x32.mat": (
        "e26dedcc434d2e4c54c9b2d4a06d8373",
        73_257,
        "2ad6a4d495b01bbee807888f2c432ea3d33b94330a2d0feb0120ca20c8993b82",
        "6a6e359bb9ecc6ce40896703f7b224715776155fe39710e0ddb8008a18172c6f",
    ),
    "test_32x32.mat": (
        "eb5a983be6a315427106f1b164d9cef3",
        10_000,
        "8158838bf8df734f0d02585aa5edb2c38ed95f96ee012486015b47716777f9b3",
        "7fe9bcc87dca833901548fff86f3af5d1dccf069e726ecef367b4a1476542ddf",
    ),
}


def read_cifar10(paths: list[Path]) -> tuple[Images, Images]:
    """Images (n, 32, 32, 3) and labels (n,) of binary batches: label, then the red, green and blue plane."""
    parts = []
    for path in paths:
        raw = np.fromfile(path, np.uint8)
        if not len(raw) or len(raw) % _RECORD:
            raise FormatError(f"{path} has {len(raw)} bytes, no whole number of {_RECORD}-byte records; remove it")
        parts.append(raw.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, records[:, 0].copy()


def read_svhn(path: Path) -> tuple[Images, Images]:
    """Images (n, 32, 32, 3) and labels (n,), 0 to 9, of a cropped-digits file, which writes 10 for the digit 0."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise FormatError("reading SVHN's files needs SciPy: pip install circ-overlay[data]") from error
    try:
        content = loadmat(path)
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # a damaged file makes SciPy raise IndexError and others too
        raise FormatError(f"{path} is no MATLAB file of SVHN's cropped digits ({error}); remove it") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise FormatError(f"{path} holds {images.dtype} images of shape {images.shape}; remove it")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), (labels % 10).astype(np.uint8)


def load_svhn(path: Path) -> tuple[Images, Images]:
    """As `read_svhn`, of a file whose content is known, under the name it was published by.

    A file that was packed anew has other bytes: then the images and labels themselves are compared. Of the test
    digits, the first 10,000 alone are allowed too.

    Raises
    ------
    FormatError
        No such file, or not the published digits.
    """
    md5, count, of_images, of_labels = _SVHN[path.name]
    images, labels = read_svhn(path)
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5:
        return images, labels
    found = tuple(hashlib.sha256(part[:count].tobytes()).hexdigest() for part in (images, labels))
    if len(images) != count or found != (of_images, of_labels):
        raise FormatError(
            f"{path} holds {len(images)} images with SHA-256 {found[0][:16]}... (labels {found[1][:16]}...), "
            f"expected {count} with {of_images[:16]}... ({of_labels[:16]}...); remove it to fetch it again"
        )
    return images, labels
