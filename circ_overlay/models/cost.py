# SPDX-License-Identifier: BSD-3-Clause
"""A first estimate of the accelerator's cycles for one image, layer by layer, to choose networks by.

A layer's transform of its inputs, its complex products and its inverse transforms run side by side, hence the
longest of the three counts. The package's own model, of a compiled program, is `circ_overlay.perf`.
"""

__all__ = ["conv_cycles", "input_cycles", "words"]

LANES = 54
SAMPLES = 4  # that a transform takes in one cycle


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def conv_cycles(
    pixels_in: int, pixels_out: int, c_in: int, c_out: int, taps: int, k: int, patch: bool = False
) -> float:
    """Cycles of one convolution, with batch norm, activation and fused pool.

    Parameters
    ----------
    pixels_in, pixels_out : int
        Height times width of the input, and of the output before a fused pool.
    c_in, c_out, taps, k : int
        Channels, positions of the kernel, block size. A linear layer has one pixel and one tap.
    patch : bool
        Whether whole patches of the image are the vectors (a first layer).
    """
    if patch:
        p, q = _ceil(c_out, k), _ceil(taps * c_in, k)
        transform, products = pixels_out * max(taps, q * k / SAMPLES), pixels_out * p * q * (k / 2) / LANES
        inverse = pixels_out * p * k / SAMPLES
    elif k == 1:
        padded = _ceil(c_in, 4) * 4
        transform, products = pixels_in * padded / SAMPLES, pixels_out * c_out * taps * padded / 2 / LANES
        inverse = pixels_out * c_out / SAMPLES
    else:
        p, q = _ceil(c_out, k), _ceil(c_in, k)
        transform, products = pixels_in * q * k / SAMPLES, pixels_out * taps * p * q * (k / 2) / LANES
        inverse = pixels_out * p * k / SAMPLES
    return max(transform, products, inverse) + 32 + 2 * k / SAMPLES


def input_cycles(pixels: int) -> float:
    """Cycles in which an image arrives: eight bytes a beat, a pixel taking four."""
    return pixels * 4 / 8


def words(c_in: int, c_out: int, taps: int, k: int) -> float:
    """Complex words of a layer's weights on the chip; two real numbers fit one."""
    return taps * _ceil(c_out, k) * _ceil(c_in, k) * k / 2
