# SPDX-License-Identifier: BSD-3-Clause
"""Shared fixtures. Nothing here touches the user's caches: they are redirected for the whole run."""

import os
import tempfile

import numpy as np
import pytest

os.environ["CIRC_OVERLAY_CACHE"] = tempfile.mkdtemp(prefix="circ-overlay-tests-")
os.environ.setdefault("CIRC_OVERLAY_BOARD", "emulated")


@pytest.fixture(scope="session")
def small_program():
    """A three-layer program with every kind of raggedness, and samples for it."""
    from circ_overlay.compiler import Linear, compile

    rng = np.random.default_rng(7)

    def layer(n_in, n_out, k, activation):
        grid = (-(-n_out // k), -(-n_in // k), k)
        return Linear(
            weight=rng.normal(size=grid) / np.sqrt(n_in), in_features=n_in, out_features=n_out,
            shift=rng.normal(size=n_out) / 4, activation=activation, name=f"{activation}{k}",
        )  # fmt: skip

    x = rng.uniform(-1, 1, (5000, 30)).astype(np.float32)
    layers = [layer(30, 50, 16, "relu"), layer(50, 20, 8, "tanh"), layer(20, 5, 4, "identity")]
    return compile(layers, x[:500], name="small"), x
