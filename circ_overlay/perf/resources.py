# SPDX-License-Identifier: BSD-3-Clause
"""Resource model of the core: modelled, not yet checked against synthesis. docs/codesign.md derives it.

DSP slices and block RAMs follow from the algorithm and from the shapes of the memories. LUTs and flip-flops are a
first-order estimate whose coefficients are assumptions by name, to be replaced when something has been synthesised.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

from .. import spec
from .parts import USABLE, Part

__all__ = [
    "PROVENANCE",
    "Resources",
    "brams",
    "core_resources",
    "multiplier_dsps",
    "rotations",
    "rotators",
    "shared_rotators",
    "total_resources",
    "utilisation",
]

PROVENANCE = "modelled, not yet checked against synthesis"

# ---- DSP slices ----------------------------------------------------------------------------------------------
DSP_A, DSP_B = 25, 18
"""Bits of the multiplier's signed operands, DSP48E1 (DSP48E2: 27 x 18, which is not made use of)."""
KARATSUBA = 3
"""Real multipliers of a complex product."""

# ---- block RAM -----------------------------------------------------------------------------------------------
RAM36_SHAPES = ((512, 72), (1024, 36), (2048, 18), (4096, 9), (8192, 4), (16384, 2), (32768, 1))
RAM18_SHAPES = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
"""(words, bits), one port to write and one to read. Byte-wide ones count their parity bits."""
AFFINE_BITS = spec.SCALE_BITS + spec.BIAS_BITS
INSTRUCTION_BITS = 64  # an instruction is read as eight of these before its layer begins
SPECTRA_READ = 16
"""Spectral words read a cycle: lanes take their weights for so many bins or blocks, and the rest of the lanes the same
bins for other block rows. An assumption; a layer with fewer than lanes / 16 block rows would leave lanes idle."""

