# SPDX-License-Identifier: BSD-3-Clause
"""The zoo: trained networks as ``.circ`` programs, with the float weights they were compiled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..program import Program
from .preprocess import resize_area

if TYPE_CHECKING:
    from ..compiler import Network

__all__ = ["MODELS", "Model", "load", "load_float", "network_from_arrays"]

WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network of the zoo.

    Attributes
    ----------
    dataset : what it was trained and is measured on, see :mod:`circ_overlay.datasets`
    size : height and width of its input; larger images are shrunk by area first
    title : one line on what it is
    """

    dataset: str
    size: int
    title: str

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(n, height, width) uint8 images of the data set as the network takes them."""
        return images if images.shape[1] == self.size else resize_area(images, self.size)


MODELS: dict[str, Model] = {
    "digits-mlp": Model(dataset="digits", size=8, title="8 x 8 handwritten digits, works offline"),
    "mnist-mlp": Model(dataset="mnist", size=28, title="MNIST, fully connected, raw 28 x 28 pixels"),
    "mnist-mlp-small": Model(
        dataset="mnist", size=16, title="MNIST resized to 16 x 16, 256-128-128-10 as in Wang et al. 2018"
    ),
}


def _check(name: str) -> None:
    if name not in MODELS:
        raise ValueError(f"model {name!r}: there are {', '.join(MODELS)}")


def load(name: str) -> Program:
    """The compiled network `name`; ValueError lists the names there are."""
    _check(name)
    return Program.load(WEIGHTS / f"{name}.circ")


def load_float(name: str) -> Network:
    """The float network that `name` was compiled from."""
    _check(name)
    with np.load(WEIGHTS / f"{name}.npz", allow_pickle=False) as arrays:
        return network_from_arrays(dict(arrays), name)


def network_from_arrays(arrays: Mapping[str, NDArray[Any]], name: str) -> Network:
    """The network laid out in arrays as :func:`circ_overlay.models.recipes.pack` does."""
    from ..compiler import Linear, Network

    layers = []
    features = int(arrays["in_features"])
    for index in range(int(arrays["layers"])):
        bias, scale, shift = (
            arrays[f"l{index}_{part}"].astype(np.float64) for part in ("bias", "scale", "shift")
        )
        layers.append(
            Linear(
                weight=arrays[f"l{index}_weight"],
                in_features=features,
                out_features=len(bias),
                scale=scale,
                shift=bias * scale + shift,
                activation=str(arrays[f"l{index}_activation"]),
                name=f"fc{index + 1}",
            )
        )
        features = len(bias)
    return Network(layers=tuple(layers), name=name)
