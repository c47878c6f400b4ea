# SPDX-License-Identifier: BSD-3-Clause
"""The zoo: what is shipped is what the weights compile to, and is as accurate as it says."""

import json
import os

import numpy as np
import pytest

from circ_overlay import datasets, models, spec, transfer
from circ_overlay.engines import available_engines, create_engine
from circ_overlay.evaluate import golden_outputs
from circ_overlay.models.google import CONFIG
from circ_overlay.program import Program

FLOOR = {
    "digits-mlp": 0.97, "mnist-mlp": 0.984, "mnist-mlp-small": 0.956, "mnist-lenet": 0.992, "svhn-cnn": 0.95,
    "cifar10-cnn": 0.83, "cifar10-resnet": 0.90, "fsdd-lstm": 0.97,
}  # fmt: skip
TRAINED = [name for name, model in models.MODELS.items() if model.dataset]
PLAIN = [name for name in TRAINED if name.endswith(("mlp", "small"))]
COMPARED = 40
"""Images that the golden model computes of a convolutional network; of others it computes all."""
NEEDS_DATA = "needs {}, which is neither here (CIRC_OVERLAY_DATA) nor in the cache"


def test_data(name):
    dataset = models.MODELS[name].dataset
    if not datasets.at_hand(dataset):
        pytest.skip(NEEDS_DATA.format(dataset))
    if models.MODELS[name].speech:
        recordings = datasets.load_recordings(dataset, "test")
        return models.MODELS[name].prepare(recordings.recordings), recordings.labels
    test = datasets.load(dataset, "test")
    return models.MODELS[name].prepare(test.images), test.labels


test_data.__test__ = False


def engine_outputs(name, program, samples):
    """Outputs (rows, features) of an engine on quantised samples; on sequences a row for each step."""
    engine = create_engine(name, spec.CoreConfig())
    starts = None
    if program.sequence:
        starts = np.concatenate([np.arange(len(s)) == 0 for s in samples])
        samples = np.concatenate(samples)
    quantised = program.input.quantise(samples, program.width)
    tensors = {"input": program.input.to_pixels(quantised)}
    for tensor in ("output", *program.tensors):
        shape = program.tensor(tensor)
        tensors[tensor] = np.zeros((len(quantised), shape.pixels, shape.channels), np.int16)
    for segment, image in zip(program.segments, program.images, strict=True):
        assert engine.load(image) == spec.Status.OK
        elements = np.zeros((len(quantised), transfer.stream_elements(segment)[0]), segment.in_dtype)
        transfer.pack(program, segment, tensors, elements)
        words = elements.view("<u8").astype(np.uint64)
        if starts is not None:
            words = np.concatenate([starts[:, None].astype(np.uint64), words], 1)
        out = engine.run(len(quantised), np.ascontiguousarray(words).ravel()).astype("<u8").view("<i2")
        transfer.unpack(program, segment, out.reshape(len(quantised), -1), tensors)
    return program.output.from_pixels(tensors["output"])


def last_steps(samples):
    return np.cumsum([len(s) for s in samples]) - 1


@pytest.mark.parametrize("name", TRAINED)
def test_program_loads_and_fits_the_default_core(name):
    program = models.load(name)
    assert isinstance(program, Program)
    assert program.width == 12
    engine = create_engine("golden", spec.CoreConfig())
    for image in program.images:
        assert engine.load(image) == spec.Status.OK
    assert len(program.segments) == 1 or name == "cifar10-resnet"
    assert program.parameters <= 1_000_000
    if name in PLAIN:  # block-circulant in all layers, the last one included
        assert all(layer.block_size >= 4 for layer in program.layers)


def test_sizes_of_the_published_architecture():
    program = models.load("mnist-mlp-small")
    assert [program.input.features, *(layer.target.channels for layer in program.layers)] == [256, 128, 128, 10]


@pytest.mark.parametrize("name", TRAINED)
def test_accuracy_in_12_bits_on_the_full_test_set(name):
    """By the C++ engine where there is one; the golden model agrees with it, see below."""
    samples, labels = test_data(name)
    engine = "hls" if available_engines()["hls"] == "ready" else "golden"
    if engine == "golden" and name not in PLAIN:
        pytest.skip("needs the engine hls: the golden model would take minutes")
    program = models.load(name)
    outputs = engine_outputs(engine, program, samples)
    answers = outputs[last_steps(samples)] if program.sequence else outputs
    accuracy = (answers.argmax(1) == labels).mean()
    assert accuracy >= FLOOR[name]
    with np.load(models.WEIGHTS / f"{name}.npz", allow_pickle=False) as file:
        trained = float(json.loads(str(file["network"]))["metadata"]["float_accuracy"])
    assert accuracy >= trained - 0.003


@pytest.mark.parametrize("name", TRAINED)
def test_fast_engine_equals_golden(name):
    state = available_engines()["hls"]
    if state != "ready":
        pytest.skip(state)
    samples, _ = test_data(name)
    samples = samples if name in PLAIN else samples[:COMPARED]
    program = models.load(name)
    np.testing.assert_array_equal(engine_outputs("hls", program, samples), golden_outputs(program, samples))


