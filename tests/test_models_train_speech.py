# SPDX-License-Identifier: BSD-3-Clause
"""Speech networks in torch: against torch's LSTM, against their equations step by step, and training that goes on
where it stopped."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

pytest.importorskip("torch")
pytest.importorskip("tqdm")

import torch

from circ_overlay import datasets, golden
from circ_overlay.audio import Recordings
from circ_overlay.compiler import compile
from circ_overlay.models import train_speech
from circ_overlay.models.augment_speech import Alteration
from circ_overlay.models.networks_speech import EveryStep, SpeechClassifier, google_lstm
from circ_overlay.models.recipes import Schedule
from circ_overlay.models.speech import FrontEnd
from circ_overlay.models.train_speech import RECIPES, Features, SpeechRecipe, classify, pad, split_for, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the network --------------------------------------------------------------------------------------------


def sequences(lengths: tuple[int, ...] = (5, 9, 1, 9), features: int = 13) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(length, features)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("layers", [1, 2])
def test_network_is_torchs_lstm_on_dense_matrices(layers: int) -> None:
    torch.manual_seed(0)
    network = SpeechClassifier(13, 20, 7, 8, layers).eval()
    dense = torch.nn.LSTM(13, 20, layers, batch_first=True)
    dense.load_state_dict(network.lstm.to_dense())
    rows = sequences()
    found = network(*pad(rows))
    for row, logits in zip(rows, found):
        last = dense(torch.from_numpy(row))[0][-1]
        torch.testing.assert_close(logits, network.fc.to_dense() @ last + network.fc.bias)


def test_what_follows_a_sequence_does_not_count() -> None:
    network = SpeechClassifier(13, 16, 10, 4).eval()
    x, lengths = pad(sequences())
    expected = network(x, lengths)
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    torch.testing.assert_close(network(x, lengths), expected, rtol=0, atol=0)


def test_every_step_ends_with_the_classifiers_answer() -> None:
    network = SpeechClassifier(13, 20, 7, 8, 2, dropout=0.5).eval()
    rows = sequences()
    for row, logits in zip(rows, network(*pad(rows))):
        steps = EveryStep(network)(torch.from_numpy(row)[None])
        assert steps.shape == (1, len(row), 7)
        torch.testing.assert_close(steps[0, -1], logits)


def test_the_compiler_takes_every_step() -> None:
    torch.manual_seed(0)
    network = SpeechClassifier(13, 20, 7, 8).eval()
    rows = sequences((9, 20, 1, 15))
    program = compile(EveryStep(network), rows, name="tiny")
    inputs = program.input.quantise(np.concatenate(rows), program.width)
    ends = np.cumsum([len(row) for row in rows])
    starts = np.isin(np.arange(ends[-1]), [0, *ends[:-1]])
    found = golden.run(program, inputs, starts=starts)[ends - 1] / 2.0**program.output.frac
    expected = network(*pad(rows)).detach().numpy()
    assert np.sum((found - expected) ** 2) < 1e-4 * np.sum(expected**2)


def dense_of(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.block([[scipy.linalg.circulant(block) for block in row] for row in blocks])[:rows, :columns]


def test_arrays_follow_the_equations_step_by_step() -> None:
    """NumPy alone, from the arrays by name, as a device would compute."""
    network = SpeechClassifier(13, 20, 7, 8)
    arrays = {name: array.astype(np.float64) for name, array in network.to_arrays().items()}
    rows = sequences()
    expected = network.eval()(*pad(rows)).detach().numpy()
    w = np.concatenate([dense_of(part, 20, 13) for part in np.split(arrays["lstm.weight_ih_l0"], 4)])
    r = np.concatenate([dense_of(part, 20, 20) for part in np.split(arrays["lstm.weight_hh_l0"], 4)])
    bias = arrays["lstm.bias_ih_l0"] + arrays["lstm.bias_hh_l0"]
    for row, logits in zip(rows, expected):
        h = c = np.zeros(20)
        for x in row:
            i, f, g, o = np.split(w @ x + r @ h + bias, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
        np.testing.assert_allclose(dense_of(arrays["fc.weight"], 7, 20) @ h + arrays["fc.bias"], logits, atol=1e-5)


def test_arrays_make_the_network_again() -> None:
    network = SpeechClassifier(13, 20, 7, 8, num_layers=2).eval()
    arrays = {**network.to_arrays(), "features": np.array(13), "block_size": np.array(8), "mean": np.zeros(13)}
    again = SpeechClassifier.from_arrays(arrays)
    batch = pad(sequences())
    torch.testing.assert_close(again(*batch), network(*batch), rtol=0, atol=0)
    del arrays["fc.weight"]
    with pytest.raises(KeyError, match="fc.weight"):
        SpeechClassifier.from_arrays(arrays)


@pytest.mark.parametrize("k", [8, 16])
def test_google_lstm(k: int) -> None:
    before = torch.get_rng_state()
    network, again, other = google_lstm(k), google_lstm(k), google_lstm(k, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    inputs, cells, outputs = -(-153 // k), 1024 // k, 512 // k
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == {
        "weight_ih_l0": (4 * cells, inputs, k),
        "weight_hh_l0": (4 * cells, outputs, k),
        "weight_hr_l0": (outputs, cells, k),
        "bias_ih_l0": (4096,),
        "bias_hh_l0": (4096,),
        "peephole_l0": (3, 1024),
    }
    torch.testing.assert_close(network.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(network.weight_hr_l0, other.weight_hr_l0)
    y, (h, c) = network(torch.randn(2, 3, 153))
    assert (y.shape, h.shape, c.shape) == ((2, 3, 512), (1, 2, 512), (1, 2, 1024))


# --- training -----------------------------------------------------------------------------------------------

TINY = SpeechRecipe(
    dataset="fsdd",
    front=FrontEnd(frame=64, hop=64, bands=8, low=100.0),
    hidden=8,
    layers=1,
    block_size=4,
    dropout=0.2,
    clip=0.1,
    largest_cell=3.0,
    schedule=Schedule(epochs=3, batch=8, learning_rate=2e-2),
    alteration=Alteration(
        speed=0.2, stretch=0.2, pad=300, crop=200, noise_db=(0.0, 20.0), tilt=2.0, time_mask=5, band_mask=6
    ),
)


def spoken(split: str = "train", count: int = 40) -> Recordings:
    """Tones whose height is the label."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(count) % 10
    recordings = tuple(
        (8000 * np.sin((0.25 + 0.25 * label) * np.arange(rng.integers(100, 700)))).astype(np.int16) for label in labels
    )
    return Recordings(
        name="fsdd", split=split, recordings=recordings, labels=labels, speakers=("adam", "zoe") * (count // 2),
        indices=np.arange(count) % 50, sample_rate=8000, classes=tuple("0123456789"),
    )  # fmt: skip


class PowerCutError(Exception):
    """Stands for whatever ends a run."""


def test_resumed_training_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "run.ckpt"
    unbroken = train(TINY, spoken(), 3)[0].to_arrays()
    save, calls = torch.save, 0

    def save_twice(*args: object) -> None:
        nonlocal calls
        save(*args)
        calls += 1
        if calls == 3:
            raise PowerCutError

    monkeypatch.setattr(torch, "save", save_twice)
    with pytest.raises(PowerCutError):
        train(TINY, spoken(), 3, checkpoint)
    monkeypatch.undo()
    assert torch.load(checkpoint)["epoch"] == 2
    resumed = train(TINY, spoken(), 3, checkpoint)[0].to_arrays()
    for name, array in unbroken.items():
        np.testing.assert_array_equal(resumed[name], array)
    with pytest.raises(ValueError, match=r"run\.ckpt is of the run .*seed 3.*, not of .*seed 4"):
        train(TINY, spoken(), 4, checkpoint)


def test_it_learns_tones() -> None:
    recipe = dataclasses.replace(
        TINY, hidden=16, dropout=0.0, schedule=Schedule(epochs=40, batch=8, learning_rate=3e-2, ema_decay=0.9),
        alteration=Alteration(pad=50, time_mask=1),
    )  # fmt: skip
    network, features = train(recipe, spoken(), 0)
    test = spoken("test")
    assert np.mean(classify(network, features, test.recordings) == test.labels) > 0.9


def test_classify_takes_recordings_one_by_one_or_together() -> None:
    network, test = SpeechClassifier(8, 8, 10, 4).eval(), spoken(count=130)
    features = Features.of(TINY.front, test.recordings)
    together = classify(network, features, test.recordings)
    assert together.shape == (130,)
    for n in (0, 99, 100, 129):
        assert classify(network, features, test.recordings[n : n + 1]) == together[n]


def test_constants_are_of_all_frames() -> None:
    recordings = spoken().recordings
    features = Features.of(TINY.front, recordings)
    frames = np.concatenate([features(recording) for recording in recordings])
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(frames.std(axis=0), 1, atol=0.05)


def test_split_for() -> None:
    everything = spoken(count=100)
    rest, held = split_for(everything, "indices")
    assert (len(rest), len(held), held.split) == (90, 10, "validation (indices)")
    assert set(held.indices) == {45, 46, 47, 48, 49}
    rest, held = split_for(everything, "zoe")
    assert set(rest.speakers) == {"adam"}
    assert set(held.speakers) == {"zoe"}
    with pytest.raises(ValueError, match="validate is 'nobody'; allowed are indices, adam, zoe"):
        split_for(everything, "nobody")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, split: str) -> Recordings:
        asked.append((name, split))
        return spoken(split, 60)

    monkeypatch.setattr(datasets, "load_recordings", load)
    monkeypatch.setattr(train_speech, "RECIPES", {**RECIPES, "fsdd-lstm": TINY})
    out, log = tmp_path / "a" / "n.npz", tmp_path / "b" / "n.log"
    arguments = ["fsdd-lstm", "--out", str(out), "--log", str(log), "--epochs", "2", "--seed", "1"]
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        train_speech.main([*arguments, "--resume"])
    assert train_speech.main(arguments) == 0
    assert [path.name for path in out.parent.iterdir()] == ["n.npz"]
    with np.load(out, allow_pickle=False) as file:
        arrays = dict(file)
    assert "by speaker: adam " in log.read_text()
    assert "epoch 2 loss" in str(arrays["log"])
    assert arrays["accuracy_on"] == "test recordings"
    assert arrays["classes"].tolist() == list("0123456789")
    names = SpeechClassifier(8, 8, 10, 4).state_dict()
    assert {name: array.dtype for name, array in arrays.items() if "." in name} == dict.fromkeys(names, np.float32)
    front = FrontEnd(**{name: arrays[f"front_{name}"].item() for name in vars(TINY.front)})
    assert front == TINY.front
    features = Features(front=front, mean=arrays["mean"], deviation=arrays["deviation"])
    test = spoken("test", 60)
    right = classify(SpeechClassifier.from_arrays(arrays), features, test.recordings) == test.labels
    assert right.mean() == arrays["accuracy"]
    asked.clear()
    assert train_speech.main([*arguments, "--validate", "zoe"]) == 0
    assert asked == [("fsdd", "train")]
    with np.load(out, allow_pickle=False) as file:
        assert file["accuracy_on"] == "validation (zoe) recordings"


def test_recipes_can_be_built() -> None:
    for recipe in RECIPES.values():
        network = SpeechClassifier(recipe.front.bands, recipe.hidden, 10, recipe.block_size, recipe.layers)
        assert sum(parameter.numel() for parameter in network.parameters()) < 50_000
