# SPDX-License-Identifier: BSD-3-Clause
"""Compile the zoo's float weights: ``python -m circ_overlay.models.build [NAME ...] [--from DIR]``.

The same weights and data give the same ``.circ`` bytes, so a test can tell whether a shipped one is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .. import datasets
from ..compiler import compile
from ..files import atomic_write
from ..program import Program
from . import MODELS, WEIGHTS, load_float

__all__ = ["build", "take"]

CALIBRATION_IMAGES = 2000
_DROPPED = {"log"}


def take(name: str, trained: Path) -> None:
    """Make the arrays of a finished training run the zoo's float weights of `name`."""
    with np.load(trained, allow_pickle=False) as arrays:
        kept = {key: arrays[key] for key in arrays.files if key not in _DROPPED}
    with atomic_write(WEIGHTS / f"{name}.npz") as file:
        np.savez_compressed(file, **kept)


def build(name: str) -> Program:
    """The program of `name`, compiled from its float weights and the first training images."""
    model = MODELS[name]
    sample = datasets.load(model.dataset, "train")
    images = model.prepare(sample.images[:CALIBRATION_IMAGES])
    metadata = {"dataset": model.dataset, "title": model.title}
    return compile(load_float(name), images, name=name, labels=sample.classes, metadata=metadata)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m circ_overlay.models.build", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to build (all)")
    parser.add_argument(
        "--from", dest="trained", type=Path, help="first take NAME.npz of training runs from here"
    )
    args = parser.parse_args(argv)
    for name in args.names or MODELS:
        if name not in MODELS:
            parser.error(f"model {name!r}: there are {', '.join(MODELS)}")
        if args.trained:
            take(name, args.trained / f"{name}.npz")
        program = build(name)
        program.save(WEIGHTS / f"{name}.circ")
        sys.stdout.write(f"{program!r}, SNR {program.metadata['snr_db']} dB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
