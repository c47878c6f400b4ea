# SPDX-License-Identifier: BSD-3-Clause
"""The convolutional networks of the zoo, in layers that the accelerator has.

All take raw pixels, (batch, channels, height, width) floats from 0 to 255, and are traceable by torch.fx: plain
modules, `x + y` for a residual.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from circ_overlay.models.recipes import Scale
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d

__all__ = ["NETWORKS", "Conv", "MnistLeNet", "PlainCnn", "ResNet", "Residual", "Unit", "cifar10_cnn", "svhn_cnn"]


@dataclass(frozen=True)
class Conv:
    """One convolution of a plain network: square kernel, batch norm, ReLU, optional max pool.

    Attributes
    ----------
    channels, taps, k : int
        Output channels, side of the kernel, block size.
    stride, pool : int
        Of the convolution; side of the non-overlapping max pool after it (1: none).
    """

    channels: int
    taps: int
    k: int
    stride: int = 1
    pool: int = 1


class Unit(nn.Sequential):
    """Modules conv, norm, relu and, if there is one, pool; padded so that stride 1 keeps the size of the image.

    Parameters
    ----------
    width : int
        Input channels.
    conv : Conv
        The convolution.
    patch : bool
        Whether it takes patches as vectors.
    """

    def __init__(self, width: int, conv: Conv, patch: bool = False) -> None:
        super().__init__()
        kind = BlockCirculantPatchConv2d if patch else BlockCirculantConv2d
        padding = (conv.taps - 1) // 2
        self.conv = kind(width, conv.channels, conv.taps, conv.k, conv.stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(conv.channels)
        self.relu = nn.ReLU()
        if conv.pool > 1:
            self.pool = nn.MaxPool2d(conv.pool)


class PlainCnn(nn.Sequential):
    """A patch convolution, further convolutions, and one uncompressed classifier of what the last one's pool leaves.

    Parameters
    ----------
    convs : sequence of Conv
        The first one takes the image's patches as vectors.
    in_channels, classes : int
        Of the image; of the answer.
    """

    def __init__(self, *convs: Conv, in_channels: int = 3, classes: int = 10) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict(scale=Scale(1 / 255))
        width = in_channels
        for index, conv in enumerate(convs):
            modules[f"conv{index + 1}"] = Unit(width, conv, patch=index == 0)
            width = conv.channels
        modules["flatten"] = nn.Flatten()
        modules["classifier"] = BlockCirculantLinear(width, classes, 1)
        super().__init__(modules)


class MnistLeNet(nn.Module):
    """Two 5 x 5 convolutions with max pools, a hidden layer and a classifier, after LeNet-5."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(1 / 255)
        self.conv1 = Unit(1, Conv(32, 5, 8, pool=2), patch=True)
        self.conv2 = Unit(32, Conv(64, 5, 8, pool=2))
        self.hidden = BlockCirculantLinear(7 * 7 * 64, 128, 16, bias=False)
        self.norm = nn.BatchNorm1d(128)
        self.relu = nn.ReLU()
        self.classifier = BlockCirculantLinear(128, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, 1, 28, 28) raw pixels."""
        x = self.conv2(self.conv1(self.scale(x)))
        x = x.permute(0, 2, 3, 1).flatten(1)  # the device's order: channels of a pixel side by side
        scores: Tensor = self.classifier(self.relu(self.norm(self.hidden(x))))
        return scores


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a short cut around them: ``relu(x + norm2(conv2(conv1(x))))``."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.first = Unit(channels, Conv(channels, 3, k))
        self.conv = BlockCirculantConv2d(channels, channels, 3, k, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of x's shape."""
        y: Tensor = self.relu(x + self.norm(self.conv(self.first(x))))
        return y


class ResNet(nn.Module):
    """A stem, then stages: a convolution that widens, with a max pool, and a residual block.

    Parameters
    ----------
    stem : tuple of int
        Channels of the two convolutions before the stages; the second one pools.
    widths : tuple of int
        Channels of the stages.
    k : int
        Block size of everything but the uncompressed first convolution and classifier.
    """

    def __init__(self, stem: tuple[int, int] = (32, 64), widths: tuple[int, ...] = (192, 240), k: int = 4) -> None:
        super().__init__()
        self.scale = Scale(1 / 255)
        self.stem1 = Unit(3, Conv(stem[0], 3, 1))
        self.stem2 = Unit(stem[0], Conv(stem[1], 3, k, pool=2))
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        before = stem[1]
        for index, width in enumerate(widths):
            stages[f"widen{index + 1}"] = Unit(before, Conv(width, 3, k, pool=2))
            stages[f"residual{index + 1}"] = Residual(width, k)
            before = width
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = BlockCirculantLinear(before, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, 3, 32, 32) raw pixels."""
        x = self.stages(self.stem2(self.stem1(self.scale(x))))
        scores: Tensor = self.classifier(self.flatten(self.pool(x)))
        return scores


def svhn_cnn() -> PlainCnn:
    """Return the network of street-view house numbers."""
    return PlainCnn(
        Conv(32, 3, 4, pool=2), Conv(64, 3, 8), Conv(128, 3, 8, pool=2), Conv(128, 3, 8), Conv(192, 3, 8, pool=8)
    )  # fmt: skip


def cifar10_cnn() -> PlainCnn:
    """Return the network chosen from the trade-off of cycles and accuracy."""
    return PlainCnn(
        Conv(64, 4, 4, stride=2), Conv(64, 3, 8, pool=2), Conv(128, 3, 8), Conv(128, 3, 16, pool=2), Conv(256, 3, 32),
        Conv(256, 3, 32, pool=4),
    )  # fmt: skip


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mnist-lenet": MnistLeNet,
    "svhn-cnn": svhn_cnn,
    "cifar10-cnn": cifar10_cnn,
    "cifar10-resnet": ResNet,
}
"""Builders of every convolutional network, by name."""
