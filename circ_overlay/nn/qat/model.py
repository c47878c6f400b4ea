# SPDX-License-Identifier: BSD-3-Clause
"""Make a network compute with the core's numbers for training, and take it apart again for the compiler."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, fx, nn

from circ_overlay import spec
from circ_overlay.fixedpoint import Format
from circ_overlay.nn.qat.fake import FakeQuantise, RecurrentQuantiser, fake_quantise_weight
from circ_overlay.nn.qat.trace import PRODUCTS, RECURRENT, stored_values, trace

__all__ = ["QuantisedModel", "Range", "calibrate", "freeze_ranges", "prepare_qat", "ranges", "strip_qat"]


@dataclass(frozen=True, kw_only=True)
class Range:
    """Of a stored value: its largest magnitude as observed, None where the format is fixed; its format."""

    largest: float | None
    format: Format


class QuantisedModel(nn.Module):
    """A network that rounds its weights, and its values where the core stores them; from `prepare_qat`.

    Called as the network that it was made of, trained with the same code, saved by its ``state_dict()``.

    Attributes
    ----------
    model : torch.nn.Module
        Copy of the network, whose layers round their weights; names of parameters are kept.
    quantisers : torch.nn.ModuleDict
        `FakeQuantise` of each stored value; "/" stands for the "." of the layer's name.
    width : int
        Bits of weights and values.
    """

    def __init__(
        self, model: nn.Module, width: int, graphs: Mapping[bool, fx.Graph], stored: Mapping[str, FakeQuantise],
        quantised: Mapping[bool, Mapping[fx.Node, str]],
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.model = width, model
        self.quantisers = nn.ModuleDict({_key(name): module for name, module in stored.items()})
        self._graphs = graphs  # by training mode; empty if the network places its quantisers by itself
        self._after = {
            mode: {node.name: _key(name) for node, name in nodes.items()} for mode, nodes in quantised.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the network does, rounded."""
        if not self._graphs:
            return self.model(*args, **kwargs)
        graph, after = self._graphs[self.training], self._after[self.training]
        values: dict[fx.Node, Any] = {}
        positional = iter(args)
        for node in graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], values.__getitem__)
            values[node] = self._compute(node, values, positional, kwargs)
            if node.name in after:
                values[node] = self.quantisers[after[node.name]](values[node])
        raise AssertionError("a graph ends with its output")

    def _compute(self, node: fx.Node, values: dict[fx.Node, Any], positional: Any, named: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            default = [named[str(node.target)]] if node.target in named else list(node.args)
            try:
                return next(positional, *default)
            except StopIteration:
                raise TypeError(f"argument {node.target!r} is missing: the network is called with it") from None
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), self.model)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _key(name: str) -> str:
    return name.replace(".", "/")


def prepare_qat(
    model: nn.Module, width: int = 12, sample: ArrayLike | Tensor | None = None, quantise_input: bool | None = None
) -> QuantisedModel:
    """Return a copy of a network that trains with the core's rounding of weights and values.

    Rounded are the weights of block-circulant layers, in their spectra; each value that the core stores: at the
    end of every layer, batch-norm, sum and activation included, see `circ_overlay.nn.qat.trace`; and an LSTM's or
    GRU's h and c. Batch-norm stays batch-norm. A network with `FakeQuantise` modules of its own is not traced:
    they say where its values are stored.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is. Its forward must be traceable by torch.fx, or contain FakeQuantise modules.
    width : int
        Bits W of weights and values: 8 to 16, as the core is built; from 2 for study.
    sample : array_like or torch.Tensor, optional
        A few hundred inputs, as the network takes them, by which the ranges begin; else the first batch in
        training mode is where they begin. uint8 data are handed to the network as float32.
    quantise_input : bool, optional
        Whether the network's inputs are rounded to W bits; by default they are, unless the sample is uint8
        and W above 8: bytes are exact.

    Returns
    -------
    QuantisedModel

    Raises
    ------
    ValueError
        If the width is out of range, a block size is none of the core's, the network has no block-circulant
        layer or is prepared already, or it cannot be traced.
    """
    if not 2 <= width <= spec.WIDTHS[-1]:
        raise ValueError(
            f"width is {width}; allowed are {spec.WIDTHS[0]} to {spec.WIDTHS[-1]} bits, and from 2 for study: choose "
            "that of the core"
        )
    _check(model)
    twin = copy.deepcopy(model)
    placed = {name: m for name, m in twin.named_modules() if isinstance(m, FakeQuantise)}
    for quantiser in placed.values():
        quantiser.width = quantiser.width or width
    if quantise_input is None:
        quantise_input = not (width > 8 and sample is not None and _is_bytes(sample))
    graphs = {} if placed else {mode: trace(twin, mode) for mode in (True, False)}
    quantisers: dict[str, FakeQuantise] = {}
    quantised: dict[bool, dict[fx.Node, str]] = {}
    for mode, graph in graphs.items():
        stored = [s for s in stored_values(graph, twin) if quantise_input or not s.name.startswith("(input")]
        if quantisers and set(quantisers) != {s.name for s in stored}:
            raise ValueError(
                f"{type(model).__name__} stores other values in training than in evaluation: "
                f"{sorted(set(quantisers) ^ {s.name for s in stored})}; keep the layers the same in both"
            )
        quantised[mode] = {s.node: s.name for s in stored}
        for s in stored:
            headroom = {"headroom": 1.0} if s.name.startswith("(input") else {}
            quantisers.setdefault(s.name, FakeQuantise(width, width - 1 if s.bounded else None, **headroom))
    for module in twin.modules():
        if isinstance(module, (*PRODUCTS, *RECURRENT)):
            module.rounding = functools.partial(fake_quantise_weight, width=width)
        if isinstance(module, RECURRENT):
            module.quantiser = RecurrentQuantiser(
                width, module.num_layers, bool(module.proj_size), module.gates == 4
            )
    prepared = QuantisedModel(twin, width, graphs, quantisers, quantised).train(model.training)
    like = next(model.parameters())
    prepared.quantisers.to(like.device)
    if sample is not None:
        calibrate(prepared, sample)
    return prepared


