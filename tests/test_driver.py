# SPDX-License-Identifier: BSD-3-Clause
"""The driver through the real pynq on the emulated board: results, scheduling, faults, recovery."""

import asyncio
import copy
import dataclasses
import gc
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pynq", reason="the driver needs pynq")

import builders
import pynq
from builders import reference

from circ_overlay import CirculantOverlay, Program, emulator, spec
from circ_overlay.emulator import bitstream, faults
from circ_overlay.engines import available_engines
from circ_overlay.errors import BoardError, CoreError, CoreTimeoutError, DmaError, IncompatibleError

ROOT = Path(__file__).resolve().parents[1]
ENGINES = [name for name, state in available_engines().items() if state == "ready"]


def altered(program, change, name="other"):
    """The same program with other numbers: `change` makes a layer's new fields."""
    segments = tuple(
        dataclasses.replace(s, layers=tuple(dataclasses.replace(la, **change(la)) for la in s.layers))
        for s in program.segments
    )
    return dataclasses.replace(program, name=name, segments=segments)


def negated(program, name="other"):
    return altered(program, lambda la: {"weights": -la.weights}, name)


@pytest.fixture(scope="session")
def small_program():
    """A three-layer program with every kind of raggedness, and samples for it."""
    program = builders.mlp()
    return program, builders.samples(program, 5000)


@pytest.fixture(params=ENGINES)
def device(request):
    return emulator.install(engine=request.param)


@pytest.fixture
def overlay(device):
    with CirculantOverlay(device=device) as overlay:
        yield overlay


@pytest.fixture
def quick():
    """An overlay whose waits end soon, for the tests that make them."""
    with CirculantOverlay(device=emulator.install(engine="golden"), timeout=0.3) as overlay:
        yield overlay


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 1000])
def test_predict_equals_golden(overlay, small_program, n):
    program, x = small_program
    with overlay.load(program, batch_size=64) as network:
        outputs = network.predict(x[:n], raw=True)
        assert outputs.shape == (n, 5)
        assert outputs.dtype == np.int16
        np.testing.assert_array_equal(outputs, reference(program, x[:n]))
        assert network.statistics.batches == -(-n // 64)
        assert network.statistics.images == n


def test_real_values_and_classes(overlay, small_program):
    program, x = small_program
    network = overlay.load(program)
    raw = network.predict(x[:50], raw=True)
    values = network.predict(x[:50])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, raw * np.float32(2.0**-program.output.frac))
    np.testing.assert_array_equal(network.classify(x[:50]), raw.argmax(1))


def test_program_from_a_file(overlay, small_program, tmp_path):
    program, x = small_program
    program.save(tmp_path / "net.circ")
    network = overlay.load(tmp_path / "net.circ")
    np.testing.assert_array_equal(network.predict(x[:9], raw=True), reference(program, x[:9]))


def test_weights_are_loaded_once_and_again_after_another_network(overlay, small_program):
    program, x = small_program
    other = negated(program)
    first, second = overlay.load(program, batch_size=100), overlay.load(other, batch_size=100)
    for _ in range(3):
        first.predict(x[:250])
    assert first.statistics.program_loads == 1
    assert first.statistics.program_bytes == 8 * len(program.image)
    np.testing.assert_array_equal(second.predict(x[:250], raw=True), reference(other, x[:250]))
    np.testing.assert_array_equal(first.predict(x[:250], raw=True), reference(program, x[:250]))
    assert (first.statistics.program_loads, second.statistics.program_loads) == (2, 1)


def test_statistics_count_what_moved(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=100)
    before = dict(vars(overlay.device.fabric.counters))
    network.predict(x[:250])
    s = network.statistics
    assert s.bytes_in == 250 * 8 * program.segments[0].in_beats
    assert s.bytes_out == 250 * 8 * program.segments[0].out_beats
    moved = {key: value - before[key] for key, value in vars(overlay.device.fabric.counters).items()}
    assert moved["mm2s_bytes"] == s.bytes_in + s.program_bytes
    assert moved["s2mm_bytes"] == s.bytes_out
    assert s.cycles > 0
    assert sum(s.layer_cycles) <= s.cycles
    assert s.cycles_provenance == "modelled"
    assert s.load_cycles == len(program.image)
    assert s.device_s == pytest.approx((s.cycles + s.load_cycles) / 100e6)
    rows = network.layer_table()
    assert [row["layer"] for row in rows] == ["relu16", "tanh8", "identity4"]
    assert all(row["cycles_per_image"] > 0 for row in rows)
    network.reset_statistics()
    assert network.statistics.images == 0


