# SPDX-License-Identifier: BSD-3-Clause
"""circ_overlay.emulator without pynq: every model against what the hardware's manuals say."""

import json
import logging
import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from circ_overlay import golden, spec, transfer
from circ_overlay.emulator import (
    EmulationDeadlockError,
    EmulationError,
    UnmappedAddressError,
    axi_dma,
    bitstream,
)
from circ_overlay.emulator import faults as f
from circ_overlay.emulator.boards import BOARDS, board
from circ_overlay.emulator.bus import Bus, Storage
from circ_overlay.emulator.ddr import Ddr
from circ_overlay.emulator.design import Design, Ip
from circ_overlay.emulator.fabric import Fabric
from circ_overlay.emulator.hwh import CORE, DMA, DMA_PARAMETERS, INTC, hwh
from circ_overlay.emulator.intc import AxiIntc
from circ_overlay.emulator.mapping import BusArray
from circ_overlay.emulator.uio import UioLine
from circ_overlay.engines import Engine, create_engine
from circ_overlay.program import Program

MM2S, S2MM = DMA.base, DMA.base + 0x30
CR, SR, ADDRESS, LENGTH = 0x00, 0x04, 0x18, 0x28
HALTED, IDLE, INT_ERR, SLV_ERR, DEC_ERR, IOC, ERR = 1, 2, 0x10, 0x20, 0x40, 0x1000, 0x4000
OFFSET = {r.name: r.offset for r in spec.REGISTERS}
PAGE = Ddr.PAGE
WINDOW = 64 * PAGE


def program() -> Program:
    """Two small layers: the second one's block size differs."""
    return builders.mlp(sizes=(20, 32, 10), blocks=(8, 4))


def design(**changes: Any) -> Design:
    """The shell as the .hwh describes it."""
    ips = (
        Ip(name="axi_dma_0", vlnv=axi_dma.VLNV, base=DMA.base, size=DMA.size, parameters=DMA_PARAMETERS),
        Ip(name="circ_core_0", vlnv=spec.CORE_VLNV, base=CORE.base, size=CORE.size),
        Ip(name="axi_intc_0", vlnv="xilinx.com:ip:axi_intc:4.1", base=INTC.base, size=INTC.size),
    )
    pins = ("axi_dma_0/mm2s_introut", "axi_dma_0/s2mm_introut", "circ_core_0/interrupt")
    wiring = {pin: ("axi_intc_0", n) for n, pin in enumerate(pins)}
    return Design(**({"ips": ips, "interrupts": wiring, "lines": {"axi_intc_0": 61}} | changes))


