# SPDX-License-Identifier: BSD-3-Clause
"""The fabric: DDR, clocks, bus and IP of a design put together, with one lock and one hardware thread.

Register accesses and data movements happen in the caller's thread under the lock; the engine's work happens
on the hardware thread without it, so that the host may pack the next batch meanwhile. pynq is not imported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .. import spec
from ..engines import Engine
from ..perf import cycles
from . import axi_dma, intc, slcr
from .axi_dma import AxiDma
from .boards import BOARDS, Board
from .bus import Bus, Slave, Storage
from .core import CircCore, CycleModel
from .ddr import Ddr
from .design import Counters, Design, Ip
from .errors import EmulationDeadlockError, EmulationError
from .faults import Fault, FaultSet
from .intc import AxiIntc
from .streams import Loopback
from .worker import Worker

__all__ = ["Counters", "Design", "Fabric", "Ip"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_POLL_PAUSE = 0.0005  # seconds a repeated poll waits for the engine, so that it does not starve it of the GIL


class Fabric:
    """An emulated Zynq: memory and clocks that stay, and programmable logic that a download replaces.

    Parameters
    ----------
    board : the board.
    ddr : its memory.
    cycle_model : modelled cycles of a run.

    Attributes
    ----------
    lock : guards everything; taken by every method.
    deadlock_polls : status reads in a row after which a wait that cannot end is an error.
    on_interrupt : called under the lock with (line of the processing system, level).
    """

    def __init__(
        self, board: Board = BOARDS["Pynq-Z2"], ddr: Ddr | None = None, cycle_model: CycleModel = cycles.model
    ) -> None:
        self.board = board
        self.ddr = ddr or Ddr()
        self.slcr = slcr.Slcr(board)
        self.bus = Bus()
        self.lock = threading.RLock()
        self.deadlock_polls = 1_000_000
        self.on_interrupt: Callable[[int, bool], None] = lambda line, level: None
        self._cycle_model = cycle_model
        self._faults = FaultSet()
        self._changed = threading.Condition(self.lock)
        self._worker = Worker()
        self._engine_maker: Callable[[], Engine] | None = None
        self._jobs = 0
        self._epoch = 0  # raised by resets, so that results of a core that is no more are dropped
        self._failure: BaseException | None = None
        self._polls = 0
        self._polled: set[int] = set()
        self._design = Design()
        self.configure(Design())

    # ---- configuration -----------------------------------------------------------------------------------
    def configure(self, design: Design, engine: Callable[[], Engine] | None = None) -> None:
        """Replace the programmable logic; DDR and clocks stay.

        Parameters
        ----------
        design : what to put in.
        engine : makes the engine of the core; only called if the design has one.
        """
        with self.lock:
            # First what can fail, so that a failure leaves the old design in place.
            cores = [ip for ip in design.ips if ip.vlnv == spec.CORE_VLNV]
            made = engine() if cores and engine else None
            self._memory_map((ip, Storage(ip.name)) for ip in design.ips)
            for line in self._design.lines.values():
                self.on_interrupt(line, False)
            self._stop_work()
            self._engine_maker = engine
            self._polls = 0
            self._reads = self._writes = 0
            self._design = design
            self.dma: AxiDma | None = None
            self.core: CircCore | None = None
            self._intcs: dict[str, AxiIntc] = {}
            self._loopback: Loopback | None = None
            # The DMA comes first, because the core is connected to its channels.
            ordered = sorted(design.ips, key=lambda ip: ip.vlnv != axi_dma.VLNV)
            self.bus = self._memory_map((ip, self._model(ip, made)) for ip in ordered)
            if design.loopback and self.core is None and self.dma is not None and len(self.dma.channels) == 2:
                self._loopback = Loopback(self.dma.channels["mm2s"], self.dma.channels["s2mm"])
            self._settle()

    def _memory_map(self, models: Iterable[tuple[Ip, Slave]]) -> Bus:
        """The bus with memory, clocks and a design's IP; ValueError if two of them overlap."""
        bus = Bus()
        bus.map(self.ddr.base, self.ddr.size, self.ddr)
        bus.map(slcr.BASE, slcr.SIZE, self.slcr)
        for ip, model in models:
            bus.map(ip.base, ip.size, model)
        return bus

    def _model(self, ip: Ip, engine: Engine | None) -> Slave:
        if ip.vlnv == axi_dma.VLNV:
            dma = AxiDma(ip.name, ip.parameters, self.ddr, self._faults, self._reset_core)
            if self.dma is None:
                self.dma = dma
            else:
                _log.warning("%s: only the first AXI DMA of a design is connected to streams", ip.name)
            return dma
        if ip.vlnv == spec.CORE_VLNV and engine is not None and self.core is None:
            channels = self.dma.channels if self.dma else {}
            self.core = CircCore(
                ip.name, engine, channels.get("mm2s"), channels.get("s2mm"), self._submit, self._faults,
                self._cycle_model,
            )  # fmt: skip
            return self.core
        if ip.vlnv is not None and ip.vlnv.startswith(intc.VLNV_PREFIX):
            self._intcs[ip.name] = AxiIntc(ip.name, ip.parameters)
            return self._intcs[ip.name]
        return Storage(ip.name, ip.vlnv)

    def _reset_core(self) -> None:
        busy = self._stop_work()
        if self._loopback is not None:
            self._loopback.reset()
        if self.core is not None:
            if busy and self._engine_maker is not None:
                self.core.engine = self._engine_maker()  # the old one is still at work, for nobody
            self.core.reset()

    def _stop_work(self) -> bool:
        """Leave what the hardware thread does to itself, on a thread that ends with it; whether there was any."""
        self._epoch += 1
        self._failure = None
        busy = self._jobs > 0
        if busy:
            self._worker.retire()
            self._worker, self._jobs = Worker(), 0
            self._changed.notify_all()
        return busy

    # ---- the hardware thread -----------------------------------------------------------------------------
    def _submit(self, job: Callable[[], T], then: Callable[[T], None]) -> None:
        epoch, worker = self._epoch, self._worker
        self._jobs += 1

        def work() -> None:
            try:
                result = job()
                with self.lock:
                    if epoch == self._epoch:
                        then(result)
                        self._settle()
            except Exception as error:  # whatever it is, the host has to hear of it
                with self.lock:
                    if epoch == self._epoch:
                        self._failure = error
            finally:
                with self.lock:
                    if worker is self._worker:
                        self._jobs -= 1
                        self._polls = 0
                        self._changed.notify_all()

        worker.submit(work)

    def _settle(self) -> None:
        """Move data until nothing moves any more, then set the interrupt lines."""
        movers = [mover for mover in (self.core, self._loopback) if mover is not None]
        while any(mover.advance() for mover in movers):
            pass
        if not self._intcs:
            return
        pins: dict[str, bool] = {}
        for slave in (self.dma, self.core):
            if slave is not None:
                pins |= {f"{slave.name}/{pin}": level for pin, level in slave.interrupts.items()}
        for name, controller in self._intcs.items():
            levels = 0
            for pin, (owner, index) in self._design.interrupts.items():
                if owner == name and pins.get(pin):
                    levels |= 1 << index
            controller.drive(levels)
            if (line := self._design.lines.get(name)) is not None:
                self.on_interrupt(line, controller.output)

    # ---- register accesses -------------------------------------------------------------------------------
    def read(self, address: int) -> int:
        """A 32-bit read on the bus.

        Raises
        ------
        UnmappedAddressError
            Nothing decodes `address`.
        EmulationDeadlockError
            A status register has been polled deadlock_polls times, and nothing can change it any more.
        """
        with self.lock:
            region = self.bus.find(address)
            offset = address - region.base
            if offset in region.slave.status_offsets:
                self._watch(address)
            self._reads += 1
            value = region.slave.read(offset)
            if self.core is not None and self.core.restarted:
                self.core.restarted = False
                self._settle()
            return value

    def write(self, address: int, value: int) -> None:
        """A 32-bit write on the bus; see :meth:`read`."""
        with self.lock:
            region = self.bus.find(address)
            if region.slave is not self.dma and region.slave is not self.slcr:
                self._raise_failure()  # clocks and the DMA's reset are the way out
            self._writes += 1
            self._polls = 0
            region.slave.write(address - region.base, value & 0xFFFFFFFF)
            self._settle()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise EmulationError(f"the engine failed: {self._failure!r}") from self._failure

    def _watch(self, address: int) -> None:
        self._raise_failure()
        self._polls += 1
        if self._jobs:
            if self._polls > 1:
                self._changed.wait(_POLL_PAUSE)
            return
        # A wait polls a few addresses over and over; reading through a memory is no wait.
        self._polled.add(address)
        if len(self._polled) > 8:
            self._polled, self._polls = {address}, 1
        if self._polls > self.deadlock_polls:
            self._polls = 0
            raise EmulationDeadlockError(
                f"status registers were polled {self.deadlock_polls} times, but nothing runs that could "
                f"change them: {self.describe()}"
            )

    # ---- for tests and diagnoses -------------------------------------------------------------------------
    @contextmanager
    def inject(self, fault: Fault) -> Iterator[Fault]:
        """Let `fault` act inside a ``with`` block."""
        with self.lock:
            self._faults.add(fault)
        try:
            yield fault
        finally:
            with self.lock:
                self._faults.remove(fault)
                self._polls = 0
                self._settle()

    @property
    def faults(self) -> FaultSet:
        """The faults that act now."""
        return self._faults

    def wait_quiet(self, timeout: float = 10.0) -> None:
        """Wait until the hardware thread has nothing left to do.

        Raises
        ------
        TimeoutError
            It still works after `timeout` seconds.
        """
        with self.lock:
            if not self._changed.wait_for(lambda: self._jobs == 0, timeout):
                raise TimeoutError(f"the fabric is still busy after {timeout} s: {self.describe()}")
            self._raise_failure()

    @property
    def counters(self) -> Counters:
        """Transfers, bytes and accesses since the last download."""
        with self.lock:
            channels = self.dma.channels if self.dma else {}
            moved: dict[str, int] = {}
            for name, channel in channels.items():
                moved |= {f"{name}_transfers": channel.transfers, f"{name}_bytes": channel.moved}
            return Counters(
                **moved,
                commands=self.core.commands if self.core else 0,
                register_reads=self._reads,
                register_writes=self._writes,
            )

    def describe(self) -> str:
        """Who does what, and who waits for what."""
        with self.lock:
            parts = [slave.describe() for slave in (self.dma, self.core) if slave is not None]
            if self.core is None:
                parts.append("the streams loop back" if self._loopback else "the streams lead to no model")
            if self._jobs:
                parts.append("the engine is working")
            parts += [c.describe() for c in self._intcs.values()]
            return "; ".join(p for p in (*parts, self._faults.describe()) if p)
