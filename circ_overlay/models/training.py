# SPDX-License-Identifier: BSD-3-Clause
"""Train a network of the zoo from a seed: ``python -m circ_overlay.models.training NAME --out FILE.npz``.

The run is a function of the recipe, the seed and the thread count; it can be stopped at any time and goes on,
with ``--resume``, from the last epoch's checkpoint to the same result. It never quantises: what it writes is
the float network that the compiler takes. The test set is looked at once, after the last epoch.
"""

import argparse
import copy
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from circ_overlay import datasets
from circ_overlay.files import atomic_write
from circ_overlay.models import network_from_arrays
from circ_overlay.models.augment import distort
from circ_overlay.models.preprocess import area_weights, resize_area
from circ_overlay.models.recipes import RECIPES, Recipe, Schedule, build, pack

__all__ = ["Split", "fit", "load_split", "main", "score", "train"]

_LOG = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Loss of a network on (batch, height, width) float images with (batch,) labels; it augments for itself."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and test images, (N, n, n) uint8, with their labels, (N,) int64."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]

    def validation(self, count: int) -> "Split":
        """Return a split whose test part is the last `count` training images: what choices are made by."""
        return Split(
            train_images=self.train_images[:-count],
            train_labels=self.train_labels[:-count],
            test_images=self.train_images[-count:],
            test_labels=self.train_labels[-count:],
        )


def load_split(dataset: str) -> Split:
    """Both parts of one of :data:`circ_overlay.datasets.DATASETS`."""
    train, test = datasets.load(dataset, "train"), datasets.load(dataset, "test")
    return Split(
        train_images=train.images, train_labels=train.labels, test_images=test.images, test_labels=test.labels
    )


def fit(
    network: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    checkpoint: Path | None = None,
    identity: str = "",
    title: str = "network",
    optimize: Callable[[nn.Module, Schedule], torch.optim.Optimizer] | None = None,
) -> nn.Module:
    """Train a network in place and return the moving average of its weights.

    Parameters
    ----------
    network : torch.nn.Module
        What to train.
    loss : callable
        ``loss(network, images, labels)`` of a batch.
    images, labels : torch.Tensor
        (N, height, width) uint8 and (N,) int64.
    schedule : Schedule
        Epochs, batch, step size, decay.
    generator : torch.Generator
        Draws the order of the images; the loss may draw from it too.
    checkpoint : pathlib.Path, optional
        Written after every epoch; if it exists, training goes on from it.
    identity : str
        What the checkpoint is of; another run's is refused.
    title : str
        Of the progress bar and of the log's lines.
    optimize : callable, optional
        Makes the optimizer; AdamW if not given.

    Returns
    -------
    torch.nn.Module
        A copy of the network holding the exponential moving average of parameters and statistics, in eval
        mode.
    """
    average = copy.deepcopy(network)
    optimizer = (optimize or _adamw)(network, schedule)
    steps = math.ceil(len(images) / schedule.batch)
    total, warmup = steps * schedule.epochs, max(1.0, steps * schedule.warmup_epochs)

    def rate(step: int) -> float:
        if schedule.decay_epochs:
            return min((step + 1) / warmup, 1.0, (total - step) / (steps * schedule.decay_epochs))
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))

    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    holders: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "plan": plan}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(
                f"{checkpoint} is of the run {state['identity']!r}, not of {identity!r}: give the same "
                "recipe, epochs and seed, or start anew without --resume"
            )
        for key, holder in holders.items():
            holder.load_state_dict(state[key])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        first = state["epoch"]
        _LOG.info("%s: resumed after epoch %d", title, first)
    for epoch in tqdm(range(first, schedule.epochs), initial=first, total=schedule.epochs, desc=title):
        started, summed = time.monotonic(), 0.0
        network.train()
        for chosen in torch.split(torch.randperm(len(images), generator=generator), schedule.batch):
            value = loss(network, images[chosen].float(), labels[chosen])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            plan.step()
            # A young average forgets faster, or it would keep the untrained weights.
            young = (1 + plan.last_epoch) / (10 + plan.last_epoch)
            _follow(average, network, min(schedule.ema_decay, young))
            summed += value.item() * len(chosen)
        took = time.monotonic() - started
        _LOG.info("%s: epoch %d loss %.5f in %.1f s", title, epoch + 1, summed / len(images), took)
        if checkpoint is not None:
            state = {key: holder.state_dict() for key, holder in holders.items()}
            state |= {"generator": generator.get_state(), "torch": torch.get_rng_state()}
            state |= {"epoch": epoch + 1, "identity": identity}
            with atomic_write(checkpoint) as file:
                torch.save(state, file)
    return average.eval()


