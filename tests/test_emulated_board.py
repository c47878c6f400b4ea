# SPDX-License-Identifier: BSD-3-Clause
"""The emulated board under the real pynq package; passes with pynq 3.1.2 and 4.0.0."""

import asyncio
import gc
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

from circ_overlay import emulator, golden, spec
from circ_overlay.emulator import EmulationDeadlockError, UnmappedAddressError, bitstream, faults
from circ_overlay.errors import BoardError, IncompatibleError
from circ_overlay.program import Program

pynq: Any = pytest.importorskip("pynq")
from pynq.pl_server.device import Device  # noqa: E402
from pynq.pl_server.global_state import bitstream_hash  # noqa: E402
from pynq.ps import Clocks  # noqa: E402

OFFSET = {r.name: r.offset for r in spec.REGISTERS}
SKELETON = """<EDKSYSTEM><SYSTEMINFO NAME="other"/><EXTERNALPORTS/><MODULES>
<MODULE FULLNAME="/ps7" INSTANCE="ps7" IS_PL="FALSE" MODTYPE="processing_system7"
 VLNV="xilinx.com:ip:processing_system7:5.5"><PARAMETERS>{clocks}</PARAMETERS><BUSINTERFACES>
 <BUSINTERFACE NAME="M_AXI_GP0" TYPE="MASTER" VLNV="xilinx.com:interface:aximm:1.0"/></BUSINTERFACES>
 <MEMORYMAP><MEMRANGE ADDRESSBLOCK="Reg" BASEVALUE="0x43C00000" HIGHVALUE="0x43C0FFFF" INSTANCE="scale_0"
  MASTERBUSINTERFACE="M_AXI_GP0" MEMTYPE="REGISTER" SLAVEBUSINTERFACE="s_axi"/></MEMORYMAP></MODULE>
<MODULE FULLNAME="/scale_0" INSTANCE="scale_0" MODTYPE="scale" VLNV="example.org:hls:scale:1.0">
 <ADDRESSBLOCKS><ADDRESSBLOCK INTERFACE="s_axi" NAME="Reg" USAGE="register"><REGISTERS>
  <REGISTER NAME="factor"><PROPERTY NAME="ADDRESS_OFFSET" VALUE="0x10"/><PROPERTY NAME="SIZE" VALUE="32"/>
  <PROPERTY NAME="ACCESS" VALUE="read-write"/></REGISTER></REGISTERS></ADDRESSBLOCK></ADDRESSBLOCKS>
 <BUSINTERFACES><BUSINTERFACE NAME="s_axi" TYPE="SLAVE" VLNV="xilinx.com:interface:aximm:1.0"/>
 </BUSINTERFACES></MODULE></MODULES></EDKSYSTEM>"""


@pytest.fixture(scope="module")
def small() -> Program:
    """A layer with bias, relu and a block size that divides neither side."""
    return builders.mlp(sizes=(20, 10), blocks=(8,))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A board on which nothing has been downloaded yet."""
    for name in ("CIRC_OVERLAY_BOARD", "CIRC_OVERLAY_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield emulator.install(engine="golden")
    forget()


def forget() -> None:
    """Make pynq as it is after its import."""
    from circ_overlay.emulator.device import EmulatedDevice

    EmulatedDevice._installed = None
    for holder, name in ((Device, "_devices"), (Device, "_active_device"), (Clocks, "_real_instance")):
        if name in vars(holder):
            delattr(holder, name)


@pytest.fixture
def bit(tmp_path: Path) -> str:
    return str(bitstream.build(tmp_path))


class Core:
    """Commands by registers, data by pynq's DMA driver."""

    def __init__(self, overlay: Any) -> None:
        self.ip, self.dma = overlay.circ_core_0, overlay.axi_dma_0

    def start(self, command: int, batch: int = 0) -> None:
        for name, value in (("command", command), ("batch", batch), ("CTRL", 1)):
            self.ip.write(OFFSET[name], int(value))

    def finish(self) -> spec.Status:
        while not self.ip.read(0) & 2:
            pass
        return spec.Status(self.ip.read(OFFSET["status"]))

    def load(self, program: Program) -> spec.Status:
        with pynq.allocate(program.image.shape, np.uint64) as image:
            image[:] = program.image
            self.start(spec.Command.LOAD)
            self.dma.sendchannel.transfer(image)
            self.dma.sendchannel.wait()
            return self.finish()

    def buffers(self, program: Program, batch: int) -> tuple[Any, Any, Any]:
        """Input buffer with samples, output buffer, and what is to come."""
        values = np.random.default_rng(batch).integers(-2048, 2048, (batch, program.input.features))
        x = pynq.allocate((batch, 4 * program.segments[0].in_beats), np.int16)
        x[:, : values.shape[1]] = values
        return x, pynq.allocate((batch, 4 * program.segments[0].out_beats), np.int16), golden.run(program, values)

    def send(self, x: Any, y: Any) -> None:
        self.start(spec.Command.RUN, len(x))
        self.dma.recvchannel.transfer(y)
        self.dma.sendchannel.transfer(x)


