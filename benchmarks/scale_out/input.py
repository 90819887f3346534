"""Packed batches a second, and the share of a training step that waits for them, on one device."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import PipelineConfig, make_pipeline
from hisam_jax.data.prepare import prepare
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train

USERS, BATCHES = 20_000, 60


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Batches of 16 x 300 items without workers, with one and with two; then a short training run."""
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
    paces = {str(workers): _pace(dataset, codes_IL, config, workers, 5 if quick else BATCHES) for workers in (0, 1, 2)}
    over = {"training.steps": "20" if quick else "60", "training.evaluate_every": "0", "training.log_every": "20"}
    over |= {"training.monitor": "None", "evaluation.validation_users": "20"}
    train(work / "dataset", work / "ids", load_config("configs/shop.py", over), work / "run")
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    waits = [line["input_wait"] for line in lines[1:] if "input_wait" in line]
    return {"paces": paces, "wait": float(np.mean(waits)), "torch": importlib.util.find_spec("torch") is not None}


def _pace(dataset: Dataset, codes_IL: np.ndarray, config: PipelineConfig, workers: int, count: int) -> dict[str, float]:
    iterator = iter(make_pipeline(dataset, codes_IL, dataclasses.replace(config, workers=workers)))
    next(iterator)
    start = time.perf_counter()
    filled = [float(np.mean(next(iterator)["segment"] > 0)) for _ in range(count)]
    seconds = time.perf_counter() - start
    iterator.close()
    return {"batches": count / seconds, "padding": 1 - float(np.mean(filled))}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [[name, f"{pace['batches']:.1f}", f"{pace['padding']:.1%}"] for name, pace in result["paces"].items()]
    said = (
        f"Histories of the embedded shop, rows of 300 items, 16 rows a batch. Share of the time of a training step of "
        f"`configs/shop.py` spent waiting for input, on one device: {result['wait']:.2%}. PyTorch's DataLoader: not "
        "measured.\n\n"
    )
    return said + table(["workers", "batches a second", "padding"], rows)