def _adamw(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Weight decay for weights only: pulling biases and batch norm's scales to zero buys nothing."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the exponential moving average, of parameters and of batch norm's statistics."""
    for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():  # batch norm also counts its batches
            ours.lerp_(theirs, 1 - decay)


def _view(recipe: Recipe, images: Tensor) -> Tensor:
    """Shrink (batch, n, n) images to the network's size, if they are larger, and flatten them."""
    if images.shape[-1] != recipe.size:
        weights = torch.from_numpy(area_weights(images.shape[-1], recipe.size)).float() / images.shape[-1]
        images = weights @ images @ weights.T
    return images.flatten(1)


def train(
    recipe: Recipe, split: Split, seed: int, checkpoint: Path | None = None, name: str = "network"
) -> nn.Sequential:
    """Train the recipe's network on the split's training images.

    Parameters
    ----------
    recipe : Recipe
        What to train and how.
    split : Split
        The data; the test part is not touched.
    seed : int
        Of every random draw.
    checkpoint : pathlib.Path, optional
        Where to keep the state between epochs; if it exists, training goes on from it.
    name : str
        Title in the progress bar and the log.

    Returns
    -------
    torch.nn.Sequential
        The network with averaged weights, in eval mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = network(_view(recipe, distort(images, recipe.distortion, generator)))
        return functional.cross_entropy(logits, labels, label_smoothing=recipe.schedule.label_smoothing)

    images, labels = torch.from_numpy(split.train_images), torch.from_numpy(split.train_labels)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    identity = f"{recipe}, seed {seed}, {len(images)} images, {machine}"
    average = fit(
        build(recipe), loss, images, labels, recipe.schedule, generator, checkpoint, identity, title=name
    )
    return cast(nn.Sequential, average)


def score(arrays: Mapping[str, npt.NDArray[Any]], recipe: Recipe, split: Split) -> float:
    """Return the share, 0 to 1, of the test images that a packed network gets right from raw pixels."""
    images = split.test_images
    if images.shape[-1] != recipe.size:
        images = resize_area(images, recipe.size)
    outputs = network_from_arrays(arrays, "trained").forward(images)
    return float(np.mean(outputs.argmax(axis=1) == split.test_labels))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m circ_overlay.models.training", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="which network")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.npz", help="where to write the network"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default 0)")
    parser.add_argument("--epochs", type=int, help="train this long instead of the recipe's number of epochs")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside --out")
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write the log here")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; the result depends on it (default 1)"
    )
    parser.add_argument(
        "--validate",
        type=int,
        default=0,
        metavar="N",
        help="hold the last N training images out; leave the test set",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure and write one network; returns the exit status."""
    arguments = _arguments(argv)
    lines = io.StringIO()
    handlers: list[logging.Handler] = [logging.StreamHandler(lines)]
    if arguments.log is not None:
        handlers.append(logging.FileHandler(arguments.log, mode="a" if arguments.resume else "w"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    torch.set_num_threads(arguments.threads)

    recipe = RECIPES[arguments.name]
    if arguments.epochs is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=arguments.epochs))
    split = load_split(recipe.dataset)
    if arguments.validate:
        split = split.validation(arguments.validate)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint: Path = arguments.out.with_suffix(".ckpt")
    if not arguments.resume:
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.exists():
        raise SystemExit(f"--resume: there is no checkpoint {checkpoint}; start the run without --resume")
    _LOG.info(
        "seed %d, torch %s, %d threads, %r", arguments.seed, torch.__version__, arguments.threads, recipe
    )
    network = train(recipe, split, arguments.seed, checkpoint, arguments.name)
    arrays = pack(network)
    result = score(arrays, recipe, split)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    held = f"last {arguments.validate} training" if arguments.validate else "test"
    _LOG.info("%s: %d parameters, accuracy %.4f on the %s images", arguments.name, parameters, result, held)
    arrays |= {"accuracy": np.array(result), "accuracy_on": np.array(held), "log": np.array(lines.getvalue())}

    with atomic_write(arguments.out) as file:
        np.savez(file, **arrays)
    checkpoint.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
