# SPDX-License-Identifier: BSD-3-Clause
"""The networks of the zoo as data, and how a trained one is laid out in arrays.

Every network is a `torch.nn.Sequential` that takes raw pixels as the camera or the file has them (0 to 255,
or 0 to 16 for scikit-learn's digits), flattened, so that a device needs no arithmetic before its first layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from circ_overlay.models.augment import Distortion
from circ_overlay.nn import BlockCirculantLinear

__all__ = ["RECIPES", "Recipe", "Scale", "Schedule", "build", "pack"]

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and step size of one training run: linear warm-up, then cosine decay to zero.

    With `decay_epochs`, the rate stays constant instead until that many epochs from the end, and falls linearly: then
    the first part of a run does not depend on its length.
    """

    epochs: int
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 1.0
    decay_epochs: float = 0.0
    ema_decay: float = 0.998
    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network of the zoo and the way to train it.

    Attributes
    ----------
    dataset : str
        'digits' (scikit-learn, 8 x 8) or 'mnist' (28 x 28).
    size : int
        Height and width in pixels of the network's input; a larger image is first shrunk by area.
    full_scale : float
        Largest raw pixel value; the network divides by it.
    layers : tuple of (int, int)
        (out_features, block size) of every layer; all but the last have batch norm and ReLU.
    schedule : Schedule
        The network's own training run.
    distortion : Distortion
        Augmentation, at the data set's own resolution.
    """

    dataset: str
    size: int
    full_scale: float
    layers: tuple[tuple[int, int], ...]
    schedule: Schedule
    distortion: Distortion = field(default_factory=Distortion)


RECIPES: Mapping[str, Recipe] = {
    "digits-mlp": Recipe(
        dataset="digits",
        size=8,
        full_scale=16.0,
        layers=((128, 8), (128, 8), (10, 4)),
        schedule=Schedule(epochs=400, batch=64, learning_rate=2e-2, label_smoothing=0.05),
        distortion=Distortion(rotation=8.0, scale=0.08, shear=0.08, shift=0.6, elastic=0.2, knots=4),
    ),
    "mnist-mlp": Recipe(
        dataset="mnist",
        size=28,
        full_scale=255.0,
        layers=((384, 32), (192, 8), (10, 4)),
        schedule=Schedule(epochs=500, learning_rate=1e-2),
        # So small a network underfits what it sees: the stronger distortion that large ones need costs here.
        distortion=Distortion(rotation=6.0, scale=0.07, shear=0.1, shift=1.0, elastic=0.5),
    ),
    "mnist-mlp-small": Recipe(
        dataset="mnist",
        size=16,
        full_scale=255.0,
        layers=((128, 16), (128, 8), (10, 8)),
        schedule=Schedule(epochs=120, learning_rate=2e-2),
        distortion=Distortion(rotation=4.0, scale=0.05, shear=0.06, shift=0.5, elastic=0.4),
    ),
}
"""Every network that this package trains, by name."""


class Scale(nn.Module):
    """Multiply by a fixed factor: turns raw pixels into values of order one, inside the network."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * factor``, of x's shape."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Factor shown by ``print(module)``."""
        return f"factor={self.factor:.6g}"


def build(recipe: Recipe) -> nn.Sequential:
    """Return the recipe's network, untrained; it takes (batch, size * size) raw pixels as floats."""
    modules: list[nn.Module] = [Scale(1.0 / recipe.full_scale)]
    width = recipe.size**2
    for index, (out_features, block_size) in enumerate(recipe.layers):
        last = index == len(recipe.layers) - 1
        # Batch norm's shift does a bias's work.
        modules.append(BlockCirculantLinear(width, out_features, block_size, bias=last))
        if not last:
            modules += [nn.BatchNorm1d(out_features), nn.ReLU()]
        width = out_features
    return nn.Sequential(*modules)


def pack(network: nn.Sequential) -> Arrays:
    """Lay a trained network of `build` out in plain arrays, all folded that folds.

    Layer l computes ``y = W x + bias``, then ``activation(y * scale + shift)`` per output channel. Batch norm
    becomes scale and shift (its scale differs between channels, hence does not fold into a circulant block);
    the input's scale is one number and goes into the first layer's weight.

    Returns
    -------
    dict
        ``l{l}_weight`` (p, q, k), ``l{l}_bias``, ``l{l}_scale``, ``l{l}_shift`` (out,), all float32;
        ``l{l}_activation`` 'relu' or 'identity'; ``in_features``, ``out_features``, ``layers``.

    Raises
    ------
    ValueError
        If the network holds a module that has no place in this layout.
    """
    arrays: Arrays = {}
    factor, index = 1.0, -1
    for module in network:
        key = f"l{index}_"
        if isinstance(module, Scale) and index < 0:
            factor *= module.factor
        elif isinstance(module, BlockCirculantLinear):
            index += 1
            key, out = f"l{index}_", module.out_features
            arrays[f"{key}weight"] = (module.weight.detach().double().numpy() * factor).astype(np.float32)
            bias = torch.zeros(out) if module.bias is None else module.bias.detach()
            arrays[f"{key}bias"] = bias.numpy().astype(np.float32)
            arrays[f"{key}scale"], arrays[f"{key}shift"] = np.ones(out, np.float32), np.zeros(out, np.float32)
            arrays[f"{key}activation"] = np.array("identity")
            arrays.setdefault("in_features", np.array(module.in_features))
            arrays["out_features"] = np.array(out)
            factor = 1.0
        elif isinstance(module, nn.BatchNorm1d) and index >= 0:
            mean, variance = (
                cast(Tensor, module.running_mean).double(),
                cast(Tensor, module.running_var).double(),
            )
            scale = module.weight.detach().double() / (variance + module.eps).sqrt()
            shift = module.bias.detach().double() - mean * scale
            arrays[f"{key}scale"], arrays[f"{key}shift"] = scale.float().numpy(), shift.float().numpy()
        elif isinstance(module, nn.ReLU) and index >= 0:
            arrays[f"{key}activation"] = np.array("relu")
        else:
            raise ValueError(
                f"the network holds {module!r}; allowed are Scale (first), BlockCirculantLinear, BatchNorm1d "
                "and ReLU, in build()'s order: take other modules out before packing"
            )
    arrays["layers"] = np.array(index + 1)
    return arrays
