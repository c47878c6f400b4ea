# SPDX-License-Identifier: BSD-3-Clause
"""The HLS core's own C++ source, compiled for this machine: the golden model's bits at full speed.

The library is built when the package is installed, if there is a C++17 compiler. Calls release the GIL and
read and write NumPy arrays in place. One engine serves one thread at a time, as one core does.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from .. import image, spec
from ..errors import EngineUnavailableError

__all__ = ["HlsEngine", "available", "library_path"]

Words = NDArray[np.uint64]
_HINT = "install a C++17 compiler and reinstall circ-overlay, or use engine 'golden' (same bits, slower)"
_OUT_OF_MEMORY = -1  # of engine_abi.cpp
_KNOWN = 16  # programs that an engine recognises
_BATCH_MAX = (1 << 32) - 1  # the batch register's largest value


def library_path() -> Path | None:
    """The compiled library beside this module, or None."""
    found = [p for suffix in (".so", ".pyd", ".dylib") for p in Path(__file__).parent.glob(f"_hls*{suffix}")]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise EngineUnavailableError(f"engine 'hls' is not built in {Path(__file__).parent}: {_HINT}")
    try:
        library = ctypes.CDLL(str(path))
        library.circ_spec_hash.restype = ctypes.c_char_p
        built_for = library.circ_spec_hash().decode()
    except (OSError, AttributeError) as error:
        raise EngineUnavailableError(f"engine 'hls' cannot be loaded ({error}): {_HINT}") from error
    if built_for != spec.SPEC_HASH:
        raise EngineUnavailableError(
            f"{path.name} was built for specification {built_for[:8]}, this package has "
            f"{spec.SPEC_HASH[:8]}: {_HINT}"
        )
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    for name, restype, argtypes in (
        ("circ_create", pointer, [ctypes.c_int, u32, u32, u32, u32, u32]),
        ("circ_destroy", None, [pointer]),
        ("circ_reset", None, [pointer]),
        ("circ_load", ctypes.c_int, [pointer, pointer, u64]),
        ("circ_run", ctypes.c_int, [pointer, u32, pointer, u64, pointer, u64]),
        ("circ_tile", ctypes.c_int, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
    return library


def available() -> bool:
    """Whether this installation has the engine, built for this specification."""
    try:
        _library()
    except EngineUnavailableError:
        return False
    return True


class HlsEngine:
    """See :class:`circ_overlay.engines.Engine`.

    Attributes
    ----------
    tile : images computed side by side; a batch that is a multiple of it wastes nothing.

    Raises
    ------
    EngineUnavailableError
        The library is missing or was built for another specification.
    MemoryError
        A core of this size cannot be allocated.
    """

    name = "hls"
    cycles = "modelled"

    def __init__(self, config: spec.CoreConfig) -> None:
        library = _library()
        self.config = config
        self.image: image.Image | None = None
        self._in_beats = self._out_beats = 0
        self._known: list[tuple[Words, image.Image]] = []
        handle = library.circ_create(
            config.width,
            config.weight_words,
            config.map_elements,
            config.affine_channels,
            config.instructions,
            config.spectra_words,
        )
        if not handle:
            raise MemoryError("no memory for a core")
        self._handle = ctypes.c_void_p(handle)
        self.tile: int = library.circ_tile(self._handle)
        finalize(self, library.circ_destroy, self._handle)

    def reset(self) -> None:
        """Forget the program."""
        self.image = None
        _library().circ_reset(self._handle)

    def load(self, words: Words) -> spec.Status:
        """Take a program image."""
        self.image = None
        words = np.ascontiguousarray(words, np.uint64)
        status = _checked(_library().circ_load(self._handle, words.ctypes.data, words.size))
        if status == spec.Status.OK:
            self.image = decoded = self._decoded(words)
            self._in_beats, self._out_beats = decoded.in_beats, decoded.out_beats
        return status

    def _decoded(self, words: Words) -> image.Image:
        """The image that the C++ has taken; a program of segments is loaded over and over, so the last are kept."""
        for n, (known, decoded) in enumerate(self._known):
            if np.array_equal(known, words):
                self._known.insert(0, self._known.pop(n))
                return decoded
        fresh = image.decode(words, self.config)
        if isinstance(fresh, spec.Status):
            self.reset()
            raise RuntimeError(f"the C++ loader took an image that image.decode refuses: {fresh.name}")
        self._known = [(words.copy(), fresh), *self._known[: _KNOWN - 1]]
        return fresh

    def run(self, batch: int, words: Words) -> Words:
        """Outputs of `batch` images.

        Raises
        ------
        RuntimeError
            There is no program.
        ValueError
            `batch` is outside the register's range, or `words` are not `batch` images.
        """
        if self.image is None:
            raise RuntimeError("no program is loaded; the core model must not pass this run on")
        if not 0 < batch <= _BATCH_MAX:
            raise ValueError(f"batch={batch}: allowed are 1..{_BATCH_MAX}")
        if words.size != batch * self._in_beats:
            raise ValueError(
                f"{words.size} words for {batch} images of {self._in_beats}: {batch * self._in_beats} are needed"
            )
        words = np.ascontiguousarray(words, np.uint64)
        out = np.empty(batch * self._out_beats, np.uint64)
        status = _checked(
            _library().circ_run(
                self._handle, batch, words.ctypes.data, words.size, out.ctypes.data, out.size
            )
        )
        if status != spec.Status.OK:
            raise RuntimeError(f"the C++ core refused a checked run: {status.name}")
        return out


def _checked(result: int) -> spec.Status:
    """A return value of the library as a status; negative ones are failures of this machine, not the core's."""
    if result == _OUT_OF_MEMORY:
        raise MemoryError("the C++ engine ran out of memory")
    if result < 0:
        raise RuntimeError(f"the C++ engine refused its buffers ({result})")
    return spec.Status(result)