def test_cycles_are_those_of_the_model(overlay, small_program):
    from circ_overlay.perf.cycles import segment_plan

    program, x = small_program
    network = overlay.load(program, batch_size=128)
    network.predict(x[:128])
    (expected,) = segment_plan(overlay.config, program, 128)
    s = network.statistics
    assert (s.load_cycles, s.cycles, s.layer_cycles) == expected


def test_submit_returns_before_the_result_and_keeps_order(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=50)
    futures = [network.submit(x[n : n + 130], raw=True) for n in range(0, 1300, 130)]
    for n, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(60), reference(program, x[130 * n : 130 * n + 130]))


def test_the_next_batch_is_packed_while_the_core_runs(small_program, monkeypatch):
    """Double buffering: the first run does not end before the second batch has been packed."""
    program, x = small_program
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as overlay:
        network = overlay.load(program, batch_size=500)
        network.predict(x[:1])
        scheduler, engine = overlay._scheduler, device.fabric.core.engine
        pack, run, packed = scheduler._pack, engine.run, []
        second_packed, in_time = threading.Event(), []

        def watched_pack(job):
            batch = pack(job)
            packed.append(batch)
            if len(packed) == 2:
                second_packed.set()
            return batch

        def slow_run(batch, words):
            in_time.append(second_packed.wait(10))
            return run(batch, words)

        monkeypatch.setattr(scheduler, "_pack", watched_pack)
        monkeypatch.setattr(engine, "run", slow_run)
        outputs = network.predict(x[:1000], raw=True)
    assert in_time == [True, True]
    np.testing.assert_array_equal(outputs, reference(program, x[:1000]))


def test_predict_async(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=64)

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(tick())
        results = await asyncio.gather(*(network.predict_async(x[n : n + 200], raw=True) for n in (0, 200)))
        clock.cancel()
        return np.concatenate(results), ticks

    results, ticks = asyncio.run(main())
    np.testing.assert_array_equal(results, reference(program, x[:400]))
    assert ticks > 1, "the event loop stood still"


