# SPDX-License-Identifier: BSD-3-Clause
"""Pictures for the command line and the notebooks. Needs matplotlib."""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["answers_figure", "draw"]


def answers_figure(
    images: NDArray[Any],
    answers: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    title: str = "",
    shown: int = 32,
) -> Figure:
    """Inputs with the network's answers: right ones green; wrong ones red, first, with the label behind.

    Parameters
    ----------
    images : (n, height, width), or (n, height, width, 3) in colour: bytes, or numbers 0..1
    answers, labels : (n,)
    shown : number of images drawn; up to a quarter of them wrong ones
    """
    from matplotlib.figure import Figure

    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 and (images.ndim != 4 or images.shape[3] != 3):
        raise ValueError(f"images of shape {images.shape}: a picture takes (n, height, width) or (n, height, width, 3)")
    wrong = np.flatnonzero(answers != labels)[: shown // 4]
    right = np.flatnonzero(answers == labels)[: shown - len(wrong)]
    picked = [*wrong, *right]
    columns = 8
    rows = max(1, -(-len(picked) // columns))
    figure = Figure(figsize=(columns * 1.1, rows * 1.25 + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for index, axes in zip(picked, figure.axes):
        axes.imshow(images[index], cmap="gray_r")
        good = answers[index] == labels[index]
        text = f"{answers[index]}" if good else f"{answers[index]} (is {labels[index]})"
        axes.set_title(text, fontsize=10, color="tab:green" if good else "tab:red")
    errors = int((answers != labels).sum())
    lines = [*textwrap.wrap(title, 110), f"{len(labels) - errors:,} of {len(labels):,} right"]
    figure.suptitle("\n".join(lines), fontsize=9)
    return figure


def draw(
    images: NDArray[Any],
    answers: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Write :func:`answers_figure` to `path`, format by its suffix; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    answers_figure(images, answers, labels, title=title).savefig(
        buffer, dpi=120, format=path.suffix.lstrip(".") or "png"
    )
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
