# SPDX-License-Identifier: BSD-3-Clause
"""The driver on programs of several segments: results, rounds, plans, faults, other owners; who fits whom."""

import dataclasses
import logging
import threading
import time

import builders
import numpy as np
import pytest
from builders import reference

pytest.importorskip("pynq", reason="the driver needs pynq")

from circ_overlay import CirculantOverlay, emulator, spec
from circ_overlay.driver.fits import check_fits
from circ_overlay.driver.plan import Planner
from circ_overlay.driver.stage import Stage
from circ_overlay.emulator import faults
from circ_overlay.errors import BoardError, CoreError, DmaError, IncompatibleError
from circ_overlay.perf.cycles import segment_plan


@pytest.fixture(scope="module")
def split():
    program = builders.split_mlp()
    return program, builders.samples(program, 1000)


@pytest.fixture
def overlay():
    with CirculantOverlay(device=emulator.install(engine="golden"), timeout=5) as overlay:
        yield overlay


def planner(program, batch, host_bytes=1 << 28):
    stages = [Stage(program, n) for n in range(len(program.segments))]
    return Planner(stages, spec.CoreConfig(), [batch] * len(stages), host_bytes)


def equal(network, x):
    np.testing.assert_array_equal(network.predict(x, raw=True), reference(network.program, x))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 300])
