# SPDX-License-Identifier: BSD-3-Clause
"""Core, DMA and buffers as one thing that loads program images and runs batches. Not thread-safe: one owner.

Two input and two output buffers are allocated once; a batch uses the pair with its number's parity, so that
the host fills one pair while the core works on the other.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from pynq import allocate

from .. import spec
from ..errors import BoardError, CoreError
from .core import CirculantCore
from .dma import DmaPair
from .stage import Stage

__all__ = ["Hardware", "device_lock"]

_log = logging.getLogger(__name__)
_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


def device_lock(device: Any) -> threading.Lock:
    """The lock that is held while a batch is under way on `device`, or its fabric is being configured.

    It lets several overlays on one device take turns batch by batch.
    """
    return _locks.setdefault(device, threading.Lock())


class Pair(NamedTuple):
    """One input and one output buffer."""

    input: Any
    output: Any


class Hardware:
    """See the module.

    Parameters
    ----------
    core, dma : the overlay's drivers
    device : the pynq device to allocate on
    config : of the core
    is_loaded : tells whether the fabric still holds the overlay
    clock_hz : the core's clock now
    buffer_bytes : of each buffer
    timeout : seconds for any one wait
    """

    def __init__(
        self,
        core: CirculantCore,
        dma: Any,
        device: Any,
        config: spec.CoreConfig,
        is_loaded: Callable[[], bool],
        clock_hz: Callable[[], float],
        *,
        buffer_bytes: int,
        timeout: float,
    ) -> None:
        self.core, self.config, self.timeout = core, config, timeout
        self._is_loaded, self.clock_hz = is_loaded, clock_hz
        self._lock = device_lock(device)
        self.held = False
        self._dma = DmaPair(dma)
        # An image must fit in one transfer, because its TLAST ends it.
        largest_image = 8 * (
            spec.HEADER_WORDS
            + config.instructions * spec.INSTRUCTION_WORDS
            + config.affine_channels
            + -(-config.weight_words // 2)
        )
        self.buffer_bytes = min(buffer_bytes & ~7, self._dma.max_bytes)
        if self.buffer_bytes < largest_image:
            self.buffer_bytes = min(largest_image, self._dma.max_bytes)
        self._pairs = tuple(
            Pair(*(allocate(self.buffer_bytes, np.uint8, target=device) for _ in range(2))) for _ in range(2)
        )
        self._loaded: Stage | None = None
        self._broken = ""
        with self._lock:
            self.reset()

    def acquire(self) -> None:
        """Wait until no other overlay has a batch under way on this device."""
        self._lock.acquire()
        self.held = True

    def release(self) -> None:
        """Let other overlays on this device have their turn."""
        self.held = False
        self._lock.release()

    def reset(self) -> None:
        """Bring DMA and core to their initial state; no program is on chip afterwards."""
        self._loaded = None
        self._dma.reset()
        self._broken = ""

    def recover(self) -> None:
        """Reset after an error. If that fails too, every further use raises BoardError."""
        if not self._is_loaded():
            return  # these registers are another overlay's now
        try:
            self.reset()
        except Exception as error:
            self._broken = str(error) or repr(error)
            _log.error("the overlay could not be reset: %s", error)

    def close(self) -> None:
        """Free the buffers."""
        for pair in self._pairs:
            for buffer in pair:
                buffer.freebuffer()

    def batch_limit(self, stage: Stage) -> int:
        """Largest batch whose inputs and outputs each fit in one buffer."""
        return self.buffer_bytes // max(stage.in_bytes, stage.out_bytes)

    def pair(self, parity: int) -> Pair:
        """The buffers of the batches of that parity."""
        return self._pairs[parity]

    def load(self, stage: Stage, parity: int) -> int:
        """Stream a program image into the core unless it is there; the bytes that took.

        The image goes through the input buffer of the *other* parity: that of `parity` holds packed samples.
        """
        self._check_usable()
        if not self._dma.ready():
            self.reset()
        # The register is asked too: a second driver on the same fabric may have loaded its own program.
        if stage.same_as(self._loaded) and self.core.register("program_id") == stage.program_id:
            return 0
        self._loaded = None
        buffer = self._pairs[1 - parity].input
        buffer[: stage.image.size] = stage.image
        _log.log(
            logging.INFO if stage.index == 0 else logging.DEBUG, "loading %s: %d bytes", stage.name, stage.image.size
        )
        self.core.start(spec.Command.LOAD)
        self._dma.send(buffer, stage.image.size)
        self._dma.wait(("MM2S",), self.timeout, self.core.done, self.core.describe)
        on_chip = self.core.register("program_id")
        if on_chip != stage.program_id:
            raise CoreError(
                f"the core reports program {on_chip:08x} after loading {stage.program_id:08x}: "
                "the image was altered on its way"
            )
        self._loaded = stage
        return int(stage.image.size)

    def start(self, stage: Stage, parity: int, images: int) -> None:
        """Run the batch packed in the buffers of `parity`; the program must be loaded."""
        pair = self._pairs[parity]
        # The receiver first: a core that finds no receiver would stall its pipeline.
        self._dma.receive(pair.output, images * stage.out_bytes)
        self.core.start(spec.Command.RUN, images)
        self._dma.send(pair.input, images * stage.in_bytes)

    def finish(self, stage: Stage, images: int) -> None:
        """Wait for the batch that was started, and make sure that the idle core seen is the one that ran it."""
        self._dma.wait(("MM2S", "S2MM"), self.timeout, self.core.done, self.core.describe)
        self._check_usable()
        ran = self.core.register("images"), self.core.register("program_id")
        if ran != (images, stage.program_id):
            raise CoreError(
                f"the core reports {ran[0]} images of program {ran[1]:08x} where {images} of "
                f"{stage.program_id:08x} were run: it was reset or used behind the driver"
            )

    def _check_usable(self) -> None:
        if self._broken:
            raise BoardError(f"the overlay could not be reset after an error ({self._broken}); download it again")
        if not self._is_loaded():
            raise BoardError("another bitstream has been downloaded since; call download() on this overlay")
