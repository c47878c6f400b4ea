# SPDX-License-Identifier: BSD-3-Clause
"""From a float network to a :class:`circ_overlay.Program`: import, calibrate on sample data, quantise.

    program = compile(network, sample)          # a Network, a list of Linear layers, or a PyTorch module
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from ..program import Program
from .graph import CompileError, Linear, Network
from .quantise import quantise

__all__ = ["CompileError", "Linear", "Network", "compile"]


def compile(
    network: Network | Sequence[Linear] | Any,
    sample: ArrayLike,
    *,
    width: int = 12,
    name: str | None = None,
    labels: Sequence[str] = (),
    metadata: dict[str, Any] | None = None,
) -> Program:
    """Compile a float network for the core.

    Parameters
    ----------
    network : a :class:`Network`, its layers as a list of :class:`Linear`, or a ``torch.nn.Module`` made of
        BlockCirculantLinear, BatchNorm1d, ReLU, Sigmoid and Tanh in a row.
    sample : (n, \\*input shape) typical inputs: a few hundred are enough. They set the ranges of all formats,
        and their shape and dtype those of the program's input: uint8 samples make an input that takes raw
        bytes.
    width : bits of activations and weights, 8..16.
    name, labels, metadata : stored in the program; they replace those of a Network.

    Returns
    -------
    Program. ``metadata["snr_db"]`` holds each layer's signal-to-noise ratio against float on the sample.

    Raises
    ------
    CompileError
        The network has an operation or a shape that the core cannot execute; the message names the place
        and says what to use instead.
    """
    if isinstance(network, Network):
        graph = network
    elif isinstance(network, Sequence):
        graph = Network(layers=tuple(network))
    else:
        from .torch_import import from_torch

        graph = from_torch(network)
    return quantise(
        graph,
        sample,
        width=width,
        name=name or graph.name,
        labels=tuple(labels) or graph.labels,
        metadata={**graph.metadata, **(metadata or {})},
    )