@pytest.mark.parametrize("host_bytes", [None, 128 * 37, 1])
def test_predict_equals_golden(split, n, host_bytes):
    program, x = split
    if host_bytes == 1:
        n = min(n, 20)  # every sample is a round
    with CirculantOverlay(device=emulator.install(engine="golden"), host_bytes=host_bytes) as overlay:
        network = overlay.load(program, batch_size=16)
        outputs = network.predict(x[:n], raw=True)
        assert outputs.shape == (n, 8)
        np.testing.assert_array_equal(outputs, reference(program, x[:n]))
        rounds = {None: n > 0, 128 * 37: -(-n // 37), 1: n}[host_bytes]
        s = network.statistics
        assert (s.images, s.program_loads) == (n, 3 * rounds)
        assert s.load_cycles == rounds * sum(len(image) for image in program.images)
        assert s.program_bytes == 8 * s.load_cycles


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("batch", [7, None])
def test_convolutions_on_bytes(overlay, channels_first, segments, batch):
    program = builders.convolution(channels_first=channels_first, segments=segments)
    x = builders.samples(program, 50)
    network = overlay.load(program, batch_size=batch)
    equal(network, x)
    np.testing.assert_array_equal(network.predict(x.reshape(50, -1), raw=True), reference(program, x))
    assert network.predict(x[:2]).shape == (2, *program.output.shape)
    assert network.classify(x[:5]).shape == (5,)


@pytest.mark.parametrize("make", [builders.mlp, lambda: builders.convolution(segments=1)])
def test_a_network_cut_into_segments_is_the_same_network(overlay, make):
    whole = make()
    pieces = builders.cut(whole)
    x = builders.samples(whole, 60)
    network = overlay.load(pieces, batch_size=16)
    np.testing.assert_array_equal(network.predict(x, raw=True), overlay.load(whole).predict(x, raw=True))
    assert network.statistics.program_loads == len(pieces.segments) == len(whole.layers)


def test_strict_cache_needs_no_change(split):
    """Every buffer cached, CPU and DMA views apart."""
    cell = builders.recurrent()
    steps = builders.samples(cell, 50)
    with CirculantOverlay(device=emulator.install(engine="golden", strict_cache=True)) as overlay:
        equal(overlay.load(split[0], batch_size=16), split[1][:100])
        got = overlay.load(cell, batch_size=20).predict_sequences([steps, steps[:7]], raw=True)
    np.testing.assert_array_equal(got[0], reference(cell, steps))
    np.testing.assert_array_equal(got[1], got[0][:7])


def test_channels_first_is_the_same_network(overlay):
    first, last = (builders.convolution(channels_first=c) for c in (True, False))
    x = builders.samples(last, 20)
    a = overlay.load(first).predict(x.transpose(0, 3, 1, 2), raw=True)
    np.testing.assert_array_equal(a.transpose(0, 2, 3, 1), overlay.load(last).predict(x, raw=True))


def test_statistics_and_table_span_all_segments(overlay, split):
    program, x = split
    network = overlay.load(program, batch_size=100)
    network.predict(x[:250])
    s = network.statistics
    stages = [Stage(program, n) for n in range(3)]
    assert (s.images, s.batches, s.program_loads, s.failures) == (250, 9, 3, 0)
    assert s.bytes_in == 250 * sum(stage.in_bytes for stage in stages)
    assert s.bytes_out == 250 * sum(stage.out_bytes for stage in stages)
    assert len(s.layer_cycles) == 5 and all(s.layer_cycles)
    assert s.device_s == pytest.approx((s.cycles + s.load_cycles) / 100e6)
    modelled = network.plan(250).summary()
    assert (s.load_cycles, s.cycles) == (modelled["load_cycles"], modelled["run_cycles"])
    rows = network.layer_table()
    assert [row["segment"] for row in rows] == [0, 1, 1, 2, 2]
    assert [row["layer"] for row in rows] == ["hidden", "deep", "head a", "sums", "head b"]
    assert [(row["in"], row["out"]) for row in rows][:2] == [("30", "40"), ("40", "24")]
    assert rows[2]["k"] == 1 and rows[2]["compression"] == 1.0
    assert all(row["cycles_per_image"] > 0 for row in rows)
    table = overlay.load(builders.convolution()).layer_table()
    assert (table[0]["in"], table[0]["out"], table[0]["operation"]) == ("9x10x3", "4x5x10", "circulant")


def test_progress_counts_what_has_left_the_last_segment(split):
    program, x = split
    seen = []
    with CirculantOverlay(device=emulator.install(engine="golden"), host_bytes=128 * 50) as overlay:
        overlay.load(program, batch_size=20).predict(x[:120], progress=seen.append)
    assert seen == [20, 40, 60, 80, 100, 120]  # rounds of 40, as even and as full as can be


def test_the_plan_is_told(split, caplog):
    program, x = split
    with CirculantOverlay(device=emulator.install(engine="golden"), host_bytes=128 * 50) as overlay:
        network = overlay.load(program, batch_size=20)
        assert "3 segments>, batches of 20, loaded once for every 50 samples" in repr(network)
        plan = network.plan(120)
        assert (plan.round, plan.rounds) == (40, 3)
        text = str(plan)
        for part in ("120 samples through 3 segments", "3 rounds of up to 40", "modelled cycles", "loading"):
            assert part in text, text
        with caplog.at_level(logging.INFO, "circ_overlay.driver.network"):
            network.predict(x[:120])
        assert text in caplog.text
        assert "all in one round" in repr(network.plan())
        one = overlay.load(builders.mlp())
        assert "one segment that is loaded once" in str(one.plan(1000))


def test_default_batches_take_no_longer_than_a_time_out_allows(overlay, split, monkeypatch):
    assert overlay.load(split[0])._planner.batch == (1024,) * 3
    monkeypatch.setattr("circ_overlay.driver.overlay.BATCH_SECONDS", 10e-6)  # 1,000 cycles
    network = overlay.load(split[0])
    single = [cycles.run for cycles in segment_plan(overlay.config, split[0], 1)]
    assert network._planner.batch == tuple(1000 // n for n in single)
    equal(network, split[1][:50])
    monkeypatch.setattr("circ_overlay.driver.overlay.BATCH_SECONDS", 1e-9)
    assert overlay.load(split[0])._planner.batch == (1, 1, 1)
    assert overlay.load(split[0], batch_size=200)._planner.batch == (200,) * 3


# ---- plans, without hardware -------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 5, 39, 40, 41, 997])
@pytest.mark.parametrize("batch", [1, 16, 1024])
def test_parts_cover_every_sample_once_in_each_segment(split, images, batch):
    plan = planner(split[0], batch, 128 * 40).plan(images)
    done = [0, 0, 0]
    for part in plan.parts():
        assert part.start == done[part.segment]
        assert 0 < part.stop - part.start <= batch
        assert part.begin <= part.start and part.stop <= part.end <= part.begin + 40
        assert part.segment == 0 or done[part.segment - 1] == part.end, "a segment is through with its round"
        done[part.segment] = part.stop
    assert done == [images] * 3


@pytest.mark.parametrize("batch", [3, 16, 64])
@pytest.mark.parametrize("images", [41, 100, 333, 1000])
def test_rounds_are_as_cheap_as_any(split, images, batch):
    p = planner(split[0], batch, 128 * 40)
    chosen = p.plan(images).round
    costs = {size: sum(p.cycles(images, size)) for size in range(1, 41)}
    assert costs[chosen] <= 1.01 * min(costs.values())
    assert -(-images // chosen) == -(-images // 40)


def test_tensors_count_while_they_wait(split):
    p = planner(split[0], 16)
    assert p.tensor_bytes == 2 * (40 + 24)
    assert p.last_use == {"hidden": 2, "deep": 2}
    assert planner(builders.mlp(), 16).round_limit is None


def test_tensors_are_given_back(overlay, split, monkeypatch):
    from circ_overlay.driver import job as module

    jobs = []
    monkeypatch.setattr(module.Job, "complete", lambda self, end=module.Job.complete: (jobs.append(self), end(self)))
    network = overlay.load(split[0], batch_size=16)
    equal(network, split[1][:100])
    assert not jobs[0]._tensors


# ---- faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", range(1, 16, 2))
@pytest.mark.parametrize("channel", ["mm2s", "s2mm"])
def test_fault_in_the_middle_of_a_job_fails_that_job_alone(overlay, split, channel, transfer):
    program, x = split
    network = overlay.load(program, batch_size=40)
    with overlay.device.fabric.inject(faults.BusError(channel, kind="slave", transfer=transfer)) as fault:
        futures = [network.submit(x[:100], raw=True), network.submit(x[100:300], raw=True)]
        failures = [f.exception(30) for f in futures]
    assert [type(e) for e in failures].count(DmaError) <= 1
    assert isinstance(failures[0], DmaError) or transfer > 9, fault
    for future, error, part in zip(futures, failures, (x[:100], x[100:300])):
        if error is None:
            np.testing.assert_array_equal(future.result(), reference(program, part))
    equal(network, x[:100])
    equal(overlay.load(builders.mlp()), x[:100])


def test_core_that_is_reset_behind_the_driver(overlay, split):
    program, x = split
    network = overlay.load(program, batch_size=40)
    with (
        overlay.device.fabric.inject(faults.CoreStatus(spec.Status.NO_PROGRAM, command=spec.Command.RUN)),
        pytest.raises(CoreError, match="NO_PROGRAM"),
    ):
        network.predict(x[:100])
    equal(network, x[:100])


def test_host_without_memory_for_the_tensors(overlay, split, monkeypatch):
    program, x = split
    network = overlay.load(program, batch_size=40)
    take, calls = Stage.take, []

    def poor(self, *arguments):
        calls.append(self.index)
        if len(calls) == 4:
            raise MemoryError("no more")
        take(self, *arguments)

    monkeypatch.setattr(Stage, "take", poor)
    with pytest.raises(MemoryError):
        network.predict(x[:100])
    assert calls == [0, 0, 0, 1]
    equal(network, x[:100])


def test_bad_values_fail_their_call_only(overlay, split):
    program, x = split
    network = overlay.load(program, batch_size=10)
    bad = x[:50].copy()
    bad[33, 3] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        network.predict(bad)
    equal(network, x[:50])


def test_download_in_the_middle(overlay, split):
    program, x = split
    network = overlay.load(program, batch_size=20)
    pending = [network.submit(x[:200], raw=True) for _ in range(3)]
    overlay.download()
    assert all(future.done() for future in pending)
    for future in pending:
        np.testing.assert_array_equal(future.result(), reference(program, x[:200]))
    equal(network, x[:200])


def test_another_bitstream_in_the_middle(split):
    program, x = split
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first:
        network = first.load(program, batch_size=10)
        begun = threading.Event()
        future = network.submit(x, progress=lambda done: (begun.set(), time.sleep(0.05)))
        assert begun.wait(20)
        with CirculantOverlay(device=device) as second:
            equal(second.load(program), x[:20])
            with pytest.raises(BoardError, match="another bitstream has been downloaded since"):
                future.result(30)
        first.download()
        equal(network, x[:100])


# ---- other owners ------------------------------------------------------------------------------------------


def hammer(users, seconds=60):
    """Call every function in a thread of its own; what went wrong."""
    wrong = []

    def call(user):
        try:
            user()
        except BaseException as error:
            wrong.append(repr(error)[:300])

    threads = [threading.Thread(target=call, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive()
    return wrong


def test_networks_of_several_threads_interleave(overlay, split):
    program, x = split
    conv = builders.convolution(channels_first=True)
    pixels = builders.samples(conv, 60)
    networks = [(overlay.load(program, batch_size=16), x), (overlay.load(builders.mlp(), batch_size=16), x),
                (overlay.load(conv, batch_size=16), pixels)]  # fmt: skip

    def user(seed):
        rng = np.random.default_rng(seed)
        for _ in range(4):
            network, samples = networks[int(rng.integers(3))]
            start, n = int(rng.integers(0, 20)), int(rng.integers(1, 40))
            equal(network, samples[start : start + n])

    assert hammer([lambda s=seed: user(s) for seed in range(5)]) == []


def test_two_overlays_on_one_fabric_take_turns(split):
    """Each one's loads come in between the other's batches, and between its segments."""
    program, x = split
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first, CirculantOverlay(device=device, download=False) as second:
        other = builders.split_mlp(seed=4, name="other")
        networks = first.load(program, batch_size=16), second.load(other, batch_size=24)
        jobs = [[n.submit(x[a : a + 100], raw=True) for a in (0, 100, 200)] for n in networks]
        for network, futures in zip(networks, jobs):
            for a, future in zip((0, 100, 200), futures):
                np.testing.assert_array_equal(future.result(60), reference(network.program, x[a : a + 100]))
        assert sum(n.statistics.program_loads for n in networks) >= 2 * 3 * 3


def test_one_overlays_failures_do_not_reach_the_other(split):
    """Each failure resets the DMA that both share, and pynq's channels of the other one know nothing of it."""
    program, x = split
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first, CirculantOverlay(device=device, download=False) as second:
        a, b = first.load(program, batch_size=40), second.load(builders.mlp(), batch_size=40)
        equal(a, x[:50])
        equal(b, x[:50])
        for network, other in ((a, b), (b, a), (a, b)):
            with device.fabric.inject(faults.BusError("mm2s", kind="slave")), pytest.raises(DmaError):
                network.predict(x[:50])
            equal(other, x[:50])
            equal(network, x[:50])
        assert (a.statistics.failures, b.statistics.failures) == (2, 1)


# ---- who fits whom -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (builders.split_mlp, {"weight_words": 111}, r"split, segment 1 needs 156 weight words, this core has 111"),
        (builders.split_mlp, {"affine_channels": 39}, r"split, segment 0 needs 40 affine channels, this core has 39"),
        (builders.split_mlp, {"instructions": 1}, r"split, segment 1 needs 2 instructions, this core has 1"),
        (builders.split_mlp, {"map_elements": 80}, r"split, segment 2, layer 'head b' needs \d+ map elements"),
        (builders.split_mlp, {"spectra_words": 30}, r"split, segment 2, layer 'sums' needs \d+ spectra words"),
        (builders.split_mlp, {"capability": 255 - 2}, r"split, segment 1, layer 'deep' needs SIGMOID_TANH"),
        (builders.split_mlp, {"capability": 255 - 32}, r"split, segment 1, layer 'head a' needs UNCOMPRESSED"),
        (builders.split_mlp, {"capability": 255 - 1}, r"split, segment 0, layer 'hidden' needs CIRCULANT"),
        (builders.convolution, {"capability": 255 - 4}, r"conv, segment 0, its input needs INPUT_U8"),
        (builders.convolution, {"capability": 255 - 8}, r"conv, segment 0, layer 'conv1' needs POOLING"),
        (builders.convolution, {"capability": 255 - 64}, r"conv, segment 0, layer 'conv1' needs GATHER"),
        (builders.recurrent, {"capability": 255 - 16}, r"recurrent, layer 'h' needs PRODUCT"),
        (builders.recurrent, {"capability": 255 - 128}, r"recurrent, working on sequences needs SEQUENCE"),
    ],
)
def test_program_that_does_not_fit(make, config, message):
    program = make()
    check_fits(program, spec.CoreConfig())
    with pytest.raises(IncompatibleError, match=message) as caught:
        check_fits(program, spec.CoreConfig(**config))
    assert "compile it for this core: compile(..., config=overlay.config)" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"opcode": spec.Opcode.MAX, "taps": (2, 2)}, True),
        ({"opcode": spec.Opcode.SUM, "taps": (2, 2)}, True),
        ({"opcode": spec.Opcode.SUM}, False),
    ],
)
def test_what_counts_as_pooling(fields, needs):
    source = builders.Map(height=4, width=4, channels=8)
    layer = builders.layer(np.random.default_rng(0), source, dataclasses.replace(source, base=source.end), **fields)
    port = builders.Port(shape=(4, 4, 8), frac=0, pixels=16)
    program = builders.Program.chain(name="pool", width=12, input=port, output=port, layers=(layer,))
    config = spec.CoreConfig(capability=255 - spec.Capability.POOLING)
    if needs:
        with pytest.raises(IncompatibleError, match="needs POOLING"):
            check_fits(program, config)
    else:
        check_fits(program, config)


def test_what_check_fits_lets_through_the_core_takes(split):
    """Capacities of exactly what the program needs: the core's own checks agree with the driver's."""
    from circ_overlay import image

    program, _ = split
    need = {
        "weight_words": 152, "map_elements": 4 * 29, "affine_channels": 40, "instructions": 2, "spectra_words": 64,
    }  # fmt: skip
    config = spec.CoreConfig(**need)
    for name in need:
        low = 1
        while True:  # the least value that the driver accepts
            try:
                check_fits(program, dataclasses.replace(spec.CoreConfig(), **{name: low}))
                break
            except IncompatibleError:
                low += 1
        config = dataclasses.replace(config, **{name: low})
    for words in program.images:
        assert isinstance(image.decode(words, config), image.Image)
    for name in need:
        tight = dataclasses.replace(config, **{name: getattr(config, name) - 1})
        assert any(isinstance(image.decode(words, tight), spec.Status) for words in program.images)


def test_host_bytes_limit():
    with pytest.raises(ValueError, match="host_bytes=0"):
        CirculantOverlay(device=emulator.install(engine="golden"), host_bytes=0)
