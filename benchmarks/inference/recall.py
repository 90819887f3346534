"""What HMAT and its flat twin find after the same training, from a cached state and from the whole history."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interval, table
from benchmarks.inference.trained import KINDS, RECIPE, trained
from benchmarks.inference.ways import K, places_of, values, wanted_of
from hisam_jax.evaluation.intervals import Bootstrap, difference_of_means, means
from hisam_jax.evaluation.targets import load_events, retrieval_targets
from hisam_jax.inference.engine import Engine
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import load_run
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import engine_config, load_release

WAYS = ("retrieval", "generation")
FORMS = ("cache", "no cache")
STEPS, USERS = 200, 1_000  # a short training: what is compared are two models and two forms of a state


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Places of every target in the lists of each model, way and form of the state."""
    places: dict[tuple[str, str], np.ndarray] = {}
    rows, user_T = [], np.zeros(0)
    for kind in KINDS:
        found, user_T, off = _places(trained(work.parent / "trained", kind, quick, STEPS), quick)
        for way in WAYS:
            whole, cached = found["no cache", way], found["cache", way]
            places[kind, way] = whole
            metrics = {form: means(values(found[form, way]), user_T, Bootstrap()) for form in FORMS}
            rows.append({"model": kind, "way": way, "differ": int((whole != cached).sum()), "off": off, **metrics})
    paired = {
        way: difference_of_means(
            *(values(places[kind, way]) for kind in ("HMAT", "flat")), user_T, Bootstrap()
        ) for way in WAYS
    }  # fmt: skip
    return {"seeds": [0], "users": len(user_T), "rows": rows, "paired": paired}


def _places(folder: Path, quick: bool) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray, float]:
    """`(places by form and way, users, the largest difference of two forms' states)` of a model."""
    loaded = load_run(folder)
    release, config = load_release(folder, Limits()), engine_config(loaded, Limits(), rows=(32,))
    targets = retrieval_targets(load_events(loaded.assembly.dataset), "test")
    rows = np.flatnonzero(targets.position_T >= 2)[: 20 if quick else USERS]
    engine = Engine(
        loaded.assembly.model, loaded.scorer.params, dataclasses.replace(config, k=K, lengths=config.lengths[-1:])
    )
    pasts, wanted = loaded.reader.of_targets(targets, rows), wanted_of(targets, rows)
    before = engine.read(release.items, [History(x.item[:-1], x.action[:-1], x.gap[:-1]) for x in pasts])
    last = History(*(np.concatenate([getattr(x, name)[-1:] for x in pasts]) for name in ("item", "action", "gap")))
    states = {"cache": engine.append(release.items, before, last), "no cache": engine.read(release.items, pasts)}
    off = max(float(np.abs(a.read - b.read).max()) for a, b in zip(*states.values(), strict=True))
    found = {}
    for form, way in ((form, way) for form in FORMS for way in WAYS):
        lists = engine.recommend(release.items, states[form], wanted, K, way)
        found[form, way] = places_of(lists, targets.item_T[rows])
    return found, targets.user_T[rows], off


def markdown(result: Mapping[str, Any]) -> str:
    """One row a model, way and form; then HMAT less flat."""
    rows = [
        [row["way"], f"{row['model']}, {form}", *(interval(row[form][m]) for m in ("recall@10", "ndcg@10")),
         row["differ"], f"{row['off']:.0e}"]
        for row in result["rows"] for form in FORMS
    ]  # fmt: skip
    paired = [
        [way, "HMAT - flat, paired", *(interval(found[m]) for m in ("recall@10", "ndcg@10")), "", ""]
        for way, found in result["paired"].items()
    ]
    said = (
        f"{RECIPE}; {STEPS} steps; HMAT and the flat model alike, same batches. {result['users']:,} test users, "
        "seen items left out. Cache: the state of all events but the last, the last one appended; no cache: the "
        "whole history read. Both must say the same but for rounding: targets whose place differs, and the "
        "largest difference of a user's vector.\n\n"
    )
    heads = ("way", "model", "recall@10", "ndcg@10", "places that differ", "vectors off")
    return said + table(heads, rows + paired)