def test_many_threads_two_networks(overlay, small_program):
    program, x = small_program
    other = altered(program, lambda la: {"bias": -la.bias})
    networks = {name: (overlay.load(p, batch_size=32), p) for name, p in (("a", program), ("b", other))}
    wrong, right = [], []

    def user(seed):
        rng = np.random.default_rng(seed)
        for _ in range(5):
            name = str(rng.choice(["a", "b"]))
            network, p = networks[name]
            start, n = int(rng.integers(0, 4000)), int(rng.integers(1, 90))
            try:
                got = network.predict(x[start : start + n], raw=True)
            except Exception as error:
                wrong.append(repr(error))
            else:
                same = np.array_equal(got, reference(p, x[start : start + n]))
                (right if same else wrong).append((seed, name, start, n))

    threads = [threading.Thread(target=user, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(right) == 30
    assert {name for _, name, _, _ in right} == {"a", "b"}


def test_cancelled_future_is_not_run(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=10)
    hold = threading.Event()
    first = network.submit(x[:20], progress=lambda done: hold.wait(10))
    second = network.submit(x[:20])
    assert second.cancel()
    hold.set()
    first.result(30)
    with pytest.raises(CancelledError):
        second.result(1)
    assert network.predict(x[:1]).shape == (1, 5)
    assert network.statistics.images == 21


def test_progress_is_told_and_may_fail(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=30)
    seen = []
    network.predict(x[:100], progress=seen.append)
    assert seen == [30, 60, 90, 100]

    def broken(done):
        raise KeyError(done)

    assert network.predict(x[:100], progress=broken).shape == (100, 5)


# ---- wrong use ---------------------------------------------------------------------------------------------


def test_wrong_shapes_are_told_at_once(overlay, small_program):
    network = overlay.load(small_program[0])
    with pytest.raises(ValueError, match=r"shape \(3, 29\): expected \(batch, 30\)"):
        network.submit(np.zeros((3, 29)))
    with pytest.raises(ValueError, match=r"add a batch axis: x\[None\]"):
        network.submit(np.zeros(30))


def test_bad_values_fail_their_call_only(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=10)
    bad = x[:100].copy()
    bad[57, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        network.predict(bad)
    with pytest.raises(ValueError, match="expected real numbers"):
        network.predict(np.full((2, 30), "a"))
    np.testing.assert_array_equal(network.predict(x[:100], raw=True), reference(program, x[:100]))


def test_closed_network_and_overlay(device, small_program):
    program, x = small_program
    with CirculantOverlay(device=device) as overlay:
        with overlay.load(program) as network:
            pending = network.submit(x[:100])
        with pytest.raises(BoardError, match="network 'small' is closed; load it again"):
            network.predict(x[:1])
        other = overlay.load(program)
    assert pending.result(10).shape == (100, 5)
    with pytest.raises(BoardError, match="the overlay is closed"):
        other.predict(x[:1])
    with pytest.raises(BoardError, match="the overlay is closed"):
        overlay.load(program)
    overlay.close()


def test_buffers_are_given_back(device, small_program):
    before = len(device.fabric.ddr.allocations)
    with CirculantOverlay(device=device) as overlay:
        overlay.load(small_program[0]).predict(small_program[1][:10])
        assert len(device.fabric.ddr.allocations) == before + 4
    assert len(device.fabric.ddr.allocations) == before


def test_overlay_that_is_dropped_gives_its_buffers_back(device, small_program):
    """What a notebook does whose first cell is run again and again."""
    program, x = small_program
    gc.collect()
    before = len(device.fabric.ddr.allocations)
    for _ in range(3):
        overlay = CirculantOverlay(device=device)
        network = overlay.load(program)
        np.testing.assert_array_equal(network.predict(x[:20], raw=True), reference(program, x[:20]))
    del overlay
    gc.collect()
    assert network.predict(x[:20]).shape == (20, 5)  # a network keeps its overlay alive
    thread = network._scheduler._thread
    del network
    gc.collect()
    thread.join(10)
    gc.collect()
    assert len(device.fabric.ddr.allocations) == before


@pytest.mark.parametrize("size", [0, 20000, -1])
def test_batch_size_limits(overlay, small_program, size):
    with pytest.raises(ValueError, match=rf"batch_size={size}: the buffers allow 1\.\."):
        overlay.load(small_program[0], batch_size=size)


def test_buffer_size_limit(device):
    with pytest.raises(ValueError, match="buffer_bytes=100: a DMA buffer needs at least 4096"):
        CirculantOverlay(device=device, buffer_bytes=100)


# ---- who fits whom -----------------------------------------------------------------------------------------


def build(tmp_path, **config):
    return bitstream.build(tmp_path, board="Pynq-Z2", config=spec.CoreConfig(**config), clock_mhz=125.0)


def test_width_mismatch(tmp_path, small_program):
    with CirculantOverlay(build(tmp_path, width=10), device=emulator.install()) as overlay:
        assert overlay.clock_mhz == pytest.approx(125, rel=0.01)
        with pytest.raises(IncompatibleError, match="compiled for 12 bits, this core computes in 10; compile it with"):
            overlay.load(small_program[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weight_words": 64}, r"needs 168 weight words, this core has 64"),
        ({"affine_channels": 70}, r"needs 75 affine channels, this core has 70"),
        ({"map_elements": 32}, r"small, layer 'identity4' needs 112 map elements, this core has 32"),
        ({"instructions": 2}, r"needs 3 instructions, this core has 2"),
        ({"spectra_words": 27}, r"small, layer 'tanh8' needs 28 spectra words, this core has 27"),
        ({"capability": 1}, r"layer 'tanh8' needs SIGMOID_TANH, which this build of the core lacks; compile it for"),
    ],
)
def test_program_that_does_not_fit(tmp_path, small_program, config, message):
    with (
        CirculantOverlay(build(tmp_path, **config), device=emulator.install()) as overlay,
        pytest.raises(IncompatibleError, match=message),
    ):
        overlay.load(small_program[0])


@pytest.mark.parametrize("width", [9, 16])
def test_other_widths_run(tmp_path, width):
    program = builders.mlp(width=width, u8=True)
    x = builders.samples(program, 70)
    with CirculantOverlay(build(tmp_path, width=width), device=emulator.install()) as overlay:
        got = overlay.load(program, batch_size=32).predict(x, raw=True)
    np.testing.assert_array_equal(got, reference(program, x))


@pytest.mark.parametrize(
    ("registers", "message"),
    [
        ({"magic": 0x12345678}, "no circ-overlay core answers at 0x43c00000.*may not belong to the .bit"),
        ({"spec_id": 1, "config": 0}, "the bitstream is older: build or fetch a newer one"),
        ({"spec_id": 1, "config": 99 << 24}, "the bitstream is newer: upgrade circ-overlay"),
        ({"config": spec.SPEC_VERSION << 24}, "identity registers make no sense: width=0"),
    ],
)
def test_wrong_identity(registers, message):
    device = emulator.install()
    with (
        device.fabric.inject(faults.WrongIdentity(registers)),
        pytest.raises(IncompatibleError, match=message),
    ):
        CirculantOverlay(device=device)


def test_sidecar_of_another_build(tmp_path):
    path = build(tmp_path)
    sidecar = path.with_suffix(".json")
    identity = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**identity, "spec_hash": "f" * 64}))
    with pytest.raises(IncompatibleError, match=r"circ\.json names specification ffffffffffff"):
        CirculantOverlay(path, device=emulator.install())