@pytest.mark.parametrize("name", TRAINED)
def test_float_weights_are_what_was_trained(name):
    """A part of the test set, in float: not worse than the whole of it by more than chance allows."""
    samples, labels = test_data(name)
    network, few = models.load_float(name), 200
    if network.sequence:
        scores = np.concatenate([network.forward(s)[-1:] for s in samples[:few]])
    else:
        scores = network.forward(samples[:few])
    accuracy = network.metadata["float_accuracy"]
    assert (scores.argmax(1) == labels[:few]).mean() >= accuracy - 4 * (accuracy * (1 - accuracy) / few) ** 0.5


@pytest.mark.parametrize("name", [*PLAIN, "mnist-lenet", "fsdd-lstm"])
def test_shipped_program_is_what_its_weights_compile_to(name):
    from circ_overlay.models.build import build

    if not datasets.at_hand(models.MODELS[name].dataset):
        pytest.skip(NEEDS_DATA.format(models.MODELS[name].dataset))
    fresh, shipped = build(name), models.load(name)
    # Float sums may differ in their last bit between machines, and with them a rounding: hence not byte for byte.
    for a, b in zip(fresh.layers, shipped.layers, strict=True):
        assert (a.acc_shift, a.affine_shift, a.out_frac) == (b.acc_shift, b.affine_shift, b.out_frac)
        for part in ("weights", "scale", "bias"):
            difference = np.abs(getattr(a, part).astype(np.int64) - getattr(b, part).astype(np.int64))
            assert difference.max(initial=0) <= 1
            assert (difference > 0).sum() <= 0.01 * difference.size
    assert fresh.metadata.keys() == shipped.metadata.keys()


@pytest.mark.parametrize("k", [8, 16])
def test_google_lstm_has_the_published_sizes(k):
    program = models.load(f"google-lstm-k{k}")
    assert (program.input.features, program.output.features) == (153, 512)
    words = sum(layer.weights.size // 2 for layer in program.layers)
    padded = -(-153 // k) * k
    assert words == (4 * 1024 * (padded + 512) + 512 * 1024) // k // 2
    engine = create_engine("golden", CONFIG)
    assert engine.load(program.image) == spec.Status.OK
    assert create_engine("golden").load(program.image) == spec.Status.TOO_LARGE


def test_unknown_model_lists_names():
    with pytest.raises(ValueError, match="model 'nonsense': there are digits-mlp, mnist-mlp"):
        models.load("nonsense")


# ---- data sets ---------------------------------------------------------------------------------------------


def test_digits_split_is_fixed():
    if not datasets.at_hand("digits"):
        pytest.skip("needs scikit-learn")
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.images.dtype == np.uint8
    assert test.images.max() == 16
    assert test.labels[:8].tolist() == datasets.load("digits").labels[:8].tolist()


def test_unknown_data_set_and_split():
    with pytest.raises(ValueError, match="data set 'cats': there are digits, mnist"):
        datasets.load("cats")
    with pytest.raises(ValueError, match="split 'all': allowed are 'train' and 'test'"):
        datasets.load("digits", "all")


def test_altered_file_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for file in datasets.DATASETS["mnist"].files:
        (tmp_path / "mnist" / file).write_bytes(b"something else")
    monkeypatch.setenv("CIRC_OVERLAY_DATA", str(tmp_path))
    assert datasets.at_hand("mnist")
    with pytest.raises(datasets.DataUnavailableError, match="SHA-256.*remove it to fetch it again"):
        datasets.load("mnist")


def test_unreachable_data_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("pooch", reason="without pooch nothing is downloaded")
    import dataclasses

    monkeypatch.delenv("CIRC_OVERLAY_DATA", raising=False)
    monkeypatch.setenv("CIRC_OVERLAY_CACHE", str(tmp_path))
    source = dataclasses.replace(datasets.DATASETS["mnist"], urls=("http://127.0.0.1:9/",))
    monkeypatch.setitem(datasets.DATASETS, "mnist", source)
    assert not datasets.at_hand("mnist")
    with pytest.raises(datasets.DataUnavailableError, match="could not be downloaded.*set CIRC_OVERLAY_DATA"):
        datasets.load("mnist")
    assert not list(tmp_path.rglob("*.gz"))


def test_download_goes_through_the_checksum(tmp_path, monkeypatch):
    """A server on this machine that serves a file with the right name and the wrong content, then the right one."""
    pytest.importorskip("pooch", reason="without pooch nothing is downloaded")
    import dataclasses
    import functools
    import gzip
    import hashlib
    import http.server
    import threading

    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    good = {
        "t10k-images-idx3-ubyte.gz": gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + b"abcdef"),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])),
    }
    for name in good:
        (served / name).write_bytes(b"wrong")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = dataclasses.replace(
            datasets.DATASETS["mnist"],
            urls=(f"http://127.0.0.1:{server.server_address[1]}/",),
            files={name: hashlib.sha256(data).hexdigest() for name, data in good.items()},
        )
        monkeypatch.setitem(datasets.DATASETS, "mnist", source)
        monkeypatch.delenv("CIRC_OVERLAY_DATA", raising=False)
        monkeypatch.setenv("CIRC_OVERLAY_CACHE", str(cache))
        with pytest.raises(datasets.DataUnavailableError, match="hash"):
            datasets.load("mnist")
        for name, data in good.items():
            (served / name).write_bytes(data)
        test = datasets.load("mnist")
    finally:
        server.shutdown()
        server.server_close()
    assert test.images.tolist() == [[[97, 98, 99]], [[100, 101, 102]]]
    assert test.labels.tolist() == [7, 9]
    assert os.path.exists(cache / "data" / "mnist" / "t10k-images-idx3-ubyte.gz")
