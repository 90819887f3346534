"""A run folder as train and evaluate leave it, without training: real metrics of the baselines, made-up curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fixtures import tiny_dataset

from hisam_jax.data.dataset import Dataset
from hisam_jax.evaluation import baselines, targets
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

ALARM = {
    "kind": "perplexity",
    "subject": "text/0",
    "step": 140,
    "value": 1.2,
    "found": "perplexity 1.2 of 8 codes",
    "expected": "at least 1.6",
    "cause": "likely cause: vCLUB <b>alike</b>",
}
LEVELS = (
    Level("shared/0", "shared", 8),
    Level("shared/1", "shared", 8),
    Level("text/0", "text", 8),
    Level("image/0", "image", 8),
)


def make_run(folder: Path, dataset: Dataset | None = None, evaluated: bool = True) -> Path:
    """Writes DATASET (unless given), IDS and RUN under `folder`; the run's own path comes back."""
    dataset = tiny_dataset(folder / "dataset", users=60) if dataset is None else dataset
    write_ids(folder / "ids", dataset)
    run = folder / "run"
    run.mkdir(parents=True)
    record = {
        "dataset": str(dataset.path),
        "ids": str(folder / "ids"),
        "seed": 3,
        "split_checksum": dataset.manifest["split"]["checksum"],
        "tokenizer": "dst",
        "parameters": {"total": 1_234_567},
        "seconds": 754.0,
        "items_per_second": 5321.0,
        "peak_memory_bytes": 2**30,
    }
    config = {"seed": 3, "model": {"layers": 2, "heads": 2, "width": 64, "anchors": True}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves()))
    if evaluated:
        write_evaluation(run, dataset)
    return run


def write_ids(path: Path, dataset: Dataset) -> None:
    """Random codes, one item without a picture code, and diagnostics with every key, of made-up neighbours."""
    rng, items = np.random.default_rng(0), dataset.num_items
    codes = rng.integers(0, 8, (items, len(LEVELS))).astype(np.int32)
    codes[0, 3] = 8
    digit = np.arange(items, dtype=np.int32)
    ids = dataset.items["item_id"].to_list()
    SemanticIDTable(LEVELS, codes, digit, items, ids, {"name": "dst", "seed": 0}, "digit").save(path)
    names = [level.name for level in LEVELS]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    errors = {"full": 0.31, "shared_only": 0.62, "specific_only": 0.74}
    diagnostics = {
        "levels": [
            {
                "name": level.name,
                "modality": level.modality,
                "size": 8,
                "utilisation": 0.9,
                "perplexity": 7.1,
                "dead": 1,
            }
            for level in LEVELS
        ],
        "collision": {"before": {"rate": 0.031, "share": 0.055}, "after": {"rate": 0.0, "share": 0.0}},
        "reconstruction": {"text": errors, "image": errors},
        "ami": {f"{a}|{b}": {"value": float(rng.uniform(0, 0.6)), "permuted": 0.002} for a, b in pairs},
        "ami_attributes": {f"{name}|category": {"value": 0.4, "permuted": 0.0} for name in names},
        "ami_joint": {
            "shared|text": {"value": 0.11, "permuted": 0.0, "spread": 0.01, "headroom": 0.5},
            "shared|image": {"value": 7.77, "permuted": 0.0, "spread": 3.0, "headroom": 0.001},
            "text|image": {"value": 0.02, "permuted": 0.0, "spread": 0.01, "headroom": 0.5},
        },
        "probes": {
            f"{group}|category": {"accuracy": 0.613, "permuted": 0.251, "chance": 0.25, "classes": 4, "items": items}
            for group in ("shared", "text", "image")
        },
        "cross_modal": {"text->image": retrieval(0.431) | {"held_out": retrieval(0.123)}},
        "prefixes": [8, 31, 37, items],
        "neighbours": made_up_neighbours(items),
        "lookalikes": made_up_lookalikes(items),
        "history": tokenizer_curves(),
        "alarms": [ALARM],
        "notes": [],
        "seconds": 41.0,
        "items_per_second": 5200.0,
    }
    (path / "diagnostics.json").write_text(json.dumps(diagnostics))


def retrieval(recall: float) -> dict[str, float]:
    """One row of cross-modal retrieval."""
    shares = {f"{kind}_recall@{k}": recall for kind in ("latent", "codes") for k in (1, 10)}
    return {"items": 30, "pool": 40, **shares}


