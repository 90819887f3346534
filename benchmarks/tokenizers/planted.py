"""The shop's planted factors: what each code tells of each of them, under DST, its ablations and the baselines."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import start, t_half_width, table, wait
from benchmarks.tokenizers.cell import CONFIGS
from hisam_jax.config import build, load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.files import atomic_write
from hisam_jax.progress import progress
from hisam_jax.tokenizer import collisions, registry
from hisam_jax.tokenizer.adjusted_information import LEAST_HEADROOM, adjusted_information

SEEDS, ITEMS = 5, 8192
FACTORS = ("category", "kind", "emblem", "style", "colour", "pattern")
FOUR = "(256, 256, 256, 256)"
VARIANTS: dict[str, tuple[str, dict[str, str], str]] = {  # name -> (tokenizer, overrides, text encoder)
    "DST": ("dst", {}, "word_vectors"),
    "DST without MI": ("dst", {"dst.mi_weight": "0.0"}, "word_vectors"),
    "DST without alignment": ("dst", {"dst.alignment": "none"}, "word_vectors"),
    "RQ-VAE": ("rqvae", {"rqvae.sizes": FOUR}, "word_vectors"),
    "residual k-means": ("residual_kmeans", {"residual_kmeans.sizes": FOUR}, "word_vectors"),
    "DST, TF-IDF text": ("dst", {}, "tfidf_svd"),
}
WANTED = {"shared": ("category",), "text": ("style",), "image": ("colour", "pattern")}
LEAKS = {
    "shared": ("style", "colour", "pattern"),
    "text": ("category", "kind", "emblem", "colour", "pattern"),
    "image": ("category", "kind", "emblem", "style"),
}
INTRODUCTION = f"""\
The shop of {ITEMS:,} items (made anew for each seed): category = kind x emblem stands in text and picture, style in the
text only, colour and pattern in the picture only. Every tokenizer has four codes of 256 and sees the same features:
word vectors of the catalogue's own texts, HOG and colour of the pictures. Figures are adjusted mutual information over
the smaller entropy, on items with both views, mean and 95 % t-interval over seeds. Wanted: at least .8 on what a group
should tell and at most .1 on what it should not; `worst leak` is the largest mean of a leak, named. RQ-VAE and residual
k-means have no groups: their levels are below. `all shared` are both shared codes as one, left out where nearly every
item has its own. The last row has TF-IDF text, where synonyms are as far apart as strangers.
"""


def run(work: Path, datasets: Path, quick: bool = False) -> dict[str, Any]:
    """Every variant and seed in this process; finished cells under `work` are not run again."""
    seeds = list(range(1 if quick else SEEDS))
    cells: dict[str, dict[str, Any]] = {name: {} for name in VARIANTS}
    for seed, (name, variant) in progress(
        list(itertools.product(seeds, VARIANTS.items())), description="planted", unit="fit"
    ):
        cells[name][str(seed)] = _cell(variant, seed, work / name.replace(" ", "_"), datasets, quick)
    return {"seeds": seeds, "cells": cells}


def over_seeds(
    variant: tuple[str, dict[str, str], str], seeds: Sequence[int], work: Path, datasets: Path, quick: bool
) -> dict[str, Any]:
    """Seed -> what each code of one variant tells; finished cells under `work` are not run again."""
    name = f"planted {variant[1]}".translate(str.maketrans({c: "_" for c in " {}':,."}))
    bar = progress(seeds, description="planted", unit="fit")
    return {str(seed): _cell(variant, seed, work / name, datasets, quick) for seed in bar}


def _cell(variant: tuple[str, dict[str, str], str], seed: int, work: Path, datasets: Path, quick: bool) -> Any:
    tokenizer, overrides, encoder = variant
    steps = {f"{tokenizer}.steps": "20"} if quick and tokenizer in ("dst", "rqvae") else {}
    config = load_config(CONFIGS / f"{tokenizer}.py", overrides | steps)
    settings = build(registry.entry(tokenizer).config, config[tokenizer], tokenizer)
    file = work / f"{seed}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    if kept.get("settings") != repr((settings, encoder, quick)):
        dataset = Dataset.load(_shop(seed, encoder, datasets, 512 if quick else ITEMS), verify=False)
        features = {m: values[:] for m, values in dataset.features.items()}
        model = registry.entry(tokenizer).fit(settings, features, dataset.present, dataset.train_items, seed)
        codes_IL = model.assign(features, dataset.present)
        kept = {
            "settings": repr((settings, encoder, quick)),
            "made": _told(codes_IL, [level.name for level in model.levels], dataset),
        }
        atomic_write(file, json.dumps(kept) + "\n")
    return kept["made"]


def _shop(seed: int, encoder: str, datasets: Path, items: int) -> Path:
    """A shop of its own for every seed; users only decide which items are training items."""
    folder = datasets / f"shop-{items}-{encoder}-{seed}"
    if not (folder / "manifest.json").is_file():
        command = (
            f"-m hisam_jax prepare --source shop --shop-items {items} --shop-users 2500 --shop-seed {seed} "
            f"--protocol per_user_time --text-encoder {encoder} --out {folder}"
        )
        wait([start(shlex.split(command), datasets / "shop.log")])
    return folder


def _told(codes_IL: np.ndarray, names: Sequence[str], dataset: Dataset) -> dict[str, dict[str, float | None]]:
    """Code -> factor -> adjusted mutual information; None where chance leaves too little to tell."""
    both_I = np.all(list(dataset.present.values()), axis=0)
    rng, truth = np.random.default_rng(0), dataset.truth()
    columns = {name: codes_IL[both_I, index] for index, name in enumerate(names)}
    groups = [name.partition("/")[0] for name in names]
    if len(set(groups)) > 1:
        shared = [index for index, group in enumerate(groups) if group == "shared"]
        columns["all shared"] = collisions.keys_of(codes_IL[both_I][:, shared])
    found: dict[str, dict[str, float | None]] = {}
    for name, code_N in columns.items():
        for factor in FACTORS:
            told = adjusted_information(code_N, truth[factor].to_numpy()[both_I], rng)
            found.setdefault(name, {})[factor] = told["value"] if told["headroom"] >= LEAST_HEADROOM else None
    return found


def _group(name: str) -> str:
    return "shared" if name == "all shared" else name.partition("/")[0]


def summary(seeds: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """What each seed says of each wanted pair, by the first code of each group; None for tokenizers without groups."""
    if "text/0" not in next(iter(seeds.values())):
        return None
    pairs = {
        f"{group}/0 with {factor}": (f"{group}/0", factor) for group, wanted in WANTED.items() for factor in wanted
    }
    return {label: [seed[name][factor] for seed in seeds.values()] for label, (name, factor) in pairs.items()}


def worst_leak(seeds: Mapping[str, Any]) -> tuple[str, float]:
    """(`code with factor`, its mean) of the largest leak of any level or of the shared codes together."""
    names = next(iter(seeds.values()))
    means = {
        f"{name} with {factor}": float(np.mean([seed[name][factor] for seed in seeds.values()]))
        for name in names
        for factor in LEAKS[_group(name)]
        if names[name][factor] is not None
    }
    return max(means.items(), key=lambda pair: pair[1])


def markdown(result: Mapping[str, Any]) -> str:
    """Wanted pairs and the worst leak of each variant, then every code of every variant."""
    cells = result["cells"]
    rows, labels = [], list(summary(cells["DST"]))
    for name, seeds in cells.items():
        told = summary(seeds)
        if told is None:
            rows.append([name, *["no such code"] * (len(labels) + 1)])
        else:
            leak, value = worst_leak(seeds)
            rows.append([name, *(mean(told[label]) for label in labels), f"{value:.3f} {leak}"])
    parts = [INTRODUCTION, table(("tokenizer", *labels, "worst leak"), rows)]
    rows = [
        [name, code, *(mean([seed[code][factor] for seed in seeds.values()]) for factor in FACTORS)]
        for name, seeds in cells.items()
        for code in next(iter(seeds.values()))
    ]
    return "\n".join([*parts, "Every code:\n", table(("tokenizer", "code", *FACTORS), rows)])


def mean(values: Sequence[float | None]) -> str:
    """Mean and 95 % t-interval."""
    if any(value is None for value in values):
        return "-"
    middle = float(np.mean(values))
    if len(values) < 2:
        return f"{middle:.3f}"
    return f"{middle:.3f} ± {t_half_width(values):.3f}"
