# SPDX-License-Identifier: BSD-3-Clause
"""The ``.circ`` file: a zip of ``manifest.json``, arrays as ``.npy`` and ``SHA256SUMS``. Never pickle.

Used through :meth:`Program.save` and :meth:`Program.load`. The same program always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import spec
from .errors import ProgramError, ProgramFileError
from .files import atomic_write
from .program import Layer, Map, Port, Program, Segment, Slice, Span, Tensor

__all__ = ["FORMAT", "FORMAT_VERSION", "load", "save"]

FORMAT = "circ-overlay program"
FORMAT_VERSION = 2
_MANIFEST, _SUMS = "manifest.json", "SHA256SUMS"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's earliest date: no clock in the file
_MAX_MEMBER = 1 << 28  # bytes; far above any program, far below what would exhaust a board's memory
_ARRAYS = {"weights": np.int16, "scale": np.int32, "bias": np.int64}
_MAPS = ("source", "target", "residual", "factor")
_ENUMS = ("opcode", "activation")
_PLAIN = tuple(f.name for f in fields(Layer) if f.name not in {*_ARRAYS, *_MAPS, *_ENUMS})
T = TypeVar("T")


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write `program` to `path`, atomically."""
    members: dict[str, bytes] = {}
    segments = [
        _segment(segment, f"arrays/{index:02d}.", members) for index, segment in enumerate(program.segments)
    ]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec_version": spec.SPEC_VERSION,
        "spec_hash": spec.SPEC_HASH,
        "name": program.name,
        "width": program.width,
        "input": asdict(program.input),
        "output": asdict(program.output),
        "tensors": {name: asdict(tensor) for name, tensor in program.tensors.items()},
        "segments": segments,
        "labels": list(program.labels),
        "metadata": program.metadata,
    }
    members[_MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(members.items()))
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in [(_MANIFEST, members.pop(_MANIFEST)), *sorted(members.items()), (_SUMS, sums.encode())]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)


def load(path: str | os.PathLike[str]) -> Program:
    """Read a program; see :meth:`Program.load` for what is refused."""
    path = Path(path)

    def refuse(reason: str, remedy: str) -> ProgramFileError:
        return ProgramFileError(f"{path}: {reason}; {remedy}")

    again = "fetch or compile it again"
    content = path.read_bytes()
    try:
        members = _members(content)
    except Exception as error:  # zipfile's errors on damaged bytes are no closed set
        if not content.startswith(b"PK"):
            raise refuse("not a .circ file (no zip archive)", "give a file made by Program.save") from error
        raise refuse(f"truncated or altered ({error})", again) from error
    if _MANIFEST not in members:
        raise refuse("a zip archive, but no circ-overlay program", "give a file made by Program.save")
    try:
        manifest = json.loads(members[_MANIFEST])
        kind, version = manifest["format"], manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse("a foreign or altered archive: its manifest cannot be read", again) from error
    if kind != FORMAT:
        raise refuse(f"a foreign file: its manifest says {kind!r}", f"a {FORMAT} is needed")
    if type(version) is not int or version < 1:
        raise refuse(f"altered: file format {version!r} does not exist", again)
    if version > FORMAT_VERSION:
        raise refuse(
            f"file format {version} is newer than {FORMAT_VERSION}, the newest that this version reads",
            "upgrade circ-overlay",
        )
    try:
        _verify(members)
    except ValueError as error:
        raise refuse(f"altered: {error}", again) from error
    if manifest.get("spec_hash") != spec.SPEC_HASH:
        theirs = manifest.get("spec_version")
        newer = isinstance(theirs, int) and theirs > spec.SPEC_VERSION
        raise refuse(
            f"made for specification {theirs} ({str(manifest.get('spec_hash'))[:12]}), "
            f"this package has {spec.SPEC_VERSION} ({spec.SPEC_HASH[:12]}): "
            + ("the file is newer" if newer else "the package is newer" if theirs != spec.SPEC_VERSION
               else "one is a development version"),
            "upgrade circ-overlay" if newer else "compile the network again with this version",
        )  # fmt: skip
    try:
        return _build(manifest, members)
    except ProgramError as error:
        raise refuse(f"no valid program: {error}", again) from error
    except Exception as error:  # consistent checksums around nonsense: NumPy's parser alone raises many kinds
        raise refuse(f"altered: its manifest or arrays are malformed ({error!r})", again) from error


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _segment(segment: Segment, prefix: str, members: dict[str, bytes]) -> dict[str, Any]:
    """A segment as JSON; its layers' arrays go into `members`."""
    layers = []
    for index, layer in enumerate(segment.layers):
        entry = {name: getattr(layer, name) for name in _PLAIN}
        entry |= {name: getattr(layer, name).name.lower() for name in _ENUMS}
        for name in _MAPS:
            m = getattr(layer, name)
            entry[name] = None if m is None else asdict(m)
        for name, dtype in _ARRAYS.items():
            entry[name] = f"{prefix}{index:02d}.{name}.npy"
            members[entry[name]] = _npy(np.asarray(getattr(layer, name), dtype))
        layers.append(entry)
    return {
        "layers": layers,
        **{name: asdict(getattr(segment, name)) for name in ("input", "output", "state")},
        **{name: [asdict(s) for s in getattr(segment, name)] for name in ("reads", "writes")},
        "u8": segment.u8,
        "sequence": segment.sequence,
    }


