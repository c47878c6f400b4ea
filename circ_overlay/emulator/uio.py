# SPDX-License-Identifier: BSD-3-Clause
"""Interrupt lines as user-space I/O devices: a pseudo terminal behaves as /dev/uioN does.

Writing 00 00 00 01 enables the line for one event; when its level is high, four bytes can be read, and the
line is disabled again. Needs a Unix host; elsewhere interrupts are missing, as on a board without UIO.
"""

from __future__ import annotations

import os
import threading

__all__ = ["UioLine"]


class UioLine:
    """One interrupt line of the processing system.

    Attributes
    ----------
    path : what a driver opens in place of /dev/uioN.
    """

    def __init__(self) -> None:
        import pty
        import tty

        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)  # no echo, no line discipline: four bytes are four bytes
        self.path = os.ttyname(self._slave)
        self._lock = threading.Lock()
        self._enabled = self._level = False
        self._count = 0
        threading.Thread(target=self._listen, name=f"uio {self.path}", daemon=True).start()

    def _listen(self) -> None:
        while os.read(self._master, 4):
            with self._lock:
                self._enabled = True
                self._fire()

    def set_level(self, level: bool) -> None:
        """Level of the line."""
        with self._lock:
            self._level = level
            self._fire()

    def _fire(self) -> None:
        if self._enabled and self._level:
            self._enabled = False
            self._count += 1
            os.write(self._master, self._count.to_bytes(4, "little"))
