# SPDX-License-Identifier: BSD-3-Clause
"""The convolutional networks of the zoo and their training, on small made-up data; the colour data sets' files."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from circ_overlay import _pictures, datasets

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")

from torch import fx, nn  # noqa: E402

from circ_overlay.models import cost, train_images  # noqa: E402
from circ_overlay.models.augment import crop  # noqa: E402
from circ_overlay.models.estimate import estimate  # noqa: E402
from circ_overlay.models.expansion import expand, expanded  # noqa: E402
from circ_overlay.models.networks import NETWORKS, Conv, PlainCnn, Residual, ResNet  # noqa: E402
from circ_overlay.models.recipes import Schedule  # noqa: E402
from circ_overlay.models.training import Split  # noqa: E402
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d  # noqa: E402

COLOUR = (3, 32, 32)
IMAGES = {"mnist-lenet": (1, 28, 28), "svhn-cnn": COLOUR, "cifar10-cnn": COLOUR, "cifar10-resnet": COLOUR}
RECIPE = train_images.ImageRecipe(
    dataset="cifar10", margin=1, flip=True, hole=3,
    schedule=Schedule(epochs=4, batch=8, learning_rate=0.1, warmup_epochs=1, decay_epochs=2),
)  # fmt: skip


def tiny_network():
    return PlainCnn(Conv(8, 3, 4, stride=2), Conv(8, 3, 8, pool=4))


def tiny_split():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 20)
    return Split(train_images=images, train_labels=labels, test_images=images, test_labels=labels)


# --- networks ------------------------------------------------------------------------------------------------


class Tracer(fx.Tracer):
    def is_leaf_module(self, m, name):
        return hasattr(m, "block_size") or super().is_leaf_module(m, name)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_can_be_traced_and_have_ten_answers(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    x = torch.randint(0, 256, (2, *IMAGES[name])).float()
    traced = fx.GraphModule(network, Tracer().trace(network))
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(traced(x), y)
        with expanded(network):
            torch.testing.assert_close(network(x), y, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(network(x), y, rtol=0, atol=0)  # as before
    assert y.shape == (2, 10)


@pytest.mark.parametrize(
    "layer",
    [
        BlockCirculantLinear(10, 7, 4),
        BlockCirculantLinear(6, 5, 1),
        BlockCirculantConv2d(6, 9, 3, 4, stride=2, padding=1),
        BlockCirculantConv2d(3, 4, (1, 2), 1),
        BlockCirculantPatchConv2d(3, 10, 3, 8, stride=2, padding=1),
    ],
    ids=repr,
)
def test_expansion_equals_the_layer_and_so_do_its_gradients(layer):
    x = torch.randn((4, layer.in_features) if isinstance(layer, BlockCirculantLinear) else (2, layer.in_channels, 6, 5))
    y = layer(x)
    layer.zero_grad()
    y.square().sum().backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    with expanded(nn.Sequential(layer)) as network:
        z = network(x)
    z.square().sum().backward()
    torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-3, atol=1e-4)


def test_a_block_is_circulant():
    dense = expand(torch.arange(4.0)[None, None], 4, 4)
    np.testing.assert_array_equal(dense, [[0, 3, 2, 1], [1, 0, 3, 2], [2, 1, 0, 3], [3, 2, 1, 0]])


def test_patches_are_in_order_row_column_channel():
    layer = BlockCirculantPatchConv2d(2, 1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0)[None, :, None])
    x = torch.randn(1, 2, 2, 2)
    expected = (x[0].permute(1, 2, 0).flatten() * torch.arange(8.0)).sum()
    torch.testing.assert_close(layer(x).flatten()[0], expected)


def test_residual_has_a_way_around():
    block = Residual(8, 4).eval()
    with torch.no_grad():
        block.norm.weight.zero_()
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(x))


# --- cost ----------------------------------------------------------------------------------------------------


def test_cycles_of_the_three_kinds_of_layer():
    assert cost.conv_cycles(256, 64, 64, 128, 9, 16) == pytest.approx(256 * 64 / 4 + 32 + 8)  # bound by its input
    assert cost.conv_cycles(64, 64, 128, 128, 9, 8) == pytest.approx(64 * 9 * 16 * 16 * 4 / 54 + 32 + 4)  # products
    assert cost.conv_cycles(1024, 256, 3, 64, 16, 4, patch=True) == pytest.approx(256 * 16 + 32 + 2)
    assert cost.conv_cycles(1, 1, 30, 10, 1, 1) == 8 + 32.5


def test_estimate_counts_layers_parameters_and_words():
    found = estimate(tiny_network(), 3, 8)
    first, second, last = 2 * 7 * 4, 8 * 9, 80
    assert found.parameters == first + second + last + 10 + 32
    assert found.dense_parameters == found.parameters + 8 * 27 + 8 * 8 * 9 - first - second
    assert found.words == round(first / 2 + second / 2 + last / 2)
    assert found.cycles == pytest.approx(sum(found.layers.values()), abs=3)
    assert set(found.layers) == {"input", "conv1.conv", "conv2.conv", "classifier"}


@pytest.mark.parametrize("name", ["mnist-lenet", "svhn-cnn", "cifar10-cnn"])
def test_networks_fit_the_chip_at_once(name):
    channels, side, _ = IMAGES[name]
    assert estimate(NETWORKS[name](), channels, side).words <= 65_536


def test_the_fast_network_is_fast():
    assert estimate(NETWORKS["cifar10-cnn"](), 3, 32).cycles <= 32_000


# --- augmentation --------------------------------------------------------------------------------------------


def test_crop_follows_its_generator_and_may_do_nothing():
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(crop(x, 0, torch.Generator().manual_seed(0)), x)
    one, two, other = (crop(x, 2, torch.Generator().manual_seed(s), True, 3) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_crop_shifts_mirrors_and_covers():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(200, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    shifts = {(int(y[0, 4, 4]) // 8 - 4, int(y[0, 4, 4]) % 8 - 4) for y in crop(x, 1, generator)}
    assert shifts == {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    mirrored = crop(x, 0, generator, flip=True)
    assert {int(y[0, 0, 0]) for y in mirrored} == {0, 7}
    covered = (crop(x, 0, generator, hole=3) == 120).sum((1, 2, 3))
    assert 1 <= covered.min() <= covered.max() == 9


# --- training ------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def train_and_break_off(recipe, checkpoint, monkeypatch):
    """Stop in the third epoch, of three steps each."""
    steps, step = iter(range(100)), torch.optim.SGD.step

    def stopping(self, *args):
        if next(steps) == 7:
            raise Stop
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stopping)
        with pytest.raises(Stop):
            train_images.train(tiny_network, recipe, tiny_split(), seed=3, checkpoint=checkpoint)
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("epochs", [4, 6])  # another length, before its decay begins, is allowed
def test_a_resumed_run_ends_where_an_unbroken_one_does(epochs, tmp_path, monkeypatch):
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, epochs=epochs))
    whole = train_images.train(tiny_network, recipe, tiny_split(), seed=3)
    train_and_break_off(RECIPE, tmp_path / "run.ckpt", monkeypatch)
    resumed = train_images.train(tiny_network, recipe, tiny_split(), seed=3, checkpoint=tmp_path / "run.ckpt")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="is of the run"):
        train_images.train(tiny_network, recipe, tiny_split(), seed=4, checkpoint=tmp_path / "run.ckpt")


def test_command_line_writes_what_load_state_dict_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(train_images, "load_split", lambda name: tiny_split())
    monkeypatch.setattr(train_images, "NETWORKS", {"cifar10-cnn": tiny_network})
    monkeypatch.setattr(train_images, "RECIPES", {"cifar10-cnn": RECIPE})
    out, log, threads = tmp_path / "net.npz", tmp_path / "net.log", torch.get_num_threads()
    arguments = ["cifar10-cnn", "--out", str(out), "--log", str(log), "--epochs", "2", "--threads", "1"]
    try:
        assert train_images.main(arguments) == 0
        network = tiny_network()
        network.load_state_dict(train_images.load_state(out))
        split = tiny_split()
        with np.load(out) as arrays:
            assert arrays["_accuracy"] == train_images.score(network, split.test_images, split.test_labels)
        assert "epoch 2" in log.read_text()
        assert "20 test images" in log.read_text()
        assert not out.with_suffix(".ckpt").exists()
        assert train_images.main([*arguments, "--resume", "--validate", "4"]) == 0
        assert "last 4 training images" in log.read_text()
        more = ["--start", str(out), "--margin", "2"]
        assert train_images.main([*arguments[:2], str(tmp_path / "second.npz"), *arguments[3:], *more]) == 0
        assert "margin=2" in log.read_text()
        assert "learning_rate=0.025" in log.read_text()  # a quarter
    finally:
        torch.set_num_threads(threads)


def test_filters_start_as_principal_components():
    layer = ResNet(stem=(32, 32), widths=(8,)).stem1.conv
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    train_images._start_from_patches(layer, images)
    filters = layer.weight.flatten(1)
    torch.testing.assert_close(filters[:16], -filters[16:])
    torch.testing.assert_close(filters[:16] @ filters[:16].T, torch.eye(16), rtol=0, atol=1e-5)


# --- files ---------------------------------------------------------------------------------------------------


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 10, count, dtype=np.uint8), rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_batch(path, labels, images):
    path.parent.mkdir(exist_ok=True, parents=True)
    np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], 1).tofile(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_cifar10_binary_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRC_OVERLAY_DATA", str(tmp_path))
    files, parts = {}, []
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        parts.append(batch(3 + seed, seed))
        file = f"cifar-10-batches-bin/{name}.bin"
        files[file] = write_batch(tmp_path / "cifar10" / file, *parts[-1])
    monkeypatch.setitem(datasets.DATASETS, "cifar10", replace(datasets.DATASETS["cifar10"], files=files))
    assert datasets.at_hand("cifar10")
    train, test = datasets.load("cifar10", "train"), datasets.load("cifar10", "test")
    np.testing.assert_array_equal(train.images, np.concatenate([images for _, images in parts[:5]]))
    np.testing.assert_array_equal(test.labels, parts[5][0])
    assert train.classes[3] == "cat"
    assert test.published == len(test) == 8
    last = tmp_path / "cifar10" / file
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(datasets.DataUnavailableError, match="SHA-256"):
        datasets.load("cifar10", "test")
    with pytest.raises(_pictures.FormatError, match="3073-byte"):
        _pictures.read_cifar10([last])


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A made-up test file of 6 digits, whose first 4 are known; the folder, and how to write another."""
    savemat = pytest.importorskip("scipy.io").savemat
    monkeypatch.setenv("CIRC_OVERLAY_DATA", str(tmp_path))
    monkeypatch.setenv("CIRC_OVERLAY_CACHE", str(tmp_path / "cache"))
    labels, images = batch(6)
    known = [hashlib.sha256(part[:4].tobytes()).hexdigest() for part in (images, labels)]
    path = tmp_path / "svhn" / "test_32x32.mat"
    path.parent.mkdir()

    def write(count, change=0):
        ten = np.where(labels == 0, 10, labels)[:count, None]
        savemat(path, {"X": (images + np.uint8(change))[:count].transpose(1, 2, 3, 0), "y": ten})
        return path

    write(6)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(_pictures._SVHN, "test_32x32.mat", (md5, 4, *known))
    return write, labels, images


