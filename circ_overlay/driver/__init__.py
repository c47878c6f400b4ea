# SPDX-License-Identifier: BSD-3-Clause
"""Driver: the overlay as Python users meet it. Needs the pynq package, on a board or with the emulated one.

    with CirculantOverlay() as overlay, overlay.load("mnist-mlp.circ") as network:
        scores = network.predict(images)
"""

try:
    import pynq  # noqa: F401 - imported for the clear message
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "the driver needs the pynq package: on a board use its own environment "
        "(source /etc/profile.d/pynq_venv.sh), elsewhere pip install circ-overlay[pynq]"
    ) from error

from .core import CirculantCore
from .network import Network
from .overlay import CirculantOverlay
from .statistics import Statistics

__all__ = ["CirculantCore", "CirculantOverlay", "Network", "Statistics"]
