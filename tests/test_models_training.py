# SPDX-License-Identifier: BSD-3-Clause
"""The zoo's training: resizing, distortion, packing, resuming, and the command line, on small data."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

import torch

from circ_overlay.models import network_from_arrays, training
from circ_overlay.models.augment import Distortion, distort
from circ_overlay.models.preprocess import area_weights, resize_area
from circ_overlay.models.recipes import RECIPES, Recipe, Schedule, build, pack

TINY = Recipe(
    dataset="mnist",
    size=6,
    full_scale=255.0,
    layers=((12, 4), (10, 8)),
    schedule=Schedule(epochs=3, batch=16),
    distortion=Distortion(rotation=5.0, shift=0.5, elastic=0.3, knots=3),
)


def tiny_split() -> training.Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 9, 9), dtype=np.uint8)
    labels = rng.integers(0, 10, 50)
    return training.Split(train_images=images, train_labels=labels, test_images=images, test_labels=labels)


# --- preprocess ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(28, 16), (28, 14), (28, 28), (9, 6), (5, 1), (7, 3)])
def test_resize_area_is_the_mean_over_area(old: int, new: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, old, old), dtype=np.uint8)
    # Blow every pixel up to new x new copies; then a new pixel is the plain mean of old x old of them.
    large = images.repeat(new, axis=1).repeat(new, axis=2).reshape(4, new, old, new, old)
    expected = np.floor(large.sum(axis=(2, 4), dtype=np.int64) / old**2 + 0.5)
    np.testing.assert_array_equal(resize_area(images, new), expected)
    assert resize_area(images, new).dtype == np.uint8


def test_area_weights_sum_to_the_sizes() -> None:
    weights = area_weights(28, 16)
    assert weights.shape == (16, 28)
    assert (weights.sum(axis=1) == 28).all()
    assert (weights.sum(axis=0) == 16).all()


def test_resize_messages() -> None:
    images = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"size is 5; .* allowed is 1 to 4"):
        resize_area(images, 5)
    with pytest.raises(
        ValueError, match=r"images have shape \(1, 4, 4\) and dtype float64; allowed is \(N, n"
    ):
        resize_area(images.astype(float), 2)
    with pytest.raises(ValueError, match=r"images have shape \(4, 4\)"):
        resize_area(images[0], 2)


# --- augmentation -------------------------------------------------------------------------------------------


def test_no_distortion_is_the_identity() -> None:
    images = torch.rand(3, 8, 8)
    torch.testing.assert_close(distort(images, Distortion(), torch.Generator()), images, atol=1e-5, rtol=0)


def test_distortion_follows_its_generator() -> None:
    images, bent = (
        torch.rand(3, 8, 8),
        Distortion(rotation=10, scale=0.1, shear=0.1, shift=1, elastic=1, knots=4),
    )
    one, same, other = (distort(images, bent, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, images)


# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_packed_network_computes_what_torch_does(name: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    network = build(recipe)
    x = torch.randint(0, int(recipe.full_scale) + 1, (64, recipe.size**2)).float()
    for _ in range(5):
        network(x)  # batch norm gathers statistics that are not its initial ones
    network.eval()
    arrays = pack(network)
    assert int(arrays["layers"]) == len(recipe.layers)
    assert int(arrays["in_features"]) == recipe.size**2
    assert int(arrays["out_features"]) == 10
    y = network_from_arrays(arrays, name).forward(x.numpy())
    np.testing.assert_allclose(y, network(x).detach().numpy(), atol=1e-4)


def test_pack_refuses_other_modules() -> None:
    with pytest.raises(ValueError, match=r"the network holds Tanh\(\); allowed are Scale \(first\)"):
        pack(torch.nn.Sequential(torch.nn.Tanh()))


def test_mnist_mlp_keeps_within_the_accelerators_budget() -> None:
    # 475,000 images/s at 100 MHz leave 210 cycles an image, of 54 complex multiplications each.
    width, macs, samples = 784, 0, 0
    for out_features, k in RECIPES["mnist-mlp"].layers:
        p, q = -(-out_features // k), -(-width // k)
        macs, samples, width = macs + p * q * k // 2, samples + q * k, out_features
    assert macs <= 10_000
    assert samples <= 1_400
    assert sum(parameter.numel() for parameter in build(RECIPES["mnist-mlp"]).parameters()) <= 40_000


# --- training -----------------------------------------------------------------------------------------------


def weights_of(network: torch.nn.Module) -> dict[str, npt.NDArray[Any]]:
    return {key: value.numpy() for key, value in network.state_dict().items()}


def test_same_seed_same_weights() -> None:
    one, same, other = (weights_of(training.train(TINY, tiny_split(), seed)) for seed in (1, 1, 2))
    for key, value in one.items():
        np.testing.assert_array_equal(value, same[key])
    assert not np.array_equal(one["1.weight"], other["1.weight"])


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = weights_of(training.train(TINY, tiny_split(), 3))
    checkpoint = tmp_path / "run.ckpt"

    class PowerCutError(Exception):
        pass

    save, calls = torch.save, 0

    def save_twice(*args: Any) -> None:
        nonlocal calls
        save(*args)
        calls += 1
        if calls == 3:  # the third epoch is trained and half written, never put in place
            raise PowerCutError

    monkeypatch.setattr(torch, "save", save_twice)
    with pytest.raises(PowerCutError):
        training.train(TINY, tiny_split(), 3, checkpoint)
    monkeypatch.undo()
    assert torch.load(checkpoint)["epoch"] == 2
    resumed = weights_of(training.train(TINY, tiny_split(), 3, checkpoint))
    for key, value in unbroken.items():
        np.testing.assert_array_equal(value, resumed[key])
    with pytest.raises(ValueError, match=r"run\.ckpt is of the run .*seed 3.*, not of .*seed 4"):
        training.train(TINY, tiny_split(), 4, checkpoint)


def test_command_line_on_digits(tmp_path: Path) -> None:
    out, log = tmp_path / "digits.npz", tmp_path / "digits.log"
    arguments = ["digits-mlp", "--out", str(out), "--log", str(log), "--epochs", "4", "--seed", "1"]
    assert training.main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.log", "digits.npz"]
    with np.load(out, allow_pickle=False) as file:
        arrays = dict(file)
    assert "accuracy" in log.read_text()
    assert "epoch 4 loss" in str(arrays["log"])
    assert arrays["accuracy_on"] == "test"
    split = training.load_split("digits")
    assert float(arrays["accuracy"]) == training.score(arrays, RECIPES["digits-mlp"], split)
    assert float(arrays["accuracy"]) > 0.2
    assert training.main([*arguments, "--validate", "100"]) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["accuracy_on"] == "last 100 training"


# --- data ---------------------------------------------------------------------------------------------------


def test_validation_is_cut_from_the_training_part() -> None:
    split = tiny_split()
    held = split.validation(8)
    np.testing.assert_array_equal(held.train_labels, split.train_labels[:-8])
    np.testing.assert_array_equal(held.test_images, split.train_images[-8:])


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["digits-mlp"].size = 9  # type: ignore[misc]
