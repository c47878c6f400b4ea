# SPDX-License-Identifier: BSD-3-Clause
"""circ-overlay compile: files in, a .circ file and a table out; the report behind it."""

import json

import numpy as np
import pytest

pytest.importorskip("click", reason="the command line needs circ-overlay[cli]")
from click.testing import CliRunner

from circ_overlay import golden, spec
from circ_overlay.cli import cli
from circ_overlay.compiler import Conv2d, Linear, MaxPool2d, Network, compile
from circ_overlay.compiler.report import layer_table, summary
from circ_overlay.program import Program

BUILD = """
import torch
from torch import nn
from circ_overlay.nn import BlockCirculantLinear

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), BlockCirculantLinear(24, 16, 8), nn.ReLU(), nn.Linear(16, 3))

def broken():
    return 5

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(4, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", y=np.arange(40), images=rng.normal(size=(40, 4, 6)).astype(np.float32))
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 4, 6)).astype(np.uint8))
    (tmp_path / "build.py").write_text(BUILD)
    return tmp_path


def call(*arguments, status=0):
    result = CliRunner().invoke(cli, ["compile", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


def test_module_from_code(folder):
    pytest.importorskip("torch")
    target = folder / "net.circ"
    options = ("--name", "mine", "--labels", "a, b,c")
    text = call(f"{folder}/build.py:build", "--data", folder / "x.npz", "-o", target, *options)
    for part in ("mine", "linear, relu", "SNR dB", "modelled", "net.circ", "images/s", "% of weight words"):
        assert part in text, part
    program = Program.load(target)
    assert (program.name, program.labels, program.width) == ("mine", ("a", "b", "c"), 12)
    assert program.metadata["calibration_samples"] == 40


def test_weights_for_code_and_json(folder):
    torch = pytest.importorskip("torch")
    import runpy

    module = runpy.run_path(str(folder / "build.py"))["build"]()
    with torch.no_grad():
        module[3].bias += 1
    torch.save(module.state_dict(), folder / "state.pt")
    source = f"{folder}/build.py:build"
    result = json.loads(
        call(source, "--data", folder / "x.npy", "-o", folder / "n.circ", "--weights", folder / "state.pt", "--json",
             "--width", 10, "--board", "pynq-z2", "--lanes", 7, "--samples-limit", 30)
    )  # fmt: skip
    assert result["summary"]["segments"] == 1
    assert [row["k"] for row in result["layers"]] == [8, 1]
    program = Program.load(folder / "n.circ")
    assert (program.width, program.input.storage) == (10, "uint8")
    x = np.load(folder / "x.npy")
    got = program.output.value(golden.run(program, program.input.quantise(x, 10)))
    expected = module.eval()(torch.from_numpy(x.astype(np.float32))).detach().numpy()
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    torch.save({"other": torch.ones(3)}, folder / "state.pt")
    assert "does not hold the weights of" in call(
        source, "--data", folder / "x.npy", "-o", folder / "n.circ", "--weights", folder / "state.pt", status=1
    )


def test_pickled_modules_need_trust(folder):
    torch = pytest.importorskip("torch")
    from torch import nn

    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(24, 8)), folder / "m.pt")
    torch.save({"w": torch.ones(2)}, folder / "state.pth")
    torch.jit.trace(nn.Linear(24, 8), torch.ones(1, 24)).save(folder / "script.pt")
    rest = ("--data", folder / "x.npz", "-o", folder / "m.circ")
    assert "give --trust if you" in call(folder / "m.pt", *rest, status=1)
    assert not (folder / "m.circ").exists()
    call(folder / "m.pt", *rest, "--trust", "--block-size", 8)
    assert Program.load(folder / "m.circ").layers[0].block_size == 8
    assert "weights and no network" in call(folder / "state.pth", *rest, status=1)
    assert "TorchScript" in call(folder / "script.pt", *rest, "--trust", status=1)


def test_onnx_model(folder):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    k = np.random.default_rng(0).normal(size=(6, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["y"], name="first")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(k, "k")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "m.onnx")
    np.save(folder / "i.npy", np.random.default_rng(0).normal(size=(9, 6, 5, 2)))
    text = call(folder / "m.onnx", "--data", folder / "i.npy", "-o", folder / "m.circ", "--channels-last")
    assert "first" in text
    assert "convolution 3 x 3" in text
    assert Program.load(folder / "m.circ").input.shape == (6, 5, 2)
    message = call(folder / "m.onnx", "--data", folder / "i.npy", "-o", folder / "m.circ", status=1)
    assert "images are (n, 2, 6, 5)" in message


def test_sequences_are_the_arrays_of_a_file(folder):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    np.savez(folder / "s.npz", *(rng.normal(size=(n, 4)) for n in (5, 8, 6)))
    call(f"{folder}/build.py:Recurrent", "--data", folder / "s.npz", "-o", folder / "r.circ")
    program = Program.load(folder / "r.circ")
    assert program.sequence
    assert program.metadata["calibration_samples"] == 19


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{}/missing.onnx", "No such file|no file"),
        ("{}/x.npz", "expected a model.onnx"),
        ("{}/build.py:nothing", "has no function 'nothing'"),
        ("{}/build.py:broken", "a int was given"),
        ("{}/missing.py:build", "there is no file"),
    ],
)
def test_errors_are_one_line(folder, model, message):
    import re

    for needed in ("torch", "onnx"):
        pytest.importorskip(needed)
    text = call(model.format(folder), "--data", folder / "x.npz", "-o", folder / "n.circ", status=1)
    assert re.search(message, text)
    assert "Traceback" not in text
    assert not (folder / "n.circ").exists()


def test_usage(folder):
    assert "no folder" in call("a.onnx", "--data", folder / "x.npz", "-o", folder / "no/n.circ", status=1)
    assert "Missing option" in call("a.onnx", "--data", folder / "x.npz", status=2)
    np.save(folder / "o.npy", np.array([{}], object), allow_pickle=True)
    assert "no plain arrays" in call("a.onnx", "--data", folder / "o.npy", "-o", folder / "n.circ", status=1)


# ---- report ------------------------------------------------------------------------------------------------------
def network():
    rng = np.random.default_rng(0)
    layers = (
        Conv2d(
            weight=rng.normal(size=(4, 1, 3, 3, 8)), in_channels=8, padding=1, activation="relu", pool=(2, 2), name="c"
        ),
        MaxPool2d(2, name="m"),
        Linear(weight=rng.normal(size=(8, 4 * 4, 8)), flatten=True, name="l"),
    )
    return Network(layers=layers, input_shape=(8, 8, 8)), rng.normal(size=(20, 8, 8, 8))


def test_layer_table_and_summary():
    program = compile(*network())
    rows = layer_table(program)
    assert [row["layer"] for row in rows] == ["c", "m", "l"]
    assert [row["operation"] for row in rows] == ["convolution 3 x 3, relu, max 2 x 2", "max 2 x 2", "linear"]
    assert [row["snr_db"] for row in rows] == program.metadata["snr_db"]
    assert rows[0]["in_shape"] == (8, 8, 8)
    assert rows[0]["out_shape"] == (4, 4, 32)
    assert rows[0]["compression"] > 6
    total = summary(program, clock_mhz=50, batch=10)
    assert total["parameters"] == sum(row["parameters"] for row in rows) == program.parameters
    assert total["cycles_per_image"] >= sum(row["cycles"] for row in rows)
    assert total["load_cycles"] == len(program.image)
    rate = 10 / (total["load_cycles"] + 10 * total["cycles_per_image"]) * 50e6
    assert total["images_per_second"] == pytest.approx(rate)
    assert total["uses"]["weight_words"][0] == sum(row["weight_words"] for row in rows)
    json.dumps([rows, total])


def test_parts_of_a_split_layer_keep_their_ratio():
    config = spec.CoreConfig(weight_words=400)
    program = compile(*network(), config=config)
    rows = layer_table(program, config)
    assert summary(program, config)["segments"] > 1
    parts = [row for row in rows if row["layer"].startswith("l[")]
    assert len(parts) > 1
    assert {row["snr_db"] for row in parts} == {program.metadata["snr_db"][2]}
    assert [row["segment"] for row in rows] == sorted(row["segment"] for row in rows)
