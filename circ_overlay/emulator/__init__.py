# SPDX-License-Identifier: BSD-3-Clause
"""The emulated board: the real pynq package runs against a model of the fabric, in this process.

Importing this package needs no pynq; :func:`install` and :func:`ensure_device` do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import BoardError
from .errors import EmulationDeadlockError, EmulationError, UnmappedAddressError

if TYPE_CHECKING:
    from types import ModuleType

    from .device import EmulatedDevice

__all__ = ["EmulationDeadlockError", "EmulationError", "UnmappedAddressError", "ensure_device", "install"]


def _probe() -> ModuleType:
    """The module that asks pynq for boards; BoardError without pynq."""
    try:
        from . import probe
    except ImportError as error:
        raise BoardError(
            f"the pynq package cannot be imported ({error}); on a PC, install it with "
            "pip install circ-overlay[pynq]; on a board, use the Python environment of the PYNQ image"
        ) from error
    return probe


def install(
    board: str = "Pynq-Z2", *, strict_cache: bool = False, engine: str | None = None
) -> EmulatedDevice:
    """Make an emulated board pynq's active device. Asking again with the same arguments returns the same device.

    Parameters
    ----------
    board : name of the board, see :data:`circ_overlay.emulator.boards.BOARDS`.
    strict_cache : make every buffer cached, which finds a missing flush or invalidate.
    engine : what computes, see :data:`circ_overlay.engines.ENGINES`; None takes the environment variable
        CIRC_OVERLAY_ENGINE, or the fastest engine of this installation.

    Raises
    ------
    BoardError
        pynq is not installed.
    ValueError
        Unknown board.
    """
    _probe().real_devices()  # before the import below, see probe.py
    from . import device

    return device.install(board, strict_cache=strict_cache, engine=engine)


def ensure_device() -> Any:
    """The board to work with, as pynq's active device.

    The environment variable CIRC_OVERLAY_BOARD decides: "emulated", "real", or unset for the real board if
    pynq finds one, and the emulated one otherwise.

    Raises
    ------
    BoardError
        A real board was asked for, but pynq finds none; or pynq is not installed.
    ValueError
        CIRC_OVERLAY_BOARD has another value.
    """
    choice = os.environ.get("CIRC_OVERLAY_BOARD", "")
    if choice not in ("", "emulated", "real"):
        raise ValueError(f"CIRC_OVERLAY_BOARD={choice!r}: allowed are 'emulated', 'real', or unset")
    probe = _probe()
    active = probe.active_device()
    if active is not None and choice in ("", "emulated" if getattr(active, "emulated", False) else "real"):
        return active
    if choice != "emulated":
        if found := probe.real_devices():
            probe.Device.active_device = found[0]
            return found[0]
        if choice == "real":
            raise BoardError(
                "CIRC_OVERLAY_BOARD=real, but pynq finds no board. On the board, become root with sudo -s "
                "and source /etc/profile.d/pynq_venv.sh and /etc/profile.d/xrt_setup.sh; elsewhere, set "
                "CIRC_OVERLAY_BOARD=emulated"
            )
    return install()
