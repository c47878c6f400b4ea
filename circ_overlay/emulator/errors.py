# SPDX-License-Identifier: BSD-3-Clause
"""What the emulated board raises where a real one would hang, crash the kernel or corrupt memory."""

from __future__ import annotations

from ..errors import CircOverlayError

__all__ = ["EmulationDeadlockError", "EmulationError", "UnmappedAddressError"]


class EmulationError(CircOverlayError, RuntimeError):
    """The emulated fabric was used in a way that the real one does not survive, or its engine failed."""


class UnmappedAddressError(EmulationError):
    """An access to an address that no slave decodes: on a real board a bus error that kills the process."""


class EmulationDeadlockError(EmulationError):
    """A status register was polled that nothing can change any more; the message tells who waits for what."""
