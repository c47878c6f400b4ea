# SPDX-License-Identifier: BSD-3-Clause
"""Training speed: block-circulant layers computed as the dense layers that they are, within a context.

A circulant block written out in full is an ordinary kernel, for which PyTorch has its fastest convolutions and,
under autocast, bfloat16. Writing it out is a product with a constant 0/1 matrix, so that its gradient is one too.
The block structure saves memory and the accelerator's time, not this processor's.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from circ_overlay.models.networks import Unit
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d

__all__ = ["expand", "expanded"]


@functools.lru_cache(maxsize=32)
def _spread(k: int) -> Tensor:
    """(k, k * k) matrix of 0 and 1: first column w to the k x k circulant with entries w[(i - j) mod k]."""
    delay = torch.arange(k)
    return functional.one_hot((delay[:, None] - delay).reshape(-1) % k, k).T.float().contiguous()


def expand(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """Write first columns (p, q, ..., k) out in full, (out_features, in_features, ...), with a cheap gradient."""
    p, q, *taps, k = weight.shape
    if k == 1:
        return weight[..., 0]
    blocks = (weight @ _spread(k)).reshape(p, q, *taps, k, k)
    grid = blocks.movedim((-2, -1), (1, 3))
    return grid.reshape(p * k, q * k, *taps)[:out_features, :in_features]


def _dense_forward(
    layer: BlockCirculantLinear | BlockCirculantConv2d | BlockCirculantPatchConv2d, x: Tensor
) -> Tensor:
    weight = layer.weight if layer.rounding is None else layer.rounding(layer.weight)
    if isinstance(layer, BlockCirculantLinear):
        return functional.linear(x, expand(weight, layer.out_features, layer.in_features), layer.bias)
    if isinstance(layer, BlockCirculantConv2d):
        kernel = expand(weight, layer.out_channels, layer.in_channels)
    else:
        rows, columns = layer.kernel_size
        matrix = expand(weight, layer.out_channels, rows * columns * layer.in_channels)
        kernel = matrix.reshape(-1, rows, columns, layer.in_channels).permute(0, 3, 1, 2)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return functional.conv2d(x, kernel, layer.bias, layer.stride, layer.padding)


def _pool_first(unit: Unit, x: Tensor) -> Tensor:
    """Pool, then clip: the same numbers as the other way round, with fewer of them to clip."""
    y: Tensor = unit.relu(unit.pool(unit.norm(unit.conv(x))))
    return y


@contextmanager
def expanded(network: nn.Module) -> Iterator[nn.Module]:
    """Within it, every block-circulant layer of `network` computes as a dense one: same result, other rounding.

    State, parameters and gradients stay those of the block-circulant layers. `torch.autocast` is allowed inside.
    """
    kinds = (BlockCirculantLinear, BlockCirculantConv2d, BlockCirculantPatchConv2d)
    changed: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, kinds):
            module.forward = functools.partial(_dense_forward, module)  # type: ignore[method-assign]
            changed.append(module)
        elif isinstance(module, Unit) and hasattr(module, "pool"):
            module.forward = functools.partial(_pool_first, module)  # type: ignore[method-assign]
            changed.append(module)
    try:
        yield network
    finally:
        for module in changed:
            del module.forward
