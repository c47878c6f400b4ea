# SPDX-License-Identifier: BSD-3-Clause
"""The emulated board as a pynq Device: the real pynq package runs on it unmodified.

Works with pynq 3.0.1 to 4.0.0. Two things outside the Device are touched: ``pynq.interrupt.get_uio_irq``,
which would look for /proc/interrupts, and, before pynq 3.1, ``pynq.ps.CPU_ARCH``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pynq
import pynq.interrupt
import pynq.ps
from pynq.buffer import PynqBuffer
from pynq.pl_server import embedded_device as embedded
from pynq.pl_server.device import Device
from pynq.pl_server.xclbin_parser import XclBin

from .. import engines, spec
from ..errors import IncompatibleError
from .bitstream import read_metadata
from .boards import board as find_board
from .ddr import Allocation
from .fabric import Design, Fabric, Ip
from .faults import CorruptBitstream
from .mapping import BusArray
from .probe import real_devices
from .uio import UioLine

__all__ = ["EmulatedDevice", "EmulatedMemory", "install"]

_log = logging.getLogger(__name__)
_uio_lines: dict[int, UioLine] = {}


class EmulatedMemory:
    """DDR as pynq allocates from it."""

    def __init__(self, device: EmulatedDevice, description: dict[str, Any]) -> None:
        self.device = device
        self.desc = description
        self.idx = description.get("idx", 0)
        self.base_address = description.get("base_address", 0)
        self.size = description.get("size", device.fabric.ddr.size)

    def allocate(self, shape: Any, dtype: Any, cacheable: int = 0, **kwargs: Any) -> PynqBuffer:
        """A zeroed buffer, freed by ``freebuffer``, at the end of a ``with``, or with its last reference."""
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        device = self.device
        cached = bool(cacheable) or device.strict_cache
        with device.fabric.lock:
            allocation = device.fabric.ddr.allocate(nbytes, cached=cached)
        buffer = PynqBuffer(
            shape,
            dtype,
            bo=allocation,
            device=device,
            buffer=allocation.cpu,
            device_address=allocation.address,
            coherent=False,
        )
        buffer.memory = self
        buffer.pointer = allocation
        buffer.return_to = self
        buffer.freed = True  # or a second freebuffer would call munmap, which exists only on a board
        return buffer

    def return_pointer(self, allocation: Allocation) -> None:
        """Called by a PynqBuffer that is freed, perhaps by the garbage collector."""
        self.device.fabric.ddr.release(allocation)


class EmulatedDevice(Device):  # type: ignore[misc]
    """A Zynq board with a :class:`Fabric` in place of the chip.

    Attributes
    ----------
    emulated : True.
    fabric : everything behind the buses.
    engine : name of the engine that the next download uses; None for the fastest there is.
    engine_name : name of the engine of the last download.
    cycle_provenance : what the core's cycle counters are: "modelled".
    strict_cache : every buffer is cached, so that a missing flush or invalidate shows.
    """

    _probe_priority_ = 10
    _installed: ClassVar[EmulatedDevice | None] = None

    emulated = True
    cycle_provenance = "modelled"

    @classmethod
    def _probe_(cls) -> list[EmulatedDevice]:
        return [cls._installed] if cls._installed else []

    def __init__(self, board: str, *, strict_cache: bool = False, engine: str | None = None) -> None:
        super().__init__("emulated")
        self.board = find_board(board)
        self.name = self.board.name
        self.arch = self.board.arch
        self.capabilities = {"MEMORY_MAPPED": True, "REGISTER_RW": False, "CALLABLE": False}
        self.strict_cache = strict_cache
        self.engine = engine
        self.engine_name = engine or os.environ.get("CIRC_OVERLAY_ENGINE") or engines.best_engine()
        self.fabric = Fabric(self.board)
        self.fabric.on_interrupt = _set_line

    # ---- memory ------------------------------------------------------------------------------------------
    @property
    def default_memory(self) -> EmulatedMemory:
        """The board's DDR; as on a board, only after an overlay has been opened."""
        if not hasattr(self, "mem_dict"):
            raise RuntimeError("Overlay is not downloaded")
        for description in self.mem_dict.values():
            if description.get("base_address") == 0:
                return self.get_memory(description)
        raise RuntimeError("the design describes no memory of the processing system")

    def get_memory(self, description: dict[str, Any]) -> EmulatedMemory:
        """The memory that an entry of ``mem_dict`` describes."""
        return EmulatedMemory(self, description)

    def flush(self, bo: Allocation, offset: int, vaddr: int, nbytes: int) -> None:
        """Write the CPU's cache back."""
        with self.fabric.lock:
            self.fabric.ddr.flush(bo, offset, nbytes)

    def invalidate(self, bo: Allocation, offset: int, vaddr: int, nbytes: int) -> None:
        """Drop the CPU's cache."""
        with self.fabric.lock:
            self.fabric.ddr.invalidate(bo, offset, nbytes)

    def mmap(self, base_addr: int, length: int) -> BusArray:
        """A window of the bus as pynq's MMIO uses it."""
        return BusArray.open(self.fabric, base_addr, length)

    # ---- configuration -----------------------------------------------------------------------------------
    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        """Parse the ``.hwh`` beside a bitstream with pynq's own parser. Nothing is cached."""
        if partial:
            raise NotImplementedError("the emulated board cannot load partial bitstreams")
        handoff = Path(bitfile_name).with_suffix(".hwh")
        if not handoff.exists():
            raise RuntimeError("Unable to find metadata for bitstream")
        parser = embedded.RuntimeMetadataParser(embedded.Metadata(str(handoff)))
        xclbin = XclBin(xclbin_data=embedded.DEFAULT_XCLBIN)
        embedded._unify_dictionaries(parser, xclbin)
        parser.refresh_hierarchy_dict()
        parser.bin_data = embedded._get_bitstream_handler(bitfile_name).get_bin_data()
        parser.xclbin_data, parser.dtbo_data = embedded.DEFAULT_XCLBIN, None
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Configure the fabric with a bitstream and its metadata.

        Raises
        ------
        OSError
            The bitstream is damaged, as the FPGA manager would find.
        IncompatibleError
            The ``.hwh`` is not the one that belongs to the emulated bitstream.
        """
        path = Path(bitstream.bitfile_name)
        data = path.read_bytes()
        if any(True for _ in self.fabric.faults.of(CorruptBitstream)):
            raise OSError(5, f"the FPGA manager refused {path.name} (injected)")
        try:
            metadata = read_metadata(data)
        except ValueError as error:
            raise OSError(5, f"the FPGA manager refused {path}: {error}") from error
        handoff = path.with_suffix(".hwh")
        if metadata and hashlib.sha256(handoff.read_bytes()).hexdigest() != metadata["hwh_sha256"]:
            raise IncompatibleError(f"{handoff} does not belong to {path.name}; build both again")
        parser = parser or self.get_bitfile_metadata(str(path))
        config = spec.CoreConfig(**metadata["config"]) if metadata else spec.CoreConfig()
        self.engine_name = self.engine or os.environ.get("CIRC_OVERLAY_ENGINE") or engines.best_engine()
        self.fabric.configure(_design(parser), lambda: engines.create_engine(self.engine_name, config))
        bitstream.binfile_name = path.stem + ".bin"
        embedded.EmbeddedDevice.set_axi_port_width(self, parser)
        super().post_download(bitstream, parser, self.name)

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Nothing: the cache would lie in site-packages and be served to other boards."""

    def shutdown(self) -> None:
        """Nothing: there are no other masters on the emulated bus."""

    def close(self) -> None:
        """Nothing to close."""