def test_design_of_another_project(tmp_path):
    path = build(tmp_path)
    hwh = path.with_suffix(".hwh")
    hwh.write_text(hwh.read_text().replace(spec.CORE_VLNV, "someone:hls:other_core:1.0"))
    marker = b"circ-overlay emulated bitstream"
    data = path.read_bytes()
    assert marker in data
    path.write_bytes(data.replace(marker, b"x" * len(marker)))  # now it is somebody else's
    with pytest.raises(IncompatibleError, match=r"not a circ-overlay design: it holds .*other_core"):
        CirculantOverlay(path, device=emulator.install())


def test_hwh_of_another_build(tmp_path):
    path = build(tmp_path)
    hwh = path.with_suffix(".hwh")
    hwh.write_text(hwh.read_text().replace("circ_core_0", "circ_core_1"))
    with pytest.raises(IncompatibleError, match=r"circ\.hwh does not belong to circ\.bit"):
        CirculantOverlay(path, device=emulator.install())


def test_missing_bitstream(tmp_path):
    with pytest.raises((FileNotFoundError, OSError)):
        CirculantOverlay(tmp_path / "none.bit", device=emulator.install())


def test_identity_says_emulated(overlay):
    assert "EMULATED" in overlay.describe()
    assert "built on the fly" in repr(overlay)
    assert overlay.identity["emulated"] is True


def test_no_board_asked_for_as_real(monkeypatch):
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "real")
    with pytest.raises(BoardError, match="CIRC_OVERLAY_BOARD"):
        CirculantOverlay()
    monkeypatch.setenv("CIRC_OVERLAY_BOARD", "imaginary")
    with pytest.raises(ValueError, match="imaginary"):
        CirculantOverlay()


# ---- faults ------------------------------------------------------------------------------------------------


def check_recovery(overlay, program, x):
    """After a fault the same network and a new one both work."""
    for network in (overlay.load(program, batch_size=40), overlay.load(program, batch_size=40)):
        np.testing.assert_array_equal(network.predict(x[:100], raw=True), reference(program, x[:100]))


@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
@pytest.mark.parametrize(("kind", "bit"), [("decode", "DMADecErr"), ("slave", "DMASlvErr")])
def test_bus_error(quick, small_program, channel, kind, bit):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.BusError(channel, kind=kind)),
        pytest.raises(DmaError, match=rf"{channel.upper()} stopped with a {kind} error.*{bit}") as caught,
    ):
        network.predict(x[:100])
    assert "bytes asked" in str(caught.value)
    assert network.statistics.failures == 1
    np.testing.assert_array_equal(network.predict(x[:100], raw=True), reference(program, x[:100]))
    check_recovery(quick, program, x)


