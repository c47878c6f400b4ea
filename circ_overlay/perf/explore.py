# SPDX-License-Identifier: BSD-3-Clause
"""Search for the Pareto front of accuracy, throughput and memory over cores and block sizes. Needs optuna.

Every trial draws from a generator seeded with (seed, number of the trial), so a run that was interrupted and resumed
gives the same front as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import spec
from ..errors import CircOverlayError
from .accuracy import Accuracy
from .design import BATCH, Design, Figures, figures, wants
from .front import pareto
from .parts import PARTS, USABLE
from .resources import PROVENANCE, SPECTRA_READ, total_resources
from .topology import Topology

try:
    import optuna
except ImportError as _error:
    raise ImportError(f"the search needs optuna ({_error}): pip install circ-overlay[explore]") from _error

__all__ = ["ExploreError", "Search", "explore"]

SAMPLES_LOG2 = (0, 6)
LANE_STEP = 4
WEIGHT_SHARES = (1.0, 0.5, 0.25)
"""Weight memory as a share of what the whole network needs: below 1 it runs in segments."""
MAP_SHARES = (1.0, 1.25, 1.5, 2.0)
"""Map memory as a multiple of the least that the largest layer needs."""
DEPTH = 512  # words of a block RAM at its widest: capacities are rounded up to what costs nothing
POPULATION = 40


class ExploreError(CircOverlayError):
    """A search that cannot begin or go on."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched.

    Attributes
    ----------
    topology : the network
    part : a name in :data:`circ_overlay.perf.parts.PARTS`
    accuracy : of block sizes and width
    method : how that is found, for the record
    clock_mhz : clock of the core in MHz
    usable : share of the part that a design may take
    widths : allowed bits of activations and weights
    seed : of every random draw
    """

    topology: Topology
    part: str
    accuracy: Accuracy
    method: str
    clock_mhz: float = 100.0
    usable: float = USABLE
    widths: tuple[int, int] = (spec.WIDTHS[0], spec.WIDTHS[-1])
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ExploreError(f"part {self.part!r}: there are {', '.join(PARTS)}")
        if not self.clock_mhz > 0:
            raise ExploreError(f"clock_mhz={self.clock_mhz}: expected a positive number")
        if not 0 < self.usable <= 1:
            raise ExploreError(f"usable={self.usable}: expected a share, more than 0 and up to 1")

    @property
    def most_lanes(self) -> int:
        """Lanes beyond which the DSP slices alone do not suffice."""
        most = int(self.usable * PARTS[self.part].dsp) // 3
        return max(LANE_STEP, min(255, most) // LANE_STEP * LANE_STEP)

    def identity(self) -> str:
        """What two runs must agree on to share a storage."""
        layers = [(op.name, op.kind, op.taps, op.stride, op.out_channels) for op in self.topology.network.layers]
        content = repr((
            layers, self.topology.choices, self.part, self.clock_mhz, self.usable, self.method, self.widths,
            self.seed, spec.SPEC_HASH,
        ))  # fmt: skip
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def design(self, trial: optuna.Trial) -> Design:
        """The design of a trial."""
        lanes = trial.suggest_int("lanes", LANE_STEP, self.most_lanes, step=LANE_STEP)
        samples = 1 << trial.suggest_int("log2_samples", *SAMPLES_LOG2)
        width = trial.suggest_int("width", *self.widths)
        weights = WEIGHT_SHARES[trial.suggest_int("weight_share", 0, len(WEIGHT_SHARES) - 1)]
        maps = MAP_SHARES[trial.suggest_int("map_share", 0, len(MAP_SHARES) - 1)]
        blocks = tuple(
            ks[trial.suggest_int(f"k {name}", 0, len(ks) - 1)]
            for name, ks in zip(self.topology.labels, self.topology.choices)
        )
        need = wants(self.topology, blocks)
        config = spec.CoreConfig(
            width=width,
            lanes=lanes,
            samples=samples,
            weight_words=_up(need["weight_words"] * weights, lanes * DEPTH),
            map_elements=_up(need["map_elements"] * maps, max(samples, spec.MAP_WORD) * DEPTH),
            spectra_words=_up(need["spectra_words"], max(min(SPECTRA_READ, lanes), samples // 2) * DEPTH),
            affine_channels=_up(need["affine_channels"], samples * DEPTH),
        )
        return Design(config=config, blocks=blocks)

    def measure(self, design: Design) -> Figures:
        """What the models say of a design."""
        return figures(self.topology, design, PARTS[self.part], clock_mhz=self.clock_mhz, usable=self.usable)


def _up(need: float, step: int) -> int:
    return max(1, math.ceil(need / step)) * step


def _record(design: Design, accuracy: float, f: Figures) -> dict[str, Any]:
    """A design and its figures as plain JSON."""
    return {
        "config": {field.name: getattr(design.config, field.name) for field in fields(design.config)},
        "blocks": list(design.blocks),
        "accuracy": accuracy,
        "images_per_second": f.images_per_second,
        "cycles_per_image": None if math.isinf(f.cycles) else f.cycles,
        "bram": f.resources.bram,
        "resources": asdict(f.resources),
        "use": f.use,
        "parameters": f.parameters,
        "segments": f.segments,
        "bound": f.bound,
        "feasible": f.feasible,
        "problem": f.problem,
    }


def _constraints(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    """Resources beyond what is usable, and whether the compiler finds a place: positive is infeasible."""
    return list(trial.user_attrs["constraints"])


def _storage(path: Path | None) -> Any:
    if path is None:
        return optuna.storages.InMemoryStorage()
    try:
        from optuna.storages.journal import JournalFileBackend as Backend
    except ImportError:  # optuna 3
        from optuna.storages import JournalFileStorage as Backend
    return optuna.storages.JournalStorage(Backend(str(path)))


def _study(search: Search, path: Path | None) -> optuna.Study:
    directions: list[Any] = ["maximize", "maximize", "minimize"]
    try:
        study = optuna.create_study(
            storage=_storage(path), study_name="circ-overlay", directions=directions, load_if_exists=True
        )
        known = study.user_attrs.get("identity")
        used = bool(study.get_trials(deepcopy=False))
    except OSError as error:
        raise ExploreError(f"storage {path} cannot be opened: {error}") from error
    except Exception as error:  # optuna's storages let through whatever a damaged file makes them stumble over
        raise ExploreError(
            f"storage {path} is damaged, or not one of this command ({type(error).__name__}: {error}); "
            "delete it to begin anew"
        ) from error
    identity = search.identity()
    if known is None and not used:
        study.set_user_attr("identity", identity)
    elif known != identity:
        raise ExploreError(
            f"storage {path} belongs to another search (network, part, clock, accuracy or seed differ); "
            "give the same options, or another file"
        )
    return study


def _start(search: Search, study: optuna.Study) -> None:
    """Designs to begin with: for every F as many lanes as the part has DSP slices for; one block size everywhere."""
    topology = search.topology
    default = spec.CoreConfig()
    width = min(max(default.width, search.widths[0]), search.widths[1])
    uniform = [tuple(min(n, len(ks) - 1) for ks in topology.choices) for n in range(max(map(len, topology.choices)))]
    own = tuple(ks.index(k) if k in ks else 0 for k, ks in zip(topology.default, topology.choices))
    for log2 in range(SAMPLES_LOG2[0], SAMPLES_LOG2[1] + 1):
        one = replace(default, lanes=1, samples=1 << log2)
        rest = search.usable * PARTS[search.part].dsp - total_resources(one).dsp
        lanes = min(search.most_lanes, (int(rest) // 3 + 1) // LANE_STEP * LANE_STEP)
        if lanes < LANE_STEP:
            continue
        for indices in dict.fromkeys([own, *uniform]):
            blocks = {f"k {name}": n for name, n in zip(topology.labels, indices)}
            study.enqueue_trial({
                "lanes": lanes, "log2_samples": log2, "width": width, "weight_share": 0, "map_share": 1, **blocks,
            })  # fmt: skip


def explore(
    search: Search,
    trials: int,
    *,
    storage: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Run or resume a search.

    Parameters
    ----------
    search : what is searched
    trials : designs to look at, those already in the storage included
    storage : file that keeps them, so that the search can be resumed; None: memory
    progress : called with the number of designs looked at

    Returns
    -------
    dict of plain JSON values: "front", "points" (all designs), "default" (the default core with the network's own
    block sizes) and what the search was.

    Raises
    ------
    ExploreError
        The storage is damaged or belongs to another search.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # optuna 5 has another way to tell constraints
        study = _study(search, storage)
        if not study.get_trials(deepcopy=False):
            _start(search, study)
        done = _complete(study)
        while len(done) < trials:
            study.sampler = optuna.samplers.NSGAIISampler(
                population_size=POPULATION, seed=(search.seed * 1_000_003 + len(done)) % 2**32,
                constraints_func=_constraints,
            )  # fmt: skip
            study.optimize(partial(_objective, search, done), n_trials=1)
            done = _complete(study)
            progress(len(done))
    records = [t.user_attrs["record"] for t in done]
    topology = search.topology
    default = Design(config=spec.CoreConfig(), blocks=topology.default)
    rated = search.accuracy(default.blocks, default.config.width)
    return {
        "provenance": PROVENANCE,
        "spec_hash": spec.SPEC_HASH,
        "network": topology.name,
        "layers": list(topology.labels),
        "trained_weights": topology.trained,
        "dense_parameters": topology.dense_parameters,
        "part": search.part,
        "clock_mhz": search.clock_mhz,
        "usable": search.usable,
        "batch": BATCH,
        "accuracy_method": search.method,
        "seed": search.seed,
        "trials": len(records),
        "feasible": sum(r["feasible"] for r in records),
        "default": _record(default, rated, search.measure(default)),
        "front": pareto(records),
        "points": [
            {key: r[key] for key in ("accuracy", "images_per_second", "bram", "feasible")} for r in records
        ],
    }  # fmt: skip


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _objective(search: Search, done: Sequence[Any], trial: optuna.Trial) -> tuple[float, float, float]:
    design = search.design(trial)
    f = search.measure(design)
    rated = 0.0
    # What does not fit is not worth a training run, and what a resumed search has rated not another one.
    if f.feasible or search.method in ("fidelity", "capacity"):
        key = (list(design.blocks), design.config.width)
        records = (t.user_attrs["record"] for t in done if t.user_attrs["record"]["feasible"])
        known = next((r["accuracy"] for r in records if (r["blocks"], r["config"]["width"]) == key), None)
        rated = search.accuracy(design.blocks, design.config.width) if known is None else known
    record = _record(design, rated, f)
    trial.set_user_attr("constraints", [*(use - 1 for use in f.use.values()), 1.0 if f.problem else 0.0])
    trial.set_user_attr("record", json.loads(json.dumps(record)))
    return rated, f.images_per_second, f.resources.bram