def _design(parser: Any) -> Design:
    """A parsed ``.hwh`` as the fabric takes it."""
    ips = [
        Ip(name=name, vlnv=d["type"], base=d["phys_addr"], size=d["addr_range"], parameters=d["parameters"])
        for name, d in parser.ip_dict.items()
        if "phys_addr" in d
    ]
    ips += [
        Ip(name=name, vlnv=None, base=memory["phys_addr"], size=memory["addr_range"])
        for name, memory in parser.mem_dict.items()
        if "phys_addr" in memory
    ]
    blocks = getattr(getattr(parser, "md", None), "blocks", {})
    types = [getattr(getattr(block, "vlnv", None), "name", "") for block in blocks.values()]
    return Design(
        ips=ips,
        interrupts={pin: (i["controller"], i["index"]) for pin, i in parser.interrupt_pins.items()},
        lines={name: i["raw_irq"] for name, i in parser.interrupt_controllers.items()},
        loopback="axis_data_fifo" in types,
    )


def _set_line(line: int, level: bool) -> None:
    if line in _uio_lines:
        _uio_lines[line].set_level(level)


def _patch_uio() -> None:
    """Let pynq find an emulated UIO device for each interrupt line while the emulated board is active."""
    original: Callable[[int], str | None] = pynq.interrupt.get_uio_irq
    if getattr(original, "emulated", False):
        return

    def get_uio_irq(irq: int) -> str | None:
        if not isinstance(Device.active_device, EmulatedDevice):
            return original(irq)
        if irq not in _uio_lines:
            try:
                _uio_lines[irq] = UioLine()
            except ImportError:
                return None
        return _uio_lines[irq].path

    get_uio_irq.emulated = True  # type: ignore[attr-defined]
    pynq.interrupt.get_uio_irq = get_uio_irq


def install(board: str, *, strict_cache: bool, engine: str | None) -> EmulatedDevice:
    """Make an emulated board pynq's active device; the installed one, if it is the same."""
    old = EmulatedDevice._installed
    same = old is not None and (old.name, old.strict_cache, old.engine) == (board, strict_cache, engine)
    device = old if same and old else EmulatedDevice(board, strict_cache=strict_cache, engine=engine)
    EmulatedDevice._installed = device
    if old is not None and old is not device:
        old.fabric.on_interrupt = lambda line, level: None
    if pynq.__version__.startswith("3.0"):
        pynq.ps.CPU_ARCH = device.arch
    _patch_uio()
    Device._devices = [device, *real_devices()]
    if vars(Device).get("_active_device") is not device:
        if "_real_instance" in vars(pynq.ps.Clocks):
            del pynq.ps.Clocks._real_instance  # it holds registers of the device that was active
        Device.active_device = device
    return device