# ---- LUTs and flip-flops: assumptions, (LUT, FF) -------------------------------------------------------------
LANE_LOGIC = (150, 200)  # sums c + d and d - c, operands of packed bins and of k = 1, its share of draining
ROTATOR_LOGIC = (250, 250)  # twiddles, rounding, delays
BUTTERFLY_LOGIC = (60, 60)  # a sample a cycle through one of seven levels, both ways counted apart
TAIL_LOGIC = (850, 700)  # a sample a cycle: two barrel shifts, residual, curve, saturation, pooling
REORDER_LOGIC = (400, 200)  # buffers of a block before and behind each transform, in LUTs
CONTROL_LOGIC = (5000, 6000)  # registers, sequencers, addresses, streams
SHELL_LOGIC = (4500, 6000)  # AXI DMA, interconnect, reset: outside the core
SHELL_BRAM = 3.0  # the AXI DMA's buffers
LEVELS = spec.LOG2_BLOCK_MAX


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a design takes: DSP slices, block RAMs of 36 Kibit in halves, LUTs, flip-flops."""

    dsp: int
    bram: float
    lut: int
    ff: int

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            dsp=self.dsp + other.dsp, bram=self.bram + other.bram, lut=self.lut + other.lut, ff=self.ff + other.ff
        )


def multiplier_dsps(a: int, b: int) -> int:
    """DSP slices of an exact product of two signed numbers of `a` and `b` bits.

    Beyond 25 x 18 an operand is cut into a signed part and unsigned ones, a bit narrower than a port each.
    """

    def parts(bits: int, port: int) -> int:
        return max(1, -(-(bits - 1) // (port - 1)))

    return min(parts(a, DSP_A) * parts(b, DSP_B), parts(b, DSP_A) * parts(a, DSP_B))


@cache
def rotations(block_size: int) -> tuple[int, ...]:
    """Rotations of a block in each level of a transform by other than 1 and -i, from the longest level on.

    Level s of a block of k: the split of length m = k / 2^s rotates m/4 differences, of which n = 0 is trivial; the
    complex transforms that longer splits have begun do a stage of length m/2 each, half of it rotated, of which
    n = 0 and, if that is another, n = m/8 are trivial.
    """
    result = []
    length, begun = block_size, 0  # begun: complex words in transforms that have begun
    while length >= 4:
        complex_length = length // 2
        groups = begun // complex_length if begun else 0
        inner = groups * max(0, complex_length // 2 - 2) if complex_length >= 4 else 0
        result.append(length // 4 - 1 + inner)
        begun += length // 4
        length //= 2
    return tuple(result)


def rotators(samples: int) -> int:
    """Rotators of a streaming transform of F = `samples` a cycle for every k: each level has its own.

    A block takes k / F cycles, so a level with n rotations needs ceil(n F / k) rotators for that k, and the largest
    such number of all k. Levels are aligned at the short end, where blocks of every size end.
    """
    longest = len(rotations(spec.BLOCK_SIZES[-1]))
    need = [0] * longest
    for k in spec.BLOCK_SIZES:
        counts = rotations(k)
        for level, n in zip(range(longest - len(counts), longest), counts):
            need[level] = max(need[level], -(-n * samples // k))
    return sum(need)


def shared_rotators(samples: int) -> int:
    """The least possible: all levels' rotations through any rotator. A streaming design cannot reach it in general."""
    return max(-(-sum(rotations(k)) * samples // k) for k in spec.BLOCK_SIZES)


def brams(bits: int, words: int) -> float:
    """Block RAMs of a memory of `words` words of `bits` bits, one written and one read a cycle."""
    if bits <= 0 or words <= 0:
        return 0.0
    whole = min(-(-bits // width) * -(-words // depth) for depth, width in RAM36_SHAPES)
    halves = min(-(-bits // width) * -(-words // depth) for depth, width in RAM18_SHAPES)
    return min(float(whole), halves / 2)


def _dsps(config: spec.CoreConfig) -> dict[str, int]:
    w, f = config.width, config.samples
    spectrum = spec.spectrum_bits(w, spec.BLOCK_SIZES[-1])
    # One of the three products takes a sum of the activation's parts, the others one of the weight's.
    lane = (
        multiplier_dsps(spectrum + 1, w)
        + 2 * multiplier_dsps(spectrum, w + 1)
    )  # fmt: skip
    twiddle = spec.TWIDDLE_FRAC_BITS + 2
    forward = KARATSUBA * multiplier_dsps(spectrum + 1, twiddle)
    # The last rotation's input is a complex transform of k/4 words of 18 bits, so 1 more than that adds to.
    last = spec.SUM_BITS + (spec.BLOCK_SIZES[-1] // 4).bit_length() - 1 + 1
    inverse = KARATSUBA * multiplier_dsps(last + 1, twiddle)
    capability = spec.Capability(config.capability)
    return {
        "lanes": config.lanes * lane,
        "forward": rotators(f) * forward,
        "inverse": rotators(f) * inverse,
        "affine": f * multiplier_dsps(spec.TIME_BITS, spec.SCALE_BITS),
        "curve": f if capability & spec.Capability.SIGMOID_TANH else 0,
        "product": f * multiplier_dsps(w, w) if capability & spec.Capability.PRODUCT else 0,
    }


def _brams(config: spec.CoreConfig) -> dict[str, float]:
    w, f = config.width, config.samples
    row = max(f, spec.MAP_WORD)
    read = max(min(SPECTRA_READ, config.lanes), f // 2)
    spectrum = 2 * spec.spectrum_bits(w, spec.BLOCK_SIZES[-1])
    return {
        "weights": brams(2 * w * config.lanes, -(-config.weight_words // config.lanes)),
        "maps": brams(w * row, -(-config.map_elements // row)),
        "spectra": brams(spectrum * read, -(-config.spectra_words // read)),
        "affine table": brams(AFFINE_BITS * f, -(-config.affine_channels // f)),
        "instructions": brams(INSTRUCTION_BITS, spec.INSTRUCTION_WORDS * config.instructions),
    }


def core_resources(config: spec.CoreConfig) -> dict[str, Resources]:
    """What each part of a core of `config` takes, by name; the shell is the last entry.

    Returns
    -------
    dict from the part's name to its :class:`Resources`. Modelled, not yet checked against synthesis.
    """
    f, dsp, bram = config.samples, _dsps(config), _brams(config)
    turns = rotators(f)
    butterflies = f * LEVELS

    def logic(*terms: tuple[int, tuple[int, int]]) -> tuple[int, int]:
        return sum(n * c[0] for n, c in terms), sum(n * c[1] for n, c in terms)

    transform = logic((turns, ROTATOR_LOGIC), (butterflies, BUTTERFLY_LOGIC), (1, REORDER_LOGIC))
    logics = {
        "lanes": logic((config.lanes, LANE_LOGIC)),
        "forward": transform,
        "inverse": transform,
        "affine": logic((f, TAIL_LOGIC)),
        "control": CONTROL_LOGIC,
        "shell": SHELL_LOGIC,
    }
    names = [*dsp, *bram, "control", "shell"]
    memories = {**bram, "shell": SHELL_BRAM}
    result = {}
    for name in names:
        lut, ff = logics.get(name, (0, 0))
        result[name] = Resources(dsp=dsp.get(name, 0), bram=memories.get(name, 0.0), lut=lut, ff=ff)
    return result


def total_resources(config: spec.CoreConfig) -> Resources:
    """Core and shell together."""
    return sum(core_resources(config).values(), Resources(dsp=0, bram=0.0, lut=0, ff=0))


def utilisation(resources: Resources, part: Part, usable: float = USABLE) -> dict[str, float]:
    """Each resource as a share of what is usable of the part; above 1 it does not fit.

    Parameters
    ----------
    resources : of the whole design
    part : one of :data:`circ_overlay.perf.parts.PARTS`
    usable : share of the part that may be taken, 0 to 1
    """
    return {f.name: getattr(resources, f.name) / (usable * getattr(part, f.name)) for f in fields(Resources)}
