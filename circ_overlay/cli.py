# SPDX-License-Identifier: BSD-3-Clause
"""Command line: ``circ-overlay info | run | models | data | compile | explore``. Thin: the package does the work."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from . import __version__, bitstreams, datasets, models, spec
from .cli_compile import compile_model
from .cli_explore import explore
from .engines import ENGINES, available_engines
from .errors import CircOverlayError
from .program import Program

__all__ = ["cli"]


def _console() -> Console:
    # Without a terminal rich would wrap at 80 columns and cut tables in logs.
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False)


class _Group(click.Group):
    """Turns the package's own errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CircOverlayError, ImportError, ValueError, OSError) as error:
            logging.getLogger(__name__).info("where it happened:", exc_info=True)
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="circ-overlay")
@click.option("-v", "--verbose", is_flag=True, help="Log what the driver does.")
def cli(verbose: bool) -> None:
    """Block-circulant FFT neural networks on PYNQ boards, and on the emulated one."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


cli.add_command(compile_model)
cli.add_command(explore)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Show versions, engines, packaged bitstreams, and the board that would be used."""
    facts: dict[str, Any] = {
        "circ-overlay": __version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "specification": f"{spec.SPEC_VERSION} ({spec.SPEC_HASH[:12]})",
        "engines": available_engines(),
        "bitstreams": {board: str(path) for board, path in bitstreams.packaged().items()} or "none packaged yet",
    }
    try:
        from importlib.metadata import version

        from .driver import CirculantOverlay

        facts["pynq"] = version("pynq")
        with CirculantOverlay() as overlay:
            facts["overlay"] = overlay.describe()
            facts["bitstream"] = str(overlay.bitfile_name)
    except (CircOverlayError, ImportError) as error:
        facts["overlay"] = f"not usable: {error}"
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        text = value if isinstance(value, str) else ", ".join(f"{k}: {v}" for k, v in value.items())
        table.add_row(f"[bold]{name}[/bold]", text)
    _console().print(table)


@cli.command(name="models")
def list_models() -> None:
    """List the networks of the zoo."""
    table = Table("model", "data", "layers", "k", "parameters", "compression", "what it is")
    for name, model in models.MODELS.items():
        if not model.dataset:  # compiled when it is loaded
            table.add_row(name, "none", *["-"] * 4, model.title)
            continue
        program = models.load(name)
        maps = [la.target for la in program.layers if la.weights.size]
        sizes = "-".join(str(n) for n in (program.input.features, *(m.pixels * m.channels for m in maps)))
        table.add_row(
            name, model.dataset, sizes, ", ".join(str(la.block_size) for la in program.layers if la.weights.size),
            f"{program.parameters:,}", f"{program.dense_parameters / program.parameters:.1f} x", model.title,
        )  # fmt: skip
    _console().print(table)


@cli.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(datasets.DATASETS)))
def data(names: tuple[str, ...]) -> None:
    """List the data sets, or download and check those NAMES."""
    for name in names:
        load = datasets.load_recordings if datasets.DATASETS[name].sound else datasets.load
        sizes = [len(load(name, split)) for split in ("train", "test")]
        click.echo(f"{name}: {sizes[0]:,} training and {sizes[1]:,} test samples, checksums right")
    if names:
        return
    table = Table("data set", "at hand", "what it is", "terms")
    for name, source in datasets.DATASETS.items():
        table.add_row(name, "yes" if datasets.at_hand(name) else "no", source.title, source.terms)
    _console().print(table)


