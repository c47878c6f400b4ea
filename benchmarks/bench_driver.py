# SPDX-License-Identifier: BSD-3-Clause
"""Host cost of the driver per image: pack + DMA calls + unpack, with an engine that answers at once.

    python benchmarks/bench_driver.py [--images N]

The engine's time is excluded by replacing it; the emulated board's own bus and DMA model is included, so the
figures are upper bounds of what the driver itself costs on this machine. The peer in the same run is the naive
way of packing, one image at a time in Python. Target: at most 5 us an image at batches of 256 and more.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from circ_overlay import CirculantOverlay, emulator, models


def seconds(function, repeats: int = 5) -> float:
    """Best of `repeats` runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def naive(program, images):
    """What packing costs without vectorising: each image quantised and copied by itself."""
    buffer = np.zeros((len(images), program.input.features), program.input.dtype)
    for n, image in enumerate(images):
        buffer[n] = program.input.quantise(image[None], program.width)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    device = emulator.install(engine="golden")
    print("driver cost in us/image, engine excluded (emulated board; best of 5, pack and unpack means)")
    print(f"{'model':16} {'input':8} {'batch':>6} {'driver':>8} {'of which pack':>14} {'unpack':>8} {'naive pack':>11}")
    for name in models.MODELS:
        program = models.load(name)
        if program.sequence:
            continue
        shape = program.input.shape
        raw = rng.integers(0, 16, (arguments.images, *shape)).astype(np.uint8)
        for kind, images in (("uint8", raw), ("float32", raw.astype(np.float32))):
            for batch in (16, 256, 1024):
                with CirculantOverlay(device=device) as overlay:
                    network = overlay.load(program, batch_size=batch)
                    network.predict(images[:1])
                    engine = device.fabric.core.engine
                    beats = max(segment.out_beats for segment in program.segments)
                    answers = np.zeros(batch * beats, np.uint64)
                    engine.run = lambda n, words, a=answers, e=engine: a[: n * e.image.out_beats]
                    network.reset_statistics()
                    total = seconds(lambda n=network, x=images: n.predict(x, raw=True))
                    s = network.statistics
                    pack, unpack = (1e6 * t / s.images for t in (s.pack_s, s.unpack_s))
                    del engine.run
                slow = seconds(lambda p=program, x=images[:2000]: naive(p, x)) / 2000
                print(
                    f"{name:16} {kind:8} {batch:6} {1e6 * total / len(images):8.2f} {pack:14.2f} {unpack:8.2f} "
                    f"{1e6 * slow:11.2f}"
                )


if __name__ == "__main__":
    main()
