# SPDX-License-Identifier: BSD-3-Clause
"""``circ-overlay compile``: from a model file and sample data to a ``.circ`` file. docs/compiler.md."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from . import bitstreams, spec
from .errors import CircOverlayError

__all__ = ["compile_model"]

BOARDS = {"pynq-z1": "Pynq-Z1", "pynq-z2": "Pynq-Z2"}
_CORE = [f.name for f in fields(spec.CoreConfig) if f.name not in ("width", "capability")]
_SUFFIXES = (".onnx", ".pt", ".pth", ".pt2", ".ts")


def _core_options(command: Any) -> Any:
    for name in reversed(_CORE):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=click.IntRange(min=1), help=f"Of the core; {_HELP[name]}.")(command)
    return command


_HELP = {
    "lanes": "multiply-accumulate lanes",
    "samples": "samples a cycle of its transforms",
    "weight_words": "complex weight words on chip",
    "map_elements": "elements of its map memory",
    "affine_channels": "channels whose scale and bias it holds",
    "instructions": "layers it holds",
    "spectra_words": "spectral words of input rows it holds",
}


@click.command(name="compile")
@click.argument("model")
@click.option("--data", "data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Typical inputs: .npy, or .npz whose array x, images or else the first one is taken.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The .circ file.")
@click.option("--width", type=click.IntRange(spec.WIDTHS[0], spec.WIDTHS[-1]), help="Bits; default: the core's, 12.")
@click.option("--block-size", type=int, help="Project dense layers to blocks of this size. It costs accuracy.")
@click.option("--name", help="The network's name; default: the model's.")
@click.option("--labels", help="Names of the classes, with commas between them.")
@click.option("--channels-last", is_flag=True, help="The samples' images are (height, width, channels).")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="State dict for a module that model.py:function makes.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Unpickle a module, which runs the code in the file.")
@click.option("--samples-limit", type=click.IntRange(min=1), default=512, show_default=True,
              help="Look at no more samples.")  # fmt: skip
@click.option("--board", type=click.Choice(sorted(BOARDS), case_sensitive=False), help="Compile for its core.")
@click.option("--clock", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True,
              help="MHz, for the modelled rate.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_core_options
def compile_model(
    model: str, data: Path, output: Path, width: int | None, block_size: int | None, name: str | None,
    labels: str | None, channels_last: bool, weights: Path | None, trust: bool, samples_limit: int, board: str | None,
    clock: float, as_json: bool, **core: int | None,
) -> None:  # fmt: skip
    """Compile MODEL for the core and write a .circ file.

    MODEL is an .onnx file, a .pt or .pth file with a pickled module (with --trust), or model.py:function, a
    function or class that makes the module. All cycles are modelled.
    """
    from . import compiler
    from .compiler.report import layer_table, summary

    if not output.parent.is_dir():
        raise click.ClickException(f"there is no folder {output.parent}")
    config = _config(board, width, core)
    sample = read_samples(data, samples_limit)
    progress = Console(stderr=True, highlight=False)
    with progress.status("reading the model"):
        network = _model(model, weights, trust)
    with progress.status(f"compiling for {config.width} bits"):
        program = compiler.compile(
            network, sample, config=config, name=name, channels_last=channels_last, block_size=block_size,
            labels=tuple(part.strip() for part in labels.split(",")) if labels else (),
        )  # fmt: skip
        program.save(output)
    rows, totals = layer_table(program, config), summary(program, config, clock_mhz=clock)
    totals["file"], totals["file_bytes"] = str(output), output.stat().st_size
    if as_json:
        click.echo(json.dumps({"summary": totals, "layers": rows}, indent=1))
    else:
        _report(rows, totals)


def read_samples(path: Path, limit: int) -> NDArray[Any] | list[NDArray[Any]]:
    """The first `limit` samples of a file; several arrays (steps, features) of an .npz are sequences."""
    try:
        held = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise CircOverlayError(f"{path} holds no plain arrays ({error}); use np.save or np.savez on numbers") from error
    if not isinstance(held, np.lib.npyio.NpzFile):
        return np.asarray(held)[:limit]
    with held:
        if not held.files:
            raise CircOverlayError(f"{path} holds no array")
        for key in ("x", "images"):
            if key in held.files:
                return np.asarray(held[key])[:limit]
        arrays = [np.asarray(held[key]) for key in held.files]
    if len(arrays) > 1 and all(a.ndim == 2 and a.shape[1] == arrays[0].shape[1] for a in arrays):
        return arrays[:limit]
    return arrays[0][:limit]


def _config(board: str | None, width: int | None, core: dict[str, int | None]) -> spec.CoreConfig:
    """The core to compile for: the board's packaged one, else the default one, with what the options change."""
    config = spec.CoreConfig()
    bit = bitstreams.packaged().get(BOARDS[board]) if board else None
    if bit is not None:
        config = spec.CoreConfig(**json.loads(bit.with_suffix(".json").read_text())["config"])
    chosen = {name: value for name, value in {"width": width, **core}.items() if value is not None}
    return replace(config, **chosen)


def _model(model: str, weights: Path | None, trust: bool) -> Any:
    if ".py:" not in model and Path(model).suffix not in _SUFFIXES:
        raise click.ClickException(
            f"{model!r}: expected a model.onnx, a model.pt with a pickled module, or model.py:function"
        )
    if model.endswith(".onnx"):
        return model
    from .compiler.torch_load import load_module

    return load_module(model, weights=weights, trust=trust)


def _report(rows: list[dict[str, Any]], totals: dict[str, Any]) -> None:
    # Without a terminal rich would wrap at 80 columns and cut tables in logs.
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    table = Table(title=totals["name"], title_justify="left")
    several = totals["segments"] > 1
    for title in ("layer", "operation", "in", "out"):
        table.add_column(title)
    for title in ("k", "parameters", "x", "weight words", "map", "cycles", "SNR dB", *(["segment"] if several else [])):
        table.add_column(title, justify="right")
    for row in rows:
        shapes = [" x ".join(str(n) for n in row[key]) for key in ("in_shape", "out_shape")]
        ratio = "-" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        cells = [
            row["layer"], row["operation"], *shapes, str(row["k"]), f"{row['parameters']:,}",
            f"{row['compression']:.1f}", f"{row['weight_words']:,}", f"{row['map_elements']:,}", f"{row['cycles']:,}",
            ratio,
        ]  # fmt: skip
        table.add_row(*cells, *([str(row["segment"])] if several else []))
    console.print(table)
    used = ", ".join(f"{100 * a / b:.0f} % of {n.replace('_', ' ')}" for n, (a, b) in totals["uses"].items())
    console.print(
        f"{totals['parameters']:,} parameters, {totals['compression']:.1f} x fewer than dense; "
        f"{totals['cycles_per_image']:,} cycles an image, {totals['images_per_second']:,.0f} images/s at "
        f"{totals['clock_mhz']:g} MHz in runs of {totals['batch']} (modelled); {totals['segments']} segments, "
        f"loaded in {totals['load_cycles']:,} cycles\n{used}\n{totals['file']}: {totals['file_bytes']:,} bytes"
    )
