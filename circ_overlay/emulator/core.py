# SPDX-License-Identifier: BSD-3-Clause
"""Register model of the core: the ap_ctrl_hs handshake, commands, identity and counters around an Engine.

It keeps the control block that Vitis HLS generates: ap_start stays set until the command is ready, ap_done
and ap_ready clear on read, IP_ISR toggles. It never computes: that is the engine's work, on the fabric's
hardware thread.

While no S2MM transfer is armed the core takes ON_CHIP_IMAGES of a batch and then stalls, as a pipeline does
whose results have nowhere to go. So a host that sends before it arms the receiver hangs here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..engines import Engine
from ..image import Image
from ..perf.cycles import load_cycles
from .faults import CoreStatus, FaultSet, WrongIdentity
from .streams import Bytes, Sink, Source

__all__ = ["CircCore", "CycleModel"]

Words = NDArray[np.uint64]
T = TypeVar("T")
CycleModel = Callable[[spec.CoreConfig, Sequence[spec.Instruction], int, int, int], tuple[int, Sequence[int]]]
"""(config, instructions, batch, beats in, beats out) -> (cycles of the run, cycles of each layer)."""

ON_CHIP_IMAGES = 2
_OFFSET = {r.name: r.offset for r in spec.REGISTERS}
_CTRL, _GIER, _IER, _ISR = (_OFFSET[n] for n in ("CTRL", "GIER", "IP_IER", "IP_ISR"))
_START, _DONE, _IDLE, _READY, _AUTO, _INTERRUPT = (1 << n for n in (0, 1, 2, 3, 7, 9))


class Submit(Protocol):
    """How work gets onto the hardware thread."""

    def __call__(self, job: Callable[[], T], then: Callable[[T], None]) -> None: ...


class _State(Enum):
    IDLE = "is idle"
    LOADING = "waits for a program image"
    RECEIVING = "waits for images"
    COMPUTING = "computes"
    SENDING = "waits for S2MM to take its results"
    STALLED = "is stuck in a result packet that S2MM could not take"


class CircCore:
    """The core on its bus.

    Parameters
    ----------
    name : instance in the block design.
    engine : computes; its config is the core's.
    source, sink : the two streams, or None where nothing is connected.
    submit : runs a job on the hardware thread, and then, under the fabric's lock, the function behind it,
        unless the core has been reset meanwhile.
    faults : the fabric's.
    cycle_model : modelled cycles of a run.

    Attributes
    ----------
    commands : commands started since the download.
    restarted : a read has started the next command, so that the streams may move.
    """

    status_offsets = frozenset((_CTRL, _ISR))

    def __init__(
        self,
        name: str,
        engine: Engine,
        source: Source | None,
        sink: Sink | None,
        submit: Submit,
        faults: FaultSet,
        cycle_model: CycleModel,
    ) -> None:
        self.name = name
        self.engine = engine
        self._source = source
        self._sink = sink
        self._submit = submit
        self._faults = faults
        self._cycle_model = cycle_model
        self.commands = 0
        self._clear()

    def _clear(self) -> None:
        self._values = {r.name: 0 for r in spec.REGISTERS if r.count == 1}
        self._values |= self.engine.config.register_values()
        self._layer_cycles: Sequence[int] = ()
        self._program: Image | None = None
        self._state = _State.IDLE
        self._flags = 0  # ap_done, ap_ready, auto_restart
        self._restart = False
        self.restarted = False
        self._chunks: list[Bytes] = []
        self._have = self._need = self._image_bytes = self._batch = self._cycles = 0
        self._result = np.empty(0, np.uint8)
        self._forced: spec.Status | None = None

    def reset(self) -> None:
        """Power-on state; the program is lost. The engine follows on its own thread, in order."""
        self._clear()
        self._submit(self.engine.reset, lambda _: None)

    @property
    def interrupts(self) -> dict[str, bool]:
        """The output pin."""
        return {"interrupt": bool(self._values["GIER"] & 1 and self._values["IP_ISR"])}

    # ---- registers ---------------------------------------------------------------------------------------
    def read(self, offset: int) -> int:
        """A register; 0 where there is none."""
        if offset == _CTRL:
            idle = self._state is _State.IDLE
            line = _INTERRUPT if self.interrupts["interrupt"] else 0
            value = self._flags | line | (_IDLE if idle else _START)
            self._flags &= _AUTO
            if self._restart:
                self._restart, self.restarted = False, True
                self._start()
            return value
        first = _OFFSET["layer_cycles"]
        if first <= offset < first + 4 * spec.MAX_LAYERS:
            layer = (offset - first) // 4
            return int(self._layer_cycles[layer]) & 0xFFFFFFFF if layer < len(self._layer_cycles) else 0
        name = _NAME.get(offset, "")
        for fault in self._faults.of(WrongIdentity):
            if name in fault.registers:
                return fault.registers[name] & 0xFFFFFFFF
        return self._values.get(name, 0)

    def write(self, offset: int, value: int) -> None:
        """Write a register; read-only ones ignore it."""
        if offset == _CTRL:
            self._flags = (self._flags & ~_AUTO) | (value & _AUTO)
            if value & _START and self._state is _State.IDLE:
                self._start()
        elif offset == _GIER:
            self._values["GIER"] = value & 1
        elif offset == _IER:
            self._values["IP_IER"] = value & 3
        elif offset == _ISR:
            self._values["IP_ISR"] ^= value & 3
        elif (name := _NAME.get(offset, "")) in ("command", "batch"):
            self._values[name] = value

    # ---- commands ----------------------------------------------------------------------------------------
    def _start(self) -> None:
        command, batch = self._values["command"], self._values["batch"]
        self.commands += 1
        self._chunks, self._have = [], 0
        fault = next((f for f in self._faults.of(CoreStatus) if f.command in (None, command)), None)
        self._forced = fault.status if fault else None
        if command == spec.Command.RUN:
            self._values["images"] = 0
        if command == spec.Command.LOAD:
            self._program, self._values["program_id"] = None, 0
            self._state = _State.LOADING
        elif self._forced is not None:
            self._finish(self._forced)
        elif command == spec.Command.IDENTIFY:
            self._finish(spec.Status.OK)
        elif command != spec.Command.RUN:
            self._finish(spec.Status.BAD_COMMAND)
        elif self._program is None:
            self._finish(spec.Status.NO_PROGRAM)
        elif batch == 0:
            self._finish(spec.Status.BAD_BATCH)
        else:
            self._image_bytes = self._program.in_beats * spec.STREAM_BYTES
            self._batch, self._need = batch, batch * self._image_bytes
            self._state = _State.RECEIVING

    def _finish(self, status: spec.Status, cycles: int = 1) -> None:
        waited = self._state is not _State.IDLE
        self._state = _State.IDLE
        low, high = cycles & 0xFFFFFFFF, cycles >> 32 & 0xFFFFFFFF
        self._values |= {"status": int(status), "cycles_low": low, "cycles_high": high}
        self._flags |= _DONE | _READY
        self._values["IP_ISR"] |= self._values["IP_IER"] & 3
        if self._flags & _AUTO:
            # A command that ends at once would restart for ever inside one access, so it waits for a read.
            self._restart = not waited
            if waited:
                self._start()

    # ---- streams: called by the fabric whenever anything changed -----------------------------------------
    def advance(self) -> bool:
        """Move data as far as they go; whether anything moved."""
        if self._state is _State.LOADING:
            return self._receive(None)
        if self._state is _State.RECEIVING:
            free = self._sink is not None and self._sink.armed
            allowed = self._need if free else min(self._need, ON_CHIP_IMAGES * self._image_bytes)
            return self._receive(allowed - self._have)
        if self._state is _State.SENDING and self._sink is not None and self._sink.armed:
            if self._sink.put(self._result):
                self._values["images"] = self._batch
                self._finish(spec.Status.OK, self._cycles)
            else:
                self._state = _State.STALLED
            return True
        return False

    def _receive(self, limit: int | None) -> bool:
        if self._source is None:
            return False
        data, last = self._source.take(limit)
        if data.size:
            filled = np.zeros(-(-data.size // spec.STREAM_BYTES) * spec.STREAM_BYTES, np.uint8)
            filled[: data.size] = data  # a partial last beat: the core does not look at TKEEP
            self._chunks.append(filled)
            self._have += filled.size
        if self._state is _State.LOADING:
            if last:
                self._load()
        elif self._have >= self._need:
            self._run()
        return bool(data.size) or last

    def _words(self) -> Words:
        chunks, self._chunks = self._chunks, []
        data = chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, np.uint8)])
        return data.view("<u8").astype(np.uint64, copy=False)

    def _load(self) -> None:
        words, engine = self._words(), self.engine
        if self._forced is not None:
            self._finish(self._forced, load_cycles(len(words)))
            return
        self._state = _State.COMPUTING

        def then(outcome: tuple[spec.Status, Image | None]) -> None:
            status, self._program = outcome
            self._values["program_id"] = self._program.program_id if self._program else 0
            self._finish(status, load_cycles(len(words)))

        self._submit(lambda: (engine.load(words), engine.image), then)

    def _run(self) -> None:
        words, engine, batch, program = self._words(), self.engine, self._batch, self._program
        assert program is not None
        self._state = _State.COMPUTING

        def then(result: Words) -> None:
            self._result = np.ascontiguousarray(result, "<u8").view(np.uint8)
            self._cycles, self._layer_cycles = self._cycle_model(
                engine.config, program.instructions, batch, program.in_beats, program.out_beats
            )
            self._state = _State.SENDING

        self._submit(lambda: engine.run(batch, words), then)

    def describe(self) -> str:
        """One line: state, and what it waits for."""
        text = f"{self.name} {self._state.value}"
        if self._state is _State.IDLE:
            return f"{text} with status {spec.Status(self._values['status']).name}"
        if self._state is _State.LOADING:
            return f"{text}: {self._have} bytes taken, no TLAST yet"
        if self._state is _State.RECEIVING:
            full = self._have >= ON_CHIP_IMAGES * self._image_bytes
            armed = self._sink is not None and self._sink.armed
            why = "; it takes no more until S2MM is armed" if full and not armed else ""
            return f"{text}: {self._have} of {self._need} bytes taken{why}"
        if self._state is _State.SENDING:
            return f"{text}: {self._result.size} bytes"
        return text


_NAME = {offset: name for name, offset in _OFFSET.items() if name != "layer_cycles"}
