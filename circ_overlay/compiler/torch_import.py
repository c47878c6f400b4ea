# SPDX-License-Identifier: BSD-3-Clause
"""Import of a PyTorch module: trace it with torch.fx and fold its chain of operations into layers."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

try:
    import torch
    from torch import fx, nn
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling a PyTorch module needs PyTorch: pip install circ-overlay[train]") from error

from ..nn import BlockCirculantLinear
from .graph import CompileError, Linear, Network

__all__ = ["from_torch"]

_ACTIVATION_MODULES = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
_ACTIVATION_FUNCTIONS = {
    torch.relu: "relu", nn.functional.relu: "relu", "relu": "relu", "relu_": "relu",
    torch.sigmoid: "sigmoid", nn.functional.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    torch.tanh: "tanh", nn.functional.tanh: "tanh", "tanh": "tanh",
}  # fmt: skip
_FLATTENS = {torch.flatten, "flatten"}
_PASS_MODULES = (nn.Dropout, nn.Identity, nn.Flatten)
_SUPPORTED = "BlockCirculantLinear, BatchNorm1d, ReLU, Sigmoid, Tanh, Flatten, Dropout, Identity, scaling by a number"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, BlockCirculantLinear) or super().is_leaf_module(m, qualified_name)


@dataclass
class _Open:
    """The layer under construction: what follows its matrix is folded in until its activation is known."""

    weight: NDArray[np.float64]
    in_features: int
    out_features: int
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    name: str
    activation: str = "identity"

    def close(self) -> Linear:
        return Linear(**vars(self))


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _refuse(node: fx.Node, what: str, instead: str) -> NoReturn:
    raise CompileError(f"{what} at {node.name!r} cannot be compiled; {instead}")


class _Chain:
    """Folds operations, in their order, into layers."""

    def __init__(self) -> None:
        self.input_scale = 1.0
        self.layers: list[_Open] = []

    def linear(self, m: BlockCirculantLinear, name: str) -> None:
        shift = np.zeros(m.out_features) if m.bias is None else _array(m.bias)
        self.layers.append(
            _Open(_array(m.weight), m.in_features, m.out_features, np.ones(m.out_features), shift, name)
        )

    def affine(self, node: fx.Node, scale: NDArray[Any], shift: NDArray[Any]) -> None:
        if not self.layers:
            if (scale.size > 1 and np.ptp(scale) > 0) or np.any(shift):
                _refuse(node, "A per-channel affine before the first layer",
                        "apply it to the data, or use one factor for all channels")  # fmt: skip
            self.input_scale *= float(scale.flat[0])
            return
        layer = self.layers[-1]
        if layer.activation != "identity":
            _refuse(node, f"An affine after the {layer.activation} of {layer.name!r}",
                    "place batch-norm between the linear layer and its activation")  # fmt: skip
        layer.scale, layer.shift = layer.scale * scale, layer.shift * scale + shift

    def activation(self, node: fx.Node, name: str) -> None:
        if not self.layers:
            _refuse(node, f"A {name} before the first layer", "apply it to the data")
        layer = self.layers[-1]
        if layer.activation == name == "relu":
            return
        if layer.activation != "identity":
            _refuse(node, f"A {name} after a {layer.activation}", "use one activation for a layer")
        layer.activation = name


def from_torch(module: nn.Module) -> Network:
    """The network that `module` computes in eval mode.

    Parameters
    ----------
    module : its forward takes one tensor and passes it through a chain of BlockCirculantLinear, BatchNorm1d,
        ReLU / Sigmoid / Tanh (modules or functions), Flatten, Dropout, Identity and scaling by a number.

    Raises
    ------
    CompileError
        Something else was met: the message names it, its place, and what to use instead.
    """
    if not isinstance(module, nn.Module):
        raise CompileError(
            f"a {type(module).__name__} was given; compile takes a Network, a list of Linear or a torch.nn.Module"
        )
    tracer = _Tracer()
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        raise CompileError(
            f"{type(module).__name__} cannot be traced ({error}); its forward must not depend on the data"
        ) from error
    finally:
        for m, training in modes:
            m.training = training
    modules = dict(module.named_modules())
    chain, value = _Chain(), None
    for node in graph.nodes:
        if node.op == "placeholder":
            if value is not None:
                _refuse(node, "A second input", "give the network one input tensor")
        elif node.op == "output":
            if node.args[0] is not value:
                _refuse(node, "An output other than the last operation's", "return one tensor")
            break
        elif node.op == "get_attr":
            continue
        else:
            inputs = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
            if inputs != [value]:
                _refuse(node, "A branch or a sum of branches", "use a plain chain of layers")
            _fold(chain, node, modules)
        value = node
    if not chain.layers:
        raise CompileError(f"{type(module).__name__} holds no BlockCirculantLinear; the core needs at least one")
    return Network(
        layers=tuple(layer.close() for layer in chain.layers),
        input_scale=chain.input_scale,
        name=type(module).__name__.lower(),
    )


def _fold(chain: _Chain, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    if node.op == "call_module":
        _fold_module(chain, node, modules[str(node.target)])
    elif node.target in _ACTIVATION_FUNCTIONS:
        chain.activation(node, _ACTIVATION_FUNCTIONS[node.target])
    elif node.target in (operator.mul, torch.mul, operator.truediv, torch.div, "mul", "div"):
        chain.affine(node, np.array([_factor(node)]), np.zeros(1))
    elif node.target in _FLATTENS:
        if node.kwargs.get("start_dim", (*node.args, 0)[1]) != 1:
            _refuse(node, "A flatten that joins the batch", "use flatten(x, 1)")
    elif node.target is nn.functional.dropout:
        if node.kwargs.get("training", (*node.args, 0.5, True)[2]):
            _refuse(node, "A dropout that is active in eval mode", "pass training=self.training, or use nn.Dropout")
    else:
        _refuse(node, f"Operation {getattr(node.target, '__name__', node.target)}", f"supported are {_SUPPORTED}")


def _factor(node: fx.Node) -> float:
    """The number that a multiplication or division amounts to."""
    divide = "div" in str(getattr(node.target, "__name__", node.target))
    numbers = [a for a in node.args if isinstance(a, (int, float))]
    swapped = not isinstance(node.args[0], fx.Node)
    if len(numbers) != 1 or node.kwargs or (divide and swapped):
        _refuse(node, "A product or quotient other than of a tensor and a number", f"supported are {_SUPPORTED}")
    if divide and numbers[0] == 0:
        _refuse(node, "A division by 0", "divide by another number")
    return 1 / numbers[0] if divide else float(numbers[0])


def _fold_module(chain: _Chain, node: fx.Node, m: nn.Module) -> None:
    name = str(node.target)
    own = next((c for c in (BlockCirculantLinear, nn.BatchNorm1d, *_PASS_MODULES) if isinstance(m, c)), None)
    if own is not None and type(m).forward is not own.forward:
        _refuse(node, f"Module {name!r}, whose forward is not {own.__name__}'s,", "make the change a module of its own")
    if m._forward_hooks or m._forward_pre_hooks:
        _refuse(node, f"Module {name!r} with forward hooks", "remove them: the core runs none")
    if isinstance(m, BlockCirculantLinear):
        chain.linear(m, name)
    elif isinstance(m, nn.BatchNorm1d):
        if m.running_mean is None or m.running_var is None:
            _refuse(node, "A BatchNorm1d without running statistics", "train it with track_running_stats=True")
        gamma = np.ones(m.num_features) if m.weight is None else _array(m.weight)
        beta = np.zeros(m.num_features) if m.bias is None else _array(m.bias)
        scale = gamma / np.sqrt(_array(m.running_var) + m.eps)
        chain.affine(node, scale, beta - scale * _array(m.running_mean))
    elif type(m) in _ACTIVATION_MODULES:
        chain.activation(node, _ACTIVATION_MODULES[type(m)])
    elif isinstance(m, nn.Linear):
        sizes = f"{m.in_features}, {m.out_features}, block_size"
        _refuse(node, f"The dense nn.Linear {name!r}",
                f"replace it by BlockCirculantLinear({sizes}) and project_() its weight, then train on")  # fmt: skip
    elif not isinstance(m, _PASS_MODULES):
        _refuse(node, f"Module {name!r} of type {type(m).__name__}", f"supported are {_SUPPORTED}")
