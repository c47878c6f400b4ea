# SPDX-License-Identifier: BSD-3-Clause
"""Co-design: topologies, what a design does, proxies, the search, its storage and its command."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="the search needs circ-overlay[explore]")
pytest.importorskip("click", reason="the command line needs circ-overlay[explore]")

from click.testing import CliRunner

from circ_overlay import golden, models, spec
from circ_overlay.cli import cli
from circ_overlay.compiler import compile
from circ_overlay.image import instructions
from circ_overlay.perf.accuracy import accuracy_of
from circ_overlay.perf.cycles import layer_stages
from circ_overlay.perf.design import Design, capacity, fidelity, figures, signal_to_noise, wants
from circ_overlay.perf.explore import ExploreError, Search, explore
from circ_overlay.perf.front import front_figure, pareto, rows
from circ_overlay.perf.parts import PARTS
from circ_overlay.perf.topology import TopologyError, load_topology, parse

ROOT = Path(__file__).resolve().parents[1]
CNN = ROOT / "docs" / "codesign_cnn.json"
TINY = {
    "name": "tiny",
    "input": [8, 8, 3],
    "layers": [
        {"kind": "conv", "out": 16, "taps": 4, "stride": 2, "padding": 1, "gather": True},
        {"kind": "conv", "out": 16, "taps": 3, "padding": 1, "k": [4, 8, 16]},
        {"kind": "add", "residual": "conv0", "name": "sum", "activation": "relu"},
        {"kind": "max_pool", "taps": 2},
        {"kind": "avg_pool", "taps": 2},
        {"kind": "fc", "out": 10},
    ],
}
Z020 = PARTS["xc7z020"]


def search(topology=None, part="xc7z020", seed=0, **rest):
    topology = topology or parse(TINY)
    return Search(topology=topology, part=part, accuracy=accuracy_of(topology, "capacity"), method="capacity",
                  seed=seed, **rest)  # fmt: skip


# ---- topologies ----------------------------------------------------------------------------------------------
def test_cnn_topology():
    t = load_topology(CNN)
    assert t.network.shapes["patch"] == (16, 16, 64)
    assert t.network.shapes["conv4"] == (4, 4, 256)
    assert t.dense_parameters == 48 * 64 + 9 * (64 * 64 + 64 * 128 + 128 * 128 + 128 * 256) + 2560
    assert t.parameters(t.default) == 48 * 4 + 9 * (4 * 64 + 4 * 128 + 8 * 128 + 8 * 256) + 2 * 32 * 8
    assert t.default == (16, 16, 16, 16, 16, 8)
    assert 1 not in t.choices[0]  # a gathered patch is transformed
    assert max(t.choices[1]) == 64


def test_wants_are_what_a_compiled_program_has():
    network = models.load_float("digits-mlp")
    images = np.random.default_rng(0).integers(0, 17, (20, 64)).astype(np.uint8)
    program = compile(network, images)
    code = instructions(program.segments[0], 12)
    t = load_topology("digits-mlp")
    need = wants(t, t.default)
    assert need["weight_words"] == sum(i.weight_count for i in code)
    assert need["affine_channels"] == sum(i.out_channels for i in code)
    assert need["spectra_words"] == max(i.spectra_words for i in code)
    f = figures(t, Design(config=spec.CoreConfig(), blocks=t.default), Z020, clock_mhz=100)
    assert [layer["k"] for layer in f.layers] == [i.block_size for i in code]


@pytest.mark.parametrize(("change", "message"), [
    ([], "expected"),
    ({"layers": []}, "expected"),
    ({"input": [8, 8]}, "height, width, channels"),
    ({"layers": [{"kind": "lstm"}]}, "kind 'lstm'"),
    ({"layers": ["conv"]}, "kind 'conv'"),
    ({"layers": [{"kind": "conv", "out": 4, "dilation": 2}]}, "unknown dilation"),
    ({"layers": [{"kind": "conv"}]}, "out=None"),
    ({"layers": [{"kind": "fc", "out": 10, "k": 5}]}, "k=5"),
    ({"layers": [{"kind": "fc", "out": 10, "k": []}]}, "k="),
    ({"layers": [{"kind": "conv", "out": 4, "taps": 9}]}, "window of 9"),
    ({"layers": [{"kind": "conv", "out": 4, "source": "x"}]}, "reads 'x'"),
    ({"layers": [{"kind": "conv", "out": 4, "taps": [1, 2, 3]}]}, "a number or two"),
    ({"layers": [{"kind": "conv", "out": 4, "taps": None}]}, "layer 0"),
])  # fmt: skip
def test_bad_topologies_are_refused(change, message):
    content = {**TINY, **change} if isinstance(change, dict) else change
    with pytest.raises(TopologyError, match=message):
        parse(content)


def test_files_that_are_none(tmp_path):
    with pytest.raises(TopologyError, match="neither a model"):
        load_topology(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(TopologyError, match="not JSON"):
        load_topology(tmp_path / "bad.json")


# ---- what the models say -------------------------------------------------------------------------------------
def test_figures_by_hand():
    t = load_topology(CNN)
    f = figures(t, Design(config=spec.CoreConfig(), blocks=t.default), Z020, clock_mhz=100)
    rows_ = {row["name"]: row for row in f.layers}
    # 256 result pixels, 16 taps read one a cycle; 4 block rows of 3 x 8 words on 52 lanes take 2 cycles.
    assert rows_["patch"]["forward"] == 256 * 16
    assert rows_["patch"]["mac"] == 256 * 2
    # 4 x 36 blocks of 8 words on 52 lanes: 23 cycles for each of 256 pixels.
    assert rows_["conv1"]["mac"] == 256 * 23
    assert rows_["conv1"]["forward"] == 256 * 64 // 4
    assert f.segments == 1
    assert f.bound["mac"] > 0.7
    assert f.feasible
    assert f.images_per_second == pytest.approx(1e8 / f.cycles)
    cycles = sum(row["cycles"] for row in f.layers)
    assert cycles < f.cycles < 1.02 * cycles


def test_what_does_not_fit_says_so():
    t = parse(TINY)
    small = spec.CoreConfig(lanes=4, samples=1, map_elements=64)
    f = figures(t, Design(config=small, blocks=t.default), Z020, clock_mhz=100)
    assert not f.feasible
    assert "map elements" in f.problem
    assert f.images_per_second == 0


def test_segments_cost_time():
    t = load_topology(CNN)
    config = spec.CoreConfig(lanes=48, samples=4)
    whole = figures(t, Design(config=config, blocks=t.default), Z020, clock_mhz=100)
    cut = figures(t, Design(config=replace(config, weight_words=9000), blocks=t.default), Z020, clock_mhz=100)
    assert cut.segments > whole.segments == 1
    assert cut.cycles > whole.cycles


@settings(max_examples=30, deadline=None)
@given(lanes=st.integers(1, 254), samples=st.integers(0, 6), more=st.integers(1, 100), data=st.data())
def test_more_parallelism_never_takes_more_cycles(lanes, samples, more, data):
    t = parse(TINY)
    blocks = tuple(data.draw(st.sampled_from(ks)) for ks in t.choices)
    config = spec.CoreConfig(lanes=lanes, samples=1 << samples)

    def cycles(c):
        return figures(t, Design(config=c, blocks=blocks), Z020, clock_mhz=100).cycles

    base = cycles(config)
    assert cycles(replace(config, lanes=min(255, lanes + more))) <= base
    assert cycles(replace(config, samples=2 << samples)) <= base


def test_layer_stages_of_unlike_operations():
    t = parse(TINY)
    f = figures(t, Design(config=spec.CoreConfig(samples=8), blocks=t.default), Z020, clock_mhz=100)
    kinds = {row["name"]: row for row in f.layers}
    assert kinds["sum"]["mac"] == 0
    assert kinds["max_pool3"]["forward"] == math.ceil(4 * 4 * 16 / 8)
    assert set(layer_stages(spec.CoreConfig(), _instruction(t))) == {"forward", "mac", "inverse", "fill"}


def _instruction(t):
    from circ_overlay.perf.design import _lowered

    return _lowered(t.network, 12).layers[0].instruction(12)


# ---- proxies and measured accuracy ---------------------------------------------------------------------------
def test_fidelity():
    t = parse(TINY)
    noise = 1 / math.sqrt(1 + 3 / signal_to_noise(12))
    assert fidelity(t, (4, 4, 1), 12) == pytest.approx(0.25 * noise)
    digits = load_topology("digits-mlp")
    assert digits.trained
    assert fidelity(digits, digits.default, 12) == pytest.approx(noise, abs=1e-6)
    assert fidelity(digits, (16, 16, 4), 12) < 0.9
    assert fidelity(digits, digits.default, 8) < fidelity(digits, digits.default, 12)


def test_projected_random_weights_err_as_the_proxy_says():
    t = load_topology("digits-mlp")
    rng = np.random.default_rng(0)
    for k in (4, 16):
        kernel = rng.normal(size=(128, 128, 1, 1))
        from circ_overlay.perf.topology import _error

        assert _error(kernel, k) == pytest.approx(math.sqrt(1 - 1 / k), abs=0.01)
    assert t.errors((1, 1, 1)) == (0, 0, 0)


def test_capacity():
    t = load_topology("digits-mlp")
    ones = (1, 1, 1)
    assert capacity(t, ones, 16) == pytest.approx(1, abs=1e-6)
    assert capacity(t, t.default, 12) < capacity(t, (4, 4, 4), 12) < 1


def test_evaluate_is_the_compiled_networks_accuracy():
    t = load_topology("digits-mlp")
    rate = accuracy_of(t, "evaluate", samples=100)
    assert rate(t.default, 12) >= 0.97
    assert rate((16, 16, 16), 12) < 0.9  # projected, not retrained
    assert rate(t.default, 8) > 0.9
    # The network that is rated is the one that the search would have compiled.
    network = t.build(t.default, weights=True)
    images = np.random.default_rng(1).integers(0, 17, (20, 64)).astype(np.uint8)
    program, own = compile(network, images), compile(models.load_float("digits-mlp"), images)
    x = program.input.quantise(images, 12)
    assert np.abs(golden.run(program, x) - golden.run(own, x)).max() <= 1


def test_methods_that_a_topology_lacks():
    with pytest.raises(TopologyError, match="takes a model of the zoo"):
        accuracy_of(parse(TINY), "evaluate")
    with pytest.raises(ValueError, match="there are fidelity"):
        accuracy_of(parse(TINY), "guess")


def test_retrain():
    pytest.importorskip("torch", reason="retraining needs circ-overlay[train]")
    rate = accuracy_of(load_topology("digits-mlp"), "retrain", samples=100, epochs=1)
    assert 0.2 < rate((16, 16, 4), 12) <= 1


# ---- the search ----------------------------------------------------------------------------------------------
def test_search_is_deterministic_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("circ_overlay.perf.explore.POPULATION", 8)
    monkeypatch.setattr("circ_overlay.perf.explore.SAMPLES_LOG2", (1, 2))  # fewer designs to begin with
    whole = explore(search(), 24)
    assert whole == explore(search(), 24)
    path = tmp_path / "trials.journal"
    seen = []
    explore(search(), 13, storage=path)
    resumed = explore(search(), 24, storage=path, progress=seen.append)
    assert seen == list(range(14, 25))
    assert resumed == whole
    assert explore(search(), 10, storage=path)["trials"] == 24  # nothing is left to do
    assert explore(search(seed=1), 24)["points"] != whole["points"]


def test_front_holds_no_infeasible_and_no_dominated_design():
    result = explore(search(part="xc7z010"), 60)
    assert 0 < result["feasible"] < 60
    for r in result["front"]:
        assert r["feasible"]
        assert max(r["use"].values()) <= 1
        assert r["resources"]["dsp"] <= 72
        better = [
            p for p in result["points"] if p["feasible"] and p["accuracy"] >= r["accuracy"]
            and p["images_per_second"] > r["images_per_second"] and p["bram"] <= r["bram"]
        ]  # fmt: skip
        assert not better
    assert not result["default"]["feasible"]
    assert "modelled" in result["provenance"]


def test_pareto_by_hand():
    def record(accuracy, rate, bram, feasible=True):
        return {"accuracy": accuracy, "images_per_second": rate, "bram": bram, "feasible": feasible}

    a, b, c = record(0.9, 100, 10), record(0.8, 200, 10), record(0.8, 100, 5)
    beaten, same, no = record(0.9, 90, 10), record(0.9, 100, 10), record(1.0, 1000, 1, feasible=False)
    assert pareto([a, beaten, b, no, c, same]) == [b, a, c]
    assert pareto([no]) == []


@pytest.mark.parametrize("damage", [b"not a journal\nat all\n", b"\x00\xff\xfe binary\n\n"])
def test_damaged_storage(tmp_path, damage):
    path = tmp_path / "trials.journal"
    explore(search(), 3, storage=path)
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(ExploreError, match="damaged"):
        explore(search(), 5, storage=path)


def test_storage_of_another_search(tmp_path):
    path = tmp_path / "trials.journal"
    explore(search(), 3, storage=path)
    for other in (search(seed=1), search(part="xc7z010"), search(clock_mhz=50), search(widths=(12, 12))):
        with pytest.raises(ExploreError, match="another search"):
            explore(other, 5, storage=path)


def test_storage_without_a_folder(tmp_path):
    with pytest.raises(ExploreError, match="cannot be opened"):
        explore(search(), 3, storage=tmp_path / "no" / "trials.journal")


@pytest.mark.parametrize(("option", "message"), [
    ({"part": "xc7z999"}, "there are"), ({"clock_mhz": 0}, "positive"), ({"usable": 0}, "share"),
])  # fmt: skip
def test_bad_searches(option, message):
    with pytest.raises(ExploreError, match=message):
        search(**option)


# ---- table, picture, command ---------------------------------------------------------------------------------
def test_table_and_picture():
    result = explore(search(), 20)
    assert len(rows(result["front"], most=5)) == min(5, len(result["front"]))
    assert rows(result["front"], most=5)[0] == rows(result["front"])[0]
    figure = front_figure(result)
    text = " ".join(t.get_text() for t in figure.axes[0].get_legend().get_texts())
    assert "does not fit" in text
    assert "default core" in text
    assert "modelled" in figure.axes[0].get_title()


def test_command(tmp_path):
    topology, out, picture = tmp_path / "tiny.json", tmp_path / "new" / "front.json", tmp_path / "new" / "front.png"
    topology.write_text(json.dumps(TINY))
    arguments = ["explore", str(topology), "--trials", "12", "--part", "xc7z020", "--clock", "50", "--seed", "3"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(out), "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    for part in ("tiny on xc7z020 at 50 MHz", "not yet checked", "proxy", "default core, own k: fits"):
        assert part in " ".join(done.output.split()), part
    result = json.loads(out.read_text())
    assert result["trials"] == 12
    assert result["clock_mhz"] == 50
    assert result["spec_hash"] == spec.SPEC_HASH
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(cli, [*arguments, "--json"])
    assert json.loads(again.output)["front"] == result["front"]


def test_command_fixes_the_width(tmp_path):
    arguments = ["explore", "digits-mlp", "--trials", "8", "--width", "10", "--evaluate", "50", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert {r["config"]["width"] for r in result["front"]} == {10}
    assert result["accuracy_method"] == "evaluate 50"


@pytest.mark.parametrize(("arguments", "message"), [
    (["nothing"], "neither a model"),
    (["digits-mlp", "--proxy", "capacity", "--evaluate", "5"], "exclude each other"),
    (["digits-mlp", "--part", "xc1"], "xc7z020"),
])  # fmt: skip
def test_command_refuses(arguments, message):
    done = CliRunner().invoke(cli, ["explore", *arguments])
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output


def test_missing_optuna_is_named():
    script = "import sys; sys.modules['optuna'] = None\nimport circ_overlay.perf.explore"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install circ-overlay[explore]" in done.stderr
