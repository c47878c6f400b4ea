# SPDX-License-Identifier: BSD-3-Clause
"""What a choice of block sizes and width costs in accuracy: two proxies, and two ways of measuring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import datasets, golden, models, spec
from ..compiler import compile
from ..compiler.graph import Network
from .design import capacity, fidelity
from .topology import Topology, TopologyError

__all__ = ["METHODS", "Accuracy", "accuracy_of"]

Accuracy = Callable[[tuple[int, ...], int], float]
"""(block sizes, width) to a number from 0 to 1, larger being better."""

METHODS = {
    "fidelity": "proxy: correlation of the projected network with the uncompressed one, no retraining",
    "capacity": "proxy: free weights on a logarithmic scale",
    "evaluate": "accuracy of the projected network, compiled, in integers, on validation samples",
    "retrain": "accuracy of a network retrained with these block sizes, compiled, in integers, on validation samples",
}
CALIBRATION = 200
_ROOM = spec.CoreConfig(weight_words=1 << 24, map_elements=1 << 24, spectra_words=1 << 24, affine_channels=1 << 16)


def accuracy_of(topology: Topology, method: str, *, samples: int = 500, epochs: int = 20, seed: int = 0) -> Accuracy:
    """The function that gives an accuracy, or a proxy of it, for block sizes and a width; results are kept.

    Parameters
    ----------
    topology : the network
    method : one of :data:`METHODS`
    samples : "evaluate" and "retrain": validation samples, the last ones of the training set
    epochs, seed : "retrain": length of each training run, and seed of every random draw in it

    Raises
    ------
    TopologyError
        The method needs weights, data or a recipe that the network does not have.
    """
    if method == "fidelity":
        return cache(lambda blocks, width: fidelity(topology, blocks, width))
    if method == "capacity":
        return cache(lambda blocks, width: capacity(topology, blocks, width))
    if method not in METHODS:
        raise ValueError(f"accuracy {method!r}: there are {', '.join(METHODS)}")
    if not topology.model:
        raise TopologyError(f"{topology.name} has no trained weights and no data: {method} takes a model of the zoo")
    model = models.MODELS[topology.model]
    data = datasets.load(model.dataset, "train")
    images, labels = model.prepare(data.images[-samples:]), data.labels[-samples:]
    calibration = model.prepare(data.images[:CALIBRATION])
    if method == "evaluate":
        return cache(
            lambda blocks, width: _score(topology.build(blocks, weights=True), calibration, images, labels, width)
        )
    train = _trainer(topology.model, samples, epochs, seed)
    return cache(lambda blocks, width: _score(train(blocks), calibration, images, labels, width))


def _score(
    network: Network, calibration: NDArray[Any], images: NDArray[Any], labels: NDArray[np.int64], width: int
) -> float:
    """Share of the images that the compiled network's integers get right."""
    flat = calibration.reshape(len(calibration), -1) if network.input_shape[:2] == (1, 1) else calibration  # type: ignore[index]
    program = compile(network, flat, config=replace(_ROOM, width=width))
    x = images.reshape(len(images), *flat.shape[1:])
    outputs = np.asarray(golden.run(program, program.input.quantise(x, width)))
    return float((outputs.reshape(len(x), -1).argmax(1) == labels).mean())


def _trainer(name: str, held_out: int, epochs: int, seed: int) -> Callable[[tuple[int, ...]], Network]:
    try:
        from ..models import recipes, training
    except ImportError as error:
        raise ImportError(f"retraining needs PyTorch ({error}): pip install circ-overlay[train]") from error
    if name not in recipes.RECIPES:
        raise TopologyError(f"there is no recipe to retrain {name}; there are {', '.join(recipes.RECIPES)}")
    recipe = recipes.RECIPES[name]
    split = training.load_split(recipe.dataset).validation(held_out)

    @cache
    def train(blocks: tuple[int, ...]) -> Network:
        layers = tuple((out, k) for (out, _), k in zip(recipe.layers, blocks))
        chosen = replace(recipe, layers=layers, schedule=replace(recipe.schedule, epochs=epochs))
        network = training.train(chosen, split, seed, name=f"{name} {blocks}")
        return models.network_from_arrays(recipes.pack(network), name)

    return train
