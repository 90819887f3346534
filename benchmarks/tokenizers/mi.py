"""What the weight of mutual information buys in disentanglement and costs downstream, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interval, t_half_width, table
from benchmarks.tokenizers import planted, real
from benchmarks.tokenizers.datasets import SETS, prepared
from benchmarks.tokenizers.real_tables import METRICS

SET = "ml-1m"
WEIGHTS = (0.0, 0.1, 0.25, 0.5)
SEEDS, PLANTED_SEEDS = 4, 3
LONGER, LONGER_SEEDS = 3, 2  # times the steps
INTRODUCTION = f"""\
DST under four weights of its mutual-information term. First the shop of `planted`, {PLANTED_SEEDS} seeds: does each
code tell what it should (adjusted mutual information, mean), and what is the worst leak? Then {SETS[SET].title}:
what the text code still tells of the genre, and the fixed HMAT of `real` (an item is its codes and nothing else),
tokenizer and model anew for each of {SEEDS} seeds, or for {LONGER_SEEDS} where the model trains {LONGER} times as long.
Brackets: 95 % bootstrap interval over users of the mean over seeds. Differences are paired by user and by seed; `over
seeds` is half the 95 % t-interval of the seeds' own differences, which a bootstrap over users does not know of.
"""


def run(work: Path, data: Path, datasets: Path, quick: bool = False) -> dict[str, Any]:
    """All cells; `quick`: one seed, two weights, a few steps."""
    weights, seeds = ((0.0, 0.5), 1) if quick else (WEIGHTS, SEEDS)
    dataset = prepared(SET, data, datasets)
    lengths = {"1": (weights, seeds)} if quick else {"1": (weights, seeds), str(LONGER): (weights[::3], LONGER_SEEDS)}
    plans = {
        times: {
            str(weight): [_cell(dataset, work, weight, seed, int(times), quick) for seed in range(count)]
            for weight in of
        }
        for times, (of, count) in lengths.items()
    }
    real.run_side_by_side([cell for plan in plans.values() for cells in plan.values() for cell in cells])
    shop = range(1 if quick else PLANTED_SEEDS)
    cells = {str(weight): planted.over_seeds(_variant(weight), shop, work, datasets, quick) for weight in weights}
    base = str(weights[-1])
    downstream = {
        times: {weight: _slim(entry) for weight, entry in real.gather(plan, base).items()}
        for times, plan in plans.items()
    }
    return {"seeds": list(range(seeds)), "base": base, "planted": cells, "downstream": downstream}


def _slim(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `real.gather` without all that its cells diagnosed but two figures."""
    found = [cell["diagnostics"] for cell in entry["cells"]]
    return {key: value for key, value in entry.items() if key != "cells"} | {
        "genre_in_text": [d["ami_attributes"]["text/0|category"]["value"] for d in found],
        "lowest_perplexity": [min(level["perplexity"] for level in d["levels"]) for d in found],
    }


def _variant(weight: float) -> tuple[str, dict[str, str], str]:
    return "dst", {"dst.mi_weight": str(weight)}, "word_vectors"


def _cell(dataset: Path, work: Path, weight: float, seed: int, times: int, quick: bool) -> Path:
    variant = real.Variant("dst", (("dst.mi_weight", str(weight)),))
    spec = real.spec_of(dataset, SET, variant, seed, quick)
    folder = work / SET / f"{weight}-{times}" / str(seed)
    real.claim(folder, dataclasses.replace(spec, steps=spec.steps * times))
    return folder


def markdown(result: Mapping[str, Any]) -> str:
    """The shop by weight, then the fixed model by weight, then differences from the heaviest weight."""
    parts = [INTRODUCTION, _planted(result["planted"])]
    for times, of in result["downstream"].items():
        parts.append(f"{'As many steps as in `real`' if times == '1' else f'{times} times the steps'}:\n")
        parts += [_levels(of), _differences(of, result["base"])]
    return "\n".join(parts)


def _planted(cells: Mapping[str, Any]) -> str:
    rows, labels = [], []
    for weight, seeds in cells.items():
        told = planted.summary(seeds) or {}
        labels, (leak, value) = list(told), planted.worst_leak(seeds)
        rows.append([weight, *(planted.mean(told[label]) for label in labels), f"{value:.3f} {leak}"])
    return table(("weight", *labels, "worst leak"), rows)


def _levels(of: Mapping[str, Any]) -> str:
    header = ("weight", "seeds", "text/0 with category", "lowest perplexity", *(f"{h} {m}" for h, m in METRICS))
    rows = []
    for weight, entry in of.items():
        told, least = np.mean(entry["genre_in_text"]), np.mean(entry["lowest_perplexity"])
        metrics = [interval(entry["metrics"][head][metric]) for head, metric in METRICS]
        rows.append([weight, len(entry["by_seed"]), f"{told:.3f}", f"{least:.0f}", *metrics])
    return table(header, rows)


def _differences(of: Mapping[str, Any], base: str) -> str:
    rows = []
    for weight, entry in of.items():
        if weight != base:
            pairs = list(zip(entry["by_seed"], of[base]["by_seed"], strict=True))
            rows.append(
                [f"{weight} - {base}"]
                + [
                    f"{interval(entry['minus_base'][head][metric])}; over seeds {_t_interval(pairs, head, metric)}"
                    for head, metric in METRICS
                ]
            )
    return table(("paired", *(f"{head} {metric}" for head, metric in METRICS)), rows)


def _t_interval(pairs: list, head: str, metric: str) -> str:
    differences = [ours[head][metric] - theirs[head][metric] for ours, theirs in pairs]
    if len(differences) < 2:
        return "of one: none"
    return f"± {t_half_width(differences):.4f}"