@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
def test_stuck_channel_times_out_with_a_diagnosis(quick, small_program, channel):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.StuckChannel(channel)),
        pytest.raises(CoreTimeoutError) as caught,
    ):
        network.predict(x[:100])
    text = str(caught.value)
    cause = {"mm2s": "does not take its input", "s2mm": "all input was sent|does not take its input"}[channel]
    assert re.search(f"Likely cause: .*({cause})", text)
    for part in ("no end after 0.3 s", "MM2S DMASR=0x", "S2MM DMASR=0x", f"{40 * 64} bytes asked",
                 "LENGTH reads", "core ", "last command RUN, batch 40", "Likely cause:"):  # fmt: skip
        assert part in text, part
    check_recovery(quick, program, x)


def test_short_packet(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.ShortPacket("s2mm", drop=8)),
        pytest.raises(DmaError, match=rf"S2MM received a packet of {40 * 16 - 8} bytes where {40 * 16} were due"),
    ):
        network.predict(x[:40])
    check_recovery(quick, program, x)


def test_short_input_is_a_time_out(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.ShortPacket("mm2s", drop=8)),
        pytest.raises(CoreTimeoutError, match="fewer bytes than the batch needs reached it"),
    ):
        network.predict(x[:40])
    check_recovery(quick, program, x)


def test_missing_tlast(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.MissingTlast("s2mm")),
        pytest.raises(CoreTimeoutError, match="the core has ended without closing its output packet"),
    ):
        network.predict(x[:40])
    check_recovery(quick, program, x)


@pytest.mark.parametrize("status", [s for s in spec.Status if s != spec.Status.OK])
def test_core_error_status(quick, small_program, status):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.CoreStatus(status)),
        pytest.raises(CoreError, match=rf"status {int(status)} \({status.name}\)"),
    ):
        network.predict(x[:40])
    check_recovery(quick, program, x)