# ---- metadata and clocks ----------------------------------------------------------------------------------
def test_overlay_lists_the_design(device: Any, bit: str) -> None:
    overlay = pynq.Overlay(bit)
    addresses = {name: ip["phys_addr"] for name, ip in overlay.ip_dict.items() if "phys_addr" in ip}
    assert addresses == {"axi_dma_0": 0x4040_0000, "circ_core_0": 0x43C0_0000, "axi_intc_0": 0x4180_0000}
    assert overlay.ip_dict["circ_core_0"]["type"] == spec.CORE_VLNV
    assert overlay.ip_dict["circ_core_0"]["addr_range"] == 0x1_0000
    assert type(overlay.axi_dma_0) is pynq.lib.dma.DMA
    assert overlay.axi_dma_0.buffer_max_size == (1 << 26) - 1
    pins = {pin: (i["controller"], i["index"]) for pin, i in overlay.interrupt_pins.items()}
    assert {pin: owner for pin, owner in pins.items() if "xlconcat" not in pin} == {
        "axi_dma_0/mm2s_introut": ("axi_intc_0", 0),
        "axi_dma_0/s2mm_introut": ("axi_intc_0", 1),
        "circ_core_0/interrupt": ("axi_intc_0", 2),
    }
    assert overlay.interrupt_controllers["axi_intc_0"]["raw_irq"] == 61
    assert isinstance(overlay.circ_core_0.interrupt, pynq.Interrupt)
    assert overlay.is_loaded()
    assert (device.emulated, device.engine_name, device.cycle_provenance) == (True, "golden", "modelled")
    assert (device.name, device.arch) == ("Pynq-Z2", "armv7l")


def test_register_map_has_every_register_and_field(device: Any, bit: str) -> None:
    core = pynq.Overlay(bit).circ_core_0
    config = spec.CoreConfig()
    assert int(core.register_map.magic) == spec.MAGIC
    assert core.register_map.config.lanes == config.lanes
    assert core.register_map.config.spec_version == spec.SPEC_VERSION
    for register in spec.REGISTERS:
        for n in range(register.count):
            name = register.name if register.count == 1 else f"{register.name}_{n}"
            entry = getattr(core.register_map, name)
            assert entry.address == register.offset + 4 * n
            for field in register.fields:
                assert hasattr(entry, field.name)
    core.register_map.batch = 77
    assert core.read(OFFSET["batch"]) == 77
    core.register_map.command = int(spec.Command.IDENTIFY)
    core.register_map.CTRL.AP_START = 1
    assert core.register_map.CTRL.AP_DONE == 1
    assert core.register_map.CTRL.AP_DONE == 0
    assert "magic = Register(magic=1128878659)" in repr(core.register_map)


@pytest.mark.parametrize("mhz", [50.0, 100.0, 125.0, 1000 / 7])
def test_clocks_after_download(device: Any, tmp_path: Path, mhz: float) -> None:
    overlay = pynq.Overlay(str(bitstream.build(tmp_path, clock_mhz=mhz)))
    assert Clocks.fclk0_mhz == pytest.approx(mhz, abs=1e-3)
    assert Clocks.cpu_mhz == 650.0
    assert device.fabric.slcr.fabric_mhz(0) == pytest.approx(mhz)
    assert overlay.clock_dict[0]["enable"] == 1
    Clocks.fclk0_mhz = 25
    assert Clocks.fclk0_mhz == 25.0


