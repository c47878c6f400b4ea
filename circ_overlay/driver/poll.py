# SPDX-License-Identifier: BSD-3-Clause
"""Bounded waiting: every loop that waits for hardware holds one of these."""

from __future__ import annotations

import time

__all__ = ["Poll"]

_SPINS = 20
_FIRST_PAUSE, _LAST_PAUSE = 20e-6, 1e-3


class Poll:
    """Paces a polling loop: a few quick looks, then pauses that grow to a millisecond, until a limit.

    Parameters
    ----------
    timeout : seconds until :meth:`expired` turns true. It does so only after one more look than fits in, so
        that a process that was stopped for longer than the limit still sees what came meanwhile.
    """

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._late = False
        self._looks = 0
        self._pause = _FIRST_PAUSE

    def expired(self) -> bool:
        """Wait a little; True if the limit has been reached. Call once per look."""
        self._looks += 1
        if self._looks > _SPINS:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LAST_PAUSE)
        late, self._late = self._late, time.monotonic() > self._deadline
        return late
