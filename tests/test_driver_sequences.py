# SPDX-License-Identifier: BSD-3-Clause
"""The driver on networks that keep a state from step to step."""

import asyncio
import re
import threading
from concurrent.futures import CancelledError

import builders
import numpy as np
import pytest
from builders import reference

pytest.importorskip("pynq", reason="the driver needs pynq")

from circ_overlay import CirculantOverlay, emulator, spec
from circ_overlay.driver.plan import Planner
from circ_overlay.driver.stage import Stage
from circ_overlay.emulator import bitstream, faults
from circ_overlay.errors import CoreTimeoutError, DmaError
from circ_overlay.evaluate import evaluate, golden_outputs

LENGTHS = (3, 1, 20, 7, 7, 16, 2, 40, 5)


def sequences(program, lengths, seed=0):
    return [builders.samples(program, n, seed + 100 * i) for i, n in enumerate(lengths)]


def expected(program, items):
    """Golden outputs of each sequence by itself."""
    return [reference(program, x, np.arange(len(x)) == 0) for x in items]


def equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def overlay():
    with CirculantOverlay(device=emulator.install(engine="golden"), timeout=5) as overlay:
        yield overlay


@pytest.fixture(scope="module")
def cell():
    program = builders.recurrent()
    return program, sequences(program, LENGTHS)


@pytest.mark.parametrize("batch", [1, 8, 16, None])
@pytest.mark.parametrize("options", [{}, {"segments": 3}, {"u8": True, "features": 7}])
def test_every_step_equals_golden(overlay, options, batch):
    program = builders.recurrent(**options)
    items = sequences(program, LENGTHS)
    network = overlay.load(program, batch_size=batch)
    got = network.predict_sequences(items, raw=True)
    equal(got, expected(program, items))
    assert [g.shape for g in got] == [(n, 3) for n in LENGTHS] and got[0].dtype == np.int16
    assert network.statistics.images == sum(LENGTHS)
    assert network.statistics.program_loads == len(program.segments)


def test_rounds_end_where_sequences_do(cell):
    program = builders.recurrent(segments=2)
    items = cell[1]
    with CirculantOverlay(device=emulator.install(engine="golden"), host_bytes=18 * 24) as overlay:
        network = overlay.load(program, batch_size=16)
        equal(network.predict_sequences(items, raw=True), expected(program, items))
        plan = network._planner.plan(sum(LENGTHS), np.cumsum(LENGTHS))
        assert network.statistics.program_loads == 2 * plan.rounds > 2


def test_last_steps_classes_and_real_values(overlay, cell):
    program, items = cell
    network = overlay.load(program)
    want = np.stack([w[-1] for w in expected(program, items)])
    got = network.predict_sequences(items, last=True, raw=True)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(network.predict_sequences(items, last=True), want * np.float32(0.125))
    np.testing.assert_array_equal(network.classify(items), want.argmax(1))
    values = network.predict_sequences(items)
    assert values[2].dtype == np.float32
    equal([v * 8 for v in values], expected(program, items))


def test_no_sequences(overlay, cell):
    network = overlay.load(cell[0])
    assert network.predict_sequences([]) == []
    assert network.predict_sequences([], last=True).shape == (0, 3)
    assert network.classify([]).shape == (0,)


def test_every_kind_of_iterable(overlay, cell):
    program = cell[0]
    network = overlay.load(program)
    block = builders.samples(program, 12).reshape(3, 4, 6)
    equal(network.predict_sequences(block, raw=True), expected(program, list(block)))
    equal(network.predict_sequences(iter(block), raw=True), expected(program, list(block)))
    equal(network.predict_sequences(block.tolist(), raw=True), expected(program, list(block)))


