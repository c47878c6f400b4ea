# SPDX-License-Identifier: BSD-3-Clause
"""From a float network to a :class:`circ_overlay.Program`: import, calibrate on sample data, quantise, place.

    program = compile(network, sample)          # a PyTorch module, the path of an .onnx file, a Network, layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import spec
from ..program import Program
from .calibrate import calibrate
from .graph import CompileError, Network, Operation
from .layers import Add, AvgPool2d, Conv2d, Linear, MaxPool2d
from .segments import cut

__all__ = [
    "Add",
    "AvgPool2d",
    "CompileError",
    "Conv2d",
    "Linear",
    "MaxPool2d",
    "Network",
    "Operation",
    "compile",
]


def compile(
    network: Network | Sequence[Operation] | Any,
    sample: ArrayLike | Sequence[ArrayLike],
    *,
    width: int | None = None,
    config: spec.CoreConfig | None = None,
    name: str | None = None,
    labels: Sequence[str] = (),
    metadata: dict[str, Any] | None = None,
    channels_last: bool = False,
    block_size: int | Mapping[str, int] | None = None,
) -> Program:
    r"""Compile a float network for the core.

    Parameters
    ----------
    network : a ``torch.nn.Module``, plain or from :func:`circ_overlay.nn.qat.prepare_qat`, the path of an ``.onnx``
        file, a :class:`Network`, or its operations as a list; docs/compiler.md lists what is understood.
    sample : (n, \*input shape) typical inputs: a few hundred are enough. They set the ranges of all formats,
        and their shape and dtype those of the program's input: uint8 samples make an input that takes raw
        bytes. For a network on sequences, a list of (steps, features) arrays.
    width : bits of activations and weights, 8..16; None: 12, or those of `config`.
    config : the core to compile for, e.g. ``overlay.config``; what does not fit it at once is cut into segments.
    name, labels, metadata : stored in the program; they replace those of a Network.
    channels_last : the sample's images, and those that the program will take, are (height, width, channels), as
        files and cameras have them, though the network was written for (channels, height, width).
    block_size : k to which the dense layers of a module or an ONNX model are projected, one for all or by layer
        name; what is lost then is not made good by training. None: they stay as they are, k = 1 unless their weights
        already are block-circulant.

    Returns
    -------
    Program. ``metadata["snr_db"]`` holds each layer's signal-to-noise ratio against float on the sample.

    Raises
    ------
    CompileError
        The network has an operation or a shape that the core cannot execute; the message names the place
        and says what to use instead.
    """
    if config is None:
        width = 12 if width is None else width
        if width not in spec.WIDTHS:
            raise CompileError(f"width={width}: allowed are {spec.WIDTHS[0]}..{spec.WIDTHS[-1]} bits")
        config = spec.CoreConfig(width=width)
    elif width not in (None, config.width):
        raise CompileError(f"width={width}, but the core of config has {config.width} bits; give one of them")
    graph = _network(network, sample, channels_last, block_size)
    lowered = calibrate(graph, sample, config.width)
    segments, tensors = cut(graph, lowered, config)
    return Program(
        name=name or graph.name,
        width=config.width,
        input=lowered.input,
        output=lowered.output,
        segments=segments,
        tensors=tensors,
        labels=tuple(labels) or graph.labels,
        metadata={
            **graph.metadata,
            **(metadata or {}),
            "snr_db": _plain(lowered.snr_db),
            "worst_channel_snr_db": _plain(lowered.worst_db),
            "operations": [op.name for op in graph.layers],
            "calibration_samples": lowered.samples,
        },
    )


def _plain(ratios: list[float]) -> list[float | None]:
    """Two decimals for a JSON file, which knows no infinity: None stands for it."""
    return [round(ratio, 2) if np.isfinite(ratio) else None for ratio in ratios]


def _network(
    network: Any, sample: Any, channels_last: bool, block_size: int | Mapping[str, int] | None
) -> Network:
    path = isinstance(network, str) or hasattr(network, "__fspath__")
    if isinstance(network, Network) or (isinstance(network, Sequence) and not path):
        if block_size is not None:
            raise CompileError("block_size belongs to modules and ONNX models; these layers have their blocks")
        plain = network if isinstance(network, Network) else Network(layers=tuple(network))
        return replace(plain, channels_first=False) if channels_last else plain
    if path or type(network).__name__ == "ModelProto":
        from .onnx_import import from_onnx

        graph: Network = from_onnx(network, channels_last=channels_last, block_size=block_size)
        return graph
    from .torch_import import from_torch

    if hasattr(network, "quantisers"):  # a model in quantisation-aware training brings its ranges along
        from .ranges import from_quantised

        if block_size is not None:
            raise CompileError("block_size: quantisation-aware training is over; compress the model before it")
        return from_quantised(network, sample, channels_last=channels_last)
    return from_torch(network, sample, channels_last=channels_last, block_size=block_size)
