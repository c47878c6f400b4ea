# SPDX-License-Identifier: BSD-3-Clause
"""Train a convolutional network of the zoo: ``python -m circ_overlay.models.train_images NAME --out FILE.npz``.

As in `circ_overlay.models.training`, a run is a function of recipe, seed and threads, and goes on with ``--resume``
after its last whole epoch. Layers compute as dense ones in bfloat16 while they train (see `expansion`); accuracy is
that of float32. The file holds the state dict of the averaged weights, in float32, under its own names.
"""

import argparse
import functools
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from circ_overlay.files import atomic_write
from circ_overlay.models.augment import Distortion, crop, distort
from circ_overlay.models.expansion import expanded
from circ_overlay.models.networks import NETWORKS
from circ_overlay.models.recipes import Schedule
from circ_overlay.models.training import Split, fit, load_split
from circ_overlay.nn import BlockCirculantConv2d

__all__ = ["RECIPES", "ImageRecipe", "load_state", "main", "score", "train"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """How to train one network.

    Attributes
    ----------
    dataset : str
        Of `circ_overlay.datasets`.
    schedule : Schedule
        SGD with Nesterov's momentum: its learning rate is that of an uncompressed layer.
    margin, flip, hole
        Augmentation of pictures, see `circ_overlay.models.augment.crop`.
    distortion : Distortion, optional
        Augmentation of handwriting, instead.
    principal : str
        Name of an uncompressed first convolution that starts from the principal components of the image's patches.
    """

    dataset: str
    schedule: Schedule
    margin: int = 0
    flip: bool = False
    hole: int = 0
    distortion: Distortion | None = None
    principal: str = ""


def _schedule(epochs: int, decay_epochs: float, weight_decay: float = 5e-4, smoothing: float = 0.1) -> Schedule:
    """Return a schedule that can be lengthened while it runs, until its decay begins."""
    return Schedule(
        epochs=epochs, learning_rate=0.25, weight_decay=weight_decay, warmup_epochs=2, decay_epochs=decay_epochs,
        ema_decay=0.995, label_smoothing=smoothing,
    )  # fmt: skip


RECIPES: Mapping[str, ImageRecipe] = {
    "mnist-lenet": ImageRecipe(
        dataset="mnist",
        schedule=_schedule(10, 6, weight_decay=2e-4),
        distortion=Distortion(rotation=9.0, scale=0.09, shear=0.12, shift=1.5, elastic=0.6),
    ),
    "svhn-cnn": ImageRecipe(dataset="svhn", schedule=_schedule(10, 5), margin=2),
    "cifar10-cnn": ImageRecipe(
        dataset="cifar10", schedule=_schedule(44, 10, weight_decay=2e-4, smoothing=0.0), margin=2, flip=True
    ),
    "cifar10-resnet": ImageRecipe(
        dataset="cifar10", schedule=_schedule(24, 6), margin=2, flip=True, principal="stem1.conv"
    ),
}
"""How each of `circ_overlay.models.networks.NETWORKS` is trained."""


def _channels_first(images: npt.NDArray[np.uint8]) -> Tensor:
    """(n, height, width) or (n, height, width, 3) to (n, channels, height, width), channels last in memory."""
    tensor = torch.from_numpy(images)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def _sgd(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD that turns the weights of a block-circulant layer as far in a step as those of the dense one.

    A parameter that stands k times in the dense matrix collects k gradients, and there are k times fewer: step size
    divided by sqrt(k), decay multiplied by it. Batch norm and biases are not decayed.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            key = (int(getattr(module, "block_size", 1)), True) if parameter.ndim > 1 else (1, False)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "lr": schedule.learning_rate / math.sqrt(k),
                "weight_decay": schedule.weight_decay * math.sqrt(k) * decay,
            }
            for (k, decay), parameters in groups.items()
        ],
        momentum=0.9,
        nesterov=True,
    )


