# SPDX-License-Identifier: BSD-3-Clause
"""Build parameters of a core."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .contract import SPEC_ID
from .numbers import ALL_CAPABILITIES, MAGIC, MAX_LAYERS, SPEC_VERSION, WIDTHS

__all__ = ["CoreConfig"]


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """Build parameters of a core: what may differ between two cores of the same specification.

    Parameters
    ----------
    width : bits of activations and spectral weights (W), 8..16.
    lanes : complex multiply-accumulate lanes (L), 1..255. Never changes a bit of the results.
    samples : real samples a cycle through each transform (F), a power of two, 1..128. Likewise.
    weight_words, map_elements, affine_channels, instructions, spectra_words : on-chip capacities.
    capability : operations this build has.
    """

    width: int = 12
    lanes: int = 52
    samples: int = 4
    weight_words: int = 79872
    map_elements: int = 131072
    affine_channels: int = 4096
    instructions: int = MAX_LAYERS
    spectra_words: int = 8192
    capability: int = int(ALL_CAPABILITIES)

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise ValueError(f"width={self.width}: a core is built for {WIDTHS[0]}..{WIDTHS[-1]} bits")
        if not 1 <= self.lanes <= 255:
            raise ValueError(f"lanes={self.lanes}: allowed are 1..255")
        if self.samples not in {1 << n for n in range(8)}:
            raise ValueError(f"samples={self.samples}: allowed are the powers of two from 1 to 128")
        if not 1 <= self.instructions <= MAX_LAYERS:
            raise ValueError(f"instructions={self.instructions}: allowed are 1..{MAX_LAYERS}")
        for f in fields(self)[3:]:
            if not 0 < getattr(self, f.name) < 1 << 32:
                raise ValueError(f"{f.name}={getattr(self, f.name)}: allowed are 1..{(1 << 32) - 1}")

    def register_values(self) -> dict[str, int]:
        """Values of the identity registers, by register name."""
        packed = self.width | self.lanes << 8 | self.samples << 16 | SPEC_VERSION << 24
        return {
            "magic": MAGIC,
            "spec_id": SPEC_ID,
            "config": packed,
            **{f.name: getattr(self, f.name) for f in fields(self)[3:]},
        }

    @classmethod
    def from_register_values(cls, values: dict[str, int]) -> CoreConfig:
        """The inverse of :meth:`register_values`."""
        packed = values["config"]
        return cls(
            width=packed & 0xFF,
            lanes=packed >> 8 & 0xFF,
            samples=packed >> 16 & 0xFF,
            **{f.name: values[f.name] for f in fields(cls)[3:]},
        )
