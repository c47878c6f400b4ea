# SPDX-License-Identifier: BSD-3-Clause
"""Random distortion of whole batches of handwriting, on the fly, in torch.

Every image gets its own affine map and its own smooth elastic displacement in a single resampling. The kinds
of distortion are those of P. Simard, D. Steinkraus and J. Platt, "Best Practices for Convolutional Neural
Networks Applied to Visual Document Analysis", ICDAR 2003.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Distortion", "distort"]


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
