# SPDX-License-Identifier: BSD-3-Clause
"""Float networks as files."""

import numpy as np
import pytest

from circ_overlay.compiler import Add, CompileError, Conv2d, MaxPool2d, Network
from circ_overlay.compiler.netfile import load_network, save_network


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    network = Network(
        layers=(
            Conv2d(weight, padding=1, name="a", activation="relu", ceiling=6.0, scale=rng.normal(size=8)),
            Conv2d(weight, padding=(0, 1, 2, 1), name="b", pool=(1, 1)),
            Add("a", "b"), MaxPool2d(2),
        ),
        input_shape=(4, 6, 8), input_scale=0.25, channels_first=True, name="net", labels=("x",) * 48, metadata={"a": 1},
    )  # fmt: skip
    save_network(network, tmp_path / "n.npz")
    back = load_network(tmp_path / "n.npz")
    x = rng.normal(size=(5, 8, 4, 6))
    np.testing.assert_allclose(back.forward(x), network.forward(x), rtol=1e-5, atol=1e-5)
    assert (back.name, back.labels, back.metadata, back.channels_first) == ("net", ("x",) * 48, {"a": 1}, True)
    assert back.shapes == network.shapes


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(CompileError, match="holds no network"):
        load_network(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", network=np.array("{}"))
    with pytest.raises(CompileError, match="holds no network"):
        load_network(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "none.npz")