def test_fault_in_the_middle_of_a_long_job_fails_that_job_alone(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with quick.device.fabric.inject(faults.BusError("mm2s", kind="slave", transfer=3)):
        first = network.submit(x[:400], raw=True)
        second = network.submit(x[400:600], raw=True)
        with pytest.raises(DmaError):
            first.result(30)
        np.testing.assert_array_equal(second.result(30), reference(program, x[400:600]))
    check_recovery(quick, program, x)


def test_overlay_downloaded_again_behind_the_driver(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    quick.download()
    np.testing.assert_array_equal(network.predict(x[:100], raw=True), reference(program, x[:100]))


def test_second_overlay_and_back(small_program):
    program, x = small_program
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first:
        network = first.load(program)
        network.predict(x[:10])
        with CirculantOverlay(device=device) as second:
            assert second.load(program).predict(x[:10]).shape == (10, 5)
            with pytest.raises(BoardError, match="another bitstream has been downloaded since"):
                network.predict(x[:10])
        first.download()
        np.testing.assert_array_equal(network.predict(x[:100], raw=True), reference(program, x[:100]))


def test_download_waits_for_batches_under_way(overlay, small_program):
    program, x = small_program
    network = overlay.load(program, batch_size=50)
    pending = [network.submit(x[:1000], raw=True) for _ in range(3)]
    overlay.download()
    assert all(future.done() for future in pending)
    for future in [*pending, network.submit(x[:1000], raw=True)]:
        np.testing.assert_array_equal(future.result(30), reference(program, x[:1000]))


def test_corrupt_bitstream_is_refused():
    device = emulator.install()
    with device.fabric.inject(faults.CorruptBitstream()), pytest.raises(OSError, match="refused circ.bit"):
        CirculantOverlay(device=device)


def test_strict_cache_needs_no_change(small_program):
    """Every buffer cached, CPU and DMA views apart: the driver flushes and invalidates all it must."""
    program, x = small_program
    with CirculantOverlay(device=emulator.install(strict_cache=True)) as overlay:
        got = overlay.load(program, batch_size=64).predict(x[:500], raw=True)
    np.testing.assert_array_equal(got, reference(program, x[:500]))


def test_plain_pynq_overlay_binds_our_core_driver(tmp_path):
    from circ_overlay.driver import CirculantCore

    path = build(tmp_path)
    overlay = pynq.Overlay(str(path), device=emulator.install())
    assert isinstance(overlay.circ_core_0, CirculantCore)
    assert overlay.circ_core_0.identify() == spec.CoreConfig()
    assert overlay.circ_core_0.register_map.magic[31:0] == spec.MAGIC


def test_copied_bitstream_works(tmp_path, small_program):
    source = build(tmp_path)
    target = tmp_path / "elsewhere"
    target.mkdir()
    for suffix in (".bit", ".hwh"):
        shutil.copy(source.with_suffix(suffix), target / f"mine{suffix}")
    program, x = small_program
    with CirculantOverlay(target / "mine.bit", device=emulator.install()) as overlay:
        assert "no mine.json" in overlay.identity["note"]
        assert overlay.load(program).predict(x[:3]).shape == (3, 5)


def test_device_time_does_not_depend_on_the_engines_speed(small_program, monkeypatch):
    program, x = small_program
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as overlay:
        quick, slow = overlay.load(program), overlay.load(program)
        quick.predict(x[:1])
        quick.reset_statistics()
        quick.predict(x[:200])
        engine = device.fabric.core.engine
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda n, words: (time.sleep(0.3), run(n, words))[1])
        slow.predict(x[:200])
    assert slow.statistics.device_s == quick.statistics.device_s == pytest.approx(quick.statistics.cycles / 100e6)
    assert slow.statistics.wait_s > 0.25


def test_device_time_follows_the_clock(overlay, small_program):
    from pynq.ps import Clocks

    program, x = small_program
    network = overlay.load(program)
    network.predict(x[:100])
    network.reset_statistics()
    network.predict(x[:100])
    before = network.statistics.device_s
    Clocks.fclk0_mhz = 50
    try:
        network.predict(x[:100])
        assert network.statistics.device_s == pytest.approx(3 * before)
        assert "50 MHz" in overlay.describe()
    finally:
        Clocks.fclk0_mhz = 100


# ---- several overlays, threads, processes ------------------------------------------------------------------


def slow_engine(device, monkeypatch, seconds):
    engine = device.fabric.core.engine
    run, started = engine.run, threading.Event()

    def slow(n, words):
        started.set()
        time.sleep(seconds)
        return run(n, words)

    monkeypatch.setattr(engine, "run", slow)
    return started


def test_overlay_opened_while_another_has_a_batch_under_way(small_program, monkeypatch):
    program, x = small_program
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first:
        network = first.load(program, batch_size=50)
        network.predict(x[:1])
        started = slow_engine(device, monkeypatch, 0.5)
        pending = network.submit(x[:50], raw=True)
        assert started.wait(10)
        with CirculantOverlay(device=device) as second:  # waits for that batch before it downloads
            np.testing.assert_array_equal(pending.result(10), reference(program, x[:50]))
            got = second.load(program).predict(x[:50], raw=True)
            np.testing.assert_array_equal(got, reference(program, x[:50]))


def test_two_overlays_on_one_fabric_take_turns(device, small_program):
    program, x = small_program
    other = negated(program)
    with CirculantOverlay(device=device) as first, CirculantOverlay(device=device, download=False) as second:
        a, b = first.load(program, batch_size=20), second.load(other, batch_size=20)
        for _ in range(2):
            futures = [(a.submit(x[:200], raw=True), program), (b.submit(x[:200], raw=True), other)]
            for future, p in futures:
                np.testing.assert_array_equal(future.result(30), reference(p, x[:200]))


def test_batch_that_another_program_answered_is_an_error(quick, small_program):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    with (
        quick.device.fabric.inject(faults.WrongIdentity({"images": 7})),
        pytest.raises(CoreError, match="7 images of program .* where 40 of"),
    ):
        network.predict(x[:40])
    with (
        quick.device.fabric.inject(faults.WrongIdentity({"program_id": 7})),
        pytest.raises(CoreError, match="the core reports program 00000007 after loading"),
    ):
        network.predict(x[:40])
    check_recovery(quick, program, x)


def test_callbacks_may_submit_but_not_wait(overlay, small_program):
    program, x = small_program
    network = overlay.load(program)
    outcomes: dict[str, object] = {}
    done = threading.Event()

    def callback(_):
        for name, call in (
            ("predict", lambda: network.predict(x[:3])), ("download", overlay.download), ("close", overlay.close),
        ):  # fmt: skip
            try:
                call()
            except BoardError as error:
                outcomes[name] = str(error)
        outcomes["submit"] = network.submit(x[:3], raw=True)
        done.set()

    network.submit(x[:10]).add_done_callback(callback)
    assert done.wait(10)
    for name in ("predict", "download", "close"):
        assert f"{name} was called from a callback" in outcomes[name]
    np.testing.assert_array_equal(outcomes["submit"].result(10), reference(program, x[:3]))


def test_progress_that_exits_costs_nothing(overlay, small_program):
    program, x = small_program

    def leave(done):
        raise SystemExit(3)

    network = overlay.load(program, batch_size=30)
    np.testing.assert_array_equal(network.predict(x[:100], raw=True, progress=leave), reference(program, x[:100]))


def test_interrupted_predict_drops_the_rest(small_program, monkeypatch):
    program, x = small_program
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as overlay:
        network = overlay.load(program, batch_size=10)
        network.predict(x[:1])
        slow_engine(device, monkeypatch, 0.1)
        timer = threading.Timer(0.25, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        began = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            network.predict(x[:5000])
        assert network.predict(x[:10], raw=True).shape == (10, 5)
        assert time.perf_counter() - began < 10  # all of it would take 50 s
        assert network.statistics.images < 200


def test_leaving_with_an_error_cancels_what_is_queued(small_program, monkeypatch):
    program, x = small_program
    device = emulator.install(engine="golden")
    with pytest.raises(ZeroDivisionError), CirculantOverlay(device=device) as overlay:
        network = overlay.load(program, batch_size=10)
        network.predict(x[:1])
        slow_engine(device, monkeypatch, 0.1)
        queued = [network.submit(x[:500]) for _ in range(3)]
        raise ZeroDivisionError
    for future in queued:
        assert isinstance(future.exception(1), (CancelledError, BoardError))


def test_scheduler_that_dies_leaves_no_future_hanging(overlay, small_program, monkeypatch):
    program, x = small_program
    network = overlay.load(program, batch_size=10)
    network.predict(x[:1])
    monkeypatch.setattr(overlay._scheduler, "_unpack", lambda batch: 1 / 0)
    futures = [network.submit(x[:50]) for _ in range(3)]
    for future in futures:
        with pytest.raises(BoardError, match="scheduler has failed.*ZeroDivisionError"):
            future.result(10)
    with pytest.raises(BoardError, match="scheduler has failed"):
        network.predict(x[:1])


def test_reset_that_fails_is_told_ever_after(quick, small_program, monkeypatch):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    monkeypatch.setattr(quick._hardware._dma, "reset", lambda: 1 / 0)
    with quick.device.fabric.inject(faults.BusError("mm2s", kind="slave")), pytest.raises(DmaError):
        network.predict(x[:40])
    with pytest.raises(BoardError, match="could not be reset after an error.*download it again"):
        network.predict(x[:40])
    monkeypatch.undo()
    quick.download()
    check_recovery(quick, program, x)


def test_engine_failure_is_told_and_overcome(quick, small_program, monkeypatch):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    engine = quick.device.fabric.core.engine
    monkeypatch.setattr(engine, "run", lambda n, words: 1 / 0)
    with pytest.raises(Exception, match="the engine failed: ZeroDivisionError"):
        network.predict(x[:40])
    monkeypatch.undo()
    check_recovery(quick, program, x)


def test_abandoned_batch_does_not_delay_the_next_one(quick, small_program, monkeypatch):
    program, x = small_program
    network = quick.load(program, batch_size=40)
    network.predict(x[:10])
    slow_engine(quick.device, monkeypatch, 2)
    with pytest.raises(CoreTimeoutError):
        network.predict(x[:40])
    check_recovery(quick, program, x)


def test_forked_child_is_told(tmp_path, small_program):
    """In a process of its own: a fork of this one would have to copy what all the tests before have mapped."""
    script = """
import os, sys, numpy as np
from circ_overlay import CirculantOverlay
from circ_overlay.errors import BoardError
overlay = CirculantOverlay()
network = overlay.load(sys.argv[1])
x = np.zeros((3, 30))
network.predict(x)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    try:
        network.submit(x)
        os.write(writer, b"taken")
    except BoardError as error:
        os.write(writer, str(error).encode())
    finally:
        os._exit(0)
os.waitpid(child, 0)
print(os.read(reader, 1000).decode(), network.predict(x).shape)
"""
    small_program[0].save(tmp_path / "small.circ")
    command = [sys.executable, "-c", script, str(tmp_path / "small.circ")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "belongs to the parent process" in done.stdout, done.stderr
    assert done.stdout.endswith("(3, 5)\n")


def test_process_ends_with_work_pending(tmp_path, small_program):
    """The main thread ends while another one is in predict and more is queued: the process ends all the same."""
    script = """
import sys, threading, time, numpy as np
from circ_overlay import CirculantOverlay, emulator
device = emulator.install(engine="golden")
overlay = CirculantOverlay(device=device)
network = overlay.load(sys.argv[1], batch_size=10)
network.predict(np.zeros((1, 30)))
run = device.fabric.core.engine.run
device.fabric.core.engine.run = lambda n, w: (time.sleep(0.05), run(n, w))[1]
def user():
    try:
        network.predict(np.zeros((100, 30)))
    except BaseException as error:
        print(type(error).__name__)
threading.Thread(target=user).start()
network.submit(np.zeros((10000, 30)))
"""
    small_program[0].save(tmp_path / "small.circ")
    command = [sys.executable, "-c", script, str(tmp_path / "small.circ")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_replaced_boards_are_collected(small_program):
    """Boards come and go with their half gigabyte of memory; pynq itself may hold on to the last ones."""
    program, x = small_program
    boards = []
    for n in range(6):
        device = emulator.install(engine="golden", strict_cache=bool(n % 2))
        with CirculantOverlay(device=device) as overlay:
            assert overlay.load(program).predict(x[:3]).shape == (3, 5)
        boards.append(weakref.ref(device))
        del device, overlay
        gc.collect()
        gc.collect()
    assert sum(board() is not None for board in boards) <= 2


def test_overlays_cannot_be_copied(overlay):
    with pytest.raises(TypeError, match="owns hardware of this process"):
        copy.copy(overlay)
    with pytest.raises(TypeError, match="owns hardware of this process"):
        pickle.dumps(overlay)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_time_out_limits(device, timeout):
    with pytest.raises(ValueError, match="number of seconds above 0"):
        CirculantOverlay(device=device, timeout=timeout)


def test_dma_too_narrow_for_the_image(tmp_path, small_program):
    path = build(tmp_path)
    hwh = path.with_suffix(".hwh")
    text = hwh.read_text()
    assert 'NAME="c_sg_length_width" VALUE="26"' in text
    hwh.write_text(text.replace('NAME="c_sg_length_width" VALUE="26"', 'NAME="c_sg_length_width" VALUE="10"'))
    marker = b"circ-overlay emulated bitstream"
    path.write_bytes(path.read_bytes().replace(marker, b"x" * len(marker)))
    with (
        CirculantOverlay(path, device=emulator.install()) as overlay,
        pytest.raises(IncompatibleError, match="must travel as one packet.*c_sg_length_width is too small"),
    ):
        overlay.load(small_program[0])


@pytest.mark.parametrize("text", ["[]", "{broken", "null"])
def test_damaged_sidecar(tmp_path, text):
    path = build(tmp_path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(IncompatibleError, match=r"circ\.json"):
        CirculantOverlay(path, device=emulator.install())


def test_damaged_hwh(tmp_path):
    path = build(tmp_path)
    path.with_suffix(".hwh").write_text("<EDKSYSTEM")
    with pytest.raises(IncompatibleError, match="are both whole, and for this board"):
        CirculantOverlay(path, device=emulator.install())


def test_scaled_pixels_are_warned_of(overlay):
    network = overlay.load(builders.mlp(u8=True))
    with pytest.warns(UserWarning, match="takes raw pixels, 0..255: were they scaled"):
        network.predict(np.full((2, 30), 0.7))


def test_zoo_program_loads(overlay):
    from circ_overlay import models

    program = models.load("digits-mlp")
    assert isinstance(program, Program)
    assert overlay.load(program).predict(np.zeros((2, 8, 8), np.uint8)).shape == (2, 10)