# ---- memory -----------------------------------------------------------------------------------------------
def test_allocation_needs_an_overlay(device: Any) -> None:
    with pytest.raises(RuntimeError, match="Overlay is not downloaded"):
        pynq.allocate(4)


def test_buffers(device: Any, bit: str) -> None:
    pynq.Overlay(bit)
    with pynq.allocate((3, 5), np.int16) as buffer:
        assert (buffer.shape, buffer.dtype, buffer.any()) == ((3, 5), np.int16, False)
        assert buffer.physical_address % 4096 == 0
        assert buffer[1:].physical_address == buffer.physical_address + 10
        assert buffer.physical_address + buffer.nbytes < 1 << 32
        buffer[1, 0] = 0x1234
        assert pynq.MMIO(buffer.physical_address, 64).read(8) == 0x1234_0000
        assert len(device.fabric.ddr.allocations) == 1
        address = buffer.physical_address
        buffer[:] = -1
    assert device.fabric.ddr.allocations == ()
    again = pynq.allocate(7)
    assert (again.physical_address, again.any()) == (address, False), "reused, and zeroed"
    again.freebuffer()
    again.freebuffer()
    assert device.fabric.ddr.allocations == ()


def test_the_garbage_collector_frees(device: Any, bit: str) -> None:
    pynq.Overlay(bit)
    held = [pynq.allocate(100) for _ in range(5)]
    cycle: list[Any] = [pynq.allocate(100)]
    cycle.append(cycle)
    assert len(device.fabric.ddr.allocations) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del held, cycle
        gc.collect()
    assert device.fabric.ddr.allocations == ()


@pytest.mark.parametrize("strict", [False, True])
def test_strict_mode_finds_a_missing_flush(bit: str, device: Any, small: Program, strict: bool) -> None:
    device = emulator.install(strict_cache=strict, engine="golden")
    assert emulator.install(strict_cache=strict, engine="golden") is device
    core = Core(pynq.Overlay(bit))
    assert core.load(small) is spec.Status.OK
    x, y, expected = core.buffers(small, 2)
    core.start(spec.Command.RUN, 2)
    core.dma.recvchannel.transfer(y)
    mmio = core.dma.mmio
    mmio.write(0x18, x.physical_address)  # by registers: nobody flushes
    mmio.write(0x28, x.nbytes)
    core.finish()
    got = np.array(y)[:, :10]
    assert not got.any() if strict else np.array_equal(got, expected), "the CPU does not see the results"
    y.invalidate()
    assert np.array_equal(np.array(y)[:, :10], expected) is not strict, "the core did not see the inputs"
    x.flush()
    core.send(x, y)
    core.dma.sendchannel.wait()
    core.dma.recvchannel._active_buffer = np.empty(0).view(Mute)  # wait() would invalidate y
    core.dma.recvchannel.wait()
    y.invalidate()
    np.testing.assert_array_equal(np.array(y)[:, :10], expected)


class Mute(np.ndarray[Any, Any]):
    """A buffer whose invalidate does nothing."""

    def invalidate(self) -> None:
        pass


