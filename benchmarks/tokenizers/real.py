"""Every tokenizer on real data: what its codes tell of categories, and one fixed HMAT on top of each."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import queue
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import start, wait
from benchmarks.tokenizers import cell, real_tables
from benchmarks.tokenizers.datasets import SETS, prepared
from hisam_jax.evaluation import intervals, summary
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.retrieval import Ranks
from hisam_jax.files import atomic_write

HEADS = ("generation", "retrieval")
FOUR = "(256, 256, 256, 256)"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A tokenizer's config file, its overrides, and whether it needs two modalities to differ from plain DST."""

    config: str
    overrides: tuple[tuple[str, str], ...] = ()
    two_modalities: bool = False


VARIANTS = {
    "dst": Variant("dst"),
    "dst without MI": Variant("dst", (("dst.mi_weight", "0.0"),), two_modalities=True),
    "dst without alignment": Variant("dst", (("dst.alignment", "none"),), two_modalities=True),
    "rqvae": Variant("rqvae", (("rqvae.sizes", FOUR),)),
    "residual_kmeans": Variant("residual_kmeans", (("residual_kmeans.sizes", FOUR),)),
    "opq": Variant("opq", (("opq.sizes", FOUR),)),
    "random": Variant("random", (("random.sizes", FOUR),)),
    "qarm": Variant("qarm", (("qarm.alignment", "False"),)),  # here all see features alone, no interactions
}
QUICK = {"dst.steps": "20", "rqvae.steps": "20"}
BY_STEPS = ("dst", "rqvae")
QUICK_SETS = ("ml-latest-small",)

markdown = real_tables.markdown


def run(work: Path, data: Path, datasets: Path, quick: bool = False, seeds: int = 1) -> dict[str, Any]:
    """All cells, two side by side on a core each, and the tables' figures from what they left.

    Args:
        work: where cells lie.
        data: folder of the public data sets.
        datasets: where they are prepared.
        quick: one data set, two tokenizers, a few steps.
        seeds: of each cell; the metrics of a user are averaged over them.
    """
    folders = {name: prepared(name, data, datasets) for name in (QUICK_SETS if quick else SETS)}
    plans = {name: _plan(name, folder, work / name, quick, seeds) for name, folder in folders.items()}
    every = [cell_ for plan in plans.values() for cells in plan.values() for cell_ in cells]
    run_side_by_side(every)
    sets = {
        name: {"title": SETS[name].title, **_dataset(folders[name]), "tokenizers": gather(plan)}
        for name, plan in plans.items()
    }
    return {"seeds": list(range(seeds)), "sets": sets}


def _plan(name: str, dataset: Path, work: Path, quick: bool, seeds: int) -> dict[str, list[Path]]:
    """Tokenizer -> the folders of its cells, one a seed, each with its spec; cells of other settings are removed."""
    plan: dict[str, list[Path]] = {}
    for variant in _variants(dataset, quick):
        for seed in range(seeds):
            folder = work / variant.replace(" ", "_") / str(seed)
            claim(folder, spec_of(dataset, name, VARIANTS[variant], seed, quick))
            plan.setdefault(variant, []).append(folder)
    return plan


def _variants(dataset: Path, quick: bool) -> list[str]:
    modalities = json.loads((dataset / "manifest.json").read_text())["modalities"]
    able = [name for name, variant in VARIANTS.items() if len(modalities) > 1 or not variant.two_modalities]
    return ["dst", "random"] if quick else able


def spec_of(dataset: Path, name: str, variant: Variant, seed: int, quick: bool) -> cell.Spec:
    """The cell of a variant on the set called `name`."""
    overrides = dict(variant.overrides)
    if variant.config in BY_STEPS:
        overrides[f"{variant.config}.steps"] = str(SETS[name].tokenizer_steps)
    overrides |= {key: value for key, value in QUICK.items() if quick and key.startswith(f"{variant.config}.")}
    config = cell.tokenizer_config(variant.config, overrides, seed)
    steps, users = (10, 64) if quick else (SETS[name].steps, SETS[name].users)
    return cell.Spec(str(dataset.absolute()), config, steps, SETS[name].window, users, seed)


def claim(folder: Path, spec: cell.Spec) -> None:
    """Makes `folder` the cell of `spec`; what another spec left there is removed."""
    wanted, file = json.dumps(dataclasses.asdict(spec), indent=1), folder / "spec.json"
    if folder.is_dir() and (not file.is_file() or file.read_text() != wanted):
        shutil.rmtree(folder)
    atomic_write(file, wanted)


def run_side_by_side(folders: Iterable[Path]) -> None:
    """Runs the cells that have no result yet, one on each core."""
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in range(os.cpu_count() or 1):
        cores.put(core)

    def one(folder: Path) -> None:
        core = cores.get()
        try:
            wait([start(["-m", "benchmarks.tokenizers.cell", str(folder)], folder / "log", core)])
        finally:
            cores.put(core)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in [pool.submit(one, folder) for folder in folders if not (folder / "result.json").is_file()]:
            done.result()


def _dataset(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {key: manifest[key] for key in ("users", "items", "interactions", "modalities", "tie_break")}
    return kept | {"split_checksum": manifest["split"]["checksum"]}


def gather(cells: Mapping[str, list[Path]], base: str = "dst") -> dict[str, Any]:
    """Variant -> what each seed's codes tell, metrics averaged over seeds, and paired differences from `base`."""
    bootstrap, values = Bootstrap(resamples=1000, seed=0), {}
    for variant, folders in cells.items():
        values[variant] = [_user_values(folder) for folder in folders]
    found = {}
    for variant, folders in cells.items():
        users_T, ours = _mean_over_seeds(values[variant])
        metrics = {head: intervals.means(ours[head], users_T, bootstrap) for head in HEADS}
        found[variant] = {
            "cells": [json.loads((folder / "result.json").read_text()) for folder in folders],
            "scored_users": len(users_T),
            "metrics": metrics,
            "by_seed": [
                {head: {name: float(of.mean()) for name, of in by_head[head].items()} for head in HEADS}
                for _, by_head in values[variant]
            ],
        }
        if variant != base:
            other_T, theirs = _mean_over_seeds(values[base])
            if not np.array_equal(users_T, other_T):
                raise ValueError(f"{variant} and {base} did not score the same users")
            found[variant]["minus_base"] = {
                head: intervals.difference_of_means(ours[head], theirs[head], users_T, bootstrap) for head in HEADS
            }
    return found


def _user_values(folder: Path) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    with np.load(folder / "predictions.npz") as stored:
        ranks = {head: Ranks(stored[f"{head}_masked"], stored[f"{head}_unmasked"]) for head in HEADS}
        return stored["user"], {head: summary.retrieval_values(of_head) for head, of_head in ranks.items()}


def _mean_over_seeds(seeds: list) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    users_T, first = seeds[0]
    return users_T, {
        head: {name: np.mean([values[head][name] for _, values in seeds], axis=0) for name in first[head]}
        for head in HEADS
    }
