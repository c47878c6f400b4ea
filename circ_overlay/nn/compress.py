# SPDX-License-Identifier: BSD-3-Clause
"""Make a block-circulant network of a dense one: nearest weights to begin with, to be trained further.

Takes `torch.nn.Linear`, `Conv2d`, `LSTM` and `GRU`; everything else stays as it is, and a layer with a matrix
is named in the report with the reason why. It never touches the model that it is given, and never trains.

A `Conv2d` of at most 4 channels becomes a `BlockCirculantPatchConv2d`: a block over the channels of one tap would
be mostly padding, while one over the patch compresses by k. Where k divides the channels the two are the same
layer, and it becomes a `BlockCirculantConv2d`, as one of more channels does.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from circ_overlay.circulant import block_grid
from circ_overlay.nn.conv import BlockCirculantConv2d
from circ_overlay.nn.linear import BlockCirculantLinear
from circ_overlay.nn.patch import BlockCirculantPatchConv2d
from circ_overlay.nn.recurrent import BlockCirculantGRU, BlockCirculantLSTM

__all__ = ["CompressionReport", "LayerReport", "compress"]

Choice = Callable[[str, nn.Module], int | None] | Mapping[str, int]

_OURS = (
    BlockCirculantLinear, BlockCirculantConv2d, BlockCirculantPatchConv2d, BlockCirculantLSTM, BlockCirculantGRU,
)  # fmt: skip
_FEW_CHANNELS = 4  # up to which a convolution's blocks lie over the whole patch
# These hand their children's weights to kernels of their own, which know dense ones alone.
_READ_THEIR_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """A layer that was replaced.

    `shape` is that of the dense weight, of an LSTM's or GRU's first matrix; `before` and `after` count all
    parameters, biases too; `error` is the Frobenius norm of what projection changed, over that of the
    weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    block_size: int
    before: int
    after: int
    error: float


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What `compress` did: layers replaced, layers left by name with the reason, the model's parameters."""

    layers: tuple[LayerReport, ...]
    left: Mapping[str, str] = field(default_factory=dict)
    before: int
    after: int

    def __str__(self) -> str:
        rows = [("layer", "kind", "shape", "k", "before", "after", "error")]
        for row in self.layers:
            shape = " x ".join(map(str, row.shape))
            numbers = (f"{row.before:,}", f"{row.after:,}", f"{row.error:.3f}")
            rows.append((row.name or "(model)", row.kind, shape, str(row.block_size), *numbers))
        rows.append(("parameters", "", "", "", f"{self.before:,}", f"{self.after:,}", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        lines += [f"left alone: {name or '(model)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(line.rstrip() for line in lines)


def compress(
    model: nn.Module,
    block_size: int | None = None,
    *,
    only: Choice | None = None,
    skip: Iterable[str] = (),
) -> tuple[nn.Module, CompressionReport]:
    """Return a copy of a dense model with block-circulant layers, and a report.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is. Its mode (training or evaluation) and its parameters' requires_grad are kept.
    block_size : int, optional
        k of all layers that can be replaced; may be left out if `only` is given.
    only : mapping of str to int, or callable, optional
        The block size by the layer's name, others being left alone; or a function of name and layer that
        returns the block size, or None to leave the layer alone.
    skip : iterable of str
        Names of layers, or of modules with all that is in them, to leave alone.

    Returns
    -------
    compressed : torch.nn.Module
        The copy; if `model` is itself such a layer, the layer in its place.
    report : CompressionReport

    Raises
    ------
    ValueError
        If a name is not in the model, a block size is out of range, or there is none.
    """
    skipped = _check_arguments(model, block_size, only, skip)
    twin = copy.deepcopy(model)
    uses = _parameter_uses(twin)
    parents = {f"{name}.{child}".lstrip("."): module for name, module in twin.named_modules() for child, _ in
               module.named_children()}  # fmt: skip
    replaced: dict[int, nn.Module] = {}
    rows, left = [], {}
    for name, module in list(twin.named_modules()):
        if not _has_matrix(module):
            continue
        reason = "named in skip" if _within(name, skipped) else _unsupported(module, parents.get(name), uses)
        k = None if reason else _choose(name, module, block_size, only)
        if k is None:
            left[name] = reason or "not chosen by only"
            continue
        before = _count(module)
        circulant, error = _replace(module, k)
        if _count(circulant) >= before:
            left[name] = f"with k = {k} it would have {_count(circulant)} parameters, and has {before}"
            continue
        replaced[id(module)] = circulant
        shape = tuple(next(module.parameters()).shape)
        kind, after = type(module).__name__, _count(circulant)
        rows.append(
            LayerReport(
                name=name, kind=kind, shape=shape, block_size=k, before=before, after=after, error=error
            )
        )
    before = _count(twin)
    for parent in list(twin.modules()):
        for child_name, child in list(parent._modules.items()):  # a layer used twice has two names
            if id(child) in replaced:
                parent._modules[child_name] = replaced[id(child)]
    twin = replaced.get(id(twin), twin)
    return twin, CompressionReport(layers=tuple(rows), left=left, before=before, after=_count(twin))


def _check_arguments(
    model: nn.Module, block_size: int | None, only: Choice | None, skip: Iterable[str]
) -> tuple[str, ...]:
    """Return the names in skip; refuse names that the model lacks, and sizes that no layer may have."""
    if isinstance(skip, str):
        raise ValueError(f"skip is {skip!r}; allowed is a list of names: give [{skip!r}]")
    skipped = tuple(skip)
    names = dict(model.named_modules())
    chosen = only if isinstance(only, Mapping) else {}
    for name in (*skipped, *chosen):
        if name not in names:
            raise ValueError(
                f"{name!r} is not in the model; its named_modules() has {', '.join(names) or 'none'}"
            )
    if block_size is None and only is None:
        raise ValueError(
            "neither block_size nor only is given: give a block size for all layers, or one each"
        )
    for size in (*chosen.values(), *([] if block_size is None else [block_size])):
        block_grid(1, 1, size)
    return skipped


def _choose(name: str, module: nn.Module, block_size: int | None, only: Choice | None) -> int | None:
    if only is None:
        return block_size
    return only.get(name) if isinstance(only, Mapping) else only(name, module)


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or not module or name.startswith(f"{module}.") for module in modules)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module is a layer that the report names: it has a parameter of its own of two dimensions."""
    if isinstance(module, parametrize.ParametrizationList):  # holds the parameters of the layer above it
        return False
    return parametrize.is_parametrized(module) or any(
        parameter.ndim >= 2 for parameter in module.parameters(recurse=False)
    )


def _parameter_uses(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return uses


def _unsupported(module: nn.Module, parent: nn.Module | None, uses: Mapping[int, int]) -> str | None:
    """Return why a layer cannot be replaced, or None if it can."""
    if isinstance(module, _OURS):
        return "is block-circulant already"
    kind = type(module)
    if kind not in (nn.Linear, nn.Conv2d, nn.LSTM, nn.GRU):
        return f"{kind.__name__} has no block-circulant counterpart"
    if isinstance(parent, _READ_THEIR_CHILDREN):
        return f"{type(parent).__name__}, which holds it, reads its weight by itself"
    if any(uses[id(parameter)] > 1 for parameter in module.parameters()):
        return "shares a parameter with another layer"
    if any(parameter.dtype not in (torch.float32, torch.float64) for parameter in module.parameters()):
        return f"is {next(module.parameters()).dtype}; allowed are float32 and float64"
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if any(hooks):
        return "has hooks, which may read its weight"
    if isinstance(module, nn.Conv2d):
        return _unsupported_conv(module)
    if isinstance(module, (nn.LSTM, nn.GRU)) and module.bidirectional:
        return "is bidirectional"
    return None


def _unsupported_conv(conv: nn.Conv2d) -> str | None:
    if conv.groups != 1:
        return f"has groups={conv.groups}"
    if conv.dilation != (1, 1):
        return f"has dilation={conv.dilation}"
    if conv.padding_mode != "zeros":
        return f"has padding_mode={conv.padding_mode!r}"
    if conv.padding == "same" and any(size % 2 == 0 for size in conv.kernel_size):
        return f"has padding='same' with an even kernel_size={conv.kernel_size}"
    return None


def _replace(module: nn.Module, k: int) -> tuple[nn.Module, float]:
    """Return the block-circulant layer nearest to a dense one, and the relative error of its matrices."""
    like = next(module.parameters())
    circulant: nn.Module
    dense = {name: parameter.detach() for name, parameter in module.named_parameters()}
    # Initial values are drawn and overwritten; the caller's random numbers must not depend on that.
    with torch.random.fork_rng(devices=[]):
        if isinstance(module, nn.Linear):
            linear = BlockCirculantLinear(module.in_features, module.out_features, k, module.bias is not None)
            circulant, near = linear, {"weight": linear.project_(dense["weight"]).to_dense()}
        elif isinstance(module, nn.Conv2d):
            conv = _conv_like(module, k)
            circulant, near = conv, {"weight": conv.project_(dense["weight"]).to_dense()}
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            recurrent = _recurrent_like(module, k)
            recurrent.project_(dense)
            circulant, near = recurrent, recurrent.to_dense()
        else:
            raise TypeError(f"{type(module).__name__} has no block-circulant counterpart")
    matrices = [name for name, values in dense.items() if values.ndim >= 2]
    error = _relative_error([dense[name] for name in matrices], [near[name] for name in matrices])
    circulant.to(device=like.device, dtype=like.dtype).train(module.training)
    for name, parameter in circulant.named_parameters():
        parameter.requires_grad_(module.get_parameter(name).requires_grad)
        if name not in matrices:
            parameter.data.copy_(dense[name])
    return circulant, error


def _conv_like(conv: nn.Conv2d, k: int) -> BlockCirculantConv2d | BlockCirculantPatchConv2d:
    r, s = conv.kernel_size
    same = conv.padding == "same"
    pad = ((r // 2, s // 2) if same else (0, 0)) if isinstance(conv.padding, str) else conv.padding
    stride, padding = (conv.stride[0], conv.stride[1]), (pad[0], pad[1])
    over_patch = conv.in_channels <= _FEW_CHANNELS and conv.in_channels % k
    kind = BlockCirculantPatchConv2d if over_patch else BlockCirculantConv2d
    return kind(conv.in_channels, conv.out_channels, (r, s), k, stride, padding, conv.bias is not None)


def _recurrent_like(module: nn.LSTM | nn.GRU, k: int) -> BlockCirculantLSTM | BlockCirculantGRU:
    sizes = (module.input_size, module.hidden_size, k, module.num_layers)
    if isinstance(module, nn.GRU):
        return BlockCirculantGRU(*sizes, module.bias, module.batch_first, module.dropout)
    return BlockCirculantLSTM(
        *sizes,
        proj_size=module.proj_size,
        bias=module.bias,
        batch_first=module.batch_first,
        dropout=module.dropout,
    )


def _relative_error(dense: Iterable[Tensor], near: Iterable[Tensor]) -> float:
    wide = [(d.cpu().double(), n.cpu().double()) for d, n in zip(dense, near, strict=True)]
    norm = math.sqrt(sum(float(d.square().sum()) for d, _ in wide))
    return math.sqrt(sum(float((d - n).square().sum()) for d, n in wide)) / norm if norm else 0.0
