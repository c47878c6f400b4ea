# SPDX-License-Identifier: BSD-3-Clause
"""Compile the zoo's float weights: ``python -m circ_overlay.models.build [NAME ...] [--from DIR]``.

The same weights and data give the same ``.circ`` bytes, so a test can tell whether a shipped one is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .. import datasets
from ..compiler import Network, compile
from ..compiler.netfile import save_network
from ..program import Program
from . import MODELS, WEIGHTS, load_float, network_from_arrays

__all__ = ["build", "sample", "take"]

CALIBRATION = 2000
"""Training samples at most that formats are chosen from; large networks look at fewer, see the compiler."""


def take(name: str, trained: Path) -> None:
    """Make a finished training run's file the zoo's float weights of `name`; needs PyTorch but for plain MLPs."""
    with np.load(trained, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if MODELS[name].speech:
        network = _speech(arrays)
    elif "layers" in arrays:
        network = network_from_arrays(arrays, name)
    else:
        network = _images(name, arrays)
    network.metadata["float_accuracy"] = float(arrays["_accuracy" if "_accuracy" in arrays else "accuracy"])
    save_network(network, WEIGHTS / f"{name}.npz")


def _speech(arrays: dict[str, Any]) -> Network:
    from ..compiler.torch_import import from_torch
    from .networks_speech import EveryStep, SpeechClassifier

    module = EveryStep(SpeechClassifier.from_arrays(arrays))
    network = from_torch(module, [np.zeros((1, int(arrays["features"])))])
    sizes = {key.removeprefix("front_"): arrays[key].item() for key in arrays if key.startswith("front_")}
    network.metadata["front_end"] = {"sizes": sizes, **{key: arrays[key].tolist() for key in ("mean", "deviation")}}
    return network


def _images(name: str, arrays: dict[str, Any]) -> Network:
    import torch

    from ..compiler.torch_import import from_torch
    from .networks import NETWORKS

    module = NETWORKS[name]()
    module.load_state_dict({key: torch.from_numpy(arrays[key]) for key in module.state_dict()})
    shape = (28, 28, 1) if MODELS[name].dataset == "mnist" else (32, 32, 3)
    return from_torch(module.eval(), np.zeros((1, *shape), np.uint8), channels_last=True)


def sample(name: str) -> Any:
    """The training samples that formats are chosen from, as the network takes them."""
    model = MODELS[name]
    if model.speech:
        return model.prepare(datasets.load_recordings(model.dataset, "train").recordings[::8])
    return model.prepare(datasets.load(model.dataset, "train").images[:CALIBRATION])


def _labels(name: str) -> tuple[str, ...]:
    model = MODELS[name]
    load = datasets.load_recordings if model.speech else datasets.load
    return tuple(load(model.dataset, "test").classes)


def build(name: str) -> Program:
    """The program of `name`, compiled from its float weights and the first training samples."""
    model = MODELS[name]
    metadata = {"dataset": model.dataset, "title": model.title}
    return compile(load_float(name), sample(name), name=name, labels=_labels(name), metadata=metadata)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    names = [name for name, model in MODELS.items() if model.dataset]
    parser = argparse.ArgumentParser(prog="python -m circ_overlay.models.build", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to build (all)")
    parser.add_argument(
        "--from", dest="trained", type=Path, help="first take NAME.npz of training runs from here"
    )
    args = parser.parse_args(argv)
    for name in args.names or names:
        if name not in names:
            parser.error(f"model {name!r}: there are {', '.join(names)}")
        if args.trained:
            take(name, args.trained / f"{name}.npz")
        program = build(name)
        program.save(WEIGHTS / f"{name}.circ")
        sys.stdout.write(f"{program!r}, SNR {program.metadata['snr_db']} dB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
