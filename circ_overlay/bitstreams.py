# SPDX-License-Identifier: BSD-3-Clause
"""Where the packaged bitstreams are. Imports nothing of pynq."""

from __future__ import annotations

from pathlib import Path

from . import spec
from .errors import BoardError
from .files import cache_directory

__all__ = ["FOLDER", "find_bitstream", "packaged"]

FOLDER = Path(__file__).resolve().parent / "_bitstreams"
"""One folder per board; in the source tree a link to the top-level folder."""


def packaged() -> dict[str, Path]:
    """Packaged ``.bit`` files by board name."""
    return {path.parent.name: path for path in sorted(FOLDER.glob("*/circ.bit"))}


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
            f"this package has no bitstream for {board} (packaged: {names}); see bitstreams/README.md, "
            "give the path of your own, or set CIRC_OVERLAY_BOARD=emulated to run without the board"
        )
    from .emulator import bitstream

    # Rebuilt in place with the same bytes, so processes may share it.
    folder = cache_directory() / f"emulated-{spec.SPEC_ID:08x}" / board
    folder.mkdir(parents=True, exist_ok=True)
    return Path(bitstream.build(folder, board=board))
