# SPDX-License-Identifier: BSD-3-Clause
"""Time of the block-circulant PyTorch layers on one thread, beside dense layers' and C3A's product's.

    python benchmarks/bench_nn.py [--only linear conv lstm gru] [--batch 1 64 256] [--seconds 0.3]

Forward alone runs under no_grad; forward and backward makes the gradients of input and parameters. The
contestants take turns, and a figure is the lower quartile of its runs, so that a busy machine slows all
of them alike.

C3A is the block-circulant adapter layer of the PEFT library (`pip install peft`; the column is left out where
it is missing). What is timed is its product alone, which takes the same (p, q, k) weight and does the same
work, not the dense layer that its adapter is added to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantGRU, BlockCirculantLinear, BlockCirculantLSTM

LINEAR = [(n, k) for n in (256, 512, 1024, 2048, 4096) for k in (16, 32, 64, 128)]
CONV = [  # channels, pixels, taps, k, stride; batch 8
    (64, 32, 3, 16, 1), (128, 16, 3, 16, 1), (128, 16, 3, 64, 1), (256, 16, 3, 32, 1), (256, 16, 3, 128, 1),
    (512, 8, 3, 16, 1), (512, 8, 3, 64, 1), (256, 16, 5, 32, 1), (256, 16, 1, 32, 1), (256, 32, 3, 32, 2),
]  # fmt: skip
RECURRENT = [
    (256, 256, 16),
    (512, 512, 8),
    (512, 1024, 16),
    (1024, 1024, 16),
    (1024, 1024, 64),
]  # in, hidden, k

Forward = Callable[[Tensor], Tensor]
Contestants = dict[str, tuple[Forward, list[Tensor]]]
"""By name: what is run, and its parameters."""


def c3a_product() -> Callable[[Tensor, Tensor], Tensor] | None:
    """PEFT's function of (x, weight), or None where the library is missing."""
    try:
        from peft.tuners.c3a.utils import BlockCircularConvolution
    except ImportError as error:
        print(f"C3A is left out: {error}; `pip install peft` brings it")
        return None
    return BlockCircularConvolution.apply


def quartile(times: list[float]) -> float:
    return sorted(times)[len(times) // 4] * 1e3


def measure(contestants: Contestants, x: Tensor, seconds: float) -> dict[str, tuple[float, float]]:
    """Milliseconds of forward, and of forward and backward, by name."""

    def forward(run: Forward, parameters: list[Tensor]) -> None:
        with torch.no_grad():
            run(x)

    def both(run: Forward, parameters: list[Tensor]) -> None:
        torch.autograd.grad(run(x), [x, *parameters], grad)

    with torch.no_grad():
        grad = torch.randn_like(next(iter(contestants.values()))[0](x))
    x.requires_grad_()
    found: list[dict[str, float]] = []
    for job in (forward, both):
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for run in contestants.values():
            job(*run)
        end = time.perf_counter() + seconds * len(contestants)
        while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
            for name, run in contestants.items():
                for _ in range(3):  # the first of three finds the caches as the others left them
                    start = time.perf_counter()
                    job(*run)
                    times[name].append(time.perf_counter() - start)
        found.append({name: quartile(values) for name, values in times.items()})
    return {name: (found[0][name], found[1][name]) for name in contestants}


def show(title: list[object], results: dict[str, tuple[float, float]]) -> None:
    cells = [f"{forward:.3f} / {both:.3f}" for forward, both in results.values()]
    ours = results["ours"]
    ratios = [
        f"{r[0] / ours[0]:.1f}x / {r[1] / ours[1]:.1f}x" for name, r in results.items() if name != "ours"
    ]
    print("| " + " | ".join(map(str, title + cells + ratios)) + " |", flush=True)


def header(columns: list[str], names: list[str]) -> None:
    ratios = [f"{name} / ours" for name in names if name != "ours"]
    cells = columns + [f"{name}, ms" for name in names] + ratios
    print("\n| " + " | ".join(cells) + " |\n|" + " --- |" * len(cells))


def bench_linear(batches: list[int], seconds: float) -> None:
    product = c3a_product()
    header(["n", "k", "batch"], ["ours", "dense", *(["C3A"] if product else [])])
    for batch in batches:
        for n, k in LINEAR:
            ours, dense = BlockCirculantLinear(n, n, k, bias=False), nn.Linear(n, n, bias=False)
            contestants: Contestants = {
                name: (m, [m.weight]) for name, m in (("ours", ours), ("dense", dense))
            }
            if product:
                weight = ours.weight
                contestants["C3A"] = (lambda x, weight=weight: product(x, weight)), [weight]
            show([n, k, batch], measure(contestants, torch.randn(batch, n), seconds))


def bench_conv(seconds: float) -> None:
    header(["channels", "image", "taps", "stride", "k"], ["ours", "dense"])
    for channels, pixels, taps, k, stride in CONV:
        ours = BlockCirculantConv2d(channels, channels, taps, k, stride, taps // 2, bias=False)
        dense = nn.Conv2d(channels, channels, taps, stride, taps // 2, bias=False)
        contestants = {"ours": (ours, [ours.weight]), "dense": (dense, [dense.weight])}
        results = measure(contestants, torch.randn(8, channels, pixels, pixels), seconds)
        show([channels, f"{pixels} x {pixels}", f"{taps} x {taps}", stride, k], results)


def bench_recurrent(kind: str, seconds: float) -> None:
    ours_class, dense_class = {"lstm": (BlockCirculantLSTM, nn.LSTM), "gru": (BlockCirculantGRU, nn.GRU)}[
        kind
    ]
    header([f"{kind.upper()} inputs", "hidden", "k"], ["ours", "dense"])
    for inputs, hidden, k in RECURRENT:
        layers = {
            "ours": ours_class(inputs, hidden, k),
            "dense": dense_class(inputs, hidden, batch_first=True),
        }
        contestants: Contestants = {
            name: ((lambda x, layer=layer: layer(x)[0]), list(layer.parameters()))
            for name, layer in layers.items()
        }
        show([inputs, hidden, k], measure(contestants, torch.randn(16, 20, inputs), seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ["linear", "conv", "lstm", "gru"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64, 256], help="of the linear layers")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, one thread, float32; forward / forward and backward")
    if "linear" in arguments.only:
        bench_linear(arguments.batch, arguments.seconds)
    if "conv" in arguments.only:
        bench_conv(arguments.seconds)
    for kind in ("lstm", "gru"):
        if kind in arguments.only:
            bench_recurrent(kind, arguments.seconds)


if __name__ == "__main__":
    main()