def test_svhn_published_file_and_its_beginning(digits):
    write, labels, images = digits
    whole = datasets.load("svhn", "test")
    np.testing.assert_array_equal(whole.images, images)
    np.testing.assert_array_equal(whole.labels, labels)
    write(4)
    part = datasets.load("svhn", "test")
    np.testing.assert_array_equal(part.images, images[:4])
    assert (len(part), part.published) == (4, 26_032)


def test_svhn_altered_files_are_noticed(digits):
    write, _, _ = digits
    for count, change in ((4, 1), (5, 0), (3, 0)):
        write(count, change)
        with pytest.raises(datasets.DataUnavailableError, match="expected 4 with"):
            datasets.load("svhn", "test")
    path = write(4)
    path.write_bytes(b"MATLAB" + path.read_bytes()[:100])
    with pytest.raises(datasets.DataUnavailableError, match="no MATLAB file"):
        datasets.load("svhn", "test")
    pytest.importorskip("scipy.io").savemat(path, {"X": np.zeros((2, 2)), "y": np.zeros(2)})
    with pytest.raises(datasets.DataUnavailableError, match="of shape"):
        datasets.load("svhn", "test")


@pytest.mark.parametrize(("name", "train", "test"), [("cifar10", 50_000, 10_000), ("svhn", 73_257, 26_032)])
def test_real_files(name, train, test):
    if not datasets.at_hand(name):
        pytest.skip(f"{name} is not here")
    found = datasets.load(name, "train"), datasets.load(name, "test")
    assert len(found[0]) == train
    assert found[1].published == test
    assert set(found[1].labels) == set(range(10))
