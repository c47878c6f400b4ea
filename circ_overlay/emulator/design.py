# SPDX-License-Identifier: BSD-3-Clause
"""What a download puts into the fabric, and what the fabric counts: plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counters", "Design", "Ip"]


@dataclass(frozen=True, kw_only=True)
class Ip:
    """An addressable IP of a design.

    Parameters
    ----------
    name : instance in the block design.
    vlnv : its type; None for a memory.
    base, size : its addresses.
    parameters : as in the ``.hwh``.
    """

    name: str
    vlnv: str | None
    base: int
    size: int
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a download puts into the fabric.

    Parameters
    ----------
    ips : the addressable IP.
    interrupts : (controller, input) by "instance/pin".
    lines : interrupt line of the processing system by controller.
    loopback : the DMA's output stream leads back to its input, as through an AXI4-Stream FIFO.
    """

    ips: Sequence[Ip] = ()
    interrupts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    loopback: bool = False


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What has happened since the last download."""

    mm2s_transfers: int = 0
    mm2s_bytes: int = 0
    s2mm_transfers: int = 0
    s2mm_bytes: int = 0
    commands: int = 0
    register_reads: int = 0
    register_writes: int = 0
