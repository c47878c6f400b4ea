# SPDX-License-Identifier: BSD-3-Clause
"""Formats that quantisation-aware training has learned, taken over instead of what a sample shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..fixedpoint import limits
from ..nn.qat import QuantisedModel, ranges, strip_qat
from .graph import Network, Operation

__all__ = ["from_quantised"]


def from_quantised(model: QuantisedModel, sample: Any, *, channels_last: bool = False) -> Network:
    """The network of a model in quantisation-aware training, each operation with the range that its format had there.

    Operations whose value has no name there keep the range that the sample shows.
    """
    from .torch_import import from_torch

    network = from_torch(strip_qat(model), sample, channels_last=channels_last)
    largest = {
        name: limits(found.format.width)[1] * 2.0**-found.format.frac for name, found in ranges(model).items()
    }

    def known(op: Operation) -> Operation:
        name = op.name
        if op.target in network.states:  # lstm.new_h, lstm.1.new_c: the states lstm.h.0, lstm.c.1
            cell, _, state = name.rpartition(".new_")
            base, _, layer = cell.rpartition(".")
            name = f"{base}.{state}.{layer}" if layer.isdigit() else f"{cell}.{state}.0"
        return replace(op, out_range=largest.get(name))

    return replace(network, layers=tuple(known(op) for op in network.layers))
