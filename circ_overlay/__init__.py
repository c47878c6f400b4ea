# SPDX-License-Identifier: BSD-3-Clause
"""circ-overlay: block-circulant FFT neural networks on PYNQ boards, and without one.

    from circ_overlay import CirculantOverlay, models

    with CirculantOverlay() as overlay, overlay.load(models.load("mnist-mlp")) as network:
        digits = network.classify(images)

Importing this package needs NumPy alone; what needs more is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import CircOverlayError
from .program import Program

if TYPE_CHECKING:
    from .compiler import compile as compile
    from .driver import CirculantOverlay as CirculantOverlay
    from .driver import Network as Network

__version__ = "0.1.0"

# What needs an extra is left out, so that `import *` and help() work without it, and compile stays the built-in.
__all__ = ["CircOverlayError", "Program", "__version__"]

_LAZY = {"CirculantOverlay": "driver", "Network": "driver", "compile": "compiler"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    ready = [name for name, room in _LAZY.items() if room != "driver" or find_spec("pynq")]
    return sorted([*globals(), *ready])
