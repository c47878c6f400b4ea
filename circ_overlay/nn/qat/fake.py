# SPDX-License-Identifier: BSD-3-Clause
"""Rounding to the core's formats in floating point, with straight-through gradients.

The numbers are those of `circ_overlay.fixedpoint` and `circ_overlay.compiler.quantise`, bit for bit; the gradient
passes a rounding as if it were not there, and stops at a saturation.

Left out are the rounding of the transforms' rotations, of the spectral sums to 18 bits and of the affine, and the
table of sigmoid and tanh: up to 12 bits they raise the error of a network's outputs by 2 to 20 %, and no training
can do anything about noise of that kind (measured: docs/training_layers.md).

Source: Y. Bengio, N. Leonard, A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for
Conditional Computation", arXiv:1308.3432 (straight-through); B. Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (observed ranges).
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from circ_overlay import spec
from circ_overlay.compiler.quantise import OUTPUT_HEADROOM, spectral_words
from circ_overlay.fixedpoint import Format, limits

__all__ = ["FakeQuantise", "RecurrentQuantiser", "fake_quantise", "fake_quantise_weight"]

_SMALLEST_PEAK = 1e-30  # a row of blocks below it is rounding noise, as for the compiler


class _Clipped(torch.autograd.Function):
    """Nearest value of a format; the gradient is 1 where nothing saturated, and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int, frac: int) -> Tensor:
        low, high = limits(width)
        v = x * 2.0**frac
        if v.dtype == torch.float64:
            n = torch.floor(v + 0.5)
        else:  # v + 0.5 may itself be rounded up; the fraction of v is exact where it matters
            n = v.floor()
            n += v.sub_(n).sub_(0.5).ge_(0)
        ctx.save_for_backward((n >= low) & (n <= high))
        return n.clamp_(low, high).mul_(2.0**-frac)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class _Straight(torch.autograd.Function):
    """The first argument's gradient, the second one's value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def fake_quantise(x: Tensor, fmt: Format) -> Tensor:
    """Nearest values of a format, as ``fmt.value(fmt.quantise(x))``, in x's own dtype.

    Parameters
    ----------
    x : torch.Tensor
        Any shape; float32 or float64. NaN stays NaN.
    fmt : Format
        At most 24 bits, which float32 holds exactly.

    Returns
    -------
    torch.Tensor
        Of x's shape and dtype; its gradient is 1 where x does not saturate and 0 where it does.

    Raises
    ------
    ValueError
        If x is not float32 or float64, or the format is too wide.
    """
    if x.dtype not in (torch.float32, torch.float64) or fmt.width > 24:
        raise ValueError(
            f"x has dtype {x.dtype} and the format {fmt.width} bits; allowed are float32 and float64, and at most 24 "
            "bits: convert x with .to(dtype)"
        )
    y: Tensor = _Clipped.apply(x, fmt.width, fmt.frac)  # type: ignore[no-untyped-call]
    return y


@functools.lru_cache(maxsize=64)
def _transform(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices, float64 (k, k), to the core's spectral words and back; the identity for k = 1."""
    to_words = spectral_words(np.eye(k)[None]).reshape(k, k).T if k > 1 else np.eye(1)
    with torch.inference_mode(False):
        return torch.tensor(to_words, device=device), torch.tensor(np.linalg.inv(to_words), device=device)


@torch.no_grad()
def _round_weight(weight: Tensor, width: int) -> Tensor:
    k = weight.shape[-1]
    to_words, from_words = _transform(k, weight.device)
    words = weight.detach().double() @ to_words.T
    peaks = words.abs().flatten(1).amax(1)
    gain = limits(width)[1] / torch.where(peaks > _SMALLEST_PEAK, peaks, torch.ones_like(peaks))
    gain = gain.view(-1, *[1] * (weight.ndim - 1))
    rounded = torch.floor(words * gain + 0.5) / gain
    return (rounded @ from_words.T).to(weight.dtype)


def fake_quantise_weight(weight: Tensor, width: int) -> Tensor:
    """First columns whose spectra are rounded as the compiler rounds them, with a gradient of 1.

    The spectra of a row of blocks share one gain, which brings the largest of their real and imaginary parts to
    the largest integer of `width` bits. Blocks of size 1 are rounded as they are, an output's weights together.

    Parameters
    ----------
    weight : torch.Tensor
        (p, q, k) or (p, q, r, s, k); float32 or float64.
    width : int
        Bits of a real or imaginary part.

    Returns
    -------
    torch.Tensor
        Of the same shape and dtype.

    Raises
    ------
    ValueError
        If the block size is one that the core does not execute.
    """
    k = weight.shape[-1]
    if k not in (1, *spec.BLOCK_SIZES):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} has blocks of {k}; allowed are 1 and {spec.BLOCK_SIZES}: "
            "build the layer with one of them"
        )
    y: Tensor = _Straight.apply(weight, _round_weight(weight, width))  # type: ignore[no-untyped-call]
    return y


