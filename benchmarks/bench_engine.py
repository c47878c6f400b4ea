# SPDX-License-Identifier: BSD-3-Clause
"""Images per second of the emulator's engines on one thread of this machine; not the speed of any board.

    python benchmarks/bench_engine.py [--engine hls golden] [--batch 1 16 256 4096] [--seconds 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circ_overlay import spec
from circ_overlay.engines import ENGINES, create_engine
from circ_overlay.program import Layer, Port, Program

SIZES, BLOCKS, WIDTH = (784, 256, 128, 10), (16, 16, 4), 12


def random_program(seed: int = 0) -> Program:
    """An MNIST-sized perceptron, 784-256-128-10 with k = 16, 16, 4, of random weights."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, k in enumerate(BLOCKS):
        inputs, outputs = SIZES[n], SIZES[n + 1]
        # Trained weights are bell-shaped and quantised so that the largest just fits: four sigma here.
        spread = (1 << (WIDTH - 1)) / 4
        weights = rng.normal(0, spread, (-(-outputs // k), -(-inputs // k), k // 2, 2))
        last = n == len(BLOCKS) - 1
        layers.append(
            Layer(
                in_features=inputs,
                out_features=outputs,
                weights=np.clip(weights, -2048, 2047).astype(np.int16),
                scale=rng.integers(1 << 14, 1 << 17, outputs, np.int32),
                bias=rng.integers(-(1 << 28), 1 << 28, outputs, np.int64),
                acc_shift=12,
                affine_shift=22,
                activation=spec.Activation.IDENTITY if last else spec.Activation.RELU,
                out_frac=8,
            )
        )
    return Program(
        name="mnist-mlp",
        width=WIDTH,
        input=Port(shape=(784,), frac=8, storage="uint8"),
        output=Port(shape=(10,), frac=8),
        layers=tuple(layers),
    )


def measure(engine_name: str, program: Program, batch: int, seconds: float) -> float:
    """Best of repeated runs, in images per second."""
    engine = create_engine(engine_name, spec.CoreConfig(width=program.width))
    status = engine.load(program.image)
    if status != spec.Status.OK:
        raise SystemExit(f"{engine_name} refused the program: {status.name}")
    words = np.random.default_rng(1).integers(0, 1 << 64, batch * program.input.beats, np.uint64)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        engine.run(batch, words)
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return batch / best


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64, 256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each line")
    args = parser.parse_args()
    program = random_program()
    sys.stdout.write(f"{program}\n{'engine':8} {'batch':>6} {'images/s':>12}\n")
    for name in args.engine:
        for batch in args.batch:
            rate = measure(name, program, batch, args.seconds)
            sys.stdout.write(f"{name:8} {batch:6} {rate:12,.0f}\n")


if __name__ == "__main__":
    main()
