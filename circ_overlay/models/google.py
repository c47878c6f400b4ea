# SPDX-License-Identifier: BSD-3-Clause
"""The Google LSTM that FPGA papers measure, with random weights: for counting cycles, not for recognising.

153 inputs, 1024 cells with peepholes, projected to 512 (H. Sak et al., Interspeech 2014), as in ESE (S. Han et al.,
FPGA 2017) and, block-circulant with k = 8 and 16, in C-LSTM (S. Wang et al., FPGA 2018). Its weights stay on
chip from step to step, so it needs a core with more weight memory than the default one has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import spec
from ..program import Program

if TYPE_CHECKING:
    from ..compiler import Network

__all__ = ["CONFIG", "network", "program"]

INPUTS, CELLS, OUTPUTS = 153, 1024, 512
CONFIG = spec.CoreConfig(weight_words=1 << 18, affine_channels=1 << 14)
"""A core that holds either: more block RAM than an xc7z020 has."""


def network(name: str, seed: int = 0) -> Network:
    """The float network of the name google-lstm-kN, weights drawn as PyTorch draws an LSTM's."""
    from ..compiler.builder import Builder
    from ..compiler.cells import lstm

    k = int(name.rpartition("-k")[2])
    rng = np.random.default_rng(seed)
    bound = CELLS**-0.5
    p, q, r = CELLS // k, -(-INPUTS // k), OUTPUTS // k
    shapes = {"ih": (4 * p, q, k), "hh": (4 * p, r, k), "bias": (4 * CELLS,), "peephole": (3, CELLS), "hr": (r, p, k)}
    weights = {part: rng.uniform(-bound, bound, shape) for part, shape in shapes.items()}
    builder = Builder((1, 1, INPUTS), channels_first=False)
    h = lstm(builder, builder.input, {**weights, "outputs": np.array(OUTPUTS)}, "lstm")
    return builder.network(h, name)


def program(name: str, seed: int = 0) -> Program:
    """The network compiled for :data:`CONFIG`, formats chosen from random sequences."""
    from ..compiler import compile

    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(12, INPUTS)) for _ in range(4)]
    return compile(network(name, seed), sequences, config=CONFIG, metadata={"weights": "random"})