class Host:
    """A driver in its simplest form."""

    def __init__(self, engine: Any = None, loopback: bool = False) -> None:
        self.fabric = Fabric(ddr=Ddr(size=WINDOW))
        if loopback:
            self.fabric.configure(design(ips=design().ips[:1], loopback=True))
        else:
            self.fabric.configure(design(), lambda: engine or create_engine("golden"))
        self.read, self.write = self.fabric.read, self.fabric.write

    def core(self, name: str) -> int:
        return self.read(CORE.base + OFFSET[name])

    def start(self, command: int, batch: int = 0) -> None:
        for name, value in (("command", command), ("batch", batch), ("CTRL", 1)):
            self.write(CORE.base + OFFSET[name], int(value))

    def finish(self) -> spec.Status:
        self.fabric.wait_quiet()
        control = self.core("CTRL")
        assert control & 0x0E == 0x0E, self.fabric.describe()
        assert not self.core("CTRL") & 0x0A, "ap_done and ap_ready clear on read"
        return spec.Status(self.core("status"))

    def run_channels(self) -> None:
        self.write(MM2S + CR, 1)
        self.write(S2MM + CR, 1)

    def transfer(self, channel: int, data: NDArray[Any]) -> Any:
        """Start a transfer of a new buffer; its bytes are returned."""
        allocation = self.fabric.ddr.allocate(data.nbytes)
        allocation.cpu[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.write(channel + ADDRESS, allocation.address)
        self.write(channel + LENGTH, data.nbytes)
        return allocation

    def load(self, image: NDArray[np.uint64]) -> spec.Status:
        self.run_channels()
        self.start(spec.Command.LOAD)
        self.transfer(MM2S, image)
        return self.finish()


@pytest.fixture(scope="module")
def small() -> Program:
    return program()


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def loop() -> Host:
    return Host(loopback=True)


def samples(program: Program, batch: int) -> tuple[NDArray[np.int16], NDArray[Any]]:
    """Stream elements of a batch, padded to whole beats, and the golden outputs."""
    x = np.random.default_rng(batch).integers(-2048, 2048, (batch, program.input.features))
    padded = np.zeros((batch, 4 * program.segments[0].in_beats), np.int16)
    padded[:, : x.shape[1]] = x
    return padded, np.asarray(golden.run(program, x))


def outputs(program: Program, batch: int, allocation: Any) -> Any:
    rows = allocation.cpu.view(np.int16).reshape(batch, 4 * program.segments[0].out_beats)
    return rows[:, : program.output.features]


# ---- DDR --------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9 * PAGE)), max_size=40), st.randoms())
def test_allocator_never_overlaps_and_takes_everything_back(
    steps: list[tuple[bool, int]], random: Any
) -> None:
    ddr = Ddr(size=WINDOW)
    held = []
    for allocate, nbytes in steps:
        if allocate:
            try:
                a = ddr.allocate(nbytes)
            except MemoryError:
                continue
            assert a.address % PAGE == 0
            assert ddr.base <= a.address
            assert a.address + nbytes <= ddr.base + ddr.size < 1 << 32
            assert not a.cpu.any(), "buffers are zeroed, reused ones too"
            a.cpu[:] = 0xA5
            held.append(a)
        elif held:
            ddr.free(held.pop(random.randrange(len(held))))
        pages = [p for a in held for p in range(a.address // PAGE, -(-(a.address + a.nbytes) // PAGE))]
        assert len(pages) == len(set(pages))
    for a in held:
        assert (a.cpu == 0xA5).all()
        ddr.free(a)
    assert ddr.allocate(WINDOW).address == ddr.base


def test_ddr_refuses_what_hardware_cannot_do() -> None:
    ddr = Ddr(size=WINDOW)
    a = ddr.allocate(10)
    ddr.free(a)
    with pytest.raises(EmulationError, match=r"10 bytes at 0x10000000.*freed twice"):
        ddr.free(a)
    with pytest.raises(ValueError, match="nbytes=0"):
        ddr.allocate(0)
    with pytest.raises(MemoryError, match=f"{WINDOW + 1} contiguous bytes"):
        ddr.allocate(WINDOW + 1)
    with pytest.raises(ValueError, match=r"below 2\*\*32"):
        Ddr(base=0xFFFF_F000, size=2 * PAGE)
    with pytest.raises(EmulationError, match="outside the DDR"):
        ddr.view(ddr.base + WINDOW - 4, 8)


def test_cached_buffers_need_flush_and_invalidate() -> None:
    ddr = Ddr(size=WINDOW)
    a = ddr.allocate(16, cached=True)
    a.cpu[:] = 1
    assert not ddr.view(a.address, 16).any(), "not flushed yet"
    ddr.flush(a, 4, 4)
    assert ddr.view(a.address, 16).tolist() == [0] * 4 + [1] * 4 + [0] * 8
    ddr.view(a.address, 16)[:] = 2
    assert (a.cpu == 1).all(), "not invalidated yet"
    ddr.invalidate(a, 0, 8)
    assert a.cpu.tolist() == [2] * 8 + [1] * 8
    with pytest.raises(EmulationError, match="exceed"):
        ddr.flush(a, 8, 16)


def test_dma_outside_every_buffer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ddr = Ddr(size=WINDOW)
    a = ddr.allocate(16)
    ddr.view(a.address, 16)
    assert not caplog.records
    ddr.release(a)
    ddr.view(a.address, 16)
    assert "no allocated buffer" in caplog.text


# ---- bus and windows --------------------------------------------------------------------------------------
def test_bus_names_what_is_mapped() -> None:
    bus = Bus()
    bus.map(0x4000_0000, 0x1000, Storage("one"))
    bus.map(0x5000_0000, 0x1000, Storage("two"))
    assert bus.find(0x5000_0FFC).slave.name == "two"
    for address in (0x3FFF_FFFC, 0x4000_1000, 0xFFFF_FFFC):
        with pytest.raises(UnmappedAddressError, match=f"0x{address:08x} is mapped to nothing.*one 0x4"):
            bus.find(address)
    with pytest.raises(UnmappedAddressError, match="32-bit word"):
        bus.find(0x4000_0002)
    with pytest.raises(ValueError, match="three at 0x40000800 overlaps one"):
        bus.map(0x4000_0800, 0x1000, Storage("three"))


def test_unmodelled_ip_keeps_words_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    ip = Storage("gpio", "xilinx.com:ip:axi_gpio:2.0")
    ip.write(8, 5)
    assert (ip.read(8), ip.read(12)) == (5, 0)
    assert caplog.text.count("xilinx.com:ip:axi_gpio:2.0") == 1
    ip.reset()
    assert ip.read(8) == 0
    Storage("bram").read(0)
    assert "bram" not in caplog.text


def test_window_behaves_as_a_mapped_array() -> None:
    fabric = Fabric(ddr=Ddr(size=WINDOW))
    fabric.configure(Design(ips=[Ip(name="bram", vlnv=None, base=0x4000_0000, size=0x1000)]))
    window = BusArray.open(fabric, 0x4000_0000, 0x40)
    window[0] = np.uint32(7)
    window[-1] = 0xFFFF_FFFF
    window[2:5] = [1, 2, 3]
    window[[5, 6]] = 9
    assert (fabric.read(0x4000_0000), fabric.read(0x4000_003C)) == (7, 0xFFFF_FFFF)
    assert window[0:8].tolist() == [7, 0, 1, 2, 3, 9, 9, 0]
    assert window[np.array([True] * 3 + [False] * 13)].tolist() == [7, 0, 1]
    assert list(window[:3]) == [7, 0, 1]
    field = window[2:3].view("u4")
    fabric.write(0x4000_0008, 77)
    assert int(field[0]) == 77, "a window of one word reads when it is asked"
    field[0] = 78
    assert fabric.read(0x4000_0008) == 78
    pair = window[3:5].view("u8")
    assert int(pair[0]) == 3 << 32 | 2
    pair[0] = 1 << 40
    assert window[3:6].tolist() == [0, 256, 9]
    with pytest.raises(IndexError, match="16 words"):
        window[16]
    with pytest.raises(TypeError, match="32-bit"):
        window.view("u1")[0]
    with pytest.raises(ValueError, match="32-bit"):
        BusArray.open(fabric, 0x4000_0001, 4)


def test_ddr_and_clocks_answer_on_the_bus(host: Host) -> None:
    a = host.fabric.ddr.allocate(8)
    host.write(a.address + 4, 0x01020304)
    assert a.cpu.tolist() == [0, 0, 0, 0, 4, 3, 2, 1]
    assert host.fabric.slcr.fabric_mhz(0) == 100.0
    with pytest.raises(UnmappedAddressError, match="axi_dma_0 0x40400000"):
        host.read(0x4300_0000)


# ---- AXI DMA ----------------------------------------------------------------------------------------------
def test_dma_after_reset(loop: Host) -> None:
    for channel in (MM2S, S2MM):
        assert (loop.read(channel + CR), loop.read(channel + SR)) == (0x0001_0002, HALTED)
        loop.write(channel + LENGTH, 8)
        assert loop.read(channel + SR) == HALTED, "LENGTH starts nothing while the channel is halted"
        loop.write(channel + CR, 0x1001)
        assert loop.read(channel + SR) == 0, "idle is 0 before the first transfer"
        assert loop.read(channel + CR) & 0x1001 == 0x1001
        loop.write(channel + CR, 0)
        assert loop.read(channel + SR) == HALTED


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=5), st.booleans())
def test_dma_loop_moves_every_byte(sizes: list[int], armed_first: bool) -> None:
    host = Host(loopback=True)
    host.run_channels()
    for size in sizes:
        data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
        room = np.zeros(size + 8, np.uint8)
        order = ((S2MM, room), (MM2S, data)) if armed_first else ((MM2S, data), (S2MM, room))
        buffers = {channel: host.transfer(channel, content) for channel, content in order}
        assert host.read(MM2S + SR) == IDLE | IOC
        assert host.read(S2MM + SR) == IDLE | IOC
        assert host.read(S2MM + LENGTH) == size, "reads back the bytes received"
        assert host.read(MM2S + LENGTH) == size
        np.testing.assert_array_equal(buffers[S2MM].cpu[:size], data)
        assert not buffers[S2MM].cpu[size:].any()
        for channel in (MM2S, S2MM):
            host.write(channel + SR, IOC)
            assert host.read(channel + SR) == IDLE, "write 1 clears"
    counters = host.fabric.counters
    assert (counters.mm2s_bytes, counters.s2mm_bytes) == (sum(sizes), sum(sizes))
    assert (counters.mm2s_transfers, counters.s2mm_transfers) == (len(sizes), len(sizes))


def test_length_is_as_wide_as_the_build_says() -> None:
    ip = design().ips[0]
    narrow = Ip(**{**vars(ip), "parameters": DMA_PARAMETERS | {"c_sg_length_width": 8}})
    fabric = Fabric(ddr=Ddr(size=WINDOW))
    fabric.configure(Design(ips=[narrow]))
    fabric.write(MM2S + CR, 1)
    fabric.write(MM2S + ADDRESS, fabric.ddr.base)
    fabric.write(MM2S + LENGTH, 0x1F8)
    assert fabric.read(MM2S + LENGTH) == 0xF8


def test_missing_channel_reads_zero() -> None:
    ip = design().ips[0]
    lone = Ip(**{**vars(ip), "parameters": DMA_PARAMETERS | {"c_include_s2mm": 0}})
    fabric = Fabric(ddr=Ddr(size=WINDOW))
    fabric.configure(Design(ips=[lone], loopback=True))
    fabric.write(S2MM + CR, 1)
    assert fabric.read(S2MM + SR) == 0
    assert list(fabric.dma.channels) == ["mm2s"] if fabric.dma else False


def test_packet_longer_than_the_buffer(loop: Host) -> None:
    loop.run_channels()
    small_room = loop.transfer(S2MM, np.zeros(8, np.uint8))
    loop.transfer(MM2S, np.arange(16, dtype=np.uint8))
    assert loop.read(S2MM + SR) == HALTED | INT_ERR | ERR
    assert small_room.cpu.tolist() == list(range(8))
    assert "DMAIntErr" in loop.fabric.describe()
    loop.write(S2MM + CR, 1)
    assert loop.read(S2MM + SR) & HALTED, "after an error only a reset helps"
    loop.write(MM2S + CR, 4)
    loop.run_channels()
    assert loop.read(S2MM + SR) == 0, "the reset of either channel resets both"


@pytest.mark.parametrize("channel", [MM2S, S2MM])
def test_addresses_that_no_memory_port_reaches(loop: Host, channel: int) -> None:
    top = loop.fabric.ddr.base + WINDOW
    for address, error in ((0, DEC_ERR), (top - 8, DEC_ERR), (loop.fabric.ddr.base + 4, INT_ERR)):
        loop.write(channel + CR, 4)
        loop.write(channel + CR, 1)
        loop.write(channel + ADDRESS, address)
        loop.write(channel + LENGTH, 16)
        assert loop.read(channel + SR) == HALTED | error | ERR


def test_stop_drops_the_transfer(loop: Host) -> None:
    loop.run_channels()
    loop.transfer(S2MM, np.zeros(16, np.uint8))
    loop.write(S2MM + LENGTH, 8)
    assert "waits for 16 bytes" in loop.fabric.describe(), "a second LENGTH is ignored"
    loop.write(S2MM + CR, 0)
    assert loop.read(S2MM + SR) == HALTED
    loop.transfer(MM2S, np.zeros(8, np.uint8))
    assert loop.read(MM2S + SR) == 0, "nobody takes the data"


# ---- core -------------------------------------------------------------------------------------------------
def test_identity_is_valid_without_a_command(host: Host) -> None:
    for name, value in spec.CoreConfig().register_values().items():
        assert host.core(name) == value
    assert host.core("CTRL") == 4
    host.write(CORE.base + OFFSET["magic"], 0)
    assert host.core("magic") == spec.MAGIC, "read-only"
    assert host.read(CORE.base + 0x24) == 0
    host.start(spec.Command.IDENTIFY)
    assert host.finish() is spec.Status.OK


@pytest.mark.parametrize(
    ("command", "batch", "status"),
    [(9, 1, spec.Status.BAD_COMMAND), (spec.Command.RUN, 1, spec.Status.NO_PROGRAM)],
)
def test_commands_that_end_at_once(host: Host, command: int, batch: int, status: spec.Status) -> None:
    host.start(command, batch)
    assert host.finish() is status


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_load_and_run_equal_golden(host: Host, small: Program, batch: int) -> None:
    assert host.load(small.image) is spec.Status.OK
    assert host.core("program_id") == int(small.image[1]) & 0xFFFFFFFF
    assert host.core("cycles_low") == len(small.image)
    host.start(spec.Command.RUN, 0)
    assert host.finish() is spec.Status.BAD_BATCH
    x, expected = samples(small, batch)
    for _ in range(2):
        host.start(spec.Command.RUN, batch)
        y = host.transfer(S2MM, np.zeros(batch * small.segments[0].out_beats, np.uint64))
        host.transfer(MM2S, x)
        assert host.finish() is spec.Status.OK
        np.testing.assert_array_equal(outputs(small, batch, y), expected)
        assert host.read(S2MM + LENGTH) == y.nbytes
    assert host.core("images") == batch
    host.start(spec.Command.IDENTIFY)
    assert (host.finish(), host.core("images"), host.core("cycles_low")) == (spec.Status.OK, batch, 1)
    host.start(spec.Command.RUN, batch)
    y = host.transfer(S2MM, np.zeros(batch * small.segments[0].out_beats, np.uint64))
    assert host.core("images") == 0
    host.transfer(MM2S, x)
    host.finish()
    layers = [host.read(CORE.base + OFFSET["layer_cycles"] + 4 * n) for n in range(3)]
    assert [cycles > 0 for cycles in layers] == [True, True, False]
    assert host.core("cycles_low") >= sum(layers)
    assert host.core("cycles_high") == 0


@pytest.mark.parametrize(
    "made", [builders.recurrent(), builders.recurrent(u8=True, features=7), builders.convolution(segments=1)]
)
def test_what_a_beat_carries(host: Host, made: Program) -> None:
    """Control beats of sequences, bytes, pixels filled up to map words."""
    (segment,) = made.segments
    assert host.load(made.image) is spec.Status.OK
    x = made.input.quantise(builders.samples(made, 6), 12)
    starts = np.array([True, False, False, True, True, False])
    beats = np.zeros((6, segment.in_beats), np.uint64)
    if segment.sequence:
        beats[:, 0] = starts + 2  # only bit 0 counts
    elements = beats[:, segment.sequence :].copy().view(segment.in_dtype)
    transfer.pack(made, segment, {"input": made.input.to_pixels(x)}, elements)
    beats[:, segment.sequence :] = elements.view(np.uint64)
    host.start(spec.Command.RUN, 6)
    y = host.transfer(S2MM, np.zeros(6 * segment.out_beats, np.uint64))
    host.transfer(MM2S, beats)
    assert host.finish() is spec.Status.OK
    got = np.zeros((6, made.output.pixels, made.output.channels), np.int16)
    transfer.unpack(made, segment, y.cpu.view(np.int16).reshape(6, -1), {"output": got})
    np.testing.assert_array_equal(made.output.from_pixels(got), golden.run(made, x, starts=starts))
    layers = [host.read(CORE.base + OFFSET["layer_cycles"] + 4 * n) for n in range(len(segment.layers) + 1)]
    assert all(layers[:-1]) and not layers[-1]


def test_run_counts_beats_not_packets(host: Host, small: Program) -> None:
    host.load(small.image)
    x, expected = samples(small, 3)
    host.start(spec.Command.RUN, 3)
    y = host.transfer(S2MM, np.zeros(3 * small.segments[0].out_beats, np.uint64))
    beats = x.reshape(-1).view(np.uint64)
    for part in (beats[:4], beats[4:5], beats[5:]):
        host.transfer(MM2S, part)
        assert host.read(MM2S + SR) & IDLE
    assert host.finish() is spec.Status.OK
    np.testing.assert_array_equal(outputs(small, 3, y), expected)


def test_back_pressure_until_the_receiver_is_armed(host: Host, small: Program) -> None:
    host.load(small.image)
    x, expected = samples(small, 4)
    host.start(spec.Command.RUN, 4)
    host.transfer(MM2S, x)
    assert host.read(MM2S + SR) & IDLE == 0, "the pipeline is full"
    assert "no more until S2MM is armed" in host.fabric.describe()
    y = host.transfer(S2MM, np.zeros(4 * small.segments[0].out_beats, np.uint64))
    assert host.finish() is spec.Status.OK
    np.testing.assert_array_equal(outputs(small, 4, y), expected)


def test_done_only_when_the_output_is_taken(host: Host, small: Program) -> None:
    host.load(small.image)
    host.start(spec.Command.RUN, 1)
    host.transfer(MM2S, samples(small, 1)[0])
    host.fabric.wait_quiet()
    assert host.core("CTRL") == 1, "ap_start stays set while the command executes"
    assert "waits for S2MM to take its results: 24 bytes" in host.fabric.describe()
    host.transfer(S2MM, np.zeros(small.segments[0].out_beats, np.uint64))
    assert host.finish() is spec.Status.OK


def test_result_that_does_not_fit_stalls_the_core(host: Host, small: Program) -> None:
    host.load(small.image)
    host.start(spec.Command.RUN, 2)
    host.transfer(S2MM, np.zeros(1, np.uint64))
    host.transfer(MM2S, samples(small, 2)[0])
    host.fabric.wait_quiet()
    assert host.read(S2MM + SR) == HALTED | INT_ERR | ERR
    assert host.core("CTRL") == 1
    assert "S2MM could not take" in host.fabric.describe()


@pytest.mark.parametrize("channel", [MM2S, S2MM])
def test_dma_reset_resets_the_core_too(host: Host, small: Program, channel: int) -> None:
    host.load(small.image)
    host.write(channel + CR, 4)
    assert host.core("program_id") == 0
    assert host.core("CTRL") == 4
    host.start(spec.Command.RUN, 1)
    assert host.finish() is spec.Status.NO_PROGRAM
    assert host.load(small.image) is spec.Status.OK


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda w: w[:3], spec.Status.BAD_LENGTH),
        (lambda w: w[:-1], spec.Status.BAD_LENGTH),
        (lambda w: np.r_[w[:1] ^ np.uint64(1), w[1:]], spec.Status.BAD_MAGIC),
        (lambda w: np.r_[w[:1] ^ np.uint64(1 << 40), w[1:]], spec.Status.SPEC_MISMATCH),
        (lambda w: np.r_[w[:3], w[3:4] + np.uint64(1), w[4:]], spec.Status.WIDTH_MISMATCH),
    ],
)
def test_bad_images_leave_no_program(host: Host, small: Program, change: Any, status: spec.Status) -> None:
    host.load(small.image)
    assert host.load(change(small.image)) is status
    assert host.core("program_id") == 0
    host.start(spec.Command.RUN, 1)
    assert host.finish() is spec.Status.NO_PROGRAM


