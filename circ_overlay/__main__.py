# SPDX-License-Identifier: BSD-3-Clause
"""Entry point of ``circ-overlay`` and ``python -m circ_overlay``: says what to install if the CLI lacks something."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        from .cli import cli
    except ImportError as error:
        sys.stderr.write(f"circ-overlay: {error}; the command line needs: pip install circ-overlay[cli]\n")
        return 2
    return int(cli(prog_name="circ-overlay", standalone_mode=True) or 0)


if __name__ == "__main__":
    sys.exit(main())
