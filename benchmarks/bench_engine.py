# SPDX-License-Identifier: BSD-3-Clause
"""Images per second of the emulator's engines on one thread of this machine; not the speed of any board.

    python benchmarks/bench_engine.py [--model mnist-mlp ...] [--engine hls golden] [--batch 1 16 256] [--seconds 1]

Inputs are random bytes: nothing in the engines depends on what is in an image, except that small numbers let
the C++ use 32-bit accumulators, so random bytes are no help. The ratio is against golden in the same run.
Target: at least 20,000 images/s for mnist-mlp with the engine hls.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from circ_overlay import models, spec
from circ_overlay.engines import ENGINES, create_engine
from circ_overlay.program import Program


def measure(engine_name: str, program: Program, batch: int, seconds: float) -> float:
    """Best of repeated runs, in images per second."""
    engine = create_engine(engine_name, spec.CoreConfig(width=program.width))
    status = engine.load(program.image)
    if status != spec.Status.OK:
        raise SystemExit(f"{engine_name} refused the program: {status.name}")
    words = np.random.default_rng(1).integers(0, 1 << 64, batch * program.segments[0].in_beats, np.uint64)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plain = [name for name, model in models.MODELS.items() if model.dataset and not model.speech]
    single = [name for name in plain if len(models.load(name).segments) == 1]
    parser.add_argument("--model", nargs="+", choices=single, default=[n for n in single if "mlp" in n])
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 256, 4096])
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each figure")
    args = parser.parse_args()
    print("engine rates in images/s, one thread (best of repeated runs)")
    print(f"{'model':16} {'batch':>6}" + "".join(f"{name:>12}" for name in args.engine) + f"{'ratio':>8}")
    for model in args.model:
        program = models.load(model)
        for batch in args.batch:
            rates = [measure(name, program, batch, args.seconds) for name in args.engine]
            ratio = f"{rates[0] / rates[-1]:8.1f}" if len(rates) > 1 else ""
            print(f"{model:16} {batch:6}" + "".join(f"{rate:12,.0f}" for rate in rates) + ratio)


if __name__ == "__main__":
    main()