def test_auto_restart(host: Host, small: Program) -> None:
    host.load(small.image)
    x, expected = samples(small, 1)
    host.write(CORE.base + OFFSET["command"], int(spec.Command.RUN))
    host.write(CORE.base + OFFSET["batch"], 1)
    host.write(CORE.base, 0x81)
    for _ in range(3):
        y = host.transfer(S2MM, np.zeros(small.segments[0].out_beats, np.uint64))
        host.transfer(MM2S, x)
        host.fabric.wait_quiet()
        assert host.read(S2MM + SR) & IDLE
        np.testing.assert_array_equal(outputs(small, 1, y), expected)
        assert host.core("CTRL") & 0x83 == 0x83, "done, and started again"
    host.write(MM2S + CR, 4)
    host.start(spec.Command.IDENTIFY)
    host.write(CORE.base, 0x81)
    assert [host.core("CTRL") & 2 for _ in range(3)] == [2, 2, 2], "one command a read, not an endless loop"


# ---- interrupts -------------------------------------------------------------------------------------------
def test_core_interrupt_reaches_the_processing_system(host: Host) -> None:
    levels: list[tuple[int, bool]] = []
    host.fabric.on_interrupt = lambda line, level: levels.append((line, level))
    host.write(CORE.base + OFFSET["GIER"], 1)
    host.write(CORE.base + OFFSET["IP_IER"], 1)
    host.write(INTC.base + 0x10, 0b100)  # SIE
    host.write(INTC.base + 0x1C, 3)  # MER
    host.start(spec.Command.IDENTIFY)
    assert levels[-1] == (61, True)
    assert host.core("CTRL") & 0x200, "the interrupt line shows in CTRL"
    assert (host.read(INTC.base), host.read(INTC.base + 4), host.read(INTC.base + 0x18)) == (4, 4, 2)
    host.write(INTC.base + 0x0C, 4)
    assert host.read(INTC.base) == 4, "the level is still high"
    host.write(CORE.base + OFFSET["IP_ISR"], 1)
    host.write(INTC.base + 0x0C, 4)
    assert host.read(INTC.base) == 0
    assert levels[-1] == (61, False)
    assert host.read(INTC.base + 0x18) == 0xFFFF_FFFF
    host.write(CORE.base + OFFSET["IP_ISR"], 1)
    assert host.core("IP_ISR") == 1, "writing toggles"
    host.write(INTC.base + 0x14, 4)  # CIE
    assert (host.read(INTC.base + 8), levels[-1]) == (0, (61, False))
    host.write(INTC.base + 0x1C, 0)
    assert host.read(INTC.base + 0x1C) == 2, "HIE stays"