def test_submit_progress_and_async(overlay, cell):
    program, items = cell
    network = overlay.load(program, batch_size=16)
    seen = []
    futures = [network.submit_sequences(items, raw=True, progress=seen.append) for _ in range(2)]
    for future in futures:
        equal(future.result(30), expected(program, items))
    half = len(seen) // 2
    assert seen[:half] == seen[half:] == sorted(seen[:half]) and seen[-1] == len(items)

    async def main():
        return await asyncio.gather(network.predict_sequences_async(items, raw=True, last=True),
                                    network.predict_sequences_async(items[:2], raw=True))  # fmt: skip

    last, two = asyncio.run(main())
    assert last.shape == (len(items), 3)
    equal(two, expected(program, items[:2]))
    hold = threading.Event()
    first = network.submit_sequences(items, progress=lambda done: hold.wait(10))
    second = network.submit_sequences(items)
    assert second.cancel()
    hold.set()
    first.result(30)
    with pytest.raises(CancelledError):
        second.result(1)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.zeros((3, 6)), np.zeros((0, 6))], "sequence 1 is empty"),
        ([np.zeros((3, 6)), np.zeros((3, 5))], r"sequence 1 has shape (3, 5): expected (steps, 6)"),
        (np.zeros((3, 6)), "sequence 0 has shape (6,): expected (steps, 6); one sequence is given as a list of one"),
        ([np.array(1.0)], r"sequence 0 has shape (): expected (steps, 6)"),
        ([np.zeros((3, 6)), np.full((3, 6), "a")], "sequence 1 is of dtype <U1: expected real numbers"),
    ],
)
def test_wrong_sequences_are_told_at_once(overlay, cell, items, message):
    network = overlay.load(cell[0])
    with pytest.raises(ValueError, match=re.escape(message)):
        network.submit_sequences(items)
    with pytest.raises(ValueError, match=re.escape(message)):
        network.classify(items)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(overlay, cell, value):
    bad = [x.copy() for x in cell[1]]
    bad[3][5, 2] = value
    with pytest.raises(ValueError, match="sequence 3, step 5 holds NaN or infinite"):
        overlay.load(cell[0]).predict_sequences(bad)


def test_predict_is_for_the_others(overlay, cell):
    network, plain = overlay.load(cell[0]), overlay.load(builders.mlp())
    for call in (network.predict, network.submit):
        with pytest.raises(ValueError, match="recurrent works on sequences: give predict_sequences a list of"):
            call(np.zeros((3, 6)))
    with pytest.raises(ValueError, match="small does not work on sequences: use predict"):
        plain.predict_sequences([np.zeros((3, 30))])


def test_sequence_longer_than_the_buffers(tmp_path):
    config = spec.CoreConfig(weight_words=600, affine_channels=64, instructions=8)
    path = bitstream.build(tmp_path, board="Pynq-Z2", config=config)
    program = builders.recurrent()
    with CirculantOverlay(path, device=emulator.install(engine="golden"), buffer_bytes=4096) as overlay:
        network = overlay.load(program)
        limit = overlay._hardware.buffer_bytes // 24
        with pytest.raises(ValueError, match=rf"sequence 1 has {limit + 1} .* hold {limit}, .*larger buffer_bytes"):
            network.predict_sequences(sequences(program, (3, limit + 1)))
        items = sequences(program, (3, limit, 5))
        equal(network.predict_sequences(items, raw=True), expected(program, items))
        with pytest.raises(ValueError, match=rf"batch_size={limit + 1}: the buffers allow 1\.\.{limit}"):
            overlay.load(program, batch_size=limit + 1)


@pytest.mark.parametrize("batch", [1, 16, 30, 64])
@pytest.mark.parametrize("host_bytes", [1, 18 * 24, 1 << 20])
def test_batches_are_whole_sequences(batch, host_bytes):
    program = builders.recurrent(segments=2)
    stages = [Stage(program, n) for n in range(2)]
    planner = Planner(stages, spec.CoreConfig(), (batch, batch + 3), host_bytes)
    ends = np.cumsum(LENGTHS)
    cuts, done = {0, *ends.tolist()}, [0, 0]
    for part in planner.plan(sum(LENGTHS), ends).parts():
        assert {part.start, part.stop, part.begin, part.end} <= cuts
        assert part.start == done[part.segment]
        alone = part.start in cuts and ends[np.searchsorted(ends, part.start, "right")] == part.stop
        assert alone or part.stop - part.start <= planner.batch[part.segment]
        done[part.segment] = part.stop
    assert done == [sum(LENGTHS)] * 2


