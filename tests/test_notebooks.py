# SPDX-License-Identifier: BSD-3-Clause
"""Every notebook runs from top to bottom, and ships with outputs that say on what: the emulated board, or none."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="executing notebooks needs circ-overlay[notebooks]")
pytest.importorskip("pynq", reason="the notebooks drive the board through pynq")

import nbformat
from nbclient import NotebookClient

from circ_overlay import datasets, models

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def text_of(notebook):
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def pictures(notebook):
    return [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]


def missing(notebook):
    """Data sets that a notebook loads and that are not at hand; torch, if it imports it and there is none."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    named = set(re.findall(r"""datasets\.load(?:_recordings)?\(\s*["']([\w-]+)["']""", source))
    lacking = [f"data set {name}" for name in sorted(named) if not datasets.at_hand(name)]
    if re.search(r"^\s*(import|from) torch\b", source, re.MULTILINE) and not importlib.util.find_spec("torch"):
        lacking.append("PyTorch")
    return lacking


def check_provenance(notebook):
    """One that opens the overlay shows that the board is emulated; one that does not says so at its head."""
    if any("CirculantOverlay(" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
        assert "EMULATED" in text_of(notebook)
    else:
        assert "uses no board" in notebook.cells[0].source


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_executes(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, 4)
    if lacking := missing(notebook):
        pytest.skip(f"{path.stem} needs {', '.join(lacking)}, which is not at hand")
    shipped = pictures(notebook)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}})  # fmt: skip
    client.execute()
    check_provenance(notebook)
    assert len(pictures(notebook)) == len(shipped) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shipped_outputs_name_the_board(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "ship notebooks with their outputs"
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    check_provenance(notebook)
    assert "Where the numbers come from" in notebook.cells[0].source


def test_a_notebook_is_skipped_without_its_data(monkeypatch, tmp_path):
    """What a notebook needs is read off its code."""
    monkeypatch.setenv("CIRC_OVERLAY_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "cache_directory", lambda: tmp_path)
    speech = nbformat.read(ROOT / "notebooks" / "04_lstm.ipynb", 4)
    assert "data set fsdd" in missing(speech)
    (tmp_path / "fsdd" / "recordings").mkdir(parents=True)
    assert "data set fsdd" not in missing(speech)
    assert "data set digits" not in missing(nbformat.read(ROOT / "notebooks" / "01_getting_started.ipynb", 4))


def test_shipped_outputs_hold_no_path_of_a_machine():
    for path in NOTEBOOKS:
        found = re.findall(r"(?:/home|/root|/tmp|/Users|/var/folders)/\S*", text_of(nbformat.read(path, 4)))
        assert not found, f"{path.stem}: {found}"


def test_getting_started_shows_the_network_that_is_shipped():
    text = text_of(nbformat.read(ROOT / "notebooks" / "01_getting_started.ipynb", 4))
    program = models.load("digits-mlp")
    assert repr(program) in text
    assert f"program_id   = {int(program.image[1]) & 0xFFFFFFFF:#010x}" in text
