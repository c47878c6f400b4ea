# SPDX-License-Identifier: BSD-3-Clause
"""Writing files so that a reader sees the old content or the new one, never a part; where caches lie."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import CircOverlayError

__all__ = ["atomic_write", "cache_directory"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends without an error.

    The temporary file lies in the same folder, so the final rename cannot cross file systems; it is synced
    to disk before, so that after a power cut too either the old or the new content is there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file in it")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def cache_directory() -> Path:
    """Folder for what can be fetched or built again: $CIRC_OVERLAY_CACHE, or the user's cache; made if missing.

    Raises
    ------
    CircOverlayError
        It cannot be made.
    """
    chosen, base = os.environ.get("CIRC_OVERLAY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        path = Path(chosen) if chosen else Path(base or Path.home() / ".cache") / "circ-overlay"
        path.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise CircOverlayError(
            f"there is no place for the cache ({error}); set CIRC_OVERLAY_CACHE to a folder that can be written"
        ) from error
    return path
