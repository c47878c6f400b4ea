# SPDX-License-Identifier: BSD-3-Clause
"""The package's own exceptions. All derive from :class:`CircOverlayError`, and from the built-in that fits."""

from __future__ import annotations

__all__ = [
    "BoardError",
    "CircOverlayError",
    "CoreError",
    "CoreTimeoutError",
    "DmaError",
    "EngineUnavailableError",
    "IncompatibleError",
    "ProgramError",
    "ProgramFileError",
    "require",
]


class CircOverlayError(Exception):
    """Anything that this package raises on purpose, but for plain wrong arguments (ValueError)."""


class ProgramError(CircOverlayError, ValueError):
    """A program that no core can execute as it stands."""


class ProgramFileError(ProgramError):
    """A ``.circ`` file that cannot be read as what it claims to be."""


class IncompatibleError(CircOverlayError):
    """Program and core, or driver and bitstream, do not belong together."""


class BoardError(CircOverlayError, RuntimeError):
    """No board, or not the one that was asked for."""


class EngineUnavailableError(CircOverlayError, RuntimeError):
    """An engine that this installation lacks; the message says how to get it."""


class CoreError(CircOverlayError, RuntimeError):
    """The core ended a command with an error status."""


class DmaError(CircOverlayError, OSError):
    """The AXI DMA reported an error."""


class CoreTimeoutError(CircOverlayError, TimeoutError):
    """A wait ran into its limit; the message tells what each side was doing."""


def require(condition: bool, message: str) -> None:
    """Raise ProgramError with `message` unless `condition`."""
    if not condition:
        raise ProgramError(message)
