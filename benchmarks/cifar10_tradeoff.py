#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Cycles against accuracy: short trainings of candidates for cifar10-cnn, judged on held-out training images.

    python benchmarks/cifar10_tradeoff.py results.json --epochs 5         # train what results.json lacks
    python benchmarks/cifar10_tradeoff.py results.json --plot FILE.png    # table on stdout, picture
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from circ_overlay.models import train_images
from circ_overlay.models.estimate import estimate
from circ_overlay.models.networks import Conv, PlainCnn
from circ_overlay.models.training import load_split

HELD_OUT = 5000
C = Conv
CANDIDATES = {
    # an image of 16 x 16 after the first layer, 8 x 8 after the second
    "a": (C(32, 3, 4, 2), C(96, 3, 8, 2), C(96, 3, 32), C(128, 3, 32, pool=2), C(192, 3, 64, pool=4)),
    "b": (C(32, 3, 4, 2), C(96, 3, 8, 2), C(128, 3, 32, pool=2), C(192, 3, 32), C(192, 3, 32, pool=4)),
    # 8 x 8 after the first layer
    "c": (C(128, 5, 4, 4), C(128, 3, 32), C(128, 3, 32, pool=2), C(192, 3, 32, pool=4)),
    # 10 x 10 after the first layer
    "d": (C(96, 5, 4, 3), C(96, 3, 32, pool=2), C(192, 3, 32), C(160, 3, 32, pool=5)),
    "e": (C(96, 5, 4, 3), C(96, 3, 32, pool=2), C(192, 3, 32, pool=5)),
    # more cycles
    "f": (C(48, 3, 4, 2), C(128, 3, 8, 2), C(128, 3, 32), C(128, 3, 32, pool=2), C(256, 3, 32), C(256, 3, 64, pool=4)),
    "g": (C(64, 4, 4, 2), C(64, 3, 16, pool=2), C(128, 3, 16), C(128, 3, 16, pool=2), C(256, 3, 32, pool=4)),
    "h": (
        C(64, 4, 4, 2), C(64, 3, 8, pool=2), C(128, 3, 8), C(128, 3, 16, pool=2), C(256, 3, 32), C(256, 3, 32, pool=4),
    ),
}


def describe(convs):
    """Layers in short: taps x taps / stride, channels, block size, pool."""
    parts = []
    for conv in convs:
        stride = f"/{conv.stride}" if conv.stride > 1 else ""
        pool = f" pool {conv.pool}" if conv.pool > 1 else ""
        parts.append(f"{conv.taps}x{conv.taps}{stride} {conv.channels} k{conv.k}{pool}")
    return ", ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    if arguments.plot:
        return show(results, arguments.plot)
    torch.set_num_threads(arguments.threads)
    split = load_split("cifar10").validation(HELD_OUT)
    recipe = train_images.RECIPES["cifar10-cnn"]
    schedule = replace(
        recipe.schedule, epochs=arguments.epochs, warmup_epochs=0.5, decay_epochs=arguments.epochs - 1.0
    )
    for name, convs in CANDIDATES.items():
        if name in results:
            continue
        started, costs = time.monotonic(), estimate(PlainCnn(*convs), 3, 32)
        network = train_images.train(
            lambda convs=convs: PlainCnn(*convs), replace(recipe, schedule=schedule), split, arguments.seed, name=name
        )
        accuracy = train_images.score(network, split.test_images, split.test_labels)
        results[name] = {
            "layers": describe(convs), "cycles": costs.cycles, "parameters": costs.parameters,
            "accuracy": accuracy, "epochs": arguments.epochs, "seconds": round(time.monotonic() - started),
        }
        print(name, results[name], flush=True)
        arguments.results.write_text(json.dumps(results, indent=1))
    return None


def show(results, picture):
    from matplotlib import pyplot

    print("| candidate | layers | cycles | parameters | validation accuracy |\n| --- | --- | --- | --- | --- |")
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, found in sorted(results.items(), key=lambda item: item[1]["cycles"]):
        print(f"| {name} | {found['layers']} | {found['cycles']:,} | {found['parameters']:,} "
              f"| {100 * found['accuracy']:.2f} % |")
        axes.plot(found["cycles"], 100 * found["accuracy"], "o", color="C0")
        axes.annotate(name, (found["cycles"], 100 * found["accuracy"]), xytext=(5, 3), textcoords="offset points")
    axes.axvline(10_000, color="0.7", linestyle=":")
    axes.set_xlabel("modelled cycles per image")
    axes.set_ylabel("validation accuracy (%) after a short training")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main()
