# SPDX-License-Identifier: BSD-3-Clause
"""Operations by the names that layers have elsewhere: for networks that come from neither PyTorch nor ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import circulant, spec
from .graph import CompileError, Operation

__all__ = ["Add", "AvgPool2d", "Conv2d", "Linear", "MaxPool2d"]

_BLOCKS = (1, *spec.BLOCK_SIZES)
Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _padding(value: Pair | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    if isinstance(value, tuple) and len(value) == 4:
        return value
    rows, columns = _pair(value)
    return rows, columns, rows, columns


def Conv2d(
    weight: ArrayLike,
    *,
    in_channels: int = 0,
    out_channels: int = 0,
    block_size: int | None = None,
    stride: Pair = 1,
    padding: Pair | tuple[int, int, int, int] = 0,
    name: str = "conv",
    **rest: Any,
) -> Operation:
    """A block-circulant convolution.

    Parameters
    ----------
    weight : (p, q, r, s, k) first columns of the blocks; or (out, in, r, s) dense together with `block_size`: then
        the nearest block-circulant kernel is taken (:func:`circ_overlay.circulant.project_conv2d`).
    in_channels, out_channels : sizes; default q*k and p*k, or those of the dense kernel.
    block_size : only with a dense weight; 1 leaves it as it is.
    stride, padding : one number, (rows, columns), or for padding (top, left, bottom, right).
    rest : see :class:`Operation`: source, residual, scale, shift, activation, ceiling, pool, ...

    Raises
    ------
    CompileError
        Sizes do not fit, or a block size that the core does not have.
    """
    where = f"layer {name!r}: "
    array = np.asarray(weight, np.float64)
    k = array.shape[4] if array.ndim == 5 else block_size
    if k is not None and k not in _BLOCKS:
        raise CompileError(f"{where}block size {k}: the core executes {_BLOCKS}")
    if not np.isfinite(array).all():
        raise CompileError(f"{where}weight holds NaN or infinite values")
    if array.ndim == 4:
        if block_size is None:
            raise CompileError(f"{where}a dense weight of shape {array.shape} needs block_size=k, one of {_BLOCKS}")
        if (out_channels or array.shape[0], in_channels or array.shape[1]) != array.shape[:2]:
            raise CompileError(f"{where}in and out differ from the dense weight's shape {array.shape}")
        out_channels, in_channels = array.shape[:2]
        array = circulant.project_conv2d(array, block_size)
    elif array.ndim == 5:
        p, q, _, _, k = array.shape
        if block_size not in (None, k):
            raise CompileError(f"{where}block_size={block_size}, but the weight has blocks of {k}")
        out_channels, in_channels = out_channels or p * k, in_channels or q * k
        if circulant.block_grid(out_channels, in_channels, k) != (p, q):
            raise CompileError(f"{where}{p} x {q} blocks of {k} do not make a matrix of {out_channels} x {in_channels}")
    else:
        raise CompileError(f"{where}weight of shape {array.shape}: expected (p, q, r, s, k) or (out, in, r, s)")
    return Operation(
        name=name, weight=array, in_channels=in_channels, out_channels=out_channels,
        taps=(array.shape[2], array.shape[3]), stride=_pair(stride), padding=_padding(padding), **rest,
    )  # fmt: skip


def Linear(
    weight: ArrayLike,
    *,
    in_features: int = 0,
    out_features: int = 0,
    block_size: int | None = None,
    name: str = "linear",
    **rest: Any,
) -> Operation:
    """``activation(scale * (W @ x) + shift)`` with a block-circulant W.

    Parameters
    ----------
    weight : (p, q, k) first columns of the blocks, or (out_features, in_features) dense together with `block_size`.
    in_features, out_features : sizes; default p*k and q*k, or those of the dense matrix.
    block_size, rest : as for :func:`Conv2d`.
    """
    array = np.asarray(weight, np.float64)
    if array.ndim not in (2, 3):
        raise CompileError(f"layer {name!r}: weight of shape {array.shape}: expected (p, q, k) or (out, in)")
    kernel = array[:, :, None, None] if array.ndim == 2 else array[:, :, None, None, :]
    return Conv2d(kernel, in_channels=in_features, out_channels=out_features, block_size=block_size, name=name, **rest)


def MaxPool2d(
    kernel_size: Pair, *, stride: Pair | None = None, padding: Pair = 0, name: str = "max", **rest: Any
) -> Operation:
    """Largest of each window, per channel."""
    step = kernel_size if stride is None else stride
    return Operation(
        name=name, kind="max", taps=_pair(kernel_size), stride=_pair(step), padding=_padding(padding), **rest
    )


def AvgPool2d(
    kernel_size: Pair, *, stride: Pair | None = None, padding: Pair = 0, name: str = "average", **rest: Any
) -> Operation:
    """Mean of each window, per channel; pixels outside count as zeros, as in PyTorch."""
    taps, step = _pair(kernel_size), kernel_size if stride is None else stride
    return Operation(
        name=name, kind="sum", taps=taps, stride=_pair(step), padding=_padding(padding),
        scale=1 / (taps[0] * taps[1]), **rest,
    )  # fmt: skip


def Add(source: str, residual: str, *, name: str = "add", **rest: Any) -> Operation:
    """Sum of two maps of one shape."""
    return Operation(name=name, kind="sum", source=source, residual=residual, **rest)
