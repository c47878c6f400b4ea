# SPDX-License-Identifier: BSD-3-Clause
"""Overlay files for the emulated board: ``circ.bit``, ``circ.hwh`` and ``circ.json``.

The ``.bit`` has the header that pynq parses, but configures no FPGA: in place of a configuration it holds a
marker and JSON with the core's build parameters, which the emulated board reads at a download. A real one
refuses it, because it has no synchronisation word.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import spec
from ..files import atomic_write
from .boards import Board
from .boards import board as find_board
from .hwh import hwh

__all__ = ["MARKER", "build", "read_metadata", "read_payload"]

MARKER = b"circ-overlay emulated bitstream\0"
BUILT_WITH = "circ_overlay.emulator (configures no FPGA)"


def _field(key: bytes, text: str) -> bytes:
    data = text.encode("ascii") + b"\0"
    return key + struct.pack(">H", len(data)) + data


def _bit(board: Board, metadata: dict[str, Any]) -> bytes:
    """The ``.bit``: header and payload. Its dates are fixed, so equal designs give equal bytes."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()
    payload = MARKER + struct.pack(">I", len(text)) + text + hashlib.sha256(text).digest()
    payload += b"\0" * (-len(payload) % 4)
    header = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    header += _field(b"a", "circ;UserID=0XFFFFFFFF;Version=emulated")
    header += _field(b"b", board.device + board.package)
    header += _field(b"c", "1980/01/01") + _field(b"d", "00:00:00")
    return header + b"e" + struct.pack(">I", len(payload)) + payload


def build(
    directory: str | os.PathLike[str],
    board: str = "Pynq-Z2",
    config: spec.CoreConfig | None = None,
    clock_mhz: float = 100.0,
) -> Path:
    """Write an emulated overlay; each file is replaced at once, and equal arguments give equal bytes.

    Parameters
    ----------
    directory : where to; made if it is missing.
    board : name of the board, see :data:`circ_overlay.emulator.boards.BOARDS`.
    config : build parameters of the core.
    clock_mhz : clock of the fabric.

    Returns
    -------
    Path of ``circ.bit``.

    Raises
    ------
    ValueError
        Unknown board, or a clock that it cannot make.
    """
    target = find_board(board)
    config = config or spec.CoreConfig()
    handoff = hwh(target, clock_mhz)
    first, second = target.divisors(clock_mhz)
    common = {
        "board": board,
        "clock_mhz": round(target.io_pll_mhz / (first * second), 6),
        "config": asdict(config),
        "spec_hash": spec.SPEC_HASH,
        "spec_version": spec.SPEC_VERSION,
    }
    # pynq keys its metadata cache on the .bit, so a changed .hwh has to change the .bit too.
    bit = _bit(target, common | {"hwh_sha256": hashlib.sha256(handoff).hexdigest()})
    info = {"emulated": True, "part": target.part, "built_with": BUILT_WITH, **common}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {"circ.hwh": handoff, "circ.json": json.dumps(info, indent=2).encode() + b"\n", "circ.bit": bit}
    for name, data in content.items():
        path = directory / name
        if not path.exists() or path.read_bytes() != data:  # another process may be reading equal files
            with atomic_write(path) as file:
                file.write(data)
    return directory / "circ.bit"


def read_metadata(bit: bytes) -> dict[str, Any] | None:
    """The JSON in an emulated ``.bit``; None for any other bitstream.

    Raises
    ------
    ValueError
        It is an emulated one, but damaged.
    """
    start = bit.find(MARKER)
    if start < 0:
        return None
    body = bit[start + len(MARKER) :]
    length = int.from_bytes(body[:4], "big")
    text, digest = body[4 : 4 + length], body[4 + length : 4 + length + 32]
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("the emulated bitstream is damaged: its checksum does not fit")
    result: dict[str, Any] = json.loads(text)
    return result


def read_payload(bit: bytes) -> spec.CoreConfig | None:
    """Build parameters of the core in an emulated ``.bit``; None for any other bitstream.

    Raises
    ------
    ValueError
        It is an emulated one, but damaged.
    """
    metadata = read_metadata(bit)
    return None if metadata is None else spec.CoreConfig(**metadata["config"])
