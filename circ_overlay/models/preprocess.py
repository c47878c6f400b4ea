# SPDX-License-Identifier: BSD-3-Clause
"""Image preparation that a host does before a network sees a pixel; NumPy only, integers only.

Integer arithmetic gives the same bytes on every machine, so that an accuracy measured here is the one
measured there.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["area_weights", "resize_area"]


def area_weights(old_size: int, new_size: int) -> npt.NDArray[np.int64]:
    """Overlap of every new pixel with every old one along an axis, in units of 1 / new_size of an old pixel.

    Parameters
    ----------
    old_size, new_size : int
        Pixels along the axis before and after; ``1 <= new_size <= old_size``.

    Returns
    -------
    numpy.ndarray
        (new_size, old_size) int64; every row sums to old_size, every column to new_size.

    Raises
    ------
    ValueError
        If new_size is out of range.
    """
    if not 1 <= new_size <= old_size:
        raise ValueError(
            f"size is {new_size}; area averaging only shrinks, so allowed is 1 to {old_size}, its size now: "
            "choose one in that range"
        )
    # On the common grid of old_size * new_size cells an old pixel is new_size cells long, a new one old_size.
    old = np.arange(old_size, dtype=np.int64) * new_size
    new = np.arange(new_size, dtype=np.int64)[:, np.newaxis] * old_size
    overlap: npt.NDArray[np.int64] = np.minimum(old + new_size, new + old_size) - np.maximum(old, new)
    return overlap.clip(min=0)


def resize_area(images: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    """Shrink square images by averaging over area (the antialiased way), rounding half up.

    Parameters
    ----------
    images : numpy.ndarray
        (N, n, n) uint8; values 0 to 255.
    size : int
        New height and width in pixels, 1 to n.

    Returns
    -------
    numpy.ndarray
        (N, size, size) uint8.

    Raises
    ------
    ValueError
        If the images are not square uint8 images or the size is out of range.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images have shape {images.shape} and dtype {images.dtype}; allowed is (N, n, n) uint8: "
            "reshape to square images and convert with .astype(np.uint8)"
        )
    weights = area_weights(images.shape[1], size)
    area = images.shape[1] ** 2
    sums = weights @ images.astype(np.int64) @ weights.T
    return ((2 * sums + area) // (2 * area)).astype(np.uint8)