class FakeQuantise(nn.Module):
    """Rounds what flows through it to a format of `width` bits, as where the core stores it.

    The format is given, or follows the range that is observed: while training, a moving average of each batch's
    largest magnitude. `prepare_qat` inserts these modules; in a network that cannot be traced, place one behind
    each activation that ends a layer, and `prepare_qat` uses those.

    Parameters
    ----------
    width : int, optional
        Bits; `prepare_qat` fills it in if it is left out.
    frac : int, optional
        Fraction bits of a fixed format; by default the format follows the observed range.
    headroom : float
        The format is the finest that holds this multiple of the observed range.
    momentum : float
        Weight of a new batch in the moving average.

    Attributes
    ----------
    largest : torch.Tensor
        () observed range, the magnitude without headroom; 0 before anything was seen. A buffer, saved with the
        network.
    observing : bool
        Whether training batches change the range.
    """

    largest: Tensor

    def __init__(
        self, width: int | None = None, frac: int | None = None, headroom: float = OUTPUT_HEADROOM,
        momentum: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.frac, self.headroom, self.momentum = width, frac, headroom, momentum
        self.observing, self.calibrating = True, False
        self.register_buffer("largest", torch.zeros(()))

    @property
    def format(self) -> Format:
        """The format in force.

        Raises
        ------
        ValueError
            If the width is not set, or no range was observed.
        """
        if self.width is None:
            raise ValueError("this FakeQuantise has no width: give it one, or the network to prepare_qat")
        if self.frac is not None:
            return Format(self.width, self.frac)
        largest = float(self.largest)
        if largest == 0:
            raise ValueError(
                "this FakeQuantise has seen no values other than 0, from which its format is chosen: train a "
                "batch, or call calibrate(model, sample), before"
            )
        return Format.for_range(self.width, self.headroom * largest)

    def observe(self, peak: Tensor) -> None:
        """Take the largest magnitude () of a batch into the range."""
        if self.frac is not None:
            return
        peak = peak.to(self.largest)
        if self.calibrating:
            self.largest.copy_(torch.maximum(self.largest, peak))
        elif self.training and self.observing:
            self.largest.copy_(torch.where(self.largest > 0, self.largest.lerp(peak, self.momentum), peak))

    def forward(self, x: Tensor) -> Tensor:
        """Round `x`, of any shape; integers, which are exact, pass."""
        if not x.is_floating_point() or x.numel() == 0:
            return x
        if self.calibrating or (self.training and self.observing):
            low, high = torch.aminmax(x.detach())
            self.observe(torch.maximum(-low, high))
        if self.frac is None and (self.training or self.calibrating) and not self.largest:
            return x  # a batch of zeros, which every format holds
        return fake_quantise(x, self.format)

    def extra_repr(self) -> str:
        """Format shown by ``print(module)``."""
        known = self.frac is not None or float(self.largest) > 0
        return str(self.format) if known and self.width is not None else f"width={self.width}"


class RecurrentQuantiser(nn.Module):
    """Rounds the states h and c of a block-circulant LSTM or GRU after every step.

    h is an output of tanh, W - 1 fraction bits, or of a projection, observed; c is observed. A range is the
    largest magnitude of a whole sequence, so that it is known only from the second batch on; the first is
    rounded to what its steps have brought so far.
    """

    def __init__(self, width: int, num_layers: int, projected: bool, cells: bool) -> None:
        super().__init__()
        self.width = width
        self.h = nn.ModuleList(FakeQuantise(width, None if projected else width - 1) for _ in range(num_layers))
        self.c = nn.ModuleList(FakeQuantise(width) for _ in range(num_layers if cells else 0))
        self._peaks: dict[FakeQuantise, Tensor] = {}

    def states(self, layer: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Round (h,) or (h, c) of a step."""
        rounded = []
        for state, each in zip(states, (self.h, self.c)):
            quantiser = each[layer]
            assert isinstance(quantiser, FakeQuantise)
            known = float(quantiser.largest) > 0 and not (self.training or quantiser.calibrating)
            if quantiser.frac is None and not known and state.numel():
                peak = state.detach().abs().amax()
                self._peaks[quantiser] = torch.maximum(self._peaks.get(quantiser, peak), peak)
            rounded.append(self._round(quantiser, state))
        return tuple(rounded)

    def _round(self, quantiser: FakeQuantise, state: Tensor) -> Tensor:
        if quantiser.frac is not None or float(quantiser.largest):
            return fake_quantise(state, quantiser.format)
        largest = float(self._peaks.get(quantiser, torch.zeros(())))
        return fake_quantise(state, Format.for_range(self.width, quantiser.headroom * largest))

    def end(self) -> None:
        """Take the sequence's ranges over, at its end."""
        for quantiser, peak in self._peaks.items():
            quantiser.observe(peak)
        self._peaks.clear()