def test_dma_interrupts(loop: Host) -> None:
    loop.write(MM2S + CR, 0x1001)
    loop.write(S2MM + CR, 0x4001)
    loop.transfer(S2MM, np.zeros(4, np.uint8))
    loop.transfer(MM2S, np.zeros(4, np.uint8))
    dma = loop.fabric.dma
    assert dma is not None
    assert dma.interrupts == {"mm2s_introut": True, "s2mm_introut": False}, "only errors are enabled there"
    loop.write(MM2S + SR, IOC)
    assert dma.interrupts == {"mm2s_introut": False, "s2mm_introut": False}
    loop.write(S2MM + ADDRESS, 0)
    loop.write(S2MM + LENGTH, 8)
    assert dma.interrupts["s2mm_introut"]


def test_software_and_edge_interrupts() -> None:
    intc = AxiIntc("intc", {"C_KIND_OF_INTR": "0xFFFFFFFE"})
    intc.write(0x08, 7)
    intc.write(0x00, 4)
    assert (intc.read(0x04), intc.output) == (4, False), "until the hardware is enabled, software may raise"
    intc.write(0x1C, 3)
    assert intc.output
    intc.write(0x0C, 4)
    intc.write(0x00, 4)
    assert intc.read(0x00) == 0, "now it may not"
    intc.drive(0b11)
    intc.write(0x0C, 0b11)
    assert intc.read(0x00) == 0b01, "input 0 is level-sensitive, input 1 saw one edge"
    assert "pending 0x1" in intc.describe()


