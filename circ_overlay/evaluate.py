# SPDX-License-Identifier: BSD-3-Clause
"""Run a program on a data set through float, golden model and board, and say what came out and what it took."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import __version__, golden, spec
from .program import Program

if TYPE_CHECKING:
    from .compiler import Network as FloatNetwork
    from .driver import CirculantOverlay, Network

__all__ = ["evaluate", "golden_outputs"]

_CHUNK = 250  # samples at a time for the golden model: its intermediate arrays then stay in cache
_SEQUENCES = 8  # and sequences, which it computes step by step anyway


def golden_outputs(
    program: Program, samples: Sequence[NDArray[Any]], progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.int64]:
    """The golden model's outputs for real-valued samples.

    Parameters
    ----------
    program : any program
    samples : (n, ...) samples, or for a network on sequences a list of (steps, ...) arrays
    progress : called with the number of samples done

    Returns
    -------
    (n, out_features) int64; for sequences one row for each step, one sequence behind the other.
    """
    parts, chunk = [], _SEQUENCES if program.sequence else _CHUNK
    for start in range(0, len(samples), chunk):
        group, starts = samples[start : start + chunk], None
        if program.sequence:
            starts = np.concatenate([np.arange(len(sequence)) == 0 for sequence in group])
        rows = np.concatenate(group) if program.sequence else np.asarray(group)
        parts.append(golden.run(program, program.input.quantise(rows, program.width), starts=starts))
        progress(min(start + chunk, len(samples)))
    return np.concatenate(parts) if parts else np.empty((0, program.output.features), np.int64)


def _accuracy(scores: NDArray[Any], labels: NDArray[np.int64]) -> float | None:
    return float((scores.argmax(1) == labels).mean()) if len(labels) else None


def evaluate(
    overlay: CirculantOverlay,
    program: Program,
    samples: Sequence[NDArray[Any]],
    labels: NDArray[np.int64],
    *,
    float_network: FloatNetwork | None = None,
    batch_size: int | None = None,
    golden_limit: int | None = None,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Measure a program.

    Parameters
    ----------
    overlay : open overlay
    program : network that gives one score per class; a network on sequences gives them with the last step
    samples, labels : (n, ...) samples, or a list of (steps, ...) sequences; and (n,) int64
    float_network : if given, its accuracy is measured beside
    batch_size : samples (steps) in one DMA transfer
    golden_limit : how many samples the golden model computes too; None: all
    progress : called with the stage ("float", "golden", "board") and the number of samples done

    Returns
    -------
    result : plain JSON values; every device figure with its provenance
    answers : (n,) class of each sample as the board answered
    """
    steps = np.array([len(s) for s in samples], np.int64) if program.sequence else np.ones(len(samples), np.int64)
    last = np.cumsum(steps) - 1  # row of each sample's answer
    chunk = 1 if program.sequence else _CHUNK
    accuracy: dict[str, float | None] = {"float": None}
    if float_network is not None and len(samples):
        scores = []
        for start in range(0, len(samples), chunk):
            x = samples[start] if program.sequence else np.asarray(samples[start : start + chunk])
            scores.append(float_network.forward(x)[-1:] if program.sequence else float_network.forward(x))
            progress("float", min(start + chunk, len(samples)))
        accuracy["float"] = _accuracy(np.concatenate(scores), labels)
    compared = len(samples) if golden_limit is None else min(golden_limit, len(samples))
    reference = golden_outputs(program, samples[:compared], lambda done: progress("golden", done))
    accuracy["golden"] = _accuracy(reference[last], labels) if compared == len(samples) else None
    with overlay.load(program, batch_size=batch_size) as network:
        began = time.perf_counter()
        outputs = _run(network, samples, lambda done: progress("board", done))
        elapsed = time.perf_counter() - began
        statistics, layers = network.statistics, network.layer_table()
        plan = str(network.plan(int(steps.sum())))
    accuracy["board"] = _accuracy(outputs[last], labels)
    equal = np.concatenate([[0], np.cumsum((outputs[: len(reference)] == reference).all(1))])
    ends, lengths = last[:compared] + 1, steps[:compared]
    n = max(len(samples), 1)
    emulated = overlay.emulated
    result = {
        "model": program.name,
        "images": len(samples),
        "unit": "sequence" if program.sequence else "image",
        "steps": int(steps.sum()),
        "accuracy": accuracy,
        "compared_with_golden": compared,
        "equal_to_golden": int((equal[ends] - equal[ends - lengths] == lengths).sum()),
        "parameters": program.parameters,
        "compression": program.dense_parameters / program.parameters,
        "segments": len(program.segments),
        "plan": plan,
        "batches": statistics.batches,
        "batch_size": network.batch_size,
        "program_loads": statistics.program_loads,
        "dma_bytes": {
            "in": statistics.bytes_in,
            "out": statistics.bytes_out,
            "program": statistics.program_bytes,
        },
        "device": {
            "board": overlay.device.name,
            "emulated": emulated,
            "engine": overlay.device.engine_name if emulated else "fabric",
            "clock_mhz": overlay.clock_mhz,
            "cycles": statistics.cycles,
            "load_cycles": statistics.load_cycles,
            "cycles_per_image": statistics.cycles / n,
            "images_per_second": n / statistics.device_s if statistics.cycles else None,
            "provenance": statistics.cycles_provenance,
            "layers": layers,
        },
        "host_us_per_image": {
            "pack": 1e6 * statistics.pack_s / n,
            "wait": 1e6 * statistics.wait_s / n,
            "unpack": 1e6 * statistics.unpack_s / n,
            "total": 1e6 * elapsed / n,
            "provenance": "measured on this machine" + (", board emulated" if emulated else ""),
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        },
        "spec_hash": spec.SPEC_HASH,
        "version": __version__,
    }
    return result, outputs[last].argmax(1).astype(np.int64)


def _run(network: Network, samples: Sequence[NDArray[Any]], progress: Callable[[int], None]) -> NDArray[np.int16]:
    """What the board answers, in rows as golden_outputs gives them."""
    features = network.program.output.features
    if not network.program.sequence:
        return network.predict(np.asarray(samples), raw=True, progress=progress).reshape(-1, features)
    parts = network.predict_sequences(samples, raw=True, progress=progress)
    return np.concatenate([np.empty((0, features), np.int16), *(p.reshape(-1, features) for p in parts)])
