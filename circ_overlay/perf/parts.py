# SPDX-License-Identifier: BSD-3-Clause
"""What is on the parts: DSP slices, block RAM, LUTs, flip-flops. Published, from the vendor's product tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PARTS", "USABLE", "Part"]

USABLE = 0.90
"""Share of every resource that a design may take: above it, placing and routing at the wanted clock is a matter of
luck. An assumption."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An FPGA, or the programmable logic of an SoC.

    Attributes
    ----------
    title : boards that carry it
    dsp : DSP48E1 or DSP48E2 slices
    bram : block RAMs of 36 Kibit
    lut : 6-input LUTs
    ff : flip-flops
    source : the vendor's document with the product table
    """

    title: str
    dsp: int
    bram: int
    lut: int
    ff: int
    source: str


# The XC7Z rows were compared with a second source; the others stand as recalled from the documents named.
PARTS: dict[str, Part] = {
    "xc7z010": Part(title="Zybo, MicroZed", dsp=80, bram=60, lut=17_600, ff=35_200, source="DS190"),
    "xc7z020": Part(title="Pynq-Z1, Pynq-Z2", dsp=220, bram=140, lut=53_200, ff=106_400, source="DS190"),
    "xczu3eg": Part(title="Ultra96-V2", dsp=360, bram=216, lut=70_560, ff=141_120, source="DS891"),
    "xczu7ev": Part(
        title="ZCU104 (its 96 UltraRAMs are not used)", dsp=1728, bram=312, lut=230_400, ff=460_800, source="DS891"
    ),
    "xcku060": Part(title="ESE's and C-LSTM's", dsp=2760, bram=1080, lut=331_680, ff=663_360, source="DS890"),
    "xc7vx690t": Part(title="ADM-PCIE-7V3, C-LSTM's", dsp=3600, bram=1470, lut=433_200, ff=866_400, source="DS180"),
}
