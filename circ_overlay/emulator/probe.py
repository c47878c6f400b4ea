# SPDX-License-Identifier: BSD-3-Clause
"""Which boards pynq finds by itself.

Apart from device.py, because importing that registers pynq's own embedded device too, which must not happen
on a board before pynq has probed.
"""

from __future__ import annotations

import warnings
from typing import Any

from pynq.pl_server.device import Device

__all__ = ["active_device", "real_devices"]


def real_devices() -> list[Any]:
    """The boards that pynq finds, without the emulated one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "No devices found": that is what the caller wants to know
        return [device for device in Device.devices if not getattr(device, "emulated", False)]


def active_device() -> Any:
    """The active device of pynq if one has been chosen, else None; nothing is probed."""
    return vars(Device).get("_active_device")