def test_a_new_design_lowers_the_old_ones_interrupts(host: Host) -> None:
    levels: list[tuple[int, bool]] = []
    host.fabric.on_interrupt = lambda line, level: levels.append((line, level))
    host.fabric.configure(Design())
    assert levels == [(61, False)]


def test_uio_gives_one_event_for_each_enable() -> None:
    line = UioLine()
    with open(line.path, "r+b", buffering=0) as uio:

        def event(wait: float) -> bool:
            return bool(select.select([uio], [], [], wait)[0])

        line.set_level(True)
        assert not event(0), "not enabled"
        for count in (1, 2):
            uio.write(bytes([0, 0, 0, 1]))
            assert event(10)
            assert uio.read(4) == count.to_bytes(4, "little")
            assert not event(0), "one event for each enable"
        line.set_level(False)
        uio.write(bytes([0, 0, 0, 1]))
        line.set_level(True)
        assert event(10)
        assert os.path.samefile(line.path, uio.name)


# ---- the hardware thread ----------------------------------------------------------------------------------
class SlowEngine:
    """Golden, but it computes only when it is told to."""

    name, cycles = "golden", "modelled"

    def __init__(self) -> None:
        self.inner = create_engine("golden")
        self.config = self.inner.config
        self.go, self.started = threading.Event(), threading.Event()
        self.error: Exception | None = None

    @property
    def image(self) -> Any:
        return self.inner.image

    def reset(self) -> None:
        self.inner.reset()

    def load(self, words: Any) -> spec.Status:
        return self.inner.load(words)

    def run(self, batch: int, words: Any) -> Any:
        self.started.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        return self.inner.run(batch, words)