@torch.no_grad()
def _start_from_patches(layer: nn.Module, images: Tensor) -> None:
    """Set filters to principal components of the first 2,000 images' patches, each with either sign.

    Behind batch norm, that whitens the input: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.
    """
    assert isinstance(layer, BlockCirculantConv2d)
    patches = functional.unfold(images[:2000].double(), layer.kernel_size).transpose(1, 2).flatten(0, 1)
    _, components = torch.linalg.eigh(torch.cov(patches.T))
    half = components.T.flip(0)[: layer.out_channels // 2].float()
    filters = torch.cat([half, -half]).reshape(-1, layer.in_channels, *layer.kernel_size)
    layer.weight[: len(filters)] = filters.unsqueeze(-1)


def _distilled(hard: Tensor, scores: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
    """Return a loss of three parts in ten for the labels and seven for the teacher's answers at temperature 3.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, equations 1 to 4.
    """
    temperature = 3.0
    with torch.no_grad(), expanded(teacher), torch.autocast("cpu", torch.bfloat16):
        soft = torch.softmax(teacher(images).float() / temperature, 1)
    return 0.3 * hard + 0.7 * temperature**2 * functional.cross_entropy(scores / temperature, soft)


def train(
    build: Callable[[], nn.Module],
    recipe: ImageRecipe,
    split: Split,
    seed: int,
    checkpoint: Path | None = None,
    name: str = "network",
    teacher: nn.Module | None = None,
) -> nn.Module:
    """Train a network on the split's training images; returns the one with averaged weights, in eval mode.

    Parameters
    ----------
    build : callable
        Makes the network, after the seed is set.
    recipe : ImageRecipe
        How to train.
    split : Split
        The data; the test part is not touched.
    seed : int
        Of every random draw.
    checkpoint : pathlib.Path, optional
        Where to keep the state between epochs; if it exists, training goes on from it.
    name : str
        Title in the progress bar and the log.
    teacher : torch.nn.Module, optional
        A trained network for the same data, whose answers count too (`_distilled`).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if recipe.distortion is not None:
            images = distort(images[:, 0], recipe.distortion, generator).unsqueeze(1)
        else:
            images = crop(images, recipe.margin, generator, recipe.flip, recipe.hole)
        with expanded(network), torch.autocast("cpu", torch.bfloat16):
            scores = network(images)
        hard = functional.cross_entropy(scores.float(), labels, label_smoothing=recipe.schedule.label_smoothing)
        return hard if teacher is None else _distilled(hard, scores.float(), teacher, images)

    images, labels = _channels_first(split.train_images), torch.from_numpy(split.train_labels)
    network = build()
    if recipe.principal:
        _start_from_patches(network.get_submodule(recipe.principal), images)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    length = 0 if recipe.schedule.decay_epochs else recipe.schedule.epochs  # of which the beginning may be free
    like = replace(recipe, schedule=replace(recipe.schedule, epochs=length))
    taught = "" if teacher is None else ", taught"
    identity = f"{like}, seed {seed}, {len(images)} images, {machine}, {network}{taught}"
    return fit(network, loss, images, labels, recipe.schedule, generator, checkpoint, identity, name, _sgd)


@torch.no_grad()
def score(network: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> float:
    """Return the share, 0 to 1, that a network gets right in float32, in eval mode."""
    network.eval()
    right = 0
    with expanded(network):
        for start in range(0, len(images), 500):
            part = slice(start, start + 500)
            answers = network(_channels_first(images[part]).float()).argmax(1)
            right += int((answers.numpy() == labels[part]).sum())
    return right / len(labels)


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file that `main` wrote."""
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if not key.startswith("_")}


def _started(build: Callable[[], nn.Module], start: Path) -> nn.Module:
    """Make the network with the weights of a finished run."""
    network = build()
    network.load_state_dict(load_state(start))
    return network


def _second(recipe: ImageRecipe) -> ImageRecipe:
    """Return the recipe of a run that goes on with trained weights."""
    schedule = recipe.schedule
    rate, whole = schedule.learning_rate / 4, schedule.epochs
    return replace(
        recipe, principal="", schedule=replace(schedule, learning_rate=rate, warmup_epochs=1, decay_epochs=whole)
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m circ_overlay.models.train_images", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="which network")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where to write the network")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default 0)")
    parser.add_argument("--epochs", type=int, help="train this long instead of the recipe's number of epochs")
    parser.add_argument(
        "--start", type=Path, metavar="FILE.npz",
        help="begin with the weights of a finished run, at a quarter of the step size that falls to zero all the way",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside --out, if it exists")
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write the log here")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the result depends on it (default 1)")
    parser.add_argument(
        "--teacher", nargs=2, metavar=("NAME", "FILE.npz"), help="a finished run for the same data to learn from too"
    )
    parser.add_argument("--margin", type=int, metavar="N", help="shift pictures up to N pixels, not as the recipe says")
    parser.add_argument("--hole", type=int, metavar="N", help="cover a square of N pixels, not as the recipe says")
    parser.add_argument(
        "--validate", type=int, default=0, metavar="N", help="hold the last N training images out; leave the test set"
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
    if arguments.margin is not None:
        recipe = replace(recipe, margin=arguments.margin)
    if arguments.hole is not None:
        recipe = replace(recipe, hole=arguments.hole)
    if arguments.epochs is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=arguments.epochs))
    build = NETWORKS[arguments.name]
    if arguments.start is not None:
        recipe = _second(recipe)
        build = functools.partial(_started, build, arguments.start)
    split = load_split(recipe.dataset)
    if arguments.validate:
        split = split.validation(arguments.validate)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint: Path = arguments.out.with_suffix(".ckpt")
    if not arguments.resume:
        checkpoint.unlink(missing_ok=True)
    _LOG.info("seed %d, torch %s, %d threads, %r", arguments.seed, torch.__version__, arguments.threads, recipe)
    teacher = None
    if arguments.teacher is not None:
        teacher = _started(NETWORKS[arguments.teacher[0]], Path(arguments.teacher[1])).eval()
    network = train(build, recipe, split, arguments.seed, checkpoint, arguments.name, teacher)
    result = score(network, split.test_images, split.test_labels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    held = f"last {arguments.validate} training" if arguments.validate else f"{len(split.test_labels)} test"
    _LOG.info("%s: %d parameters, accuracy %.4f on the %s images", arguments.name, parameters, result, held)

    arrays: dict[str, npt.NDArray[Any]] = {key: value.numpy() for key, value in network.state_dict().items()}
    arrays |= {"_accuracy": np.array(result), "_accuracy_on": np.array(held), "_log": np.array(lines.getvalue())}
    with atomic_write(arguments.out) as file:
        np.savez(file, **cast(Any, arrays))
    checkpoint.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
