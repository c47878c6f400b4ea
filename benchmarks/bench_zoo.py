# SPDX-License-Identifier: BSD-3-Clause
"""The engine hls against onnxruntime, which runs the dense float network of the same topology; one thread each.

    python benchmarks/bench_zoo.py [--model NAME ...] [--batch 1 256] [--seconds 1]

Both get their inputs laid out as they want them; only computing is timed, in turns, best of repeated runs. For a
network on sequences a sample is one of 26 steps, the data set's mean. No figure here is the speed of any board.
Target: ahead (ratio above 1) at batch 1 for every network, at 256 for the fully connected ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from dense_onnx import dense_onnx

from circ_overlay import models, spec
from circ_overlay.engines import create_engine
from circ_overlay.program import Program

STEPS = 26


def engine_run(program: Program, batch: int) -> Callable[[], None]:
    """A run of all segments on random inputs; loading, once a batch on a board, is counted too if there are several."""
    config = spec.CoreConfig(width=program.width)
    engine, rng = create_engine("hls", config), np.random.default_rng(1)
    images = batch * STEPS if program.sequence else batch
    words = []
    for segment in program.segments:
        elements = rng.integers(-900, 900, (images, segment.in_beats * 4)).astype("<i2")
        inputs = elements.view("<u8").astype(np.uint64)
        if program.sequence:
            inputs[:, 0] = np.arange(images) % STEPS == 0
        words.append(inputs.ravel())
    if len(words) == 1:
        engine.load(program.images[0])

    def run() -> None:
        for image, inputs in zip(program.images, words):
            if len(words) > 1:
                engine.load(image)
            engine.run(images, inputs)

    return run


def peer_run(name: str, batch: int) -> Callable[[], None]:
    """The same in onnxruntime."""
    network = models.load_float(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = dense_onnx(network, batch=batch, steps=STEPS)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return lambda: session.run(None, {"input": x})


def best_of(first: Callable[[], None], second: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Fastest run of each, s; they take turns, so that a busy machine troubles both."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + seconds
    while True:
        for n, run in enumerate((first, second)):
            start = time.perf_counter()
            run()
            best[n] = min(best[n], time.perf_counter() - start)
        if time.perf_counter() > end:
            return best[0], best[1]


def main() -> None:
    """Command line."""
    trained = [name for name, model in models.MODELS.items() if model.dataset]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=trained, default=trained)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each figure")
    args = parser.parse_args()
    print(f"{'model':16} {'batch':>6} {'hls':>12} {'onnxruntime':>12} {'ratio':>7}   (samples/s, one thread)")
    for name in args.model:
        program = models.load(name)
        for batch in args.batch:
            ours, theirs = best_of(engine_run(program, batch), peer_run(name, batch), args.seconds)
            print(f"{name:16} {batch:6} {batch / ours:12,.0f} {batch / theirs:12,.0f} {theirs / ours:7.2f}")


if __name__ == "__main__":
    main()
