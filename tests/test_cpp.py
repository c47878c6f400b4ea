# SPDX-License-Identifier: BSD-3-Clause
"""The C++ core's own checks: its test bench, sanitizers, vendor types, style, and the vectors' freshness."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from circ_overlay import spec

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "hls_src"
CXX = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(
    not (shutil.which(CXX) and shutil.which("make")), reason=f"needs {CXX} and make to compile the C++ core"
)


def make(*arguments: str, timeout: int = 600) -> str:
    """Output of `make` in hls_src; fails the test if make fails."""
    command = ["make", "-C", str(SOURCES), f"CXX={CXX}", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


def summaries(output: str) -> list[tuple[int, str, int]]:
    """(width, number types, failures) of each test bench that ran."""
    found = re.findall(r"^W=(\d+), (\w+) types: \d+ vectors, \d+ checks, (\d+) failures$", output, re.M)
    return [(int(width), types, int(failures)) for width, types, failures in found]


@pytest.fixture(scope="module")
def vectors_module() -> ModuleType:
    path = ROOT / "tests" / "vectors" / "generate.py"
    description = importlib.util.spec_from_file_location("vectors_generate", path)
    assert description and description.loader
    module = importlib.util.module_from_spec(description)
    sys.modules[description.name] = module
    description.loader.exec_module(module)
    return module


def test_vectors_are_fresh(vectors_module: ModuleType) -> None:
    wanted = vectors_module.generated()
    stale = [p.name for p, content in wanted.items() if not p.exists() or p.read_bytes() != content]
    assert not stale, f"{', '.join(stale)}: run python tests/vectors/generate.py"
    assert {p.name for p in wanted} == {p.name for p in (ROOT / "tests" / "vectors").glob("*.bin")}


def test_vectors_cover_the_contract(vectors_module: ModuleType) -> None:
    for path in vectors_module.generated():
        vectors = list(vectors_module.read(path))
        statuses = {v.status for v in vectors}
        assert statuses >= {spec.Status.OK, spec.Status.BAD_MAGIC, spec.Status.SPEC_MISMATCH}
        assert statuses >= {spec.Status.WIDTH_MISMATCH, spec.Status.TOO_LARGE, spec.Status.BAD_LENGTH}
        assert spec.Status.BAD_INSTRUCTION in statuses
        assert path.stat().st_size < 300_000
        code = [
            spec.Instruction.decode(tuple(int(w) for w in v.image[at : at + spec.INSTRUCTION_WORDS]))
            for v in vectors
            if v.status == spec.Status.OK
            for at in range(spec.HEADER_WORDS, spec.HEADER_WORDS + (int(v.image[2]) >> 32) * spec.INSTRUCTION_WORDS,
                            spec.INSTRUCTION_WORDS)
        ]  # fmt: skip
        assert {i.opcode for i in code} == set(spec.Opcode)
        assert {i.block_size for i in code if i.weight_count} == {1, *spec.BLOCK_SIZES}
        for trait in ("gathers", "taps", "stride_rows", "pad_left", "pool_rows"):
            assert any(int(getattr(i, trait)) > (trait in ("taps", "stride_rows", "pool_rows")) for i in code), trait
        assert any(i.flags & spec.LayerFlag.ADD for i in code)
        assert any(int(v.image[3]) >> 8 & spec.ImageFlag.SEQUENCE for v in vectors if v.status == spec.Status.OK)


@needs_compiler
def test_bench(tmp_path: Path) -> None:
    widths = list(spec.WIDTHS)
    output = make("test", f"BUILD={tmp_path}", f"WIDTHS={' '.join(map(str, widths))}")
    assert summaries(output) == [(width, "native", 0) for width in widths]


@needs_compiler
@pytest.mark.parametrize("sanitizer", ["asan", "ubsan"])
def test_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    output = make(sanitizer, f"BUILD={tmp_path}", "WIDTHS=8 16", "DAMAGED=300")
    assert summaries(output) == [(8, "native", 0), (16, "native", 0)]


@needs_compiler
def test_vendor_types(tmp_path: Path) -> None:
    """ap_int of exact widths gives the same bits, so no width in the datapath is one too small."""
    package = importlib.util.find_spec("hls4ml")
    headers = Path(os.environ.get("AP_TYPES", ""))
    if package and package.origin:
        headers = Path(package.origin).parent / "templates" / "vivado" / "ap_types"
    if not (headers / "ap_int.h").exists():
        pytest.skip("needs the vendor's number types: pip install --no-deps hls4ml, or AP_TYPES=DIR")
    output = make("ap_int", f"BUILD={tmp_path}", f"AP_TYPES={headers}", "WIDTHS=12 16", "DAMAGED=30")
    assert summaries(output) == [(12, "ap_int", 0), (16, "ap_int", 0)]


@needs_compiler
def test_bench_fails_on_a_wrong_bit(tmp_path: Path, vectors_module: ModuleType) -> None:
    """The bench is worth nothing if it cannot fail: one output bit of one vector is turned."""
    make("test", f"BUILD={tmp_path}", "WIDTHS=12", "DAMAGED=0")
    good = next(v for v in vectors_module.read(ROOT / "tests" / "vectors" / "w12.bin"))
    outputs = good.outputs.copy()
    outputs[0] ^= np.uint64(1)
    bad = good._replace(outputs=outputs)
    path = tmp_path / "bad.bin"
    path.write_bytes(bad.words().astype("<u8").tobytes())
    done = subprocess.run(
        [str(tmp_path / "tb_test_12"), str(path), "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAIL output" in done.stdout


def test_headers_are_small() -> None:
    for path in (*SOURCES.glob("*.?pp"), *SOURCES.glob("tb/*.?pp")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "// SPDX-License-Identifier: BSD-3-Clause", path.name
        assert len(lines) < 250, f"{path.name} has {len(lines)} lines"
