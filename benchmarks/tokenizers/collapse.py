"""Twenty seeds of the tokenizers that learn by steps, on real features: is every level in use at the end of each?"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.tokenizers.cell import CONFIGS
from benchmarks.tokenizers.datasets import SETS, prepared
from hisam_jax.config import build, load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.files import atomic_write
from hisam_jax.progress import progress
from hisam_jax.tokenizer import diagnostics, registry

SEEDS = 20
NAMES = ("ml-latest-small",)
TOKENIZERS = ("dst", "rqvae")
ASKED = 0.9
INTRODUCTION = """\
Use: the share of a level's codes that any item of the catalogue takes, after training with the default settings; at
least 90 % is asked of every level in every seed. Perplexity in codes, of 256. Lowest and median are over seeds.
"""


def run(work: Path, data: Path, datasets: Path, quick: bool = False) -> dict[str, Any]:
    """All seeds in this process, so that each tokenizer is compiled once a data set; finished seeds are not run again.

    Args:
        work: where finished seeds lie.
        data: folder of the public data sets.
        datasets: where they are prepared.
        quick: two seeds of twenty steps on one data set.
    """
    seeds, cells = list(range(2 if quick else SEEDS)), {}
    for name in NAMES[:1] if quick else NAMES:
        dataset = Dataset.load(prepared(name, data, datasets), verify=False)
        features = {m: values[:] for m, values in dataset.features.items()}
        for tokenizer in TOKENIZERS:
            settings = _settings(tokenizer, quick)
            fit = functools.partial(_fit, tokenizer, settings, features, dataset)
            cells[f"{name}|{tokenizer}"] = _over_seeds(seeds, fit, repr(settings), work / name / tokenizer)
    return {"seeds": seeds, "cells": cells}


def _settings(tokenizer: str, quick: bool) -> Any:
    config = load_config(CONFIGS / f"{tokenizer}.py", {f"{tokenizer}.steps": "20"} if quick else {})
    return build(registry.entry(tokenizer).config, config[tokenizer], tokenizer)


def _fit(tokenizer: str, settings: Any, features: Mapping[str, Any], dataset: Dataset, seed: int) -> dict[str, Any]:
    """Seconds, and level -> use, perplexity and size."""
    started = time.monotonic()
    model = registry.entry(tokenizer).fit(settings, features, dataset.present, dataset.train_items, seed)
    levels = diagnostics.level_use(model.assign(features, dataset.present), model.levels)
    kept = {level["name"]: {key: level[key] for key in ("utilisation", "perplexity", "size")} for level in levels}
    return {"seconds": time.monotonic() - started, "levels": kept}


def _over_seeds(
    seeds: list[int], fit: Callable[[int], dict[str, Any]], settings: str, work: Path
) -> dict[str, dict[str, Any]]:
    """Seed -> what `fit` gave; a seed's file of other settings is made anew."""
    found = {}
    for seed in progress(seeds, description=f"{work.parent.name} {work.name}", unit="seed"):
        file = work / f"{seed}.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        if kept.get("settings") != settings:
            kept = {"settings": settings, "made": fit(seed)}
            atomic_write(file, json.dumps(kept) + "\n")
        found[str(seed)] = kept["made"]
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """One row a data set, tokenizer and level."""
    rows = []
    for key, seeds in result["cells"].items():
        name, _, tokenizer = key.partition("|")
        for level in next(iter(seeds.values()))["levels"]:
            used = sorted(seed["levels"][level]["utilisation"] for seed in seeds.values())
            told = sorted(seed["levels"][level]["perplexity"] for seed in seeds.values())
            enough = sum(value >= ASKED for value in used)
            middle = f"{used[len(used) // 2]:.1%}", f"{told[0]:.0f}", f"{told[len(told) // 2]:.0f}"
            rows.append([SETS[name].title, tokenizer, level, f"{used[0]:.1%}", *middle, f"{enough} of {len(used)}"])
    header = ("data", "tokenizer", "level", "lowest use", "median use", "lowest perplexity", "median perplexity")
    return INTRODUCTION + "\n" + table((*header, "seeds at 90 % or more"), rows)
