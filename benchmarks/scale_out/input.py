"""Packed batches a second, and the share of a training step that waits for them, on one device."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.scale_out import torch_loader
from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import PipelineConfig, make_pipeline
from hisam_jax.data.prepare import prepare
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train

USERS, BATCHES, WARM, ROUNDS = 20_000, 80, 3, 8


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Batches of 16 x 300 items without workers, with one and with two, beside PyTorch; then a short training run."""
    users = 300 if quick else USERS
    if not (work / "dataset").is_dir():
        options = {"users": users, "items": 2000, "events_per_user": 40.0}
        prepare(
            "shop",
            work / "raw",
            work / "dataset",
            reader_options=options,
            image_encoder="none",
            cache_dir=work / "cache",
        )
    if not (work / "ids").is_dir():
        random = load_config("configs/tokenizer/random.py", {"random.sizes": "(256, 256, 256, 256)"})
        tokenize(work / "dataset", random, work / "ids")
    dataset, codes_IL = Dataset.load(work / "dataset"), np.zeros((2000, 4), np.int32)
    config = PipelineConfig(items_per_row=300, rows=16, window=300)
    paces = {str(workers): _paces(dataset, codes_IL, config, workers, 5 if quick else BATCHES) for workers in (0, 1, 2)}
    return {"paces": paces, "wait": _wait(work, quick)}


def _paces(dataset, codes_IL, config: PipelineConfig, workers: int, count: int) -> dict[str, Any]:
    """Grain and PyTorch in turns, either first as often, as the machine's pace changes; medians of rounds."""
    engines = {
        "Grain": functools.partial(make_pipeline, dataset, codes_IL, dataclasses.replace(config, workers=workers))
    }
    if torch_loader.INSTALLED:
        engines["PyTorch"] = functools.partial(torch_loader.batches, dataset, codes_IL, config, workers)
    found = {name: [] for name in engines}
    for turn in range(ROUNDS):
        for name in sorted(engines, reverse=bool(turn % 2)):
            found[name].append(_pace(engines[name], count))
    padding = {name: float(np.mean([part["padding"] for part in parts])) for name, parts in found.items()}
    pace = {name: float(np.median([part["batches"] for part in parts])) for name, parts in found.items()}
    result = {"batches": pace, "padding": padding}
    if len(engines) == 2:
        both = ([part["batches"] for part in found[name]] for name in ("Grain", "PyTorch"))
        result["ratios"] = [ours / theirs for ours, theirs in zip(*both, strict=True)]
    return result


def _pace(make: Callable[[], Any], count: int) -> dict[str, float]:
    """Batches a second behind the first few, in which workers start."""
    iterator = iter(make())
    for _ in range(WARM):
        next(iterator)
    start = time.perf_counter()
    filled = [float(np.mean(next(iterator)["segment"] > 0)) for _ in range(count)]
    seconds = time.perf_counter() - start
    iterator.close()
    return {"batches": count / seconds, "padding": 1 - float(np.mean(filled))}


def _wait(work: Path, quick: bool) -> float:
    """Share of the time of the training steps of `configs/shop.py` that is spent waiting for input."""
    shutil.rmtree(work / "run", ignore_errors=True)
    over = {"training.steps": "20" if quick else "60", "training.evaluate_every": "0", "training.log_every": "20"}
    over |= {"training.monitor": "None", "evaluation.validation_users": "20"}
    train(work / "dataset", work / "ids", load_config("configs/shop.py", over), work / "run")
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([line["input_wait"] for line in lines[1:] if "input_wait" in line] or [0.0]))


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for workers, cell in result["paces"].items():
        pace, padding = cell["batches"], cell["padding"]
        ratios = cell.get("ratios", [])
        ratio = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        shown = [f"{pace[name]:.1f}" if name in pace else "not installed" for name in ("Grain", "PyTorch")]
        rows.append([workers, *shown, ratio, f"{padding['Grain']:.1%}"])
    said = (
        "Histories of the embedded shop, rows of 300 items, 16 rows a batch. PyTorch: its DataLoader reads and cuts "
        "the same windows by the same functions, and the same packer makes rows of them. Medians of "
        f"{ROUNDS} rounds in which both take turns, either first as often; of ratios also the range. Share of the time "
        f"of a training step of `configs/shop.py` spent waiting for input, on one device: {result['wait']:.2%}.\n\n"
    )
    return said + table(["workers", "Grain, batches/s", "PyTorch, batches/s", "ratio", "padding"], rows)
