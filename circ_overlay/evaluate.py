# SPDX-License-Identifier: BSD-3-Clause
"""Run a program on a data set through float, golden model and board, and say what came out and what it took."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import __version__, golden, spec
from .program import Program

if TYPE_CHECKING:
    from .compiler import Network as FloatNetwork
    from .driver import CirculantOverlay

__all__ = ["evaluate", "golden_outputs"]

_CHUNK = 250  # samples at a time for the golden model: its intermediate arrays then stay in cache


def golden_outputs(
    program: Program, images: NDArray[Any], progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.int64]:
    """The golden model's outputs for real-valued samples, (n, out_features) int64."""
    parts = []
    for start in range(0, len(images), _CHUNK):
        quantised = program.input.quantise(images[start : start + _CHUNK], program.width)
        parts.append(np.asarray(golden.run(program, quantised)))
        progress(min(start + _CHUNK, len(images)))
    return np.concatenate(parts) if parts else np.empty((0, program.output.features), np.int64)


def _accuracy(scores: NDArray[Any], labels: NDArray[np.int64]) -> float | None:
    return float((scores.argmax(1) == labels).mean()) if len(labels) else None


def evaluate(
    overlay: CirculantOverlay,
    program: Program,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    float_network: FloatNetwork | None = None,
    batch_size: int | None = None,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Measure a program.

    Parameters
    ----------
    overlay : open overlay
    program : network that gives one score per class
    images, labels : (n, ...) samples and (n,) int64
    float_network : if given, its accuracy is measured beside
    batch_size : samples in one DMA transfer
    progress : called with the stage ("float", "golden", "board") and the number of samples done

    Returns
    -------
    result : plain JSON values; every device figure with its provenance
    answers : (n,) class of each sample as the board answered
    """
    accuracy: dict[str, float | None] = {"float": None}
    if float_network is not None:
        scores = []
        for start in range(0, len(images), _CHUNK):
            scores.append(float_network.forward(images[start : start + _CHUNK])[-1])
            progress("float", min(start + _CHUNK, len(images)))
        accuracy["float"] = _accuracy(np.concatenate(scores), labels) if scores else None
    reference = golden_outputs(program, images, lambda done: progress("golden", done))
    accuracy["golden"] = _accuracy(reference, labels)
    with overlay.load(program, batch_size=batch_size) as network:
        began = time.perf_counter()
        outputs = network.predict(images, raw=True, progress=lambda done: progress("board", done))
        elapsed = time.perf_counter() - began
        statistics, layers = network.statistics, network.layer_table()
    accuracy["board"] = _accuracy(outputs, labels)
    n = max(len(images), 1)
    emulated = overlay.emulated
    result = {
        "model": program.name,
        "images": len(images),
        "accuracy": accuracy,
        "equal_to_golden": int((outputs == reference).all(1).sum()),
        "parameters": program.parameters,
        "compression": program.dense_parameters / program.parameters,
        "batches": statistics.batches,
        "batch_size": network.batch_size,
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
            "cycles_per_image": statistics.cycles_per_image,
            "images_per_second": statistics.images / statistics.device_s if statistics.cycles else None,
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
    return result, outputs.argmax(1).astype(np.int64)
