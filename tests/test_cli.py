# SPDX-License-Identifier: BSD-3-Clause
"""The command line as users call it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pynq", reason="the commands drive the board through pynq")
pytest.importorskip("click", reason="the command line needs circ-overlay[cli]")

from circ_overlay import models
from circ_overlay.engines import available_engines

ROOT = Path(__file__).resolve().parents[1]
ENGINES = [name for name, state in available_engines().items() if state == "ready"]


def call(*arguments, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "circ_overlay", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_run_digits(engine, tmp_path):
    picture = tmp_path / "new" / "answers.png"
    result = json.loads(call("run", "digits-mlp", "--engine", engine, "--json", "--picture", str(picture)))
    assert result["images"] == result["equal_to_golden"] == 450
    assert result["accuracy"]["board"] == result["accuracy"]["golden"] >= 0.97
    assert result["accuracy"]["golden"] >= result["accuracy"]["float"] - 0.002
    assert result["device"]["emulated"] is True
    assert result["device"]["engine"] == engine
    assert result["device"]["provenance"] == "modelled"
    assert "emulated" in result["host_us_per_image"]["provenance"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_run_prints_a_table_that_says_emulated():
    text = call("run", "digits-mlp", "--limit", "20", "--batch", "7")
    for part in ("EMULATED", "built on the fly", "modelled", "20 of 20", "3 of up to 7", "pack", "wait", "unpack",
                 "float", "golden", "board"):  # fmt: skip
        assert part in text, part


def test_run_a_file_of_ones_own(tmp_path):
    models.load("digits-mlp").save(tmp_path / "mine.circ")
    result = json.loads(call("run", str(tmp_path / "mine.circ"), "--limit", "30", "--json"))
    assert result["equal_to_golden"] == 30
    assert result["accuracy"]["float"] is None


def test_info():
    facts = json.loads(call("info", "--json"))
    assert facts["engines"]["golden"] == "ready"
    assert "EMULATED" in facts["overlay"]
    assert facts["circ-overlay"] in call("--version")
    assert "EMULATED" in call("info")


def test_models_and_data_lists():
    text = call("models")
    assert all(name in text for name in models.MODELS)
    text = call("data")
    assert "digits" in text
    assert "mnist" in text
    assert "1,347 training and 450 test" in call("data", "digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonsense"], "neither a file nor a model; models are digits-mlp"),
        (["run", "digits-mlp", "--dataset", "cats"], "data set 'cats': there are"),
        (["run", "setup.py"], "not a .circ file"),
        (["run", "digits-mlp", "--bitfile", "setup.py"], "there is no setup.hwh beside setup.py"),
    ],
)
def test_errors_are_one_line(arguments, message):
    text = call(*arguments, status=1)
    assert message in text
    assert "Traceback" not in text


def test_wrong_board_setting_is_explained():
    assert "CIRC_OVERLAY_BOARD" in call("run", "digits-mlp", status=1, CIRC_OVERLAY_BOARD="real")
