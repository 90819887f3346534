"""`hisam evaluate`: a run -> evaluation.json, beside the baselines, over the whole catalogue."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np

from hisam_jax.data.dataset import COLD_ITEM_EVENTS
from hisam_jax.distributed import is_main
from hisam_jax.errors import UserError
from hisam_jax.evaluation import baselines, cold_start, summary
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.targets import RankingTargets, RetrievalTargets, ranking_targets, retrieval_targets
from hisam_jax.files import npz_bytes
from hisam_jax.inference import scoring
from hisam_jax.inference.recommend import recommend_items
from hisam_jax.inference.run import Run, load_run
from hisam_jax.remote import write_results


def evaluate(workdir: str | os.PathLike, split: str = "test", baselines_too: bool = True) -> dict[str, Any]:
    """Scores a run's best checkpoint on the held-out events of a split.

    Leaves `RUN/evaluation.json`, `RUN/samples.json` and `RUN/predictions.npz` (per-target ranks and logits, for paired
    comparisons), also where RUN is a URL. Another split than `test` has its name in these files' names. The baselines
    may be left out: a comparison has them from elsewhere.

    Raises:
        UserError: no run, nothing to score in the split, or a split that was trained on.
    """
    start, run = time.monotonic(), load_run(workdir)
    configs, events = run.assembly.configs, run.events
    if split == "validation" and configs.data.validation_too:
        raise UserError("the run was trained on it", path=workdir, field="split", expected="test")
    targets, rated = retrieval_targets(events, split), ranking_targets(events, split)
    if not len(targets.user_T) and not len(rated.user_E):
        raise UserError(f"no held-out events in split {split!r}", path=run.assembly.dataset.path, expected="targets")
    bootstrap = Bootstrap(resamples=configs.evaluation.resamples, seed=configs.seed)
    result, arrays = _model_tables(run, targets, rated, bootstrap)
    if baselines_too:
        given = baselines.score_baselines(events, rated, targets, configs.seed)
        result["baselines"] = baselines.baseline_tables(given, rated, targets, bootstrap)
    result |= {
        "split": split,
        "users": len(np.union1d(targets.user_T, rated.user_E)),
        "seed": configs.seed,
        "split_checksum": run.assembly.dataset.manifest["split"]["checksum"],
        "protocol": run.assembly.dataset.manifest["split"]["protocol"],
        "validation_too": configs.data.validation_too,
        "tie_break": run.assembly.dataset.manifest.get("tie_break"),
        "seconds": time.monotonic() - start,
    }
    if not is_main():
        return result
    suffix = "" if split == "test" else f".{split}"
    files = {
        f"samples{suffix}.json": json.dumps(_samples(run, targets), indent=1),
        f"predictions{suffix}.npz": npz_bytes(arrays),
        f"evaluation{suffix}.json": json.dumps(result, indent=2) + "\n",
    }
    write_results(run.workdir, files)
    return result


def _model_tables(
    run: Run, targets: RetrievalTargets, rated: RankingTargets, bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    result: dict[str, Any] = {"cold": {}}
    arrays = {"user": targets.user_T, "item": targets.item_T, "rated_user": rated.user_E, "label": rated.label_E}
    if "ranking" in run.heads and len(rated.user_E):
        ways = [("ranking", scoring.ranking_logits, rated)]
        ways += [("request", scoring.request_logits, rated.asked_at_once())] if rated.several else []
        for name, score, judged in ways:
            logits = score(run.scorer, run.reader, judged)
            result[name] = summary.ranking_summary(judged.label_E, logits, judged.user_E, bootstrap, logits)
            result["cold"][name] = cold_start.ranking_breakdown(logits, judged, bootstrap, logits)
            arrays[f"{name}_logits"] = logits
    for head in _lists(run) if len(targets.user_T) else ():
        beams, cold_I = run.assembly.configs.evaluation.beams, run.events.train_count_I < COLD_ITEM_EVENTS
        scorer = run.blended if head == "blend" else run.scorer
        ranks = scoring.ranks_of(head, scorer, run.reader, targets, beams, cold_I)
        result[head] = summary.retrieval_summary(ranks, targets.user_T, bootstrap)
        result["cold"][head] = cold_start.retrieval_breakdown(ranks, targets, bootstrap)
        arrays |= {f"{head}_masked": ranks.masked_T, f"{head}_unmasked": ranks.unmasked_T}
    return result, arrays


def _lists(run: Run) -> list[str]:
    found = [head for head in scoring.LISTS if head in run.heads]
    hybrid = run.assembly.configs.evaluation.hybrid and len(found) == len(scoring.LISTS)
    return [*found, *(["blend"] if run.blended else []), *(["hybrid"] if hybrid else [])]


def _samples(run: Run, targets: RetrievalTargets, shown: int = 12, k: int = 10) -> list[dict[str, Any]]:
    """Histories and recommendations of a few users, drawn by seed among those with some history."""
    able = np.flatnonzero(targets.position_T >= 3)
    rng = np.random.default_rng(run.assembly.configs.seed)
    chosen = np.sort(rng.permutation(able)[: run.assembly.configs.evaluation.samples])
    users, out = run.assembly.dataset.users["user_id"], []
    for row in chosen:
        history = run.reader.before(targets.user_T[row], targets.position_T[row])
        _, seen = targets.seen.rows(np.array([row]))
        items, scores = recommend_items(run, history, seen, k)
        target = int(targets.item_T[row])
        found = [
            {"item": int(item), "score": float(score), "hit": int(item) == target}
            for item, score in zip(items, scores, strict=True)
        ]
        out.append(
            {
                "user": users[int(targets.user_T[row])],
                "history": history.item[-shown:].tolist(),
                "target": target,
                "recommendations": found,
            }
        )
    return out
