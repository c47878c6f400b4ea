# SPDX-License-Identifier: BSD-3-Clause
"""Train a speech network from a seed: ``python -m circ_overlay.models.train_speech NAME --out FILE.npz``.

As `circ_overlay.models.training` for images: a function of recipe, seed and thread count, that goes on with
``--resume`` from the last epoch's checkpoint to the same result, and looks at the test set once, at the end.
``--validate indices`` and ``--validate SPEAKER`` hold training recordings out instead and leave the test set alone.
"""

import argparse
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from circ_overlay import datasets
from circ_overlay.audio import Recordings
from circ_overlay.files import atomic_write
from circ_overlay.models.augment_speech import Alteration, alter_features, alter_recording
from circ_overlay.models.networks_speech import SpeechClassifier
from circ_overlay.models.recipes import Schedule
from circ_overlay.models.speech import FrontEnd, log_mel, normalise
from circ_overlay.models.training import fit

__all__ = ["RECIPES", "Features", "SpeechRecipe", "classify", "main", "pad", "split_for", "train"]

_LOG = logging.getLogger(__name__)

VALIDATION_INDICES = range(45, 50)


@dataclass(frozen=True, kw_only=True)
class SpeechRecipe:
    """One network and the way to train it.

    Attributes
    ----------
    dataset : str
        One of :data:`circ_overlay.datasets.DATASETS` that holds recordings.
    front : FrontEnd
        What makes features of recordings.
    hidden, layers, block_size : int
        Cells of an LSTM layer, LSTM layers, and k of all matrices.
    dropout : float
        Of h, see `SpeechClassifier`.
    clip : float
        Bound of each element of the gradient.
    largest_cell : float
        What |c| may reach; the mean square of what is above is added to the loss. Fixed point holds less than 8.
    schedule : Schedule
        The training run.
    alteration : Alteration
        Augmentation.
    """

    dataset: str
    front: FrontEnd
    hidden: int
    layers: int
    block_size: int
    dropout: float
    clip: float
    largest_cell: float
    schedule: Schedule
    alteration: Alteration


RECIPES: Mapping[str, SpeechRecipe] = {
    "fsdd-lstm": SpeechRecipe(
        dataset="fsdd",
        front=FrontEnd(),
        hidden=128,
        layers=1,
        block_size=8,
        dropout=0.2,
        clip=0.1,
        largest_cell=2.0,
        schedule=Schedule(epochs=100, batch=64, learning_rate=6e-3, ema_decay=0.995, label_smoothing=0.05),
        alteration=Alteration(
            speed=0.12, stretch=0.15, pad=800, crop=400, noise_db=(10.0, 40.0), tilt=2.0, time_mask=5, band_mask=6
        ),
    ),
}
"""Every speech network that this package trains, by name."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the front end makes of recordings, and the constants that go with a network.

    Attributes
    ----------
    front : FrontEnd
    mean, deviation : (bands,) float32, over all frames of the training recordings
    """

    front: FrontEnd
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, front: FrontEnd, recordings: Sequence[NDArray[Any]]) -> "Features":
        """Take the constants of training recordings."""
        frames = np.concatenate([log_mel(recording, front) for recording in recordings]).astype(np.float64)
        deviation = frames.std(axis=0).clip(min=1e-3)
        return cls(
            front=front, mean=frames.mean(axis=0).astype(np.float32), deviation=deviation.astype(np.float32)
        )

    def __call__(self, recording: NDArray[Any]) -> NDArray[np.float32]:
        """Normalised features, (steps, bands) float32, of one recording (samples,)."""
        return normalise(log_mel(recording, self.front), self.mean, self.deviation)


