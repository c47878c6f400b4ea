# SPDX-License-Identifier: BSD-3-Clause
"""Where the packaged bitstreams are. Imports nothing of pynq."""

from __future__ import annotations

from pathlib import Path

from . import spec
from .errors import BoardError
from .files import cache_directory

__all__ = ["bitstream_folders", "find_bitstream", "packaged"]

_HERE = Path(__file__).resolve().parent


def bitstream_folders() -> list[Path]:
    """Folders that may hold one folder per board: the installed package data, or the source tree's."""
    return [path for path in (_HERE / "_bitstreams", _HERE.parent / "bitstreams") if path.is_dir()]


def packaged() -> dict[str, Path]:
    """Packaged ``.bit`` files by board name."""
    return {
        path.parent.name: path
        for folder in reversed(bitstream_folders())
        for path in sorted(folder.glob("*/circ.bit"))
    }


def find_bitstream(board: str, *, emulated: bool) -> Path:
    """The ``.bit`` for `board`; on the emulated board one is built if the package has none.

    Raises
    ------
    BoardError
        A real board for which the package has no bitstream.
    """
    there = packaged()
    if board in there:
        return there[board]
    if not emulated:
        names = ", ".join(there) or "none"
        raise BoardError(
            f"this package has no bitstream for {board} (packaged: {names}); build one (docs/bitstream.md) and "
            "give its path, or set CIRC_OVERLAY_BOARD=emulated to run without the board"
        )
    from .emulator import bitstream

    # Rebuilt in place with the same bytes, so processes may share it.
    folder = cache_directory() / f"emulated-{spec.SPEC_ID:08x}" / board
    folder.mkdir(parents=True, exist_ok=True)
    return Path(bitstream.build(folder, board=board))