def _check(model: nn.Module) -> None:
    ours = {name: m for name, m in model.named_modules() if isinstance(m, (*PRODUCTS, *RECURRENT))}
    if not ours:
        raise ValueError(
            f"{type(model).__name__} has no block-circulant layer; compress() makes one of a dense network"
        )
    if "" in ours:
        raise ValueError(f"a {type(model).__name__} alone was given: put it into torch.nn.Sequential(...)")
    for name, module in ours.items():
        if module.rounding is not None:
            raise ValueError(f"layer {name!r} is prepared already: give the plain network, from strip_qat(model)")
        if module.block_size not in (1, *spec.BLOCK_SIZES):
            raise ValueError(
                f"layer {name!r} has block size {module.block_size}; the core executes 1 and {spec.BLOCK_SIZES}: "
                "build the layer with one of them"
            )


def _is_bytes(sample: ArrayLike | Tensor) -> bool:
    return sample.dtype == torch.uint8 if isinstance(sample, Tensor) else np.asarray(sample).dtype == np.uint8


def _quantisers(model: QuantisedModel) -> dict[str, FakeQuantise]:
    """All FakeQuantise modules by the name of what they round."""
    names = {id(m): name.replace("/", ".") for name, m in model.quantisers.items()}
    found: dict[str, FakeQuantise] = {}
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantise):
            own = name.removeprefix("model.").replace(".quantiser.", ".").removeprefix("quantiser.")
            found[names.get(id(module), own)] = module
    return found


@torch.no_grad()
def calibrate(model: QuantisedModel, sample: ArrayLike | Tensor) -> None:
    """Set all ranges to what a sample shows, in evaluation mode, in one batch; the mode is kept.

    Parameters
    ----------
    model : QuantisedModel
    sample : array_like or torch.Tensor
        (n, *input shape).

    Raises
    ------
    ValueError
        If a value of the network is 0 for all of the sample; the ranges are then as before.
    """
    like = next(model.parameters())
    x = sample if isinstance(sample, Tensor) else torch.from_numpy(np.array(sample))
    x = x.to(like.device, like.dtype if x.is_floating_point() or x.dtype == torch.uint8 else x.dtype)
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    quantisers = _quantisers(model)
    before = {name: quantiser.largest.clone() for name, quantiser in quantisers.items()}
    for quantiser in quantisers.values():
        quantiser.calibrating = True
        quantiser.largest.zero_()
    done = False
    try:
        model(x)
        zero = [name for name, quantiser in quantisers.items() if quantiser.frac is None and not quantiser.largest]
        if zero:
            raise ValueError(f"the sample brings only zeros to {', '.join(zero)}: give a sample of typical inputs")
        done = True
    finally:
        for name, quantiser in quantisers.items():
            quantiser.calibrating = False
            if not done:
                quantiser.largest.copy_(before[name])
        for m, mode in modes:
            m.training = mode


def freeze_ranges(model: QuantisedModel, frozen: bool = True) -> None:
    """Hold all formats as they are, or let them follow the training batches again."""
    for quantiser in _quantisers(model).values():
        quantiser.observing = not frozen


def ranges(model: QuantisedModel) -> dict[str, Range]:
    """Return range and format of every stored value.

    Returns
    -------
    dict of str to Range
        By name: "(input)"; the block-circulant module's name for the value that its layer ends with, after its
        activation; the operation's for a sum or average of stored values; "lstm.h.0" and "lstm.c.0" for states of
        the first layer of an LSTM "lstm"; the module's own for a FakeQuantise that the network places.

    Raises
    ------
    ValueError
        If a value has not been observed.
    """
    found = {}
    for name, quantiser in _quantisers(model).items():
        try:
            fmt = quantiser.format
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        largest = None if quantiser.frac is not None else float(quantiser.largest)
        found[name] = Range(largest=largest, format=fmt)
    return found


def strip_qat(model: QuantisedModel) -> nn.Module:
    """Return a plain copy of the network with the trained weights, unrounded: what the compiler takes.

    Its class and the names of its state dict are those of the network given to `prepare_qat`; a FakeQuantise that
    the network placed has become an Identity.
    """
    plain = copy.deepcopy(model.model)
    for module in list(plain.modules()):
        if isinstance(module, (*PRODUCTS, *RECURRENT)):
            module.rounding = None
        if isinstance(module, RECURRENT):
            del module.quantiser
            module.quantiser = None
        for name, child in list(module.named_children()):
            if isinstance(child, FakeQuantise):
                setattr(module, name, nn.Identity())
    return plain
