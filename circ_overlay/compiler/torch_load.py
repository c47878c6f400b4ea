# SPDX-License-Identifier: BSD-3-Clause
"""PyTorch modules from files, for the command line."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

try:
    import torch
    from torch import nn
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("compiling a PyTorch module needs PyTorch: pip install circ-overlay[train]") from error

from .graph import CompileError

__all__ = ["load_module"]

_BUILD = "give the code that builds it, model.py:function, and its weights with --weights state.pt"


def load_module(source: str, *, weights: str | os.PathLike[str] | None = None, trust: bool = False) -> Any:
    """A module from a file.

    Parameters
    ----------
    source : ``file.pt`` with a pickled module, or ``file.py:name`` of a function or class that makes one.
    weights : file with a state dict to load into what a function made.
    trust : allow unpickling, which runs what code the file holds.

    Raises
    ------
    CompileError
        The file holds something else, or needs trust; the message says what to do.
    """
    path, _, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    if name:
        return _built(Path(path), name, weights)
    if weights is not None:
        raise CompileError(f"--weights belongs to code that builds the module, model.py:function, not to {source}")
    return _pickled(Path(path), trust)


def _built(path: Path, name: str, weights: str | os.PathLike[str] | None) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    code = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        sys.modules[path.stem] = code  # classes look their module up by name
        found.loader.exec_module(code)
        make = getattr(code, name, None)
        if not callable(make):
            raise CompileError(f"{path} has no function {name!r}")
        module = make()
    finally:
        sys.path.pop(0)
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model", "model_state_dict"):
            state = state[key] if isinstance(state.get(key), dict) else state
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CompileError(f"{os.fspath(weights)} does not hold the weights of {path}:{name}: {error}") from error
    return module


def _pickled(path: Path, trust: bool) -> nn.Module:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if path.suffix == ".pt2" or any("models/model.json" in n or "serialized_exported_program" in n for n in names):
        raise CompileError(f"{path} is a torch.export archive, which keeps no layers; export ONNX instead, or {_BUILD}")
    if any(n.endswith("constants.pkl") for n in names):
        raise CompileError(f"{path} is a TorchScript archive, which cannot be traced; export ONNX instead, or {_BUILD}")
    if not trust:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpicklers raise anything
            raise CompileError(
                f"{path} holds a pickled module, and loading it runs whatever code is in the file: give --trust if you "
                f"know where it comes from; or {_BUILD}"
            ) from error
        raise CompileError(f"{path} holds a {type(held).__name__}, weights and no network; {_BUILD}")
    sys.path.insert(0, os.getcwd())
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise CompileError(f"{path} needs code that is not here ({error}); {_BUILD}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        raise CompileError(f"{path} holds a {type(module).__name__}, no module; {_BUILD}")
    return module