@pytest.fixture
def slow(small: Program) -> Iterator[tuple[Host, SlowEngine, Any, NDArray[Any]]]:
    """A host whose core is in the middle of a run, its engine, the output buffer and what it will hold."""
    engine = SlowEngine()
    host = Host(engine)
    host.load(small.image)
    x, expected = samples(small, 2)
    host.start(spec.Command.RUN, 2)
    y = host.transfer(S2MM, np.zeros(2 * small.segments[0].out_beats, np.uint64))
    host.transfer(MM2S, x)
    assert engine.started.wait(10)
    yield host, engine, y, expected
    engine.go.set()
    host.fabric.wait_quiet()


def test_registers_answer_while_the_core_computes(slow: Any, small: Program) -> None:
    host, engine, y, expected = slow
    host.fabric.deadlock_polls = 3
    for _ in range(10):
        assert host.core("CTRL") == 1
        assert host.read(S2MM + SR) == 0
    assert host.core("magic") == spec.MAGIC
    assert "circ_core_0 computes" in host.fabric.describe()
    with pytest.raises(TimeoutError, match="still busy after 0 s"):
        host.fabric.wait_quiet(0)
    host.start(spec.Command.IDENTIFY)  # ap_start during a command is lost
    engine.go.set()
    assert host.finish() is spec.Status.OK
    np.testing.assert_array_equal(outputs(small, 2, y), expected)


