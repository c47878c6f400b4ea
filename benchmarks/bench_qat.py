# SPDX-License-Identifier: BSD-3-Clause
"""What quantisation-aware training brings: the same further training without and with rounding, then rounding.

    python benchmarks/bench_qat.py [--seeds 5] [--only digits-mlp digits-cnn arm] [--widths 4 5 6 8]
    python benchmarks/bench_qat.py --agreement

digits-mlp and digits-cnn: errors in % of 600 of scikit-learn's digits, the other 1197 being trained with. arm:
position of a two-jointed arm from its angles, root mean square error in thousandths of its length. All networks
are trained in float; a copy goes on in float, another one for each width with `prepare_qat`, with the same
schedule and the same batches. "program" is the compiled integer program in `circ_overlay.golden`, where the
compiler takes network and width; the rest is the rounded forward pass of `circ_overlay.nn.qat`. How far the two
are apart is what --agreement shows, on networks of random weights with batch-norm.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circ_overlay import golden, spec
from circ_overlay.compiler import compile
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d
from circ_overlay.nn.qat import freeze_ranges, prepare_qat, strip_qat

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and targets, test inputs and targets


class DigitsCNN(nn.Module):
    """8 x 8 pixels: a first layer over patches, a residual block, one fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = BlockCirculantPatchConv2d(1, 16, 3, 8, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = BlockCirculantConv2d(16, 16, 3, 8, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = BlockCirculantConv2d(16, 16, 3, 8, padding=1), nn.BatchNorm2d(16)
        self.head = BlockCirculantLinear(64, 10, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (n, 64)."""
        x = functional.max_pool2d(torch.relu(self.norm0(self.stem(x.unflatten(1, (1, 8, 8))))), 2)
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return self.head(functional.max_pool2d(torch.relu(y + x), 2).flatten(1))


def mlp(sizes: list[int], norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for inn, out in pairwise(sizes[:-1]):
        layers += [BlockCirculantLinear(inn, out, 8), *([nn.BatchNorm1d(out)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, BlockCirculantLinear(sizes[-2], sizes[-1], 8))


def digits(seed: int) -> Data:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=600, random_state=seed, stratify=labels)
    return tuple(torch.tensor(p, dtype=torch.float32 if p.ndim == 2 else torch.int64)
                 for p in (parts[0], parts[2], parts[1], parts[3]))  # fmt: skip


def arm(seed: int) -> Data:
    rng = np.random.default_rng(seed)
    angles = rng.uniform([-np.pi / 2, 0], [np.pi / 2, np.pi], (8000, 2))
    elbow, hand = angles[:, :1], angles.sum(1, keepdims=True)
    position = np.concatenate([np.cos(elbow) + 0.8 * np.cos(hand), np.sin(elbow) + 0.8 * np.sin(hand)], 1) / 1.8
    x, t = torch.tensor(angles, dtype=torch.float32), torch.tensor(position, dtype=torch.float32)
    return x[:4000], t[:4000], x[4000:], t[4000:]


def wrong(y: Tensor, t: Tensor) -> float:
    return 100 * float((y.argmax(1) != t).double().mean())


def distance(y: Tensor, t: Tensor) -> float:
    return 1000 * float((y - t).square().mean().sqrt())


TASKS: dict[str, tuple[Callable[[int], Data], Callable[[], nn.Module], Callable[..., Tensor], Callable[..., float]]] = {
    "digits-mlp": (digits, lambda: mlp([64, 32, 32, 10], True), functional.cross_entropy, wrong),
    "digits-cnn": (digits, DigitsCNN, functional.cross_entropy, wrong),
    "arm": (arm, lambda: mlp([2, 64, 64, 2], False), functional.mse_loss, distance),
}


def fit(net: nn.Module, data: Data, loss: Callable[..., Tensor], epochs: int, rate: float, seed: int) -> nn.Module:
    """AdamW over one cycle; ranges are held for the last third."""
    generator = torch.Generator().manual_seed(seed)
    x, t, batches = data[0], data[1], len(data[0]) // 64
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2 if loss is functional.cross_entropy else 0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * batches, pct_start=0.1)
    net.train()
    for epoch in range(epochs):
        if epoch == epochs * 2 // 3 and hasattr(net, "quantisers"):
            freeze_ranges(net)
        for batch in torch.randperm(len(x), generator=generator).split(64)[:batches]:
            optimiser.zero_grad()
            loss(net(x[batch]), t[batch]).backward()
            optimiser.step()
            cycle.step()
    return net.eval()


def program_output(net: nn.Module, sample: Tensor, x: Tensor, width: int) -> Tensor | None:
    if not isinstance(net, nn.Sequential) or width not in spec.WIDTHS:
        return None
    program = compile(net, sample.numpy(), width=width)
    integers = golden.run(program, program.input.quantise(x.numpy(), width))
    return torch.from_numpy(program.output.value(integers))


def agreement() -> None:
    """Rounded forward pass, in float64, and integer program, against float and against each other."""
    print("| k | W | activation | layers | rounded, rms LSB | program, rms LSB | difference, mean | difference, most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for k, width, activation, depth in product((8, 64), (8, 12, 16), (nn.ReLU, nn.Tanh), (2, 4)):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [BlockCirculantLinear(256, 256, k), nn.BatchNorm1d(256), activation()]
        net = nn.Sequential(*layers, BlockCirculantLinear(256, 32, k)).double()
        x = torch.randn(400, 256, dtype=torch.float64)
        net(x)  # batch-norm's statistics
        with torch.no_grad():
            exact = net.eval()(x)
            rounded = prepare_qat(net, width, x)(x)
        program = compile(net, x.numpy(), width=width)
        integers = torch.from_numpy(golden.run(program, program.input.quantise(x.numpy(), width)))
        exact, rounded = exact * 2**program.output.frac, rounded * 2**program.output.frac
        rms = [float((y - exact).square().mean().sqrt()) for y in (rounded, integers)]
        apart = (rounded - integers).abs()
        print(f"| {k} | {width} | {activation.__name__} | {depth} | {rms[0]:.2f} | {rms[1]:.2f} | {apart.mean():.2f} | "
              f"{apart.max():.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 5, 6, 8])
    parser.add_argument("--agreement", action="store_true", help="compare forward pass and program instead")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if options.agreement:
        agreement()
        return
    print(f"PyTorch {torch.__version__}, {options.seeds} seeds, mean (least to largest)")
    print("| network | W | float | rounded after training | trained with rounding | program | program, trained with |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only:
        load, build, loss, error = TASKS[name]
        rows: dict[int, list[list[float]]] = {width: [] for width in options.widths}
        start = time.perf_counter()
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            data = load(seed)
            x, t, sample = data[2], data[3], data[0][:500]
            with torch.no_grad():
                base = build()
            base = fit(base, data, loss, 60, 5e-3, seed)
            plain = fit(copy.deepcopy(base), data, loss, 60, 5e-3, seed + 1000)
            for width in options.widths:
                aware = fit(prepare_qat(base, width, sample), data, loss, 60, 5e-3, seed + 1000)
                with torch.no_grad():
                    outputs = [plain(x), prepare_qat(plain, width, sample).eval()(x), aware(x),
                               program_output(plain, sample, x, width),
                               program_output(strip_qat(aware), sample, x, width)]  # fmt: skip
                rows[width].append([float("nan") if y is None else error(y, t) for y in outputs])
        for width, figures in rows.items():
            cells = ["-" if np.isnan(c).any() else f"{np.mean(c):.2f} ({min(c):.2f} to {max(c):.2f})"
                     for c in zip(*figures)]  # fmt: skip
            print(f"| {name} | {width} | {' | '.join(cells)} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
