# SPDX-License-Identifier: BSD-3-Clause
"""Test vectors that every implementation of the core reads: ``python tests/vectors/generate.py``.

One file ``wNN.bin`` for each width NN. A file is a sequence of records of little-endian 64-bit words:

    tag            the eight characters CIRCVEC1
    load status    spec.Status that the LOAD must give; if it is not OK, nothing follows the image
    batch          images of the RUN
    image words, input words, output words
    then the program image, the input beats, the output beats

The golden model computes the outputs, so the files are as good as it is; they change with the specification.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from strategies import (
    KINDS,
    MODES,
    impulse,
    input_words,
    random_batch,
    random_network,
    random_program,
    random_starts,
    resonant_program,
)

from circ_overlay import image, spec
from circ_overlay.engines.golden import GoldenEngine
from circ_overlay.program import Program

MOST_WORDS = 700  # of a network's image: the files stay small
TAG = int.from_bytes(b"CIRCVEC1", "little")
Words = NDArray[np.uint64]


class Vector(NamedTuple):
    """One LOAD and, unless it is refused, one RUN."""

    status: spec.Status
    batch: int
    image: Words
    inputs: Words
    outputs: Words

    def words(self) -> Words:
        """The record as it stands in a file."""
        head = [TAG, int(self.status), self.batch, len(self.image), len(self.inputs), len(self.outputs)]
        return np.concatenate([np.array(head, np.uint64), self.image, self.inputs, self.outputs])


def read(path: Path) -> Iterator[Vector]:
    """The records of a file."""
    words = np.fromfile(path, "<u8").astype(np.uint64)
    while len(words):
        tag, status, batch, *lengths = (int(n) for n in words[:6])
        if tag != TAG:
            raise ValueError(f"{path}: a record begins with {tag:#x} instead of {TAG:#x}")
        ends = 6 + np.cumsum(lengths)
        parts = np.split(words[: ends[-1]], [6, *ends[:-1]])[1:]
        yield Vector(spec.Status(status), batch, *parts)
        words = words[ends[-1] :]


def _ran(program: Program, x: NDArray[Any], starts: NDArray[np.bool_] | None = None) -> Vector:
    engine = GoldenEngine(spec.CoreConfig(width=program.width))
    status = engine.load(program.image)
    if status != spec.Status.OK:
        raise ValueError(f"{program}: {status.name}")
    words = input_words(program, x, starts)
    return Vector(spec.Status.OK, len(x), program.image, words, engine.run(len(x), words))


def _refusals(program: Program, config: spec.CoreConfig) -> Iterator[Vector]:
    """Images with one fault each, and the status that the reference gives them."""
    good, none = program.image, np.zeros(0, np.uint64)
    faults = [good[:3], good[:-1], np.append(good, good[-1:])]
    damage = [(0, 0), (0, 40), (1, 60), (2, 3), (2, 37), (3, 1), (3, 10), (4, 33), (4, 60), (5, 30), (6, 50)]
    # every instruction field with its top bit turned, and the lowest one
    for f in spec.INSTRUCTION_FIELDS:
        for bit in (f.lsb, f.lsb + f.width - 1):
            damage.append((spec.HEADER_WORDS + bit // 64, bit % 64))
    for word, bit in damage:
        bad = good.copy()
        bad[word] ^= np.uint64(1 << bit)
        faults.append(bad)
    for bad in faults:
        verdict = image.decode(bad, config)
        if isinstance(verdict, spec.Status):
            yield Vector(verdict, 0, bad, none, none)


def _networks(rng: np.random.Generator, width: int) -> Iterator[Vector]:
    """Every operator and every block size, alone and behind one another, in sequences too."""

    def ran(kinds: tuple[str, ...], batch: int = 2, **how: Any) -> Vector:
        storage = "uint8" if width > spec.U8_BITS and rng.random() < 0.3 else "int16"
        while True:
            program = random_network(rng, width=width, kinds=kinds, storage=storage, **how)
            if len(program.image) < MOST_WORDS:
                break
        x = random_batch(rng, program, batch, how.get("mode", "uniform"))
        return _ran(program, x, random_starts(rng, batch) if program.sequence else None)

    for k in spec.BLOCK_SIZES:
        yield ran(("circulant",), block=k)
        yield ran(("gather",), block=k)
    for kind in KINDS:
        yield ran((kind,))
        yield ran((kind,), shape=(int(rng.integers(2, 9)), int(rng.integers(2, 9)), 4), mode="extreme", block=4)
        yield ran((str(rng.choice(KINDS)), kind, str(rng.choice(KINDS))), block=8)
    for _ in range(4):
        yield ran((str(rng.choice(KINDS)),), batch=5, sequence=True, block=4)


def vectors(width: int) -> Iterator[Vector]:
    """The records for cores of `width` bits and otherwise default build parameters."""
    rng = np.random.default_rng(20260 + width)
    activations = list(spec.Activation)
    for n, k in enumerate(spec.BLOCK_SIZES):
        # A layer with this block size between two with others, all sizes ragged.
        other = spec.BLOCK_SIZES[(n + 2) % 4]
        features = [int(v) for v in rng.integers(max(9, k // 2), max(28, k + k // 2), 4)]
        program = random_program(
            rng, width=width, features=features, blocks=(k, other, k),
            activations=[activations[(n + i) % 4] for i in range(3)],
            modes=("bell", "uniform", MODES[n % len(MODES)]),
            storage="uint8" if n % 2 and width > spec.U8_BITS else "int16",
        )  # fmt: skip
        yield _ran(program, random_batch(rng, program, 3, "uniform"))
        extreme = random_program(
            rng, width=width, features=(k + 1, k), blocks=(k,), activations=(activations[n % 4],),
            modes=("extreme",), live=n % 2 == 0,
        )  # fmt: skip
        yield _ran(extreme, random_batch(rng, extreme, 2, "extreme"))
    yield from _networks(rng, width)
    resonant = resonant_program(width, place=7 * width)
    yield _ran(resonant, impulse(resonant))
    small = random_program(
        rng, width=width, features=(5, 6), blocks=(4,), activations=activations[:1], modes=("uniform",)
    )
    yield from _refusals(small, spec.CoreConfig(width=width))
    for kinds in (("residual",), ("product",), ("max",)):
        shape = (4, 3, 4)
        program = random_network(rng, width=width, kinds=kinds, shape=shape, block=4)
        yield from _refusals(program, spec.CoreConfig(width=width))


def generated() -> dict[Path, bytes]:
    """Content of every vector file."""
    return {
        HERE / f"w{width:02}.bin": b"".join(v.words().astype("<u8").tobytes() for v in vectors(width))
        for width in spec.WIDTHS
    }


def main() -> None:
    """Write the files."""
    for path, content in generated().items():
        path.write_bytes(content)
        sys.stdout.write(f"{path.name}: {len(content)} bytes\n")


if __name__ == "__main__":
    main()
