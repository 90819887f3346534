"""Retrieval, generation and hybrids of both on the same test users, apart for warm, cold and never sold targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interval, table
from benchmarks.inference.trained import RECIPE, STEPS, trained
from hisam_jax.evaluation.intervals import Bootstrap, ratios
from hisam_jax.evaluation.targets import Coldness, RetrievalTargets, load_events, retrieval_targets
from hisam_jax.inference.engine import Engine, Wanted
from hisam_jax.inference.run import Run, load_run
from hisam_jax.progress import progress
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import engine_config, load_release

K, SHARING, LESS = 10, 4, "all, less retrieval"
WARM = 800  # users with a warm target that are asked; of those with a cold or never sold one, all are


@dataclasses.dataclass(frozen=True)
class Asked:
    """One way to recommend: beams, cold items that join, and the head that ranks what was found."""

    way: str
    by: str = "retrieval"
    beams: int = 100
    cold: int = 50
    every: int = 10

    @property
    def name(self) -> str:
        """As the table says it."""
        if self.way != "hybrid":
            return self.way if self.way == "retrieval" else f"generation, {self.beams} beams"
        held = f", one of {self.every}" if self.cold and self.every > 1 else ""
        return f"hybrid by {self.by}, {self.beams} beams, {self.cold} cold{held}"

    @property
    def candidates(self) -> int:
        """The most items that are found before the first `K` are taken."""
        return self.beams * SHARING + (self.cold if self.way == "hybrid" else 0)


ASKED = (Asked("retrieval"), Asked("generation"), Asked("hybrid", cold=0), Asked("hybrid", every=1), Asked("hybrid"))
ASKED += (Asked("hybrid", beams=20), Asked("hybrid", "ranking"))


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Recall and NDCG at 10 with intervals over users, of all targets and of each group of them."""
    folder = trained(work.parent / "trained", "HMAT", quick)
    loaded = load_run(folder)
    targets = retrieval_targets(load_events(loaded.assembly.dataset), "test")
    groups = _groups(targets.cold)
    rows, weight_T = _chosen(groups["warm"], 10 if quick else WARM)
    release, usual = load_release(folder, Limits()), engine_config(loaded, Limits(), rows=(32,))
    usual = dataclasses.replace(usual, lengths=usual.lengths[-1:], sharing=SHARING)
    pasts, wanted, gaps = (
        loaded.reader.of_targets(targets, rows),
        wanted_of(targets, rows),
        _gaps(loaded, targets, rows),
    )
    states, places = Engine(loaded.assembly.model, loaded.scorer.params, usual).read(release.items, pasts), {}
    for asked in progress(ASKED, total=len(ASKED), description="ways", unit="way"):
        config = dataclasses.replace(usual, k=asked.candidates, beams=asked.beams, cold=asked.cold)
        config = dataclasses.replace(config, cold_every=asked.every)
        engine = Engine(loaded.assembly.model, loaded.scorer.params, config)
        lists = engine.recommend(release.items, states, wanted, config.k, asked.way, asked.by, gaps)
        places[asked.name] = places_of(lists, targets.item_T[rows])
    chosen = {name: member_T[rows] for name, member_T in groups.items()}
    found = [
        {"way": name, **_metrics(place_T, places["retrieval"], weight_T, chosen)} for name, place_T in places.items()
    ]
    sizes = {name: [int(asked_T.sum()), int(groups[name].sum())] for name, asked_T in chosen.items()}
    return {"seeds": [0], "targets": sizes, "rows": found}


def _chosen(warm_T: np.ndarray, warm: int) -> tuple[np.ndarray, np.ndarray]:
    """`(rows, weights)`: all targets that are not warm and some that are, which then count for all of those."""
    able = np.flatnonzero(warm_T)
    drawn = np.sort(np.random.default_rng(0).permutation(able)[:warm])
    rows = np.sort(np.concatenate([np.flatnonzero(~warm_T), drawn]))
    return rows, np.where(warm_T[rows], len(able) / max(1, len(drawn)), 1.0)


def _groups(cold: Coldness) -> dict[str, np.ndarray]:
    warm_T = ~(cold.cold_item | cold.zero_item)
    return {"all": np.ones(len(warm_T), bool), "warm": warm_T, "cold": cold.cold_item, "never sold": cold.zero_item}


def wanted_of(targets: RetrievalTargets, rows: np.ndarray) -> list[Wanted]:
    seen = (targets.seen.rows(np.array([row]))[1] for row in rows)
    return [Wanted(np.setdiff1d(item, targets.item_T[row])) for item, row in zip(seen, rows, strict=True)]


def _gaps(loaded: Run, targets: RetrievalTargets, rows: np.ndarray) -> np.ndarray:
    """Time since each user's last event, which a request knows."""
    places = zip(targets.user_T[rows], targets.position_T[rows], strict=True)
    return np.array([loaded.reader.features(user)["gap"][position] for user, position in places], np.float32)


def places_of(lists: Sequence[tuple[np.ndarray, np.ndarray]], target_T: np.ndarray) -> np.ndarray:
    """1-based place of each target in its list, 0 where it is not in it."""
    at = [np.flatnonzero(item == target) for (item, _), target in zip(lists, target_T, strict=True)]
    return np.array([int(place[0]) + 1 if len(place) else 0 for place in at])


def values(place_T: np.ndarray) -> dict[str, np.ndarray]:
    """Of each target, the list being cut to `K`, and whether it is in the whole list."""
    hit_T = (place_T > 0) & (place_T <= K)
    gain_T = hit_T / np.log2(np.where(hit_T, place_T, 1) + 1)
    return {"recall@10": hit_T.astype(float), "ndcg@10": gain_T, "reached": (place_T > 0).astype(float)}


def _metrics(place_T: np.ndarray, usual_T: np.ndarray, weight_T: np.ndarray, groups: Mapping[str, np.ndarray]):
    """Of each group, and of all the paired difference with retrieval alone; a target is a user."""
    mine, usual = values(place_T), values(usual_T)
    less = {name: weight_T * (mine[name] - usual[name]) for name in mine}
    found = {LESS: ratios(less, weight_T, Bootstrap())}
    for name, member_T in groups.items():
        weights = weight_T * member_T
        found[name] = ratios({metric: weights * value for metric, value in mine.items()}, weights, Bootstrap())
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Recall of every way by group of targets, then NDCG and paired differences."""
    groups = [name for name, (asked, _) in result["targets"].items() if asked]
    sizes = ", ".join("{} of {:,} {}".format(*result["targets"][name], name) for name in groups[1:])
    said = (
        f"{RECIPE}; {STEPS:,} steps. Test users, seen items left out; targets: {sizes} (cold: 1 to 9 training "
        "events); among all they count by their number. Hybrid: the generated items and the nearest cold or "
        "never sold ones by vector, ranked by one head; retrieval scores the whole catalogue. In reach: targets "
        "among the candidates that the last ranking is given (retrieval: among its first 400). Brackets: 95 % "
        "bootstrap interval over users; less retrieval: paired.\n\n"
    )
    tables = []
    for metric in ("recall@10", "ndcg@10"):
        heads = ["way", *(f"{metric}, {name}" for name in groups), LESS]
        rows = [
            [row["way"], *(interval(row[name][metric]) for name in groups), interval(row[LESS][metric])]
            for row in result["rows"]
        ]
        tables.append(table(heads, rows))
    reach = [[row["way"], *(f"{row[name]['reached']['value']:.3f}" for name in groups)] for row in result["rows"]]
    tables.append(table(["way", *(f"in reach, {name}" for name in groups)], reach))
    return said + "\n".join(tables)