def made_up_neighbours(items: int) -> list[dict]:
    """Two queries; items whose numbers follow the query's, so that a test knows what to look for."""
    near = lambda item, step: [(item + step * k) % items for k in range(1, 9)]  # noqa: E731
    groups = (("shared", 1, 0), ("text", 2, 3), ("image", 3, 30))
    return [
        {"item": item, "groups": {name: {"items": near(item, step), "same": same} for name, step, same in groups}}
        for item in (3, 11)
    ]


def made_up_lookalikes(items: int) -> dict:
    """One query of each modality; its picture finds itself first by all codes."""
    branches = {"full": [5, 6, 7, 8, 9], "shared_only": [6, 7, 8, 9, 12], "specific_only": [13, 14, 15, 16, 17]}
    place = {"full": 1, "shared_only": 9, "specific_only": 17}
    rank = {branch: {"median": 4.0 + 10 * i, "first": 0.2} for i, branch in enumerate(branches)}
    return {
        "items": [{"item": 5, "modality": m, **branches, "place": place} for m in ("text", "image")],
        "rank": {"text": rank, "image": rank},
        "rivals": {"text": items, "image": items},
    }


def tokenizer_curves() -> list[dict[str, float]]:
    """Rows of a tokenizer's history, independent estimates every other row."""
    rows = []
    for step in range(20, 401, 20):
        row = {"step": step, "loss": 8.0, "reconstruction": 0.9, "shared_reconstruction": 0.95, "alignment": 5.0}
        row |= {"commitment": 1.0, "mi/shared|text": 0.4, "spread/shared": 0.9, "spread/text": 0.8}
        row |= {f"used/{level.name}": 1.0 for level in LEVELS} | {f"perplexity/{level.name}": 7.0 for level in LEVELS}
        rows.append(row | ({"mi_codes/shared/0|text/0": 0.3} if step % 40 == 0 else {}))
    return rows


def curves(steps: int = 2000) -> list[dict[str, float]]:
    """Lines of metrics.jsonl: losses fall, validation rises; one value was not finite."""
    rng, rows = np.random.default_rng(1), []
    for step in range(25, steps + 1, 25):
        fall = np.exp(-step / 500) + 0.02 * rng.normal()
        losses = {"loss/ranking": 0.5 + 0.2 * fall, "loss/generation": 3 + 2 * fall, "loss/retrieval": 6 + 2 * fall}
        row = {"step": step, "loss": sum(losses.values()), **losses, "seconds": step / 3}
        rows.append(row | {"items_per_second": 5000 + 300 * rng.normal()})
        if step % 200 == 0:
            rise = 0.1 * (1 - np.exp(-step / 600))
            heads = {f"validation/{head}/recall@10": rise * k for head, k in (("retrieval", 1.0), ("generation", 0.9))}
            rows[-1] |= heads | {"validation/gauc": 0.6 + rise, "validation/auc": 0.7 + rise}
    rows[3]["loss/ranking"] = None
    return rows


def write_evaluation(run: Path, dataset: Dataset) -> None:
    """evaluation.json with ItemKNN's figures standing in for the model's, and samples.json."""
    events, bootstrap = targets.load_events(dataset), Bootstrap(100)
    ranking, retrieval = targets.ranking_targets(events, "test"), targets.retrieval_targets(events, "test")
    tables = baselines.baseline_tables(
        baselines.score_baselines(events, ranking, retrieval), ranking, retrieval, bootstrap
    )
    own = tables["item_knn"]
    evaluation = {
        "retrieval": own["retrieval"],
        "generation": tables["popularity"]["retrieval"],
        "cold": {"retrieval": own["cold"]["retrieval"]},
        "baselines": tables,
        "users": len(retrieval.user_T),
        "seed": 3,
        "split": "test",
    }
    if "auc" in tables.get("item_mean", {}).get("ranking", {}):
        evaluation["ranking"] = tables["item_mean"]["ranking"]
        evaluation["cold"]["ranking"] = tables["item_mean"]["cold"]["ranking"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    rng, samples = np.random.default_rng(2), []
    for row in range(0, len(retrieval.user_T), max(1, len(retrieval.user_T) // 5)):
        user, position, target = int(retrieval.user_T[row]), int(retrieval.position_T[row]), int(retrieval.item_T[row])
        others = [int(item) for item in rng.permutation(dataset.num_items) if item != target][:10]
        found = [target if rank == 3 and row == 0 else item for rank, item in enumerate(others)]
        samples.append(
            {
                "user": f"u{user}",
                "history": dataset.sequence(user).item[:position].tolist(),
                "target": target,
                "recommendations": [
                    {"item": item, "score": 9.0 - rank, "hit": item == target} for rank, item in enumerate(found)
                ],
            }
        )
    (run / "samples.json").write_text(json.dumps(samples))
