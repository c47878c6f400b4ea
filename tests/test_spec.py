# SPDX-License-Identifier: BSD-3-Clause
"""The contract is consistent in itself, and what is generated from it is fresh."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circ_overlay import codegen, spec
from circ_overlay.tables import SIGMOID, TWIDDLES

ROOT = Path(__file__).resolve().parents[1]


def test_generated_files_are_fresh():
    assert codegen.stale(ROOT) == [], "run: python -m circ_overlay.codegen"


def test_stale_files_are_found_and_rewritten(tmp_path):
    names = codegen.write(tmp_path)
    assert sorted(names) == sorted(codegen.generated_files())
    assert codegen.stale(tmp_path) == []
    victim = tmp_path / "docs/reference.md"
    victim.write_text(victim.read_text() + "edited by hand\n")
    assert codegen.stale(tmp_path) == ["docs/reference.md"]
    command = [sys.executable, "-m", "circ_overlay.codegen", "--check", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "stale: docs/reference.md" in done.stdout


def test_registers_do_not_overlap_and_fit():
    taken: dict[int, str] = {}
    for r in spec.REGISTERS:
        for n in range(r.count):
            offset = r.offset + 4 * n
            assert offset % 4 == 0
            assert offset < spec.REGISTER_SPACE
            assert offset not in taken, f"{r.name} and {taken[offset]}"
            taken[offset] = r.name


@pytest.mark.parametrize("r", spec.REGISTERS, ids=lambda r: r.name)
def test_register_fields_do_not_overlap(r):
    used = 0
    for f in r.fields:
        mask = ((1 << f.width) - 1) << f.lsb
        assert not used & mask
        assert mask < 1 << 32
        used |= mask


def test_register_names_suit_pynq():
    # pynq makes attributes of register and field names on a class with these attributes of its own.
    taken = {"address", "width", "access", "debug", "count", "description"}
    names = {r.name for r in spec.REGISTERS} | {f.name for r in spec.REGISTERS for f in r.fields}
    assert not names & taken


def test_instruction_fields_do_not_overlap():
    used = 0
    for f in spec.INSTRUCTION_FIELDS:
        mask = ((1 << f.width) - 1) << f.lsb
        assert not used & mask, f.name
        used |= mask
    assert used < 1 << (64 * spec.INSTRUCTION_WORDS)
    assert [f.name for f in spec.INSTRUCTION_FIELDS] == [f.name for f in dataclasses.fields(spec.Instruction)]


@given(st.data())
def test_instruction_round_trip(data):
    values = {f.name: data.draw(st.integers(0, (1 << f.width) - 1)) for f in spec.INSTRUCTION_FIELDS}
    instruction = spec.Instruction(**values)
    assert spec.Instruction.decode(instruction.encode()) == instruction


def test_instruction_refuses_what_does_not_fit():
    values = dict.fromkeys((f.name for f in spec.INSTRUCTION_FIELDS), 0)
    with pytest.raises(ValueError, match=r"in_channels=65536 is outside 0\.\.65535"):
        spec.Instruction(**{**values, "in_channels": 65536}).encode()


@pytest.mark.parametrize("k", spec.BLOCK_SIZES)
def test_spectrum_order_covers_every_bin_once(k):
    order = spec.spectrum_order(k)
    assert len(order) == k // 2
    folded = sorted(min(b, k - b) for b in order[1:])
    assert order[0] == 0
    assert folded == list(range(1, k // 2))


@given(
    st.integers(8, 16), st.integers(1, 255), st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 1 << 20),
)  # fmt: skip
def test_config_round_trips_through_registers(width, lanes, samples, words):
    config = spec.CoreConfig(width=width, lanes=lanes, samples=samples, weight_words=words)
    assert spec.CoreConfig.from_register_values(config.register_values()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 7}, r"width=7: a core is built for 8\.\.16 bits"),
        ({"lanes": 0}, r"lanes=0: allowed are 1\.\.255"),
        ({"samples": 3}, "samples=3: allowed are the powers of two"),
        ({"instructions": 65}, r"instructions=65: allowed are 1\.\.64"),
        ({"weight_words": 0}, "weight_words=0"),
    ],
)
def test_config_messages(change, message):
    with pytest.raises(ValueError, match=message):
        spec.CoreConfig(**change)


def test_unknown_register_lists_names():
    with pytest.raises(KeyError, match="program_id"):
        spec.register("nonsense")


def test_tables_against_their_definition():
    n = np.arange(128)
    exact = 65536 * np.exp(-2j * np.pi * n / 128)
    assert np.abs(TWIDDLES[:, 0] - exact.real).max() <= 0.5
    assert np.abs(TWIDDLES[:, 1] - exact.imag).max() <= 0.5
    assert TWIDDLES[0].tolist() == [65536, 0]
    assert TWIDDLES[32].tolist() == [0, -65536]
    assert np.abs(SIGMOID - (1 << 18) * (1 / (1 + np.exp(-np.arange(129) / 16)) - 0.5)).max() <= 0.5


def test_hash_depends_on_the_contract(monkeypatch):
    before = spec.contract.canonical()
    monkeypatch.setattr(spec.numbers, "ACC_BITS", 47)
    assert spec.contract.canonical() != before