def _members(content: bytes) -> dict[str, bytes]:
    """Content of every member, sizes checked before anything is unpacked."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > _MAX_MEMBER:
            raise zipfile.BadZipFile(f"it would unpack to more than {_MAX_MEMBER} bytes")
        if len({info.filename for info in infos}) != len(infos):
            raise zipfile.BadZipFile("a member occurs twice")
        return {info.filename: archive.read(info) for info in infos}


def _verify(members: dict[str, bytes]) -> None:
    """Raise ValueError unless SHA256SUMS lists exactly the other members, with their sums."""
    if _SUMS not in members:
        raise ValueError(f"{_SUMS} is missing")
    lines = members[_SUMS].decode("ascii").splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    if set(listed) != set(members) - {_SUMS}:
        raise ValueError(f"members differ from those listed in {_SUMS}")
    for name, digest in listed.items():
        if hashlib.sha256(members[name]).hexdigest() != digest:
            raise ValueError(f"the checksum of {name} is wrong")


def _build(manifest: dict[str, Any], members: dict[str, bytes]) -> Program:
    segments = tuple(_build_segment(entry, members) for entry in manifest["segments"])
    if members.keys() != {_MANIFEST, _SUMS}:
        raise ProgramError(f"members that belong to nothing: {', '.join(members.keys() - {_MANIFEST, _SUMS})}")
    labels = manifest["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ProgramError("labels are not a list of texts")
    return Program(
        name=manifest["name"],
        width=_integer(manifest["width"]),
        input=_record(Port, manifest["input"]),
        output=_record(Port, manifest["output"]),
        segments=segments,
        tensors={name: _record(Tensor, entry) for name, entry in manifest["tensors"].items()},
        labels=tuple(labels),
        metadata=dict(manifest["metadata"]),
    )


def _build_segment(entry: dict[str, Any], members: dict[str, bytes]) -> Segment:
    layers = []
    for values in entry["layers"]:
        values = dict(values)
        for name, dtype in _ARRAYS.items():
            values[name] = _array(members.pop(values[name]), values[name], np.dtype(dtype))
        for name in _MAPS:
            values[name] = None if values[name] is None else _record(Map, values[name])
        values["opcode"] = spec.Opcode[values["opcode"].upper()]
        values["activation"] = spec.Activation[values["activation"].upper()]
        layers.append(_record(Layer, values))
    return Segment(
        layers=tuple(layers),
        input=_record(Span, entry["input"]),
        output=_record(Span, entry["output"]),
        state=_record(Span, entry["state"]),
        reads=tuple(_record(Slice, s) for s in entry["reads"]),
        writes=tuple(_record(Slice, s) for s in entry["writes"]),
        u8=_typed("u8", entry["u8"], bool),
        sequence=_typed("sequence", entry["sequence"], bool),
    )


def _record(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from JSON, with every field given and of the type that it is declared with."""
    names = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    if names.keys() != values.keys():
        raise ProgramError(f"a {kind.__name__} with fields {', '.join(values)}; expected {', '.join(names)}")
    checked = dict(values)
    for name, declared in names.items():
        if declared in _TYPES:
            checked[name] = _typed(name, values[name], _TYPES[declared])
        elif declared.startswith("tuple[int"):
            checked[name] = tuple(_integer(n) for n in values[name])
        elif declared == "int | None" and values[name] is not None:
            _integer(values[name])
    return kind(**checked)


_TYPES: dict[str, type] = {"int": int, "str": str, "bool": bool}


def _typed(name: str, value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise ProgramError(f"{name} is {value!r} where {kind.__name__} is expected")
    return value


def _array(data: bytes, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in a member; its header is checked against the member's size before anything is allocated."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    if version != (1, 0):
        raise ProgramError(f"{name} is of array format {version}, expected (1, 0)")
    shape, fortran, found = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if found != dtype or fortran:
        raise ProgramError(f"{name} has dtype {found}, expected {dtype} in C order")
    rest = data[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise ProgramError(f"{name} has shape {shape}, but {len(rest)} bytes of data")
    return np.frombuffer(rest, dtype).reshape(shape)


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ProgramError(f"{value!r} stands where an integer is expected")
    return value
