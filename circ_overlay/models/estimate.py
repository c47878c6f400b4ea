# SPDX-License-Identifier: BSD-3-Clause
"""Cycles, parameters and dense size of a convolutional network, from the modules that it is made of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circ_overlay.models.cost import SAMPLES, conv_cycles, input_cycles, words
from circ_overlay.nn import BlockCirculantConv2d, BlockCirculantLinear, BlockCirculantPatchConv2d

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a network costs.

    Attributes
    ----------
    cycles : int
        Modelled, for one image, with the image's arrival.
    parameters, dense_parameters : int
        All that are trained, and those of the same network without block-circulant structure.
    words : int
        Complex words of all weights on the chip.
    layers : dict of str to int
        Cycles of each layer by name.
    """

    cycles: int
    parameters: int
    dense_parameters: int
    words: int
    layers: dict[str, int]


def estimate(network: nn.Module, channels: int, side: int) -> Estimate:
    """Run one blank image (channels, side, side) through a network and count."""
    layers: dict[str, float] = {"input": input_cycles(side * side)}
    sizes = {"words": 0.0, "saved": 0}
    pools = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            pixels_in, pixels_out = (t.shape[2:].numel() if t.ndim == 4 else 1 for t in (inputs[0], output))
            if isinstance(module, pools):
                layers[name] = output.shape[1] * pixels_in / SAMPLES
                return
            patch = isinstance(module, BlockCirculantPatchConv2d)
            k, taps = int(str(module.block_size)), int(torch.tensor(getattr(module, "kernel_size", 1)).prod())
            c_in, c_out = inputs[0].shape[1], output.shape[1]
            layers[name] = conv_cycles(pixels_in, pixels_out, c_in, c_out, taps, k, patch)
            sizes["words"] += words(c_in * taps, c_out, 1, k) if patch else words(c_in, c_out, taps, k)
            sizes["saved"] += c_in * c_out * taps - module.get_parameter("weight").numel()

        return hook

    counted = (BlockCirculantConv2d, BlockCirculantPatchConv2d, BlockCirculantLinear, *pools)
    hooks = [m.register_forward_hook(count(name)) for name, m in network.named_modules() if isinstance(m, counted)]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, side, side))
    network.train(training)
    for handle in hooks:
        handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Estimate(
        cycles=round(sum(layers.values())),
        parameters=parameters,
        dense_parameters=parameters + int(sizes["saved"]),
        words=round(sizes["words"]),
        layers={name: round(cycles) for name, cycles in layers.items()},
    )
