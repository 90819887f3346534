"""HMAT against the flat baseline on real data, the README's commands end to end.

    python -m benchmarks.real_runs --data DIR [--work DIR] [--only NAME ...]

Each run prepares and tokenizes once, then trains HMAT and the flat baseline of the same width, depth and steps side by
side, one process and one core each, evaluates both on the same targets and writes paired differences. Results of runs
that are not asked for again are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Started, interval, processor, start, today, versions, wait
from hisam_jax.evaluation import summary
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.retrieval import Ranks
from hisam_jax.files import atomic_write

VARIANTS = {"HMAT": [], "flat": ["--config.model.anchors=False"]}


@dataclasses.dataclass(frozen=True)
class RealRun:
    """One data set under one protocol.

    Attributes:
        title: for the table.
        prepare: arguments of `hisam prepare`, `{data}` filled in.
        config: of `hisam train`.
        overrides: of that config.
    """

    title: str
    prepare: str
    config: str
    overrides: tuple[str, ...] = ()


_SMALL = "--source movielens --raw {data}/ml-latest-small --images {data}/movielens-posters --min-user 5 --min-item 5"
RUNS = {
    "ml-latest-small-ranking": RealRun(
        "MovieLens latest-small, per_user_time, ranking",
        f"{_SMALL} --protocol per_user_time",
        "configs/ml_latest_small_ranking.py",
    ),
    "ml-latest-small-global-cut": RealRun(
        "MovieLens latest-small, chronological, ranking",
        f"{_SMALL} --protocol chronological",
        "configs/ml_latest_small_ranking.py",
        ("--config.training.steps=250",),
    ),
    "ml-latest-small": RealRun("MovieLens latest-small, leave-one-out", _SMALL, "configs/ml_latest_small.py"),
    "ml-1m": RealRun(
        "MovieLens-1M, leave-one-out",
        "--source sequences --raw {data}/ml-1m --images {data}/movielens-posters",
        "configs/ml_1m.py",
    ),
}


def main() -> None:
    """Runs what was asked for and rewrites the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, as data/README names them")
    parser.add_argument("--work", type=Path, default=Path("runs/real"), help="scratch folder, reused")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS), help="which runs")
    arguments = parser.parse_args()
    target = RESULTS / "real_runs.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    for name in arguments.only:
        results[name] = run_one(name, RUNS[name], arguments.data, arguments.work / name)
        ordered = {key: results[key] for key in RUNS if key in results}
        atomic_write(target, json.dumps(ordered, indent=1) + "\n")
        atomic_write(RESULTS / "real_runs.md", markdown(ordered))


def run_one(name: str, run: RealRun, data: Path, work: Path) -> dict[str, Any]:
    """Prepares, tokenizes, trains both variants side by side, evaluates, compares."""
    work.mkdir(parents=True, exist_ok=True)
    commands = {
        "prepare": f"prepare {run.prepare} --out {work}/dataset",
        "tokenize": f"tokenize --dataset {work}/dataset --config configs/tokenizer/dst.py --out {work}/ids",
    }
    for step, command in commands.items():
        if not (work / ("dataset" if step == "prepare" else "ids")).is_dir():
            wait([_start(command.format(data=data), work / f"{step}.log")])
    shared = f"train --dataset {work}/dataset --ids {work}/ids --config {run.config} {' '.join(run.overrides)}"
    for verb in (shared, "evaluate"):
        wait(
            [
                _start(
                    f"{verb} --workdir {work}/{variant} {' '.join(flags) if verb is shared else ''}",
                    work / f"{variant}.{verb.split()[0]}.log",
                    core,
                )
                for core, (variant, flags) in enumerate(VARIANTS.items())
            ]
        )
    return {
        "title": run.title,
        "command": f"python -m benchmarks.real_runs --data DIR --only {name}",
        "date": today(),
        "device": f"{processor()}, one core a variant",
        "versions": versions("jax"),
        "tokenizer": _tokenizer(work),
        "variants": {variant: _read_variant(work / variant) for variant in VARIANTS},
        "difference": _difference(*(work / variant for variant in VARIANTS)),
    }


def _start(command: str, log: Path, core: int | None = None) -> Started:
    return start(["-m", "hisam_jax", *shlex.split(command)], log, core)


