# SPDX-License-Identifier: BSD-3-Clause
"""What a network's runs took, on the host and in the core, with the provenance of every device figure."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Statistics"]


@dataclass(kw_only=True)
class Statistics:
    """Totals since the network was loaded or :meth:`Network.reset_statistics` was called.

    Attributes
    ----------
    images, batches, failures : samples (steps of sequences) answered, DMA batches they took, batches that failed.
    bytes_in, bytes_out : moved by the DMA for samples and results.
    program_loads, program_bytes : times a segment's image was streamed into the core, and what that moved.
    pack_s, wait_s, unpack_s : host seconds; waiting overlaps with packing the next batch.
    cycles, load_cycles : clock cycles of all runs and of all loads, from the core's counters.
    device_s : seconds in the core, runs and loads: cycles over the clock they ran at, never the emulator's own time.
    layer_cycles : the same for each layer.
    cycles_provenance : "measured" on a board, "simulated" by RTL, "modelled" by the cycle model.
    clock_hz : of the core, as it was in the last batch.
    """

    layers: int
    cycles_provenance: str
    clock_hz: float
    images: int = 0
    batches: int = 0
    failures: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    program_loads: int = 0
    program_bytes: int = 0
    pack_s: float = 0.0
    wait_s: float = 0.0
    unpack_s: float = 0.0
    cycles: int = 0
    load_cycles: int = 0
    device_s: float = 0.0
    layer_cycles: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layer_cycles = self.layer_cycles or [0] * self.layers

    @property
    def cycles_per_image(self) -> float:
        """Mean clock cycles of an image, loads not counted; 0 before the first."""
        return self.cycles / self.images if self.images else 0.0

    def add(
        self,
        *,
        images: int,
        cycles: int,
        clock_hz: float,
        layer_cycles: list[int],
        bytes_in: int,
        bytes_out: int,
        first_layer: int = 0,
    ) -> None:
        """Count one finished batch, whose segment begins with layer `first_layer`."""
        self.images += images
        self.batches += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.cycles += cycles
        self.clock_hz = clock_hz
        self.device_s += cycles / clock_hz
        for layer, n in enumerate(layer_cycles, first_layer):
            self.layer_cycles[layer] += n

    def add_load(self, nbytes: int, cycles: int, clock_hz: float) -> None:
        """Count one load of a segment."""
        self.program_loads += 1
        self.program_bytes += nbytes
        self.load_cycles += cycles
        self.device_s += cycles / clock_hz
