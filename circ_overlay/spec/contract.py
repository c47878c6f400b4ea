# SPDX-License-Identifier: BSD-3-Clause
"""The contract's identity: a hash over everything that two implementations must agree on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from enum import IntFlag

from . import numbers
from .instructions import INSTRUCTION_FIELDS
from .registers import REGISTERS, Field

__all__ = ["SPEC_HASH", "SPEC_ID", "canonical"]


def canonical() -> str:
    """Everything two implementations must agree on, as canonical text; descriptions are no part of it."""

    def plain(f: Field) -> dict[str, object]:
        values = asdict(f)
        values.pop("description")
        values["enum"] = {e.name: int(e) for e in f.enum} if f.enum else None
        return values

    constants = {
        name: list(value) if isinstance(value, range) else value
        for name, value in vars(numbers).items()
        if name.isupper() and isinstance(value, (int, str, range)) and not isinstance(value, IntFlag)
    }
    registers = [
        {"name": r.name, "offset": r.offset, "access": r.access, "count": r.count,
         "fields": [plain(f) for f in r.fields]}
        for r in REGISTERS
    ]  # fmt: skip
    enums = (numbers.Command, numbers.Status, numbers.Capability, numbers.ImageFlag)
    contract = {
        "constants": constants,
        "registers": registers,
        "instruction": [plain(f) for f in INSTRUCTION_FIELDS],
        "enums": {e.__name__: {m.name: int(m) for m in e} for e in enums},
    }
    return json.dumps(contract, sort_keys=True, separators=(",", ":"))


SPEC_HASH: str = hashlib.sha256(canonical().encode()).hexdigest()
"""SHA-256 of the contract, in hexadecimal: stands in every ``.circ``, ``circ.json`` and core."""

SPEC_ID: int = int(SPEC_HASH[:8], 16)
"""First 32 bits of :data:`SPEC_HASH`: what fits in the identity register."""
