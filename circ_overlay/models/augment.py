# SPDX-License-Identifier: BSD-3-Clause
"""Random distortion of whole batches of handwriting or of pictures, on the fly, in torch.

Handwriting: every image gets its own affine map and its own smooth elastic displacement in a single resampling.
The kinds of distortion are those of P. Simard, D. Steinkraus and J. Platt, "Best Practices for Convolutional
Neural Networks Applied to Visual Document Analysis", ICDAR 2003. Pictures: shifted, mirrored, partly covered.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Distortion", "crop", "distort"]


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """How far images may be bent; each is the bound of a uniform draw unless said otherwise.

    Attributes
    ----------
    rotation : float
        Degrees either way.
    scale : float
        Relative: 0.1 lets height and width each change by up to 10 %.
    shear : float
        Tangent of the slant either way.
    shift : float
        Pixels either way, along each axis.
    elastic : float
        Standard deviation, in pixels, of the displacement at the knots of the elastic field; 0 for none.
    knots : int
        Knots of the elastic field along each axis; between them it is interpolated with cubics.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    knots: int = 6


def distort(images: Tensor, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Return a distorted copy of every image.

    Parameters
    ----------
    images : torch.Tensor
        (batch, height, width) float32; outside of the image counts as 0.
    distortion : Distortion
        Bounds of the random maps.
    generator : torch.Generator
        Source of every random number drawn here; the same state gives the same batch.

    Returns
    -------
    torch.Tensor
        (batch, height, width) float32.
    """
    batch, height, width = images.shape

    def uniform(bound: float, *shape: int) -> Tensor:
        return (2 * torch.rand(batch, *shape, generator=generator) - 1) * bound

    angle = uniform(math.radians(distortion.rotation))
    cos, sin = angle.cos(), angle.sin()
    slant = uniform(distortion.shear)
    stretch = torch.exp(uniform(math.log1p(distortion.scale), 2))
    # grid_sample counts in halves of the image: 2 / width is one pixel.
    pixel = torch.tensor([2.0 / width, 2.0 / height])
    maps = torch.empty(batch, 2, 3)
    maps[:, 0, 0] = cos * stretch[:, 0]
    maps[:, 0, 1] = (cos * slant - sin) * stretch[:, 0]
    maps[:, 1, 0] = sin * stretch[:, 1]
    maps[:, 1, 1] = (sin * slant + cos) * stretch[:, 1]
    maps[:, :, 2] = uniform(distortion.shift, 2) * pixel
    grid = functional.affine_grid(maps, [batch, 1, height, width], align_corners=False)
    if distortion.elastic:
        knots = torch.randn(batch, 2, distortion.knots, distortion.knots, generator=generator)
        field = functional.interpolate(knots, size=(height, width), mode="bicubic", align_corners=False)
        grid = grid + field.permute(0, 2, 3, 1) * (distortion.elastic * pixel)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def crop(images: Tensor, margin: int, generator: torch.Generator, flip: bool = False, hole: int = 0) -> Tensor:
    """Return a shifted copy of every picture, perhaps mirrored, with a grey square somewhere.

    Parameters
    ----------
    images : torch.Tensor
        (batch, channels, height, width) raw pixels; beyond its edge a picture counts as mirrored.
    margin : int
        Largest shift in pixels, either way and along each axis.
    generator : torch.Generator
        Source of every random number drawn here.
    flip : bool
        Whether half of the pictures are mirrored left to right.
    hole : int
        Side of the grey square (T. DeVries and G. Taylor, "Improved Regularization of Convolutional Neural
        Networks with Cutout", 2017), which may lie partly outside; 0 for none.

    Returns
    -------
    torch.Tensor
        Of the same shape and dtype, with channels last in memory.
    """
    batch, _, height, width = images.shape

    def integers(bound: int) -> Tensor:
        return torch.randint(bound, (batch, 1), generator=generator)

    padded = functional.pad(images, (margin,) * 4, mode="reflect")
    rows, columns = torch.arange(height), torch.arange(width).expand(batch, -1)
    if flip:
        columns = torch.where(integers(2) == 1, width - 1 - columns, columns)
    rows, columns = rows + integers(2 * margin + 1), columns + integers(2 * margin + 1)
    cut = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    if hole:
        down, right = (torch.arange(n) - integers(n) + hole // 2 for n in (height, width))
        inside = ((down >= 0) & (down < hole))[:, :, None] & ((right >= 0) & (right < hole))[:, None, :]
        cut = cut.masked_fill(inside[..., None], 120)
    return cut.permute(0, 3, 1, 2)
