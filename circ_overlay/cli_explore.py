# SPDX-License-Identifier: BSD-3-Clause
"""``circ-overlay explore``: co-design of core and block sizes. docs/codesign.md says what the models assume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from . import spec
from .perf.parts import PARTS, USABLE

__all__ = ["explore"]


@click.command()
@click.argument("network")
@click.option("--part", type=click.Choice(sorted(PARTS)), default="xc7z020", show_default=True, help="It has to fit.")
@click.option("--clock", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True, help="MHz.")
@click.option("--trials", type=click.IntRange(min=1), default=200, show_default=True,
              help="Designs to look at, those in --storage included.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random draw.")
@click.option("--usable", type=click.FloatRange(min=0, max=1, min_open=True), default=USABLE, show_default=True,
              help="Share of the part that may be taken.")  # fmt: skip
@click.option("--width", type=click.IntRange(spec.WIDTHS[0], spec.WIDTHS[-1]), help="Fix the bits; default: free.")
@click.option("--proxy", type=click.Choice(["fidelity", "capacity"]),
              help="Accuracy proxy; default: fidelity with trained weights, else capacity.")  # fmt: skip
@click.option("--evaluate", type=click.IntRange(min=1), metavar="N",
              help="Instead of a proxy: accuracy of the compiled, projected network on N samples.")  # fmt: skip
@click.option("--retrain", type=click.IntRange(min=1), metavar="EPOCHS",
              help="Instead of a proxy: retrain for every choice of k; for small networks.")  # fmt: skip
@click.option("--storage", type=click.Path(dir_okay=False, path_type=Path), help="Keep trials here, to resume.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here (.json).")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the front here (.png).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explore(
    network: str, part: str, clock: float, trials: int, seed: int, usable: float, width: int | None, proxy: str | None,
    evaluate: int | None, retrain: int | None, storage: Path | None, out: Path | None, picture: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Search cores and block sizes for NETWORK, a model of the zoo or a .json description, on a part.

    All figures but accuracies of --evaluate and --retrain are modelled and not yet checked against hardware.
    """
    from .perf.accuracy import METHODS, accuracy_of
    from .perf.explore import Search
    from .perf.explore import explore as search
    from .perf.front import draw_front, write_front
    from .perf.topology import load_topology

    if sum(option is not None for option in (proxy, evaluate, retrain)) > 1:
        raise click.UsageError("--proxy, --evaluate and --retrain exclude each other")
    topology = load_topology(network)
    proxy = proxy or ("fidelity" if topology.trained else "capacity")
    method = "evaluate" if evaluate else "retrain" if retrain else proxy
    accuracy = accuracy_of(topology, method, samples=evaluate or 500, epochs=retrain or 1, seed=seed)
    what = Search(
        topology=topology, part=part, accuracy=accuracy, clock_mhz=clock, usable=usable, seed=seed,
        method=method if not (evaluate or retrain) else f"{method} {evaluate or retrain}",
        widths=(width, width) if width else (spec.WIDTHS[0], spec.WIDTHS[-1]),
    )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    with click.progressbar(length=trials, label="designs", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        result = search(what, trials, storage=storage, progress=lambda done: bar.update(done - bar.pos))
    result["accuracy_meaning"] = METHODS[method]
    if out is not None:
        write_front(result, out)
    if picture is not None:
        draw_front(result, picture)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        _report(console, result)


def _report(console: Console, result: dict[str, Any]) -> None:
    from .perf.front import COLUMNS, rows

    title = (
        f"{result['network']} on {result['part']} at {result['clock_mhz']:g} MHz: {len(result['front'])} designs on "
        f"the front, {result['feasible']} of {result['trials']} fit ({result['provenance']})"
    )
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows(result["front"]):
        table.add_row(*row)
    console.print(table)
    default = result["default"]
    over = {name: f"{100 * share:.0f} %" for name, share in default["use"].items()}
    console.print(
        f"accuracy: {result['accuracy_meaning']}\n"
        f"k: of {', '.join(result['layers'])}\n"
        f"default core, own k: {'fits' if default['feasible'] else 'does not fit'}, of what is usable: "
        + ", ".join(f"{name} {share}" for name, share in over.items())
        + f"; {default['images_per_second']:,.0f} images/s, accuracy {default['accuracy']:.3f}"
        + (f"; {default['problem']}" if default["problem"] else "")
    )
