# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch layers whose weight matrices are block-circulant; an optional extra of the package.

Importing this subpackage is the only thing that pulls torch in; everything that runs on a board does without
it.
"""

try:
    import torch as _torch  # noqa: F401  (only to say early, and helpfully, that it is missing)
except ModuleNotFoundError as error:
    if error.name != "torch":  # torch is there but broken: its own message says more than ours
        raise
    raise ImportError(
        "circ_overlay.nn needs PyTorch, which is not installed; run `pip install circ-overlay[train]`"
    ) from error

from circ_overlay.nn.compress import CompressionReport, LayerReport, compress
from circ_overlay.nn.conv import BlockCirculantConv2d
from circ_overlay.nn.dense import to_dense
from circ_overlay.nn.linear import BlockCirculantLinear
from circ_overlay.nn.patch import BlockCirculantPatchConv2d
from circ_overlay.nn.recurrent import BlockCirculantGRU, BlockCirculantLSTM

__all__ = [
    "BlockCirculantConv2d",
    "BlockCirculantGRU",
    "BlockCirculantLSTM",
    "BlockCirculantLinear",
    "BlockCirculantPatchConv2d",
    "CompressionReport",
    "LayerReport",
    "compress",
    "to_dense",
]
