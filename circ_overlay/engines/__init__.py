# SPDX-License-Identifier: BSD-3-Clause
"""Engines: what computes behind the core's registers on the emulated board, and in bit-exactness tests.

An engine knows commands and streams; it knows nothing of registers, buses or pynq.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..errors import EngineUnavailableError
from ..image import Image

__all__ = ["ENGINES", "Engine", "available_engines", "best_engine", "create_engine"]

Words = NDArray[np.uint64]
ENGINES = ("hls", "golden")
"""Names of the engines, fastest first."""


class Engine(Protocol):
    """One core's state and arithmetic.

    Attributes
    ----------
    name : one of :data:`ENGINES`.
    cycles : provenance of :meth:`layer_cycles`: "modelled" or "simulated".
    config : build parameters of the core.
    image : the program on chip as decoded, or None.
    """

    name: str
    cycles: str
    config: spec.CoreConfig
    image: Image | None

    def reset(self) -> None:
        """Forget the program, as the core's reset does."""

    def load(self, words: Words) -> spec.Status:
        """Take a program image; after any status but OK no program is on chip."""

    def run(self, batch: int, words: Words) -> Words:
        """Outputs of `batch` images: batch x in_beats words in, batch x out_beats words out.

        Needs a program; never fails otherwise.
        """


def create_engine(name: str, config: spec.CoreConfig | None = None) -> Engine:
    """The engine called `name`.

    Raises
    ------
    ValueError
        There is no such engine.
    EngineUnavailableError
        The engine exists but was not built on this machine; the message says how to get it.
    """
    config = config or spec.CoreConfig()
    if name == "golden":
        from .golden import GoldenEngine

        return GoldenEngine(config)
    if name == "hls":
        from .hls import HlsEngine

        return HlsEngine(config)
    raise ValueError(f"engine {name!r}: there are {', '.join(ENGINES)}")


def available_engines() -> dict[str, str]:
    """Every engine with "ready", or the reason why this installation lacks it."""
    result = {}
    for name in ENGINES:
        try:
            create_engine(name)
        except EngineUnavailableError as error:
            result[name] = str(error)
        else:
            result[name] = "ready"
    return result


def best_engine() -> str:
    """Name of the fastest engine that this installation can run."""
    return next(name for name, state in available_engines().items() if state == "ready")