# ---- running ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strict", [False, True])
def test_load_and_run_equal_golden(bit: str, device: Any, small: Program, strict: bool) -> None:
    device = emulator.install(strict_cache=strict, engine="golden")
    core = Core(pynq.Overlay(bit))
    assert core.load(small) is spec.Status.OK
    assert core.ip.read(OFFSET["program_id"]) == int(small.image[1]) & 0xFFFFFFFF
    for batch in (1, 2, 9):
        x, y, expected = core.buffers(small, batch)
        core.send(x, y)
        core.dma.sendchannel.wait()
        core.dma.recvchannel.wait()
        assert core.finish() is spec.Status.OK
        np.testing.assert_array_equal(np.array(y)[:, :10], expected)
        assert core.dma.recvchannel.transferred == y.nbytes
        assert core.ip.read(OFFSET["images"]) == batch
        assert core.ip.read(OFFSET["cycles_low"]) > 0
    assert device.fabric.counters.commands == 4


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of a new session: pynq binds a line to the loop of its first use, for ever."""
    from pynq.interrupt import _InterruptController

    def drop() -> None:
        _InterruptController._controllers.clear()
        _InterruptController._uio_devices.clear()
        gc.collect()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    drop()
    yield loop
    drop()
    loop.close()
    asyncio.set_event_loop(asyncio.new_event_loop())


def test_interrupts(bit: str, device: Any, small: Program, loop: asyncio.AbstractEventLoop) -> None:
    core = Core(pynq.Overlay(bit))
    core.load(small)
    core.dma.sendchannel._clear_interrupt()
    x, y, expected = core.buffers(small, 3)

    async def runs() -> None:
        for _ in range(3):
            y[:] = 0
            core.send(x, y)
            await core.dma.sendchannel.wait_async()
            await core.dma.recvchannel.wait_async()
            np.testing.assert_array_equal(np.array(y)[:, :10], expected)

    loop.run_until_complete(asyncio.wait_for(runs(), 20))

    async def done() -> None:
        core.ip.register_map.GIER = 1
        core.ip.register_map.IP_IER = 1
        core.start(spec.Command.IDENTIFY)
        await core.ip.interrupt.wait()
        core.ip.register_map.IP_ISR = 1

    core.finish()
    loop.run_until_complete(asyncio.wait_for(done(), 20))
    assert int(core.ip.register_map.IP_ISR) == 0


def test_a_wait_that_cannot_end(bit: str, device: Any, small: Program) -> None:
    core = Core(pynq.Overlay(bit))
    device.fabric.deadlock_polls = 50
    x, y, _ = core.buffers(small, 1)
    core.send(x, y)
    assert core.finish() is spec.Status.NO_PROGRAM
    with pytest.raises(EmulationDeadlockError, match=r"S2MM waits for 24 bytes.*idle with status NO_PROGRAM"):
        core.dma.recvchannel.wait()
    core.dma.mmio.write(0, 4)  # what a driver has to do then
    core.dma.sendchannel.start()
    core.dma.recvchannel.start()
    assert core.load(small) is spec.Status.OK


def test_bus_error_as_pynq_reports_it(bit: str, device: Any, small: Program) -> None:
    core = Core(pynq.Overlay(bit))
    x, _, _ = core.buffers(small, 1)
    with device.fabric.inject(faults.BusError("mm2s")):
        core.dma.sendchannel.transfer(x)
    with pytest.raises(RuntimeError, match="DMA channel not started"):
        core.dma.sendchannel.wait()
    assert core.dma.register_map.MM2S_DMASR.DMADecErr == 1
    core.dma.register_map.MM2S_DMACR.Reset = 1
    core.dma.sendchannel.start()
    core.dma.recvchannel.start()
    assert core.load(small) is spec.Status.OK


# ---- downloads --------------------------------------------------------------------------------------------
def test_two_overlays_one_after_the_other(tmp_path: Path, device: Any, small: Program) -> None:
    first = pynq.Overlay(str(bitstream.build(tmp_path / "a")))
    buffer = pynq.allocate(4)
    buffer[:] = 5
    assert Core(first).load(small) is spec.Status.OK
    config = spec.CoreConfig(width=16, lanes=9)
    second = pynq.Overlay(str(bitstream.build(tmp_path / "b", config=config, clock_mhz=50)))
    assert Clocks.fclk0_mhz == 50.0
    assert second.circ_core_0.register_map.config.lanes == 9
    assert second.circ_core_0.read(OFFSET["program_id"]) == 0
    assert buffer.tolist() == [5] * 4, "DDR outlives a download"
    assert not first.is_loaded()
    with pytest.raises(RuntimeError, match="not currently loaded"):
        first.axi_dma_0  # noqa: B018
    assert Core(second).load(small) is spec.Status.WIDTH_MISMATCH


def test_download_resets_the_logic_and_stales_old_channels(bit: str, device: Any, small: Program) -> None:
    overlay = pynq.Overlay(bit)
    core = Core(overlay)
    core.load(small)
    core.ip.write(OFFSET["batch"], 3)
    overlay.download()
    assert core.ip.read(OFFSET["batch"]) == core.ip.read(OFFSET["program_id"]) == 0
    with pytest.raises(RuntimeError, match="DMA channel not started"):
        core.dma.sendchannel.transfer(pynq.allocate(8))


def test_a_changed_handoff_changes_the_bitstream(tmp_path: Path, device: Any) -> None:
    bit = bitstream.build(tmp_path)
    old = bitstream_hash(str(bit))
    pynq.Overlay(str(bit))
    bitstream.build(tmp_path, clock_mhz=50)
    assert bitstream_hash(str(bit)) != old, "pynq keys its metadata cache on this"
    clock = pynq.Overlay(str(bit)).clock_dict[0]
    assert clock["divisor0"] * clock["divisor1"] == 20
    assert Clocks.fclk0_mhz == 50.0
    handoff = bit.with_suffix(".hwh")
    handoff.write_text(handoff.read_text().replace("0x43C0", "0x43D0"))
    with pytest.raises(IncompatibleError, match=r"circ.hwh does not belong to circ.bit"):
        pynq.Overlay(str(bit))


def test_damaged_bitstreams_are_refused(tmp_path: Path, device: Any, bit: str) -> None:
    pynq.Overlay(bit)
    with device.fabric.inject(faults.CorruptBitstream()), pytest.raises(OSError, match="injected"):
        pynq.Overlay(bit)
    data = bytearray(Path(bit).read_bytes())
    data[data.find(bitstream.MARKER) + 50] ^= 1
    Path(bit).write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        pynq.Overlay(bit)
    Path(bit).write_bytes(data[:-4])
    with pytest.raises(RuntimeError, match="Invalid length"):
        pynq.Overlay(bit)
    Path(bit).with_suffix(".hwh").unlink()
    with pytest.raises(RuntimeError, match="Unable to find metadata"):
        pynq.Overlay(bit)


def foreign_bit(path: Path) -> str:
    """A bitstream of somebody else: a valid header around other data."""
    payload = bytes.fromhex("ffffffffaa995566") * 4
    texts = {b"a": b"x\0", b"b": b"7z020clg400\0"}
    fields = b"".join(key + len(text).to_bytes(2, "big") + text for key, text in texts.items())
    path.write_bytes(b"\0\1\0\0\1" + fields + b"e" + len(payload).to_bytes(4, "big") + payload)
    return str(path)


def test_foreign_design(tmp_path: Path, device: Any, caplog: pytest.LogCaptureFixture) -> None:
    names: list[tuple[str, Any]] = [(f"PCW_FCLK{n}_PERIPHERAL_DIVISOR0", 5) for n in range(4)]
    names += [(f"PCW_FCLK{n}_PERIPHERAL_DIVISOR1", 2) for n in range(4)]
    names += [(f"PCW_FPGA_FCLK{n}_ENABLE", int(n == 0)) for n in range(4)]
    names += [(f"PCW_FCLK{n}_PERIPHERAL_CLKSRC", "IO PLL") for n in range(4)]
    names += [("PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ", 100.0)]
    clocks = "".join(f'<PARAMETER NAME="{name}" VALUE="{value}"/>' for name, value in names)
    (tmp_path / "other.hwh").write_text(SKELETON.format(clocks=clocks))
    overlay = pynq.Overlay(foreign_bit(tmp_path / "other.bit"))
    caplog.set_level(logging.WARNING)
    overlay.scale_0.register_map.factor = 12
    assert overlay.scale_0.read(0x10) == 12
    assert caplog.text.count("example.org:hls:scale:1.0") == 1
    pynq.Bitstream(overlay.bitfile_name).download()
    assert device.fabric.read(0x43C0_0010) == 0


@pytest.mark.skipif(pynq.__version__.startswith("4"), reason="pynq 4 wants clocks that Vivado's PS7 lacks")
def test_foreign_design_made_by_vivado(tmp_path: Path, device: Any) -> None:
    package = importlib.util.find_spec("pynqmetadata")
    handoff = Path(package.origin if package and package.origin else "").parent / "tests/hwhs/resizer.hwh"
    if not handoff.exists():
        pytest.skip("this pynqmetadata comes without its tests")
    (tmp_path / "resizer.hwh").write_bytes(handoff.read_bytes())
    overlay = pynq.Overlay(foreign_bit(tmp_path / "resizer.bit"))
    assert type(overlay.axi_dma_0) is pynq.lib.dma.DMA
    assert not overlay.axi_dma_0.sendchannel.idle
    assert "lead to no model" in device.fabric.describe()


# ---- accesses ---------------------------------------------------------------------------------------------
def test_mmio(bit: str, device: Any) -> None:
    pynq.Overlay(bit)
    with pytest.raises(UnmappedAddressError, match=r"0x50000000 is mapped to nothing.*circ_core_0 0x43c0"):
        pynq.MMIO(0x5000_0000, 0x1000).read()
    buffer = pynq.allocate(8)
    mmio = pynq.MMIO(buffer.physical_address, 32)
    mmio.write(0, b"\1\0\0\0\2\0\0\0")
    assert buffer[:2].tolist() == [1, 2]
    assert mmio.read(0, length=8) == 2 << 32 | 1
    assert mmio.read(4, length=1) == 2
    mmio.array[2:4] = [3, 4]
    assert mmio.array[:4].tolist() == [1, 2, 3, 4]
    with pytest.raises(MemoryError, match="Unaligned"):
        mmio.read(2)
    with pytest.raises(IndexError):
        mmio.read(32)


# ---- choosing the board -----------------------------------------------------------------------------------
def test_ensure_device(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulator.ensure_device() is device
    assert Device.devices[0] is device
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "emulated")
    assert emulator.ensure_device() is device
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "real")
    with pytest.raises(BoardError, match="CIRC_OVERLAY_BOARD=emulated"):
        emulator.ensure_device()
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "toaster")
    with pytest.raises(ValueError, match="'toaster': allowed are 'emulated', 'real'"):
        emulator.ensure_device()


def test_ensure_device_prefers_a_real_board(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    real = object()
    Device._devices = [real]
    assert emulator.ensure_device() is real
    assert Device.active_device is real
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "emulated")
    installed = emulator.ensure_device()
    assert installed.emulated
    assert Device.active_device is installed
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "real")
    assert emulator.ensure_device() is real


def test_ensure_device_without_a_real_board(device: Any) -> None:
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert emulator.ensure_device().emulated


def test_install_another_board(device: Any, tmp_path: Path) -> None:
    pynq.Overlay(str(bitstream.build(tmp_path / "a", clock_mhz=50)))
    assert Clocks.fclk0_mhz == 50.0
    other = emulator.install("Pynq-Z1", engine="golden")
    assert other is not device
    assert (Device.active_device, Device.devices[0], other.name) == (other, other, "Pynq-Z1")
    pynq.Overlay(str(bitstream.build(tmp_path / "b", "Pynq-Z1")))
    assert Clocks.fclk0_mhz == 100.0, "the clocks of the new board"
    assert device.fabric.slcr.fabric_mhz() == 50.0
    with pytest.raises(ValueError, match="Pynq-Z1, Pynq-Z2"):
        emulator.install("Pynq-Z3")


def test_engine_choice(device: Any, bit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRC_OVERLAY_ENGINE", "abacus")
    pynq.Overlay(bit)
    assert device.engine_name == "golden", "what install was told comes first"
    device.engine = None
    with pytest.raises(ValueError, match="engine 'abacus'"):
        pynq.Overlay(bit)
    monkeypatch.setenv("CIRC_OVERLAY_ENGINE", "golden")
    pynq.Overlay(bit)
    assert device.engine_name == "golden"


def python(*lines: str) -> str:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", "\n".join(lines)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CIRC_OVERLAY")}
    root = str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_pynq_is_imported_only_on_use() -> None:
    assert python("import sys, circ_overlay.emulator.fabric, circ_overlay.emulator.bitstream",
                  "print('pynq' in sys.modules)") == "False\n"  # fmt: skip


def test_missing_pynq_is_explained() -> None:
    text = python("import sys; sys.modules['pynq'] = None", "from circ_overlay import emulator",
                  "emulator.ensure_device()")  # fmt: skip
    assert "BoardError: the pynq package cannot be imported" in text
    assert "pip install circ-overlay[pynq]" in text


def test_nothing_is_written_beside_pynq(bit: str, device: Any) -> None:
    folder = Path(pynq.__file__).parent / "pl_server"
    before = sorted(folder.iterdir())
    overlay = pynq.Overlay(bit, gen_cache=True)
    overlay.gen_cache()
    assert sorted(folder.iterdir()) == before


def test_only_one_function_of_pynq_is_replaced(device: Any) -> None:
    patched: Callable[[int], Any] = pynq.interrupt.get_uio_irq
    emulator.install("Pynq-Z1", engine="golden")
    assert pynq.interrupt.get_uio_irq is patched, "not once for each installation"
    assert patched(61) == patched(61)