@cli.command()
@click.argument("model")
@click.option("--dataset", help="Data set to run on; default: the model's own.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N test samples.")
@click.option("--engine", type=click.Choice(ENGINES), help="What computes on the emulated board.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples in one DMA transfer.")
@click.option(
    "--golden", type=click.IntRange(min=0),
    help="Samples that the golden model computes too; default: all of a fully connected network's, 500 of another's.",
)
@click.option("--bitfile", type=click.Path(exists=True, dir_okay=False), help="Use this bitstream.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw inputs with answers (.png).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(
    model: str,
    dataset: str | None,
    limit: int | None,
    engine: str | None,
    batch: int | None,
    golden: int | None,
    bitfile: str | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Run MODEL, a name of the zoo or a .circ file, on its test set through the board's own path."""
    if engine:
        os.environ["CIRC_OVERLAY_ENGINE"] = engine
    program, float_network, name, prepare = _resolve(model, dataset)
    samples, labels = _test_samples(name)
    samples, labels = prepare(samples[:limit]), labels[:limit]
    if golden is None and any(layer.source.pixels > 1 for layer in program.layers):
        golden = 500
    # A sequence is as long as it likes; its steps have the input's shape.
    shape = np.shape(samples[0])[1:] if program.sequence else np.shape(samples[0])
    if math.prod(shape) != program.input.features:
        raise click.ClickException(
            f"{program.name} takes {program.input.shape} samples, {name} has {shape}; give --dataset"
        )
    if picture is not None and program.sequence:
        raise click.ClickException(f"{program.name} works on sequences, of which there is no picture")
    from .driver import CirculantOverlay
    from .evaluate import evaluate

    with CirculantOverlay(bitfile) as overlay:
        with _progress(len(samples), hidden=as_json) as progress:
            result, answers = evaluate(
                overlay, program, samples, labels,
                float_network=float_network, batch_size=batch, golden_limit=golden, progress=progress,
            )  # fmt: skip
        result["overlay"] = overlay.describe()
    if picture is not None:
        from .picture import draw

        draw(np.asarray(samples), answers, labels, picture, title=f"{program.name}: {result['overlay']}")
        result["picture"] = str(picture)
    if as_json:
        click.echo(json.dumps({"dataset": name, **result}, indent=1))
    else:
        _report(result, name)


def _resolve(model: str, dataset: str | None) -> tuple[Program, Any, str, Callable[[Any], Any]]:
    """Program, its float network if known, data set, and what prepares that for it."""
    if model in models.MODELS:
        entry = models.MODELS[model]
        if not entry.dataset:
            raise click.ClickException(f"{model} has random weights: there is nothing to measure it on")
        return models.load(model), models.load_float(model), dataset or entry.dataset, entry.prepare
    if not Path(model).exists():
        raise click.ClickException(
            f"{model!r} is neither a file nor a model; models are {', '.join(models.MODELS)}"
        )
    program = Program.load(model)
    name = dataset or program.metadata.get("dataset")
    if name not in datasets.DATASETS:
        raise click.ClickException(
            f"{model} does not say what data it is for; give --dataset, one of {', '.join(datasets.DATASETS)}"
        )
    if "front_end" in program.metadata:
        return program, None, name, lambda recordings: models.features(program.metadata, recordings)
    return program, None, name, lambda images: images


def _test_samples(name: str) -> tuple[Any, Any]:
    """Images or recordings of a data set's test part, and their labels."""
    if name in datasets.DATASETS and datasets.DATASETS[name].sound:
        recordings = datasets.load_recordings(name, "test")
        return recordings.recordings, recordings.labels
    images = datasets.load(name, "test")
    return images.images, images.labels


@contextmanager
def _progress(total: int, *, hidden: bool) -> Iterator[Callable[[str, int], None]]:
    """A progress bar over the stages of an evaluation, shown only if it takes long enough to matter."""
    bars: dict[str, tqdm[Any]] = {}

    def update(stage: str, done: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, unit="sample", delay=0.5, leave=False, disable=hidden or None)
        bars[stage].update(done - bars[stage].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _report(result: dict[str, Any], dataset: str) -> None:
    device, host, accuracy = result["device"], result["host_us_per_image"], result["accuracy"]
    provenance, unit = device["provenance"], result["unit"]
    table = Table(title=f"{result['model']} on {dataset}", show_header=False, title_justify="left")
    article = "an" if unit == "image" else "a"
    rows = {
        "overlay": result["overlay"],
        f"{unit}s": f"{result['images']:,}" + (f" of {result['steps']:,} steps" if unit == "sequence" else ""),
        "accuracy": f"float {_percent(accuracy['float'])}   golden {_percent(accuracy['golden'])}   "
        f"board {_percent(accuracy['board'])}",
        "equal to golden": f"{result['equal_to_golden']:,} of {result['compared_with_golden']:,} compared, "
        "every bit of every output",
        "parameters": f"{result['parameters']:,} ({result['compression']:.1f} x fewer than dense)",
        "segments": f"{result['segments']}, loaded {result['program_loads']} times: {result['plan']}",
        "batches": f"{result['batches']} of up to {result['batch_size']}",
        "DMA bytes": f"{result['dma_bytes']['in']:,} in, {result['dma_bytes']['out']:,} out, "
        f"{result['dma_bytes']['program']:,} program",
        f"device cycles ({provenance})": f"{device['cycles']:,}, {device['cycles_per_image']:,.0f} {article} {unit}; "
        f"{device['load_cycles']:,} for loading",
        f"device rate ({provenance})": f"{device['images_per_second'] or 0:,.0f} {unit}s/s at "
        f"{device['clock_mhz']:g} MHz",
        f"host time per {unit}": f"pack {host['pack']:.2f} us, wait {host['wait']:.2f} us, "
        f"unpack {host['unpack']:.2f} us, in all {host['total']:.2f} us ({host['provenance']})",
    }
    if "picture" in result:
        rows["picture"] = result["picture"]
    for name, value in rows.items():
        table.add_row(name, value)
    _console().print(table)
