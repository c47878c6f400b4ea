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

__all__ = ["MODELS", "Model", "features", "load", "load_float", "network_from_arrays"]

WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network of the zoo.

    Attributes
    ----------
    dataset : what it was trained and is measured on, see :mod:`circ_overlay.datasets`; "" for random weights
    title : one line on what it is
    size : height and width of its input if it differs from the data set's; images are shrunk by area first
    speech : model whose metadata say how recordings become sequences of features
    """

    dataset: str
    title: str
    size: int | None = None
    speech: str = ""

    def prepare(self, samples: Any) -> Any:
        """Samples of the data set as the network takes them: images (n, height, width[, 3]), or a list of sequences."""
        if self.speech:
            return features(load_float(self.speech).metadata, samples)
        images: NDArray[np.uint8] = samples
        return images if self.size in (None, images.shape[1]) else resize_area(images, self.size or 0)

MODELS: dict[str, Model] = {
    "digits-mlp": Model(dataset="digits", size=8, title="8 x 8 handwritten digits, works offline"),
    "mnist-mlp": Model(dataset="mnist", size=28, title="MNIST, fully connected, raw 28 x 28 pixels"),
    "mnist-mlp-small": Model(
        dataset="mnist", size=16, title="MNIST resized to 16 x 16, 256-128-128-10 as in Wang et al. 2018"
    ),
    "mnist-lenet": Model(dataset="mnist", title="MNIST, two 5 x 5 convolutions and a hidden layer"),
    "svhn-cnn": Model(dataset="svhn", title="Street-view house numbers, five convolutions"),
    "cifar10-cnn": Model(dataset="cifar10", title="CIFAR-10, four convolutions, chosen with the cycle model"),
    "cifar10-resnet": Model(dataset="cifar10", title="CIFAR-10, residual network, runs in segments"),
    "fsdd-lstm": Model(dataset="fsdd", title="Spoken digits, LSTM on log-mel features", speech="fsdd-lstm"),
    "google-lstm-k8": Model(dataset="", title="153-1024-512 LSTM of ESE and C-LSTM, random weights, k = 8"),
    "google-lstm-k16": Model(dataset="", title="The same with k = 16"),
}


def _check(name: str) -> None:
    if name not in MODELS:
        raise ValueError(f"model {name!r}: there are {', '.join(MODELS)}")


def load(name: str) -> Program:
    """The compiled network `name`; ValueError lists the names there are."""
    _check(name)
    if not MODELS[name].dataset:
        from .google import program

        return program(name)
    return Program.load(WEIGHTS / f"{name}.circ")


def load_float(name: str) -> Network:
    """The float network that `name` was compiled from."""
    _check(name)
    if not MODELS[name].dataset:
        from .google import network

        return network(name)
    from ..compiler.netfile import load_network

    return load_network(WEIGHTS / f"{name}.npz")


def features(metadata: Mapping[str, Any], recordings: Any) -> list[NDArray[np.float32]]:
    """Recordings as the sequences that a network for speech takes, by the front end in its metadata."""
    from .speech import FrontEnd, log_mel, normalise

    stored = metadata["front_end"]
    front = FrontEnd(**stored["sizes"])
    mean, deviation = (np.array(stored[name], np.float32) for name in ("mean", "deviation"))
    return [normalise(log_mel(recording, front), mean, deviation) for recording in recordings]


def network_from_arrays(arrays: Mapping[str, NDArray[Any]], name: str) -> Network:
    """The network laid out in arrays as :func:`circ_overlay.models.recipes.pack` does."""
    from ..compiler import Linear, Network

    layers: list[Any] = []
    features = int(arrays["in_features"])
    for index in range(int(arrays["layers"])):
        bias, scale, shift = (
            arrays[f"l{index}_{part}"].astype(np.float64) for part in ("bias", "scale", "shift")
        )
        layers.append(
            Linear(
                arrays[f"l{index}_weight"],
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