@pytest.mark.parametrize("transfer", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("segments", [1, 2])
def test_fault_in_the_middle(overlay, cell, transfer, segments):
    program, items = builders.recurrent(segments=segments), cell[1]
    network = overlay.load(program, batch_size=16)
    with (
        overlay.device.fabric.inject(faults.BusError("mm2s", kind="slave", transfer=transfer)),
        pytest.raises(DmaError),
    ):
        network.predict_sequences(items)
    equal(network.predict_sequences(items, raw=True), expected(program, items))


def test_missing_control_beat_is_a_time_out(cell):
    program, items = cell
    with CirculantOverlay(device=emulator.install(engine="golden"), timeout=0.3) as overlay:
        network = overlay.load(program)
        network.predict_sequences(items)
        with (
            overlay.device.fabric.inject(faults.ShortPacket("mm2s", drop=8)),
            pytest.raises(CoreTimeoutError, match="fewer bytes than the batch needs"),
        ):
            network.predict_sequences(items)
        equal(network.predict_sequences(items, raw=True), expected(program, items))


def test_two_overlays_on_one_fabric_share_no_state(cell):
    """Both run the same program and another one in turns: neither sees what the other's sequences left behind."""
    program, items = cell
    device = emulator.install(engine="golden")
    with CirculantOverlay(device=device) as first, CirculantOverlay(device=device, download=False) as second:
        networks = [o.load(p, batch_size=16) for o in (first, second) for p in (program, builders.recurrent(seed=2))]
        jobs = [(n, n.submit_sequences(items, raw=True)) for _ in range(3) for n in networks]
        for network, future in jobs:
            equal(future.result(60), expected(network.program, items))


def test_other_networks_from_other_threads(overlay, cell):
    program, items = cell
    plain, x = builders.split_mlp(), builders.samples(builders.split_mlp(), 60)
    networks = overlay.load(program, batch_size=8), overlay.load(plain, batch_size=8)
    wrong = []

    def user(n):
        for _ in range(3):
            try:
                if n % 2:
                    equal(networks[0].predict_sequences(items, raw=True), expected(program, items))
                else:
                    np.testing.assert_array_equal(networks[1].predict(x, raw=True), reference(plain, x))
            except BaseException as error:
                wrong.append(repr(error)[:300])

    threads = [threading.Thread(target=user, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_evaluate(overlay, cell):
    program, items = cell
    rows = golden_outputs(program, items)
    want = np.concatenate(expected(program, items))
    np.testing.assert_array_equal(rows, want)
    answers = want[np.cumsum(LENGTHS) - 1].argmax(1)
    labels = answers.copy()
    labels[0] = (labels[0] + 1) % 3
    told = []

    class Right:
        """A float network that knows each sequence's label, and wrong steps before it."""

        def forward(self, x):
            n = next(i for i, item in enumerate(items) if item is x)
            return np.eye(3)[[(labels[n] + 1) % 3] * (len(x) - 1) + [labels[n]]]

    result, got = evaluate(
        overlay, program, items, labels, progress=lambda *a: told.append(a), batch_size=16, float_network=Right()
    )
    np.testing.assert_array_equal(got, answers)
    assert result["accuracy"] == {"float": 1.0, "golden": 8 / 9, "board": 8 / 9}
    assert (result["images"], result["unit"], result["steps"]) == (9, "sequence", sum(LENGTHS))
    assert result["equal_to_golden"] == 9
    assert result["device"]["cycles_per_image"] == result["device"]["cycles"] / 9
    assert told[-1] == ("board", 9)


@pytest.mark.parametrize("make", [builders.split_mlp, builders.convolution, lambda: builders.mlp(u8=True)])
def test_evaluate_without_sequences(overlay, make):
    program = make()
    x = builders.samples(program, 300)
    want = reference(program, x).reshape(300, -1)
    np.testing.assert_array_equal(golden_outputs(program, x), want)
    result, got = evaluate(overlay, program, x, want.argmax(1), batch_size=64)
    np.testing.assert_array_equal(got, want.argmax(1))
    assert result["accuracy"]["board"] == 1.0 and result["equal_to_golden"] == 300
    assert result["segments"] == len(program.segments)
    empty, _ = evaluate(overlay, program, x[:0], np.zeros(0, np.int64))
    assert empty["accuracy"]["board"] is None and empty["equal_to_golden"] == 0