def test_reset_drops_the_result_of_a_run(slow: Any, small: Program) -> None:
    host, engine, y, _ = slow
    host.write(MM2S + CR, 4)
    assert host.core("CTRL") == 4
    engine.go.set()
    host.fabric.wait_quiet()
    assert not y.cpu.any()
    assert host.core("CTRL") == 4
    assert host.load(small.image) is spec.Status.OK


def test_download_while_the_core_computes(slow: Any) -> None:
    host, engine, y, _ = slow
    host.fabric.configure(design(), lambda: create_engine("golden"))
    engine.go.set()
    host.fabric.wait_quiet()
    assert not y.cpu.any()
    assert (host.core("CTRL"), host.read(MM2S + SR)) == (4, HALTED)


def test_an_engine_that_fails_is_heard_of(slow: Any) -> None:
    host, engine, _, _ = slow
    engine.error = ZeroDivisionError("bug")
    engine.go.set()
    with pytest.raises(EmulationError, match="bug"):
        host.fabric.wait_quiet()
    with pytest.raises(EmulationError, match="bug"):
        host.core("CTRL")
    host.fabric.configure(design(), lambda: create_engine("golden"))
    assert host.core("CTRL") == 4


def test_a_download_that_fails_leaves_the_old_design(host: Host) -> None:
    def refuse() -> Engine:
        raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        host.fabric.configure(design(), refuse)
    assert host.core("magic") == spec.MAGIC


# ---- faults and deadlocks ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "bit"), [("decode", DEC_ERR), ("slave", SLV_ERR)])
@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
def test_bus_error_on_the_nth_transfer(loop: Host, kind: str, bit: int, channel: str) -> None:
    base = MM2S if channel == "mm2s" else S2MM
    loop.run_channels()
    with loop.fabric.inject(f.BusError(channel, kind=kind, transfer=2)):
        loop.transfer(S2MM, np.zeros(8, np.uint8))
        loop.transfer(MM2S, np.zeros(8, np.uint8))
        assert loop.read(base + SR) == IDLE | IOC
        loop.transfer(base, np.zeros(8, np.uint8))
        assert loop.read(base + SR) == HALTED | bit | IOC | ERR


@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
def test_stuck_channel_goes_on_after_the_block(loop: Host, channel: str) -> None:
    loop.run_channels()
    with loop.fabric.inject(f.StuckChannel(channel)):
        loop.transfer(S2MM, np.zeros(8, np.uint8))
        loop.transfer(MM2S, np.ones(8, np.uint8))
        assert loop.read(S2MM + SR) == 0
        assert f"StuckChannel(channel='{channel}')" in loop.fabric.describe()
    assert loop.read(S2MM + SR) == IDLE | IOC
    assert "StuckChannel" not in loop.fabric.describe()


def test_short_packets(loop: Host) -> None:
    loop.run_channels()
    for channel, drop in (("mm2s", 8), ("s2mm", 3), ("mm2s", 99)):
        with loop.fabric.inject(f.ShortPacket(channel, drop=drop)):
            y = loop.transfer(S2MM, np.zeros(16, np.uint8))
            loop.transfer(MM2S, np.ones(16, np.uint8))
            left = max(0, 16 - drop)
            assert loop.read(S2MM + LENGTH) == left
            assert y.cpu.tolist() == [1] * left + [0] * (16 - left)
            assert loop.read(S2MM + SR) & IDLE


def test_no_tlast_never_completes(loop: Host) -> None:
    loop.run_channels()
    with loop.fabric.inject(f.MissingTlast("s2mm")):
        y = loop.transfer(S2MM, np.zeros(16, np.uint8))
        loop.transfer(MM2S, np.ones(8, np.uint8))
        assert y.cpu.tolist() == [1] * 8 + [0] * 8
        assert loop.read(S2MM + SR) == 0
        loop.transfer(MM2S, np.ones(8, np.uint8))
        assert loop.read(S2MM + SR) == IDLE | IOC
        assert loop.read(S2MM + LENGTH) == 16


