# SPDX-License-Identifier: BSD-3-Clause
"""Where a network's values are stored: the ends of what the core executes as one layer.

A layer is a block-circulant product with all that its affine and activation take in:
product [- batch-norm or factor] [- sum with another value] [- activation]. Reshaping, dropout and max-pooling,
which keep values as they are or pick among them, may stand anywhere in between.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from circ_overlay.nn.conv import BlockCirculantConv2d
from circ_overlay.nn.linear import BlockCirculantLinear
from circ_overlay.nn.patch import BlockCirculantPatchConv2d
from circ_overlay.nn.qat.fake import FakeQuantise
from circ_overlay.nn.recurrent import BlockCirculantGRU, BlockCirculantLSTM

__all__ = ["INPUT", "PRODUCTS", "RECURRENT", "Stored", "stored_values", "trace"]

PRODUCTS = (BlockCirculantLinear, BlockCirculantConv2d, BlockCirculantPatchConv2d)
RECURRENT = (BlockCirculantLSTM, BlockCirculantGRU)
INPUT = "(input)"
"""Name of the range of a network's input; of a second one, "(input 1)"."""

_BOUNDED = (nn.Sigmoid, nn.Tanh, torch.sigmoid, torch.tanh, functional.sigmoid, functional.tanh, "sigmoid", "tanh",
            "sigmoid_", "tanh_")  # fmt: skip
_RECTIFIED = (nn.ReLU, torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FACTORS = (operator.mul, operator.truediv, operator.neg, torch.mul, torch.div, "mul", "div", "neg")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_KEEP = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d,
    nn.AdaptiveMaxPool2d, functional.dropout, functional.dropout2d, torch.flatten, torch.reshape, torch.permute,
    torch.transpose, torch.squeeze, torch.unsqueeze, functional.max_pool2d, functional.adaptive_max_pool2d,
    operator.getitem, "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
)  # fmt: skip
_MIX = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, torch.mean, torch.cat, torch.concat, "mean",
)  # fmt: skip
"""Operations whose result is stored anew."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, (*PRODUCTS, *RECURRENT, FakeQuantise))
        return ours or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Stored:
    """A value that the core stores: the layer's name, and whether it comes out of sigmoid or tanh."""

    node: fx.Node
    name: str
    bounded: bool = False


def trace(model: nn.Module, training: bool) -> fx.Graph:
    """Graph of what `model` computes in a mode, in which it is left as it was.

    Raises
    ------
    ValueError
        If it cannot be traced.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.train(training)
    try:
        return _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({error}); make its forward independent of the data, or place "
            "circ_overlay.nn.qat.FakeQuantise() modules in it behind each activation that ends a layer"
        ) from error
    finally:
        for m, mode in modes:
            m.training = mode


def _kind(node: fx.Node, modules: dict[str, nn.Module], operations: tuple[Any, ...]) -> bool:
    if node.op == "call_module":
        kinds = tuple(o for o in operations if isinstance(o, type) and issubclass(o, nn.Module))
        return isinstance(modules[str(node.target)], kinds)
    return node.op in ("call_function", "call_method") and node.target in operations


def stored_values(graph: fx.Graph, model: nn.Module) -> list[Stored]:
    """Find the values of a traced network that the core stores, its inputs among them.

    A layer's value is named after its block-circulant module, the others after their operation. In a sum of two
    layers that both end in it, the later one takes in the other's stored value.
    """
    modules = dict(model.named_modules())
    found: dict[str, Stored] = {}
    growing: dict[fx.Node, str] = {}  # ends of layers of which the next operation may become a part

    def store(node: fx.Node, name: str, bounded: bool = False) -> None:
        name = node.name if name in found else name  # a module that is used twice has two values
        found[name] = Stored(node, name, bounded)

    for node in graph.nodes:
        operands = [a for a in node.all_input_nodes if a.op != "get_attr"]
        own = str(node.target) if node.op == "call_module" else node.name
        last = max((a for a in growing if a in operands), key=list(growing).index, default=None)
        name, goes_on = "" if last is None else growing[last], False
        if node.op == "placeholder":
            store(node, INPUT if INPUT not in found else f"(input {node.name})")
        elif (node.op == "call_module" and isinstance(modules[own], PRODUCTS)) or _kind(node, modules, _MIX):
            name, last, goes_on = own, None, True
        elif _kind(node, modules, _SUMS) and len(operands) == 2:
            name, goes_on = name or own, True
        elif _kind(node, modules, _BOUNDED):
            store(node, name or own, bounded=True)
        elif _kind(node, modules, _RECTIFIED) and last is not None:
            store(node, name)
        elif _kind(node, modules, (*_NORMS, *_FACTORS, *_SUMS, *_KEEP)) and len(operands) == 1:
            goes_on = last is not None
        else:
            last = None
        for operand in operands:
            if operand in growing:
                end = growing.pop(operand)
                if operand is not last:
                    store(operand, end)
        if goes_on:
            growing[node] = name
            if len(node.users) != 1:
                store(node, growing.pop(node))
    return list(found.values())
