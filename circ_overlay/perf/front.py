# SPDX-License-Identifier: BSD-3-Clause
"""The Pareto front, and what a search found as a table's rows, as a file and as a picture (matplotlib)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "draw_front", "front_figure", "pareto", "rows", "write_front"]

COLUMNS = ("accuracy", "images/s", "BRAM", "DSP", "LUT", "L", "F", "W", "k", "weights", "bound by", "segments")
_WORDS = {
    "fidelity": "correlation with the uncompressed network (proxy)",
    "capacity": "free weights, log scale (proxy)",
    "evaluate": "accuracy on validation samples, projected weights",
    "retrain": "accuracy on validation samples, retrained",
}


def pareto(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The feasible records that no other one beats in accuracy, throughput and memory together; fastest first."""

    def key(r: dict[str, Any]) -> tuple[float, float, float]:
        return r["accuracy"], r["images_per_second"], -r["bram"]

    best: dict[tuple[float, float, float], dict[str, Any]] = {}
    for r in records:
        if r["feasible"]:
            best.setdefault(key(r), r)
    front = [
        r for point, r in best.items()
        if not any(other != point and all(a >= b for a, b in zip(other, point)) for other in best)
    ]  # fmt: skip
    return sorted(front, key=lambda r: (-r["images_per_second"], -r["accuracy"], r["bram"]))


def rows(front: list[dict[str, Any]], most: int = 20) -> list[tuple[str, ...]]:
    """Text of the front's designs, fastest first, evenly thinned out to `most`; columns are :data:`COLUMNS`."""
    if len(front) > most:
        front = [front[round(n * (len(front) - 1) / (most - 1))] for n in range(most)] if most > 1 else front[:1]
    result: list[tuple[str, ...]] = []
    for r in front:
        config, used = r["config"], r["resources"]
        slowest = max(r["bound"], key=lambda name: r["bound"][name])
        result.append((
            f"{r['accuracy']:.3f}", f"{r['images_per_second']:,.0f}", f"{r['bram']:g}", str(used["dsp"]),
            f"{used['lut']:,}", str(config["lanes"]), str(config["samples"]), str(config["width"]),
            " ".join(map(str, r["blocks"])), f"{r['parameters']:,}", f"{slowest} {100 * r['bound'][slowest]:.0f} %",
            str(r["segments"]),
        ))  # fmt: skip
    return result


def write_front(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """The result of a search as JSON; `path` holds the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def front_figure(result: Mapping[str, Any]) -> Figure:
    """Throughput against accuracy, coloured by block RAM; infeasible designs as crosses, the default as a star."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    points, front, default = result["points"], result["front"], result["default"]
    rated = [p for p in points if p["images_per_second"] > 0]
    failed = [p for p in rated if not p["feasible"]]
    axes.scatter(
        [p["images_per_second"] for p in failed], [p["accuracy"] for p in failed],
        marker="x", s=16, linewidths=0.8, color="0.75", label=f"does not fit {result['part']}",
    )  # fmt: skip
    good = [p for p in rated if p["feasible"]]
    axes.scatter(
        [p["images_per_second"] for p in good], [p["accuracy"] for p in good], s=8, color="0.45", label="fits"
    )
    if front:
        shown = axes.scatter(
            [r["images_per_second"] for r in front], [r["accuracy"] for r in front], c=[r["bram"] for r in front],
            cmap="viridis", s=38, edgecolors="black", linewidths=0.5, zorder=3, label="Pareto front",
        )  # fmt: skip
        figure.colorbar(shown, ax=axes, label="block RAMs (36 Kibit)")
    fits = "fits" if default["feasible"] else "does not fit"
    axes.scatter(
        [default["images_per_second"]], [default["accuracy"]], marker="*", s=170, color="tab:red",
        edgecolors="black", linewidths=0.5, zorder=4, label=f"default core, own k ({fits})",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel(f"images/s at {result['clock_mhz']:g} MHz (modelled)")
    axes.set_ylabel(_WORDS[result["accuracy_method"].split()[0]], fontsize=9)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    axes.set_title(
        f"{result['network']} on {result['part']}: {result['trials']} designs, {result['feasible']} fit\n"
        f"{result['provenance']}", fontsize=9,
    )  # fmt: skip
    return figure


def draw_front(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write :func:`front_figure` to `path`, format by its suffix; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    front_figure(result).savefig(buffer, dpi=90, format=path.suffix.lstrip(".") or "png")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
