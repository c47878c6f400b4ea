# SPDX-License-Identifier: BSD-3-Clause
"""CirculantOverlay: finds board and bitstream, checks that they belong together, hands out networks."""

from __future__ import annotations

import json
import logging
import operator
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pynq
from pynq.ps import Clocks

from .. import models, spec
from ..bitstreams import find_bitstream
from ..emulator import ensure_device
from ..errors import BoardError, CircOverlayError, IncompatibleError
from ..perf.cycles import segment_plan
from ..program import Program
from .core import CirculantCore
from .fits import check_fits
from .hardware import Hardware, device_lock
from .network import Network
from .plan import Planner
from .scheduler import Scheduler
from .stage import Stage
from .statistics import Statistics

__all__ = ["CirculantOverlay"]

_log = logging.getLogger(__name__)
_DMA_VLNV = "xilinx.com:ip:axi_dma:"
MAX_BATCH = 1024
BATCH_SECONDS = 0.25  # of modelled time that a batch of the default size takes at most: far from any time-out


class CirculantOverlay(pynq.Overlay):  # type: ignore[misc]
    """The accelerator on a board, real or emulated.

    Parameters
    ----------
    bitfile : path of a ``.bit`` with its ``.hwh`` beside it; None takes the packaged one for the board. On
        the emulated board, where there is none, one is built on the fly, which says that it is emulated.
    download : configure the fabric now.
    buffer_bytes : size of each of the four DMA buffers.
    host_bytes : what the tensors between the segments of a job may take of the host's memory; None: a quarter of
        the machine's, at most 256 MiB.
    timeout : seconds for any one wait; None: 10 on a board, 120 on the emulated one.
    device : a pynq Device; None: the board if there is one, else the emulated board (see the environment
        variable CIRC_OVERLAY_BOARD = real | emulated).

    Raises
    ------
    BoardError
        There is no board, or no bitstream for it.
    IncompatibleError
        The bitstream holds no circ-overlay core, or one of another specification.
    """

    def __init__(
        self,
        bitfile: str | os.PathLike[str] | None = None,
        *,
        download: bool = True,
        buffer_bytes: int = 1 << 20,
        host_bytes: int | None = None,
        timeout: float | None = None,
        device: Any = None,
    ) -> None:
        self._scheduler: Scheduler | None = None
        if timeout is not None and not 0 < timeout < float("inf"):
            raise ValueError(f"timeout={timeout}: a wait's limit is a number of seconds above 0")
        if buffer_bytes < 4096:
            raise ValueError(f"buffer_bytes={buffer_bytes}: a DMA buffer needs at least 4096 bytes")
        if host_bytes is not None and host_bytes < 1:
            raise ValueError(f"host_bytes={host_bytes}: tensors between segments need memory")
        self._host_bytes = host_bytes or _default_host_bytes()
        device = device or ensure_device()
        self.emulated = bool(getattr(device, "emulated", False))
        path = Path(bitfile) if bitfile is not None else find_bitstream(device.name, emulated=self.emulated)
        if path.exists() and not path.with_suffix(".hwh").exists():
            raise BoardError(f"there is no {path.with_suffix('.hwh').name} beside {path}: both files are needed")
        with device_lock(device):
            self._open(path, download, device)
        self.core_driver, dma = self._find_ip()
        self.config = self.core_driver.identify()
        self.identity = self._read_identity(path)
        limit = timeout if timeout is not None else 120.0 if self.emulated else 10.0
        this = weakref.ref(self)  # what the scheduler's thread holds must not keep the overlay alive

        def is_loaded() -> bool:
            overlay = this()
            return overlay is not None and bool(overlay.is_loaded())

        self._hardware = Hardware(
            self.core_driver,
            dma,
            device,
            self.config,
            is_loaded,
            lambda: _clock_hz(device),
            buffer_bytes=buffer_bytes,
            timeout=limit,
        )
        self._scheduler = Scheduler(self._hardware)
        # An overlay that is dropped without close(), as when a notebook's cell runs again, gives its buffers back.
        weakref.finalize(self, self._scheduler.close, wait=False)
        _log.info("%s", self.describe())

    def _open(self, path: Path, download: bool, device: Any) -> None:
        """What pynq does with the two files; its errors on damaged ones are of every kind."""
        try:
            super().__init__(str(path), download=download, device=device)
        except (CircOverlayError, OSError):
            raise
        except Exception as error:
            raise IncompatibleError(
                f"pynq cannot open {path} with its .hwh ({type(error).__name__}: {error}); "
                "are both whole, and for this board?"
            ) from error

    def download(self, dtbo: str | None = None) -> None:
        """Configure the fabric (again); batches under way finish first, programs are loaded anew."""
        if self._scheduler is None:
            super().download(dtbo)
            return
        self._scheduler.refuse_own_thread("download")

        def download_and_reset() -> None:
            with device_lock(self.device):
                pynq.Overlay.download(self, dtbo)
                self.core_driver.identify()
                self._hardware.reset()

        self._scheduler.exclusively(download_and_reset).result()

    def _find_ip(self) -> tuple[CirculantCore, Any]:
        found = {name: str(entry.get("type")) for name, entry in self.ip_dict.items()}
        cores = [name for name, vlnv in found.items() if vlnv == spec.CORE_VLNV]
        dmas = [name for name, vlnv in found.items() if vlnv.startswith(_DMA_VLNV)]
        if len(cores) != 1 or not dmas:
            held = ", ".join(sorted(set(found.values()))) or "no IP"
            raise IncompatibleError(
                f"{self.bitfile_name} is not a circ-overlay design: it holds {held}, but exactly one "
                f"{spec.CORE_VLNV} and an {_DMA_VLNV}7.1 are needed; give this package's own bitstream"
            )
        drivers = {name: getattr(self, name) for name in (cores[0], dmas[0])}
        return drivers[cores[0]], drivers[dmas[0]]

    def _read_identity(self, path: Path) -> dict[str, Any]:
        """circ.json beside the bitstream, checked against the core that answers."""
        sidecar = path.with_suffix(".json")
        if not sidecar.exists():
            return {"emulated": self.emulated, "note": f"no {sidecar.name} beside the bitstream"}
        try:
            identity: dict[str, Any] = dict(json.loads(sidecar.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise IncompatibleError(f"{sidecar} is damaged ({error}); fetch all of {path.stem}.* again") from error
        if identity.get("spec_hash") != spec.SPEC_HASH:
            raise IncompatibleError(
                f"{sidecar} names specification {str(identity.get('spec_hash'))[:12]}, the core has "
                f"{spec.SPEC_HASH[:12]}: the two files are of different builds; fetch all of {path.stem}.* again"
            )
        return identity

    def load(self, program: Program | str | os.PathLike[str], *, batch_size: int | None = None) -> Network:
        """Make a network of `program`; its weights go to the core with its first batch.

        Parameters
        ----------
        program : a Program, the path of a ``.circ`` file, or the name of a network of the zoo
        batch_size : largest number of samples in one transfer; None: up to 1024, as the buffers allow and
            the core computes in a quarter of a second. Sequences are never cut: a longer one has a transfer to itself.

        Raises
        ------
        IncompatibleError
            This core cannot execute the program; the message says what is missing.
        ProgramFileError
            The file cannot be read.
        """
        if self._scheduler is None:
            raise BoardError("the overlay is closed; open it again with CirculantOverlay()")
        if not isinstance(program, Program):
            known = str(program) in models.MODELS and not Path(program).exists()
            program = models.load(str(program)) if known else Program.load(program)
        check_fits(program, self.config)
        stages = [Stage(program, index) for index in range(len(program.segments))]
        limits = [self._limit(stage) for stage in stages]
        largest = min(limits) if program.sequence else max(limits)
        if batch_size is not None:
            batch_size = operator.index(batch_size)
        if batch_size is not None and not 1 <= batch_size <= largest:
            raise ValueError(f"batch_size={batch_size}: the buffers allow 1..{largest} for {program.name}")
        batch = [
            min(limit, batch_size or min(MAX_BATCH, max(1, int(BATCH_SECONDS * _clock_hz(self.device) / cycles.run))))
            for limit, cycles in zip(limits, segment_plan(self.config, program, 1))
        ]
        statistics = Statistics(
            layers=len(program.layers),
            cycles_provenance=getattr(self.device, "cycle_provenance", "measured"),
            clock_hz=_clock_hz(self.device),
        )
        planner = Planner(stages, self.config, batch, self._host_bytes)
        return Network(planner, self, self._scheduler, statistics, min(limits))

    def _limit(self, stage: Stage) -> int:
        """Largest batch of a segment; IncompatibleError if its image or a single sample fits in no buffer."""
        room = self._hardware.buffer_bytes
        if stage.image.size > room:
            raise IncompatibleError(
                f"the image of {stage.name} has {stage.image.size} bytes and must travel as one packet, "
                f"but this design's DMA moves at most {room}: its c_sg_length_width is too small"
            )
        limit = self._hardware.batch_limit(stage)
        if not limit:
            raise IncompatibleError(
                f"one sample of {stage.name} takes {stage.in_bytes} bytes in and {stage.out_bytes} out, a buffer "
                f"holds {room}; open the overlay with larger buffer_bytes"
            )
        return limit

    @property
    def clock_mhz(self) -> float:
        """Frequency of the core's clock as the board's clock registers have it, MHz."""
        return _clock_hz(self.device) / 1e6

    def describe(self) -> str:
        """Board, core and clock in one line; says so if the board is emulated."""
        c = self.config
        name = self.device.name
        board = f"{name} (EMULATED, engine {self.device.engine_name})" if self.emulated else name
        built = "" if not self.identity.get("emulated") else ", bitstream emulated, built on the fly"
        return (
            f"{board}: circ_core, specification {spec.SPEC_VERSION} ({spec.SPEC_ID:08x}), {c.width} bits, "
            f"{c.lanes} lanes, {c.samples} samples/cycle, {self.clock_mhz:g} MHz{built}"
        )

    def close(self, *, cancel: bool = False) -> None:
        """Finish what is queued, end the scheduler, free the buffers. The fabric stays configured.

        With `cancel` only the batch under way is finished; the futures of the rest raise CancelledError.
        """
        if self._scheduler is not None:
            self._scheduler.refuse_own_thread("close")
            self._scheduler.close(cancel=cancel)
            self._hardware.close()
            self._scheduler = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("an overlay cannot be copied or pickled: it owns hardware of this process")

    def __enter__(self) -> CirculantOverlay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def __repr__(self) -> str:
        return f"<CirculantOverlay {self.describe()}>"


def _default_host_bytes() -> int:
    """A quarter of the machine's memory, at most 256 MiB: boards have 512 MiB or 1 GiB of it."""
    return min(1 << 28, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


_clocks: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


def _clock_hz(device: Any) -> float:
    """The fabric's clock. pynq's Clocks speak for the active device alone, so others keep the last value seen."""
    if device not in _clocks or pynq.Device.active_device is device:
        _clocks[device] = float(Clocks.fclk0_mhz) * 1e6
    return _clocks[device]
