"""`hisam train`: dataset, IDs and config -> a run."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.mixture import make_share
from hisam_jax.data.pipeline import make_pipeline
from hisam_jax.distributed import is_main
from hisam_jax.errors import UserError
from hisam_jax.evaluation import ranking, retrieval
from hisam_jax.evaluation.baselines import popularity
from hisam_jax.evaluation.targets import (
    RankingTargets,
    RetrievalTargets,
    load_events,
    ranking_targets,
    retrieval_targets,
    subset_of_users,
)
from hisam_jax.files import atomic_write
from hisam_jax.inference import scoring
from hisam_jax.inference.run import make_scorer
from hisam_jax.models.heads import make_frozen, make_objective, with_totals
from hisam_jax.models.registry import architecture
from hisam_jax.paths import as_given, output_path
from hisam_jax.scaling.flops import Vocabulary, train_flops
from hisam_jax.training import loop
from hisam_jax.training.assembly import Assembly, assemble
from hisam_jax.training.metrics import read_metrics
from hisam_jax.training.placement import streams_here
from hisam_jax.training.watching import Cost

# Parameters that grow with the catalogue or the codes: HMAT's and SASRec's items, and the tables of DIN and QARM.
_TABLES = re.compile(r"item_encoder|content|item_id|near_table|code_table_\d+")


def train(
    dataset: str | os.PathLike,
    ids: str | os.PathLike,
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    mixture: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Trains a model into `workdir`, or goes on where an earlier call was stopped.

    Args:
        dataset: folder left by `prepare`, or its URL.
        ids: folder left by `tokenize` over that dataset, or its URL.
        config: sections `seed`, `model`, `data`, `training`, `evaluation`.
        workdir: gets config.json, run.json, metrics.jsonl, tensorboard/ and checkpoints/.
        mixture: folder of another dataset over the same items -> windows drawn from its training events for each one
            of `dataset`, from which alone all is evaluated.

    Returns:
        The record that run.json holds.

    Raises:
        UserError: inputs that do not fit each other, a checkpoint of another configuration, a loss that is not finite.
    """
    folder = output_path(workdir, "workdir")
    assembly = assemble(dataset, ids, config)
    paths = {"dataset": as_given(dataset), "ids": as_given(ids)}
    paths |= {"mixture": {as_given(path): weight for path, weight in mixture.items()}} if mixture else {}
    shares = [make_share(Dataset.load(path), weight, assembly.dataset) for path, weight in (mixture or {}).items()]
    mesh = assembly.mesh()
    _claim(folder, assembly)

    def describe() -> None:
        if not is_main():
            return
        atomic_write(folder / "config.json", json.dumps(_plain(config), indent=2) + "\n")
        atomic_write(folder / "run.json", json.dumps(paths | _description(assembly), indent=2) + "\n")

    full_codes_IL, data = assembly.table.full_codes(), assembly.configs.data
    loss_fn, init_fn = make_objective(assembly.model, assembly.catalog, full_codes_IL)
    streams = streams_here(mesh, data.rows, data.streams)
    start = time.monotonic()
    state = loop.train(
        loss_fn,
        init_fn,
        lambda: make_pipeline(assembly.dataset, assembly.table.codes_IL, data, streams=streams, mixture=shares),
        assembly.configs.training,
        folder,
        evaluators=[] if data.validation_too else [make_evaluator(assembly)],
        identity=assembly.identity(),
        on_begin=describe,
        mesh=mesh,
        frozen=(make_frozen(assembly.catalog, full_codes_IL),),
        totals=with_totals,
        cost=_cost(assembly),
    )
    record = paths | _description(assembly) | _outcome(assembly, state, folder, time.monotonic() - start)
    if is_main():
        atomic_write(folder / "run.json", json.dumps(record, indent=2) + "\n")
    return record


def make_evaluator(assembly: Assembly) -> Callable[[Any], dict[str, float]]:
    """`params -> {"validation/gauc": ..., "validation/retrieval/recall@10": ...}` on a fixed draw of validation users.

    Raises:
        UserError: `training.monitor` is nothing that this model on this dataset will be judged by.
    """
    configs, events = assembly.configs, load_events(assembly.dataset)
    model, window, limit = configs.model, configs.data.window, configs.evaluation.validation_users
    targets = subset_of_users(retrieval_targets(events, "validation"), limit, configs.seed)
    rated = subset_of_users(ranking_targets(events, "validation"), limit, configs.seed)
    _check_monitor(assembly, rated, targets)
    reader = scoring.HistoryReader(assembly.dataset, window)
    counts_I, beams = popularity(events), configs.evaluation.beams

    def evaluate(params: Any) -> dict[str, float]:
        scorer, out = make_scorer(assembly, params, counts_I), {}
        if model.ranking and len(rated.user_E):
            logits = scoring.ranking_logits(scorer, reader, rated)
            out["validation/auc"] = ranking.auc(rated.label_E, logits)
            out["validation/gauc"] = ranking.gauc(rated.label_E, logits, rated.user_E)
            out["validation/logloss"] = ranking.log_loss(rated.label_E, logits)
        if not len(targets.user_T):
            return out
        for head in scoring.LISTS:
            if getattr(model, head):
                out |= _means(f"validation/{head}", scoring.ranks_of(head, scorer, reader, targets, beams))
        return out

    return lambda params: {name: value for name, value in evaluate(params).items() if math.isfinite(value)}


