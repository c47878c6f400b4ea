# SPDX-License-Identifier: BSD-3-Clause
"""The core's registers: identity, commands, counters. Knows nothing of streams and buffers."""

from __future__ import annotations

from pynq import DefaultIP

from .. import spec
from ..errors import CoreError, CoreTimeoutError, IncompatibleError
from .poll import Poll

__all__ = ["CirculantCore"]

_OFFSET = {r.name: r.offset for r in spec.REGISTERS}
_START, _DONE, _IDLE = 1 << 0, 1 << 1, 1 << 2

_REMEDIES = {
    spec.Status.NO_PROGRAM: "the core was reset since the program was loaded; load it again",
    spec.Status.SPEC_MISMATCH: "the image was made for another specification; compile the network again",
    spec.Status.WIDTH_MISMATCH: "the network was compiled for another width; compile it with this core's",
    spec.Status.TOO_LARGE: "the network does not fit; compile it for this core: compile(..., config=overlay.config)",
    spec.Status.BAD_LENGTH: "the image was cut on its way; check the DMA's buffer length width",
    spec.Status.BAD_MAGIC: "what arrived is no program image; data of a run may have been left in the stream",
}


class CirculantCore(DefaultIP):  # type: ignore[misc]
    """Driver of ``circ_core``; pynq binds it to every overlay that holds one."""

    bindto = [spec.CORE_VLNV]

    def register(self, name: str, index: int = 0) -> int:
        """Value of the register called `name`, 32 bits unsigned."""
        return int(self.read(_OFFSET[name] + 4 * index))

    @property
    def status(self) -> spec.Status | int:
        """Outcome of the last command; a plain int if this package knows no such status."""
        value = self.register("status")
        return spec.Status(value) if value in tuple(spec.Status) else value

    def start(self, command: spec.Command, batch: int = 0) -> None:
        """Start a command; never waits."""
        self.write(_OFFSET["command"], int(command))
        self.write(_OFFSET["batch"], batch)
        self.write(_OFFSET["CTRL"], _START)

    def done(self) -> bool:
        """True if the command has ended; then its status is checked too.

        Raises
        ------
        CoreError
            The command ended with a status other than OK.
        """
        if not self.register("CTRL") & (_DONE | _IDLE):
            return False
        status = self.status
        if status != spec.Status.OK:
            name = status.name if isinstance(status, spec.Status) else "unknown to this package"
            remedy = _REMEDIES.get(spec.Status(status), "") if isinstance(status, spec.Status) else ""
            raise CoreError(f"the core ended with status {int(status)} ({name})" + (f": {remedy}" if remedy else ""))
        return True

    def identify(self, timeout: float = 1.0) -> spec.CoreConfig:
        """Check that this is a core of our specification; its build parameters.

        Raises
        ------
        IncompatibleError
            Something else answers, or a core of another specification; the message says which side is older.
        CoreTimeoutError
            The core does not answer within `timeout` seconds.
        """
        self.start(spec.Command.IDENTIFY)
        poll = Poll(timeout)
        while not self.register("CTRL") & (_DONE | _IDLE):
            if poll.expired():
                raise CoreTimeoutError(
                    f"the core did not answer IDENTIFY within {timeout:g} s: "
                    "its clock may be stopped, or a command is stuck; download the overlay again"
                )
        values = {name: self.register(name) for name in spec.CoreConfig().register_values()}
        if values["magic"] != spec.MAGIC:
            raise IncompatibleError(
                f"no circ-overlay core answers at {self.mmio.base_addr:#x}: its magic register reads "
                f"{values['magic']:#010x}, expected {spec.MAGIC:#010x}; the .hwh may not belong to the .bit"
            )
        if values["spec_id"] != spec.SPEC_ID:
            version = values["config"] >> 24
            age = (
                "the bitstream is older: build or fetch a newer one"
                if version < spec.SPEC_VERSION
                else "the bitstream is newer: upgrade circ-overlay"
                if version > spec.SPEC_VERSION
                else "one of them is a development version: build the bitstream from these sources"
            )
            raise IncompatibleError(
                f"the bitstream's core has specification {version} ({values['spec_id']:08x}), this package "
                f"{spec.SPEC_VERSION} ({spec.SPEC_ID:08x}); {age}"
            )
        try:
            return spec.CoreConfig.from_register_values(values)
        except ValueError as error:
            raise IncompatibleError(f"the core's identity registers make no sense: {error}") from error

    def cycles(self) -> int:
        """Clock cycles of the last command."""
        return self.register("cycles_low") | self.register("cycles_high") << 32

    def layer_cycles(self, layers: int) -> list[int]:
        """Clock cycles of the first `layers` layers in the last run."""
        return [self.register("layer_cycles", n) for n in range(layers)]

    def describe(self) -> str:
        """The core's state in one line, for messages. Clears ap_done."""
        ctrl, status = self.register("CTRL"), self.register("status")
        state = "idle" if ctrl & _IDLE else "busy"
        command = self.register("command")
        name = spec.Command(command).name if command in tuple(spec.Command) else str(command)
        known = spec.Status(status).name if status in tuple(spec.Status) else "?"
        return (
            f"core {state} (CTRL={ctrl:#x}), last command {name}, batch {self.register('batch')}, "
            f"{self.register('images')} images finished, status {status} ({known}), "
            f"program {self.register('program_id'):08x}"
        )
