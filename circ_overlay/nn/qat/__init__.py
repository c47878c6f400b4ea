# SPDX-License-Identifier: BSD-3-Clause
"""Quantisation-aware training: PyTorch networks that compute with the core's numbers and learn around them.

    model = prepare_qat(model, width=8, sample=images)     # then train as before
    freeze_ranges(model)                                   # for the last epochs
    formats, plain = ranges(model), strip_qat(model)       # for the compiler
"""

from circ_overlay.nn.qat.fake import FakeQuantise, fake_quantise, fake_quantise_weight
from circ_overlay.nn.qat.model import QuantisedModel, Range, calibrate, freeze_ranges, prepare_qat, ranges, strip_qat

__all__ = [
    "FakeQuantise",
    "QuantisedModel",
    "Range",
    "calibrate",
    "fake_quantise",
    "fake_quantise_weight",
    "freeze_ranges",
    "prepare_qat",
    "ranges",
    "strip_qat",
]
