# SPDX-License-Identifier: BSD-3-Clause
"""The golden model behind the core's command interface: any width, no compiler needed, no speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import golden, image, spec
from ..program import Layer, Map, Segment

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
        self._segment: Segment | None = None

    def load(self, words: Words) -> spec.Status:
        """Take a program image."""
        self.reset()
        decoded = image.decode(words, self.config)
        if isinstance(decoded, spec.Status):
            return decoded
        self.image = decoded
        self._segment = Segment(
            layers=tuple(_layer(i, decoded) for i in decoded.instructions),
            input=decoded.input,
            output=decoded.output,
            state=decoded.state,
            reads=(),
            writes=(),
            u8=decoded.u8,
            sequence=decoded.sequence,
        )
        return spec.Status.OK

    def run(self, batch: int, words: Words) -> Words:
        """Outputs of `batch` images."""
        if self._segment is None:
            raise RuntimeError("no program is loaded; the core model must not pass this run on")
        segment, starts = self._segment, None
        beats = words.reshape(batch, -1)
        if segment.sequence:
            beats, starts = beats[:, 1:], (beats[:, 0] & np.uint64(1)).astype(np.bool_)
        elements = np.ascontiguousarray(beats, "<u8").view(segment.in_dtype).reshape(batch, -1)
        out = golden.execute(segment, elements, self.config.width, starts)
        return np.ascontiguousarray(out, "<i2").view("<u8").astype(np.uint64).ravel()


def _layer(i: spec.Instruction, program: image.Image) -> Layer:
    """Instruction and its share of the memories as a layer of the golden model."""
    shape = (i.out_blocks, i.row_blocks, i.block_words, 2) if i.weight_count else (0, 0, 0, 2)
    weights = program.weights[i.weight_base : i.weight_base + i.weight_count].reshape(shape)
    channels = slice(i.affine_base, i.affine_base + i.out_channels)
    results = {"height": i.result_height, "width": i.result_width, "channels": i.out_channels}
    adds, multiplies = i.flags & spec.LayerFlag.ADD, i.opcode == spec.Opcode.PRODUCT
    return Layer(
        opcode=spec.Opcode(i.opcode),
        source=Map(
            height=i.in_height, width=i.in_width, channels=i.in_channels, base=i.in_base, pitch=i.in_pitch
        ),
        target=Map(
            height=i.out_height, width=i.out_width, channels=i.out_channels, base=i.out_base, pitch=i.out_pitch
        ),
        residual=Map(base=i.add_base, pitch=i.add_pitch, **results) if adds else None,
        factor=Map(base=i.factor_base, pitch=i.factor_pitch, **results) if multiplies else None,
        block_size=i.block_size,
        gather=i.gathers,
        taps=(i.tap_rows, i.tap_columns),
        stride=(i.stride_rows, i.stride_columns),
        padding=(i.pad_top, i.pad_left),
        pool=(i.pool_rows, i.pool_columns),
        weights=weights.astype(np.int16),
        scale=program.scale[channels].astype(np.int32),
        bias=program.bias[channels],
        acc_shift=i.acc_shift,
        affine_shift=i.affine_shift,
        add_shift=i.add_shift,
        activation=spec.Activation(i.activation),
        ceiling=i.ceiling if i.activation == spec.Activation.RELU else None,
        out_frac=0,
    )
