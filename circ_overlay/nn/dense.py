# SPDX-License-Identifier: BSD-3-Clause
"""The way back: a copy of a model in which block-circulant layers are PyTorch's own, their weights written out.

For tools that know dense layers alone, such as `torch.onnx.export`. What is written out keeps its structure: the
compiler finds it again in the ONNX model.
"""

import copy

import torch
from torch import Tensor, nn

from circ_overlay.nn.conv import BlockCirculantConv2d
from circ_overlay.nn.linear import BlockCirculantLinear
from circ_overlay.nn.patch import BlockCirculantPatchConv2d
from circ_overlay.nn.recurrent import BlockCirculantGRU, BlockCirculantLSTM

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Return a copy of a model with `torch.nn.Linear`, `Conv2d`, `LSTM` and `GRU` in place of block-circulant layers.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is. Its mode (training or evaluation) and its parameters' requires_grad are kept.

    Returns
    -------
    The copy; if `model` is itself such a layer, the layer in its place.

    Raises
    ------
    ValueError
        If an LSTM has peepholes, which `torch.nn.LSTM` lacks.
    """
    twin = copy.deepcopy(model)
    replaced: dict[int, nn.Module] = {}
    for name, module in twin.named_modules():
        with torch.random.fork_rng(devices=[]):  # initial values are drawn and overwritten
            dense = _dense(module, name)
        if dense is not None:
            replaced[id(module)] = dense.train(module.training)
    for parent in list(twin.modules()):
        for child_name, child in list(parent._modules.items()):  # a layer used twice has two names
            if id(child) in replaced:
                parent._modules[child_name] = replaced[id(child)]
    return replaced.get(id(twin), twin)


def _dense(module: nn.Module, name: str) -> nn.Module | None:
    """The dense layer that computes what `module` does; None for what is none of ours."""
    if isinstance(module, BlockCirculantLinear):
        linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        return _with(linear, module, {"weight": module.to_dense(), "bias": module.bias})
    if isinstance(module, (BlockCirculantConv2d, BlockCirculantPatchConv2d)):
        conv = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            bias=module.bias is not None,
        )  # fmt: skip
        return _with(conv, module, {"weight": module.to_dense(), "bias": module.bias})
    if isinstance(module, BlockCirculantLSTM) and module.peephole:
        raise ValueError(f"{name or 'the model'} has peepholes, which torch.nn.LSTM lacks")
    if isinstance(module, (BlockCirculantLSTM, BlockCirculantGRU)):
        options = {"bias": module.bias, "batch_first": module.batch_first, "dropout": module.dropout}
        sizes = (module.input_size, module.hidden_size, module.num_layers)
        recurrent: nn.Module
        if isinstance(module, BlockCirculantGRU):
            recurrent = nn.GRU(*sizes, **options)
        else:
            recurrent = nn.LSTM(*sizes, **options, proj_size=module.proj_size)
        return _with(recurrent, module, dict(module.to_dense()))
    return None


@torch.no_grad()
def _with(layer: nn.Module, like: nn.Module, values: dict[str, Tensor | None]) -> nn.Module:
    """`layer` with the given parameters, of the type and place that those of `like` have."""
    first = next(like.parameters())
    layer = layer.to(device=first.device, dtype=first.dtype)
    for name, value in values.items():
        if value is not None:
            layer.get_parameter(name).copy_(value.detach())
    if not first.requires_grad:
        layer.requires_grad_(False)
    return layer
