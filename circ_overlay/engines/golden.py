# SPDX-License-Identifier: BSD-3-Clause
"""The golden model behind the core's command interface: any width, no compiler needed, no speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import golden, image, spec
from ..program import Layer

__all__ = ["GoldenEngine"]

Words = NDArray[np.uint64]


class GoldenEngine:
    """See :class:`circ_overlay.engines.Engine`."""

    name = "golden"
    cycles = "modelled"

    def __init__(self, config: spec.CoreConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the program."""
        self.image: image.Image | None = None
        self._layers: tuple[Layer, ...] = ()

    def load(self, words: Words) -> spec.Status:
        """Take a program image."""
        self.reset()
        decoded = image.decode(words, self.config)
        if isinstance(decoded, spec.Status):
            return decoded
        self.image = decoded
        self._layers = tuple(_layer(i, decoded) for i in decoded.instructions)
        return spec.Status.OK

    def run(self, batch: int, words: Words) -> Words:
        """Outputs of `batch` images."""
        if self.image is None:
            raise RuntimeError("no program is loaded; the core model must not pass this run on")
        first = self.image.instructions[0]
        u8 = bool(first.flags & spec.LayerFlag.INPUT_U8)
        elements = words.astype("<u8").view("u1" if u8 else "<i2").reshape(batch, -1)
        x = golden.enter(elements[:, : first.in_features].astype(np.int64), u8, self.config.width)
        for layer in self._layers:
            x = golden.linear(layer, x, self.config.width)
        per_image = spec.STREAM_BYTES // 2 * spec.beats(x.shape[1], 2)
        out = np.zeros((batch, per_image), "<i2")
        out[:, : x.shape[1]] = x
        return out.view("<u8").astype(np.uint64).ravel()


def _layer(i: spec.Instruction, program: image.Image) -> Layer:
    """Instruction and its share of the memories as a layer of the golden model."""
    grid = (i.out_blocks, i.in_blocks, i.block_size // 2, 2)
    weights = program.weights[i.weight_base : i.weight_base + i.weight_count].reshape(grid)
    channels = slice(i.affine_base, i.affine_base + i.out_features)
    return Layer(
        in_features=i.in_features,
        out_features=i.out_features,
        weights=weights.astype(np.int16),
        scale=program.scale[channels].astype(np.int32),
        bias=program.bias[channels],
        acc_shift=i.acc_shift,
        affine_shift=i.affine_shift,
        activation=spec.Activation(i.activation),
        out_frac=0,
    )
