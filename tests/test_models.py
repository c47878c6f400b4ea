# SPDX-License-Identifier: BSD-3-Clause
"""The zoo: what is shipped is what the weights compile to, and is as accurate as it says."""

import os

import numpy as np
import pytest

from circ_overlay import datasets, models, spec
from circ_overlay.engines import available_engines, create_engine
from circ_overlay.evaluate import golden_outputs
from circ_overlay.program import Program

FLOOR = {"digits-mlp": 0.97, "mnist-mlp": 0.984, "mnist-mlp-small": 0.956}
NEEDS_DATA = "needs {}, which is neither here (CIRC_OVERLAY_DATA) nor in the cache"


def test_data(name):
    dataset = models.MODELS[name].dataset
    if not datasets.at_hand(dataset):
        pytest.skip(NEEDS_DATA.format(dataset))
    test = datasets.load(dataset, "test")
    return models.MODELS[name].prepare(test.images), test.labels


test_data.__test__ = False


@pytest.mark.parametrize("name", models.MODELS)
def test_program_loads_and_fits_the_default_core(name):
    program = models.load(name)
    assert isinstance(program, Program)
    assert program.width == 12
    engine = create_engine("golden", spec.CoreConfig())
    assert engine.load(program.image) == spec.Status.OK
    assert program.parameters <= 40_000
    # Block-circulant in all layers, the last one included.
    assert all(layer.block_size >= 4 for layer in program.layers)


def test_sizes_of_the_published_architecture():
    program = models.load("mnist-mlp-small")
    assert [program.input.features, *(layer.out_features for layer in program.layers)] == [256, 128, 128, 10]


@pytest.mark.parametrize("name", models.MODELS)
def test_accuracy_in_12_bits_on_the_full_test_set(name):
    images, labels = test_data(name)
    outputs = golden_outputs(models.load(name), images)
    accuracy = (outputs.argmax(1) == labels).mean()
    float_network = models.load_float(name)
    exact = np.concatenate([float_network.forward(images[n : n + 500])[-1] for n in range(0, len(images), 500)])
    assert accuracy >= FLOOR[name]
    assert accuracy >= (exact.argmax(1) == labels).mean() - 0.002


@pytest.mark.parametrize("name", models.MODELS)
def test_fast_engine_equals_golden_on_every_image(name):
    state = available_engines()["hls"]
    if state != "ready":
        pytest.skip(state)
    images, _ = test_data(name)
    program = models.load(name)
    engine = create_engine("hls", spec.CoreConfig())
    assert engine.load(program.image) == spec.Status.OK
    buffer = np.zeros((len(images), 8 * program.input.beats), np.uint8)
    buffer[:, : program.input.features] = images.reshape(len(images), -1)
    words = engine.run(len(images), buffer.view("<u8").ravel())
    outputs = words.view("<i2").reshape(len(images), -1)[:, : program.output.features]
    np.testing.assert_array_equal(outputs, golden_outputs(program, images))


@pytest.mark.parametrize("name", models.MODELS)
def test_shipped_program_is_what_its_weights_compile_to(name, tmp_path):
    from circ_overlay.models.build import build

    if not datasets.at_hand(models.MODELS[name].dataset):
        pytest.skip(NEEDS_DATA.format(models.MODELS[name].dataset))
    fresh, shipped = build(name), models.load(name)
    # Float sums may differ in their last bit between machines, and with them a rounding: hence not byte for byte.
    for a, b in zip(fresh.layers, shipped.layers):
        assert (a.acc_shift, a.affine_shift, a.out_frac) == (b.acc_shift, b.affine_shift, b.out_frac)
        for part in ("weights", "scale", "bias"):
            difference = np.abs(getattr(a, part).astype(np.int64) - getattr(b, part).astype(np.int64))
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.01
    assert fresh.metadata.keys() == shipped.metadata.keys()


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