def _read_variant(folder: Path) -> dict[str, Any]:
    evaluation = json.loads((folder / "evaluation.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    kept = ("seed", "split_checksum", "steps", "parameters", "seconds", "items_per_second", "peak_memory_bytes")
    return {"run": {key: record[key] for key in kept}, "evaluation": evaluation}


def _tokenizer(work: Path) -> dict[str, Any]:
    diagnostics = json.loads((work / "ids" / "diagnostics.json").read_text())
    return {
        "utilisation": min(level["utilisation"] for level in diagnostics["levels"]),
        "collision": diagnostics["collision"]["before"],
        "seconds": diagnostics["seconds"],
    }


def _difference(ours: Path, theirs: Path) -> dict[str, Any]:
    one, other = (np.load(folder / "predictions.npz") for folder in (ours, theirs))
    bootstrap, out = Bootstrap(resamples=1000, seed=0), {}
    if "ranking_logits" in one:
        columns = one["label"], one["ranking_logits"], other["ranking_logits"], one["rated_user"]
        out["ranking"] = summary.ranking_difference(*columns, bootstrap)
    for head in ("generation", "retrieval"):
        if f"{head}_masked" in one:
            ranks = [Ranks(x[f"{head}_masked"], x[f"{head}_unmasked"]) for x in (one, other)]
            out[head] = summary.retrieval_difference(*ranks, one["user"], bootstrap)
    return out


COLUMNS = {
    "ranking": ("auc", "gauc", "logloss"),
    "generation": ("recall@10", "ndcg@10", "recall@10/unmasked", "ndcg@10/unmasked"),
    "retrieval": ("recall@10", "ndcg@10", "recall@10/unmasked", "ndcg@10/unmasked"),
}


def markdown(results: dict[str, Any]) -> str:
    """The tables, one section a run."""
    parts = ["# HMAT and the flat baseline on real data\n"]
    parts.append(
        "Seen items leave the list unless a column says unmasked. Brackets: 95 % bootstrap interval over users. Both "
        "variants train side by side, one core each, with the same steps, batches, width and depth.\n"
    )
    return "\n".join([*parts, overview(results), *(_section(result) for result in results.values())])


LEADING = {"ranking": ("gauc", "auc"), "generation": ("recall@10", "ndcg@10"), "retrieval": ("recall@10", "ndcg@10")}


def overview(results: dict[str, Any]) -> str:
    """The table that the README shows: leading metrics, the paired difference, the best baseline, cost."""
    names = ("data", "metric", "HMAT", "flat", "HMAT - flat, paired", "best baseline", "items/s", "peak GiB", "minutes")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for result in results.values():
        one, other = (result["variants"][name] for name in VARIANTS)
        cost = [
            f"{one['run']['items_per_second']:,.0f} / {other['run']['items_per_second']:,.0f}",
            " / ".join(f"{variant['run']['peak_memory_bytes'] / 2**30:.2f}" for variant in (one, other)),
            " / ".join(f"{variant['run']['seconds'] / 60:.1f}" for variant in (one, other)),
        ]
        for kind, metrics in LEADING.items():
            for metric in metrics if kind in one["evaluation"] else ():
                if metric not in one["evaluation"][kind]:
                    continue
                values = [variant["evaluation"][kind][metric] for variant in (one, other)]
                cells = [interval(value) for value in (*values, result["difference"][kind][metric])]
                cells.append(_best_baseline(one["evaluation"]["baselines"], kind, metric))
                lines.append(f"| {result['title']} | {kind} {metric} | " + " | ".join([*cells, *cost]) + " |")
    return "\n".join(lines) + "\n"


def _best_baseline(baselines: dict[str, Any], kind: str, metric: str) -> str:
    table = "ranking" if kind == "ranking" else "retrieval"
    found = {name: entry[table][metric]["value"] for name, entry in baselines.items() if metric in entry.get(table, {})}
    best = max(found, key=found.get)
    return f"{found[best]:.4f} {best}"


def _section(result: dict[str, Any]) -> str:
    variants, first = result["variants"], next(iter(result["variants"].values()))
    evaluation = first["evaluation"]
    lines = [
        f"## {result['title']}\n",
        f"`{result['command']}`, {result['date']}, {result['device']}, Python {result['versions']['python']}, jax "
        f"{result['versions']['jax']}; seed {evaluation['seed']}, {evaluation['users']} users, split "
        f"`{evaluation['split_checksum'][:12]}`, ties by {evaluation['tie_break']}. DST: least used level "
        f"{result['tokenizer']['utilisation']:.0%}, {result['tokenizer']['collision']['share']:.1%} of items share "
        f"their codes before the digit, {result['tokenizer']['seconds']:.0f} s.\n",
    ]
    for head, columns in COLUMNS.items():
        if head in evaluation:
            lines += _table(head, columns, result)
    lines += ["| variant | items/s | training | peak memory | parameters | steps |", "|---|---|---|---|---|---|"]
    for name, variant in variants.items():
        run = variant["run"]
        lines.append(
            f"| {name} | {run['items_per_second']:,.0f} | {run['seconds'] / 60:.1f} min | "
            f"{run['peak_memory_bytes'] / 2**30:.2f} GiB | {run['parameters']['total']:,} | {run['steps']} |"
        )
    return "\n".join(lines) + "\n"


def _table(head: str, columns: tuple[str, ...], result: dict[str, Any]) -> list[str]:
    rows = [(name, variant["evaluation"].get(head, {})) for name, variant in result["variants"].items()]
    rows.append(("HMAT - flat, paired", result["difference"].get(head, {})))
    kind = "ranking" if head == "ranking" else "retrieval"
    baselines = next(iter(result["variants"].values()))["evaluation"]["baselines"]
    rows += [(name, table[kind]) for name, table in baselines.items() if kind in table]
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows:
        lines.append(f"| {name} | " + " | ".join(interval(values.get(column)) for column in columns) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