def _check_monitor(assembly: Assembly, rated: RankingTargets, targets: RetrievalTargets) -> None:
    monitor, model, known = assembly.configs.training.monitor, assembly.configs.model, []
    if model.ranking and len(rated.user_E):
        same_E = np.zeros(len(rated.user_E))
        known = ["validation/auc"] if math.isfinite(ranking.auc(rated.label_E, same_E)) else []
        known += ["validation/gauc"] if math.isfinite(ranking.gauc(rated.label_E, same_E, rated.user_E)) else []
        known += ["validation/logloss"]
    for head in scoring.LISTS:
        if getattr(model, head) and len(targets.user_T):
            known += [f"validation/{head}/{metric}@10" for metric in ("recall", "ndcg")]
    if monitor is not None and monitor not in known:
        raise UserError(
            f"value {monitor!r}",
            path=assembly.dataset.path,
            field="training.monitor",
            expected=" or ".join([*known, "None"]),
            hint="" if known else "the dataset holds out nothing for validation",
        )


def _cost(assembly: Assembly) -> Cost:
    config, table = assembly.configs.model, assembly.table
    counted = architecture(assembly.configs.architecture).train_flops
    if counted is not None:
        return Cost(1, functools.partial(counted, config, assembly.catalog))
    features = {name: values.shape[-1] for name, values in assembly.catalog.features.items()}
    sizes = [level.size for level in table.levels]
    vocabulary = Vocabulary(assembly.catalog.items, sizes, table.digit_size, features)
    return Cost(config.tokens(len(sizes)), functools.partial(train_flops, config, vocabulary))


def _means(prefix: str, ranks: retrieval.Ranks) -> dict[str, float]:
    values = retrieval.retrieval_values(ranks.masked_T, (10,))
    return {f"{prefix}/{name}": float(np.mean(value)) for name, value in values.items()}


PARTIAL = (".config.json.partial", ".run.json.partial")
OURS = ("checkpoints", "profile", "config.json", "metrics.jsonl", "tensorboard", *PARTIAL)
EMPTY = "an empty folder, or the run that these arguments began"


def _claim(folder: Path, assembly: Assembly) -> None:
    """Refuses a folder that holds something else, or a run of other IDs or data, before anything in it is touched."""
    record = folder / "run.json"
    if not record.is_file():
        strange = next((path.name for path in folder.glob("*") if path.name not in OURS), None)
        if strange:
            what = f"holds {strange!r}, which is no part of a run"
            raise UserError(what, path=folder, field="workdir", expected=EMPTY)
        return
    changed = assembly.differs_from(json.loads(record.read_text()).get("identity") or {})
    if changed:
        raise UserError(
            f"holds a run with another {changed}",
            path=folder,
            field="workdir",
            expected=EMPTY,
            hint="give another --workdir, or remove this one",
        )


def _description(assembly: Assembly) -> dict[str, Any]:
    manifest = assembly.dataset.manifest
    return {
        "identity": assembly.identity(),
        "seed": assembly.configs.seed,
        "split_checksum": manifest["split"]["checksum"],
        "ids_checksum": assembly.table.checksum,
        "tokenizer": assembly.table.tokenizer.get("name"),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }


def _outcome(assembly: Assembly, state: loop.TrainState, folder: Path, seconds: float) -> dict[str, Any]:
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in state.params.items()}
    lines = read_metrics(folder / "metrics.jsonl")
    paces = [line["items_per_second"] for line in lines if line.get("items_per_second")]
    data = assembly.configs.data
    events_U, window = assembly.dataset.train_events(data.validation_too), data.window
    lengths = np.concatenate([np.full((events_U // window).sum(), window), events_U % window])
    return {
        "steps": int(state.step),
        "parameters": {
            "total": sum(sizes.values()),
            "tables": sum(size for name, size in sizes.items() if _TABLES.fullmatch(name)),
        },
        "train_flops_per_item": _cost(assembly).flops(lengths[lengths > 0]) / max(int(lengths.sum()), 1),
        "seconds": lines[-1]["seconds"] if lines else seconds,
        "items_per_second": float(np.median(paces)) if paces else None,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_memory_bytes": _device_peak(),
    }


def _device_peak() -> int | None:
    """Bytes of the fullest accelerator of this process at its fullest; None where devices do not count them."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(peaks) or None


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
