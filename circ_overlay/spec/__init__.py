# SPDX-License-Identifier: BSD-3-Clause
"""THE hardware contract: the only place where a width, an offset, an opcode or a limit is written.

Everything else that needs one of these numbers imports this package or is generated from it by
``python -m circ_overlay.codegen`` (C++ header, Tcl variables, ``.hwh`` register section, tables in docs/).
It never computes with data: arithmetic is in :mod:`circ_overlay.golden`. Imports nothing of ours.
"""

from .config import *  # noqa: F403
from .contract import *  # noqa: F403
from .instructions import *  # noqa: F403
from .numbers import *  # noqa: F403
from .registers import *  # noqa: F403
