# SPDX-License-Identifier: BSD-3-Clause
"""A float :class:`Network` as a ``.npz`` file: the weights that a program was compiled from, without PyTorch."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

import numpy as np

from ..files import atomic_write
from .graph import CompileError, Network, Operation

__all__ = ["load_network", "save_network"]

_ARRAYS = ("weight", "scale", "shift")
_PAIRS = ("taps", "stride", "padding", "pool")


def save_network(network: Network, path: str | os.PathLike[str]) -> None:
    """Write `network`, its arrays as float32; `path` holds the old file or the whole new one."""
    arrays: dict[str, Any] = {}
    layers = []
    for index, op in enumerate(network.layers):
        entry = {f.name: getattr(op, f.name) for f in fields(Operation) if f.name not in _ARRAYS}
        layers.append(entry)
        for name in _ARRAYS:
            value = getattr(op, name)
            if value is not None:
                arrays[f"{index:02d}.{name}"] = np.asarray(value, np.float32)
    head = {f.name: getattr(network, f.name) for f in fields(Network) if f.name != "layers"}
    arrays["network"] = np.array(json.dumps({**head, "states": dict(network.states), "layers": layers}))
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def load_network(path: str | os.PathLike[str]) -> Network:
    """Read what :func:`save_network` has written.

    Raises
    ------
    CompileError
        The file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            head = json.loads(str(arrays["network"]))
            layers = []
            for index, entry in enumerate(head.pop("layers")):
                values = dict(entry)
                for name in _PAIRS:
                    values[name] = tuple(values[name])
                if isinstance(values["source"], list):
                    values["source"] = tuple(values["source"])
                for name in _ARRAYS:
                    key = f"{index:02d}.{name}"
                    if key in arrays.files:
                        values[name] = arrays[key].astype(np.float64)
                layers.append(Operation(**values))
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy's and zipfile's errors on other files are of many kinds
        raise CompileError(f"{path} holds no network ({error}); give a file made by save_network") from error
    shape = head.pop("input_shape")
    return Network(layers=tuple(layers), input_shape=tuple(shape), labels=tuple(head.pop("labels")), **head)
