"""What the runs of a row took, as they left it: parameters, pace, memory, steps, the curve of their validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hisam_jax.training.checkpoints import describe, saved_steps
from hisam_jax.training.metrics import read_metrics


def taken(folders: Sequence[Path], seeds: Sequence[int]) -> dict[str, Any]:
    """What a row's runs took, means over its seeds; parameters, operations and the curve are the first's."""
    records, plans = (
        [json.loads((folder / name).read_text()) for folder in folders] for name in ("run.json", "config.json")
    )
    memories = [_memory(folder) for folder in folders]
    return {
        "seeds": list(seeds),
        "parameters": records[0]["parameters"],
        "train_flops_per_item": records[0].get("train_flops_per_item"),
        "items_per_second": _mean(records, "items_per_second"),
        "peak_memory_bytes": _mean(records, "peak_memory_bytes"),
        "device_memory_bytes": max(record.get("device_memory_bytes") or 0 for record in records) or None,
        "minutes": (_mean(records, "seconds") or 0.0) / 60,
        "steps": [record["steps"] for record in records],
        "cut_from": [
            cut_from(record["steps"], plan["training"], memory)
            for record, plan, memory in zip(records, plans, memories, strict=True)
        ],
        "best_step": [_best_step(folder, memory) for folder, memory in zip(folders, memories, strict=True)],
        "curve": _curve(folders[0], plans[0]["training"].get("monitor")),
        "tokenizer": records[0]["tokenizer"],
        "device": sorted({record["device"] for record in records}),
        "versions": records[0]["versions"],
    }


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [record[name] for record in records if record[name]]
    return float(np.mean(known)) if known else None


def _memory(folder: Path) -> Mapping[str, Any]:
    """What a run's last checkpoint keeps of its training."""
    steps = saved_steps(folder / "checkpoints")
    return describe(folder / "checkpoints", steps[-1]).memory if steps else {}


def cut_from(steps: int, training: Mapping[str, Any], memory: Mapping[str, Any]) -> int | None:
    """The steps that a run was to take, where `training.max_minutes` ended it before; None where nothing or else did.

    Args:
        steps: that it took.
        training: that section of its config.
        memory: of its last checkpoint, which holds what else may end training early.
    """
    limited = training.get("max_minutes") is not None and memory.get("stopped") is None
    return training["steps"] if limited and steps < training["steps"] else None


def _best_step(folder: Path, memory: Mapping[str, Any]) -> int | None:
    """The step whose parameters were evaluated."""
    steps = saved_steps(folder / "checkpoints")
    best = memory.get("best_step")
    return best if best in steps else (steps[-1] if steps else None)


def _curve(folder: Path, monitor: str | None) -> dict[str, Any]:
    """What a run's validation said by step: of its monitor, or else of the first metric that it has."""
    lines = read_metrics(folder / "metrics.jsonl")
    known = [name for line in lines for name in line if name.startswith("validation/")]
    metric = monitor if monitor in known else next(iter(known), None)
    return {"metric": metric, "points": [[line["step"], line[metric]] for line in lines if metric in line]}