def test_wrong_identity_and_core_status(host: Host, small: Program) -> None:
    with host.fabric.inject(f.WrongIdentity({"magic": 1, "config": 2})):
        assert (host.core("magic"), host.core("config"), host.core("spec_id")) == (1, 2, spec.SPEC_ID)
    assert host.core("magic") == spec.MAGIC
    with host.fabric.inject(f.CoreStatus(spec.Status.TOO_LARGE, spec.Command.LOAD)):
        assert host.load(small.image) is spec.Status.TOO_LARGE
        assert host.read(MM2S + SR) & IDLE, "the image was taken"
        host.start(spec.Command.IDENTIFY)
        assert host.finish() is spec.Status.OK
    assert host.load(small.image) is spec.Status.OK
    with host.fabric.inject(f.CoreStatus(spec.Status.BAD_INSTRUCTION)):
        host.start(spec.Command.RUN, 1)
        assert host.finish() is spec.Status.BAD_INSTRUCTION


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: f.StuckChannel("s2m"), "mm2s, s2mm"),
        (lambda: f.BusError("mm2s", kind="odd"), "decode, slave"),
        (lambda: f.WrongIdentity({"magik": 1}), "magik"),
    ],
)
def test_faults_check_their_arguments(make: Any, message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        make()


def test_deadlock_names_who_waits_for_what(host: Host) -> None:
    host.fabric.deadlock_polls = 20
    host.run_channels()
    host.start(spec.Command.RUN, 1)
    host.transfer(S2MM, np.zeros(4096, np.uint8))
    for _ in range(20):
        assert not host.read(S2MM + SR) & IDLE
    with pytest.raises(EmulationDeadlockError) as caught:
        host.read(S2MM + SR)
    message = str(caught.value)
    assert "polled 20 times" in message
    assert "S2MM waits for 4096 bytes" in message
    assert "circ_core_0 is idle with status NO_PROGRAM" in message
    assert "MM2S idle, 0 bytes queued" in message


def test_work_and_reading_memory_are_no_deadlock(host: Host, small: Program) -> None:
    host.fabric.deadlock_polls = 20
    for _ in range(30):
        host.read(MM2S + SR)
        host.write(MM2S + CR, 0)
    host.fabric.configure(Design(ips=[Ip(name="bram", vlnv=None, base=0x4000_0000, size=0x1000)]))
    for address in range(0x4000_0000, 0x4000_1000, 4):
        host.read(address)
    host.write(0x4000_0000, 0)
    for _ in range(20):
        host.read(0x4000_0000)
    with pytest.raises(EmulationDeadlockError, match="lead to no model"):
        host.read(0x4000_0000)


# ---- boards and files -------------------------------------------------------------------------------------
@pytest.mark.parametrize("mhz", [100, 125, 1000 / 7, 50.0, 0.2519526])
def test_clocks_that_a_board_can_make(mhz: float) -> None:
    first, second = BOARDS["Pynq-Z2"].divisors(mhz)
    assert 1000 / (first * second) == pytest.approx(mhz, rel=0.01)


def test_boards_refuse() -> None:
    with pytest.raises(ValueError, match=r"nearest clock is 142.857 MHz"):
        board("Pynq-Z2").divisors(150)
    with pytest.raises(ValueError, match="positive"):
        board("Pynq-Z2").divisors(0)
    with pytest.raises(ValueError, match="Pynq-Z1, Pynq-Z2"):
        board("pynq-z2")


def test_files_are_deterministic_and_tied_together(tmp_path: Any) -> None:
    config = spec.CoreConfig(width=16, lanes=8)
    one = bitstream.build(tmp_path / "one", config=config, clock_mhz=125)
    two = bitstream.build(tmp_path / "two", config=config, clock_mhz=125)
    other = bitstream.build(tmp_path / "other", "Pynq-Z1", config, clock_mhz=50)
    for suffix in (".bit", ".hwh", ".json"):
        assert one.with_suffix(suffix).read_bytes() == two.with_suffix(suffix).read_bytes()
        assert one.with_suffix(suffix).read_bytes() != other.with_suffix(suffix).read_bytes()
    assert one.with_suffix(".hwh").read_bytes() == hwh(BOARDS["Pynq-Z2"], 125)
    assert bitstream.read_payload(one.read_bytes()) == config
    info = json.loads(one.with_suffix(".json").read_text())
    assert info["emulated"] is True
    assert (info["board"], info["part"], info["clock_mhz"]) == ("Pynq-Z2", "xc7z020clg400-1", 125.0)
    assert (info["spec_hash"], info["spec_version"]) == (spec.SPEC_HASH, spec.SPEC_VERSION)
    assert spec.CoreConfig(**info["config"]) == config
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["circ.bit", "circ.hwh", "circ.json"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_to_the_payload_is_found(data: st.DataObject) -> None:
    metadata = {"config": {}, "hwh_sha256": "0"}
    bit = bytearray(bitstream._bit(BOARDS["Pynq-Z2"], metadata))
    start = bit.find(bitstream.MARKER) + len(bitstream.MARKER)
    text = len(json.dumps(metadata, separators=(",", ":")))
    bit[data.draw(st.integers(start, start + 4 + text + 31))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="damaged"):
        bitstream.read_metadata(bytes(bit))


def test_foreign_bitstreams_have_no_payload() -> None:
    assert bitstream.read_payload(b"\xaa\x99\x55\x66" * 100) is None


def test_fabric_describes_itself_without_a_design(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert Fabric(ddr=Ddr(size=WINDOW)).describe() == "the streams lead to no model"