def pad(sequences: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Lay sequences (steps, features) side by side: (batch, longest, features) float32 with zeros, (batch,) int64."""
    rows = [torch.from_numpy(sequence) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def split_for(training: Recordings, validate: str) -> tuple[Recordings, Recordings]:
    """Take a validation part out of training recordings: "indices", the last takes, or everything of one speaker.

    Raises
    ------
    ValueError
        If there is no such speaker.
    """
    if validate == "indices":
        held = np.isin(training.indices, VALIDATION_INDICES)
    elif validate in training.speakers:
        held = np.array([speaker == validate for speaker in training.speakers])
    else:
        raise ValueError(f"validate is {validate!r}; allowed are indices, {', '.join(sorted(set(training.speakers)))}")
    return training.select(~held, "train"), training.select(held, f"validation ({validate})")


def train(
    recipe: SpeechRecipe, training: Recordings, seed: int, checkpoint: Path | None = None, name: str = "network"
) -> tuple[SpeechClassifier, Features]:
    """Train the recipe's network.

    Parameters
    ----------
    recipe : SpeechRecipe
        What to train and how.
    training : Recordings
        All recordings to learn from.
    seed : int
        Of every random draw.
    checkpoint : pathlib.Path, optional
        Where to keep the state between epochs; if it exists, training goes on from it.
    name : str
        Title in the progress bar and the log.

    Returns
    -------
    (SpeechClassifier, Features)
        The network with averaged weights, in eval mode, and its front end.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    features = Features.of(recipe.front, training.recordings)
    alteration = recipe.alteration

    def loss(network: nn.Module, chosen: Tensor, labels: Tensor) -> Tensor:
        # The draws follow the generator whose state the checkpoint holds.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        altered = [
            alter_features(
                features(alter_recording(training.recordings[i], alteration, rng)), features.deviation, alteration, rng
            )
            for i in chosen.long().tolist()
        ]
        logits, c = cast(SpeechClassifier, network).outputs_and_cells(*pad(altered))
        excess = functional.relu(c.abs() - recipe.largest_cell).square().mean()
        return functional.cross_entropy(logits, labels, label_smoothing=recipe.schedule.label_smoothing) + excess

    bands, classes = recipe.front.bands, len(training.classes)
    network = SpeechClassifier(bands, recipe.hidden, classes, recipe.block_size, recipe.layers, recipe.dropout)
    for parameter in network.parameters():
        parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient.clamp(-recipe.clip, recipe.clip)
        )
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    identity = f"{recipe}, seed {seed}, {training.split}, {len(training)} recordings, {machine}"
    average = fit(
        network, loss, torch.arange(len(training)), torch.from_numpy(training.labels), recipe.schedule, generator,
        checkpoint, identity, title=name,
    )  # fmt: skip
    return cast(SpeechClassifier, average), features


@torch.no_grad()
def classify(network: nn.Module, features: Features, recordings: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Answers of a network, (n,) int64, for whole recordings."""
    answers = [
        network(*pad([features(recording) for recording in recordings[start : start + 100]])).argmax(dim=1)
        for start in range(0, len(recordings), 100)
    ]
    return cast(NDArray[np.int64], torch.cat(answers).numpy())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m circ_overlay.models.train_speech", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="which network")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where to write the network")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default 0)")
    parser.add_argument("--epochs", type=int, help="train this long instead of the recipe's number of epochs")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside --out")
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write the log here")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the result depends on it (default 1)")
    parser.add_argument(
        "--validate", metavar="WHAT", help="hold out 'indices' (takes 45 to 49) or a speaker; leave the test set"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure and write one network; returns the exit status."""
    arguments = _arguments(argv)
    lines = io.StringIO()
    handlers: list[logging.Handler] = [logging.StreamHandler(lines)]
    if arguments.log is not None:
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(arguments.log, mode="a" if arguments.resume else "w"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    torch.set_num_threads(arguments.threads)

    recipe = RECIPES[arguments.name]
    if arguments.epochs is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=arguments.epochs))
    training = datasets.load_recordings(recipe.dataset, "train")
    if arguments.validate:
        training, held = split_for(training, arguments.validate)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint: Path = arguments.out.with_suffix(".ckpt")
    if not arguments.resume:
        checkpoint.unlink(missing_ok=True)
    elif not checkpoint.exists():
        raise SystemExit(f"--resume: there is no checkpoint {checkpoint}; start the run without --resume")
    _LOG.info("seed %d, torch %s, %d threads, %r", arguments.seed, torch.__version__, arguments.threads, recipe)
    network, features = train(recipe, training, arguments.seed, checkpoint, arguments.name)
    if not arguments.validate:
        held = datasets.load_recordings(recipe.dataset, "test")
    right = classify(network, features, held.recordings) == held.labels
    parameters = sum(parameter.numel() for parameter in network.parameters())
    _LOG.info(
        "%s: %d parameters, accuracy %.4f (%d of %d) on the %s recordings", arguments.name, parameters, right.mean(),
        right.sum(), len(held), held.split,
    )  # fmt: skip
    spoken = Counter(held.speakers)
    hit = Counter(speaker for speaker, good in zip(held.speakers, right) if good)
    _LOG.info("by speaker: %s", ", ".join(f"{who} {hit[who]} of {spoken[who]}" for who in sorted(spoken)))

    front = {f"front_{name}": np.array(value) for name, value in vars(recipe.front).items()}
    arrays: dict[str, Any] = {**network.to_arrays(), **front, "mean": features.mean, "deviation": features.deviation}
    arrays |= {"features": np.array(recipe.front.bands), "block_size": np.array(recipe.block_size)}
    arrays |= {"classes": np.array(training.classes), "accuracy": np.array(right.mean())}
    arrays |= {"accuracy_on": np.array(f"{held.split} recordings"), "log": np.array(lines.getvalue())}
    with atomic_write(arguments.out) as file:
        np.savez(file, **arrays)
    checkpoint.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
