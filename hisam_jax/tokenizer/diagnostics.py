"""Judging a tokenizer: use of its codes, collisions, reconstruction, disentanglement, cross-modal retrieval.

Everything is judged over all items, on codes before collisions are resolved (SPEC 2.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from hisam_jax.tokenizer import base, collisions
from hisam_jax.tokenizer.base import BRANCHES, CrossModal, FeatureMap, FittedTokenizer, Level, PresentMap
from hisam_jax.tokenizer.mutual_information import entropy

AMI_ROWS = 20000
RETRIEVAL_ITEMS = 1000


def diagnose(
    model: FittedTokenizer,
    features: FeatureMap,
    present: PresentMap,
    codes_IL: np.ndarray,
    after_IL: np.ndarray,
    attributes: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole of `diagnostics.json` but its timings.

    Args:
        model: the fitted tokenizer.
        features: modality -> [I, F_m].
        present: modality -> bool [I].
        codes_IL: codes before resolution.
        after_IL: full codes after it, digit included.
        attributes: name -> integer label [I], negative where unknown; adjusted mutual information with each level.
        seed: of samples and permutations.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(codes_IL))[:AMI_ROWS])
    columns = {level.name: _known(codes_IL[sample, i], level) for i, level in enumerate(model.levels)}
    labels = {name: values[sample] for name, values in (attributes or {}).items()}
    pairs = itertools.combinations(columns, 2)
    report = {
        "tokenizer": model.name,
        "levels": level_use(codes_IL, model.levels),
        "collision": {"before": collisions.collision(codes_IL), "after": collisions.collision(after_IL)},
        "bucket_gini": gini(np.bincount(collisions.keys_of(codes_IL))),
        "prefixes": prefix_counts(codes_IL),
        "reconstruction": reconstruction_errors(model, features, present, codes_IL),
        "ami": {f"{a}|{b}": ami(columns[a], columns[b], rng) for a, b in pairs},
        "ami_attributes": {f"{a}|{b}": ami(columns[a], labels[b], rng) for b in labels for a in columns},
        "notes": list(model.notes),
        "history": model.history,
    }
    if isinstance(model, CrossModal):
        report["cross_modal"] = cross_modal(model, features, present, rng)
    return report


def level_use(codes_IL: np.ndarray, levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Per level, reserved code not counted: share of codes in use, perplexity (exp of entropy), dead codes, Gini."""
    rows = []
    for index, level in enumerate(levels):
        code_I = codes_IL[:, index]
        count_K = np.bincount(code_I[code_I < level.size], minlength=level.size)
        used = int((count_K > 0).sum())
        rows.append(
            {
                "name": level.name,
                "modality": level.modality,
                "size": level.size,
                "items": int(count_K.sum()),
                "utilisation": used / level.size,
                "perplexity": float(np.exp(entropy(count_K))) if used else 0.0,
                "dead": level.size - used,
                "gini": gini(count_K),
            }
        )
    return rows


def prefix_counts(codes_IL: np.ndarray) -> list[int]:
    """How many different prefixes of 1, 2, ... codes there are."""
    depths = range(1, codes_IL.shape[1] + 1)
    return [int(collisions.keys_of(codes_IL[:, :depth]).max(initial=-1)) + 1 for depth in depths]


def gini(count_K: np.ndarray) -> float:
    """Gini coefficient of counts: 0 when all are equal, near 1 when one has everything."""
    size, total = len(count_K), float(count_K.sum())
    if size == 0 or total == 0:
        return 0.0
    return float(((2 * np.arange(1, size + 1) - size - 1) * np.sort(count_K)).sum() / (size * total))


def ami(a_N: np.ndarray, b_N: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Adjusted mutual information over the smaller entropy, where both are >= 0, and the same after a permutation."""
    both_N = (a_N >= 0) & (b_N >= 0)
    a_N, b_N = a_N[both_N], b_N[both_N]
    if len(a_N) < 2:
        return {"value": 0.0, "permuted": 0.0}
    return {"value": _ami(a_N, b_N), "permuted": _ami(a_N, rng.permutation(b_N))}


def _ami(a_N: np.ndarray, b_N: np.ndarray) -> float:
    if min(a_N.max() - a_N.min(), b_N.max() - b_N.min()) == 0:
        return 0.0  # a constant tells nothing; the library calls two constants a perfect match
    return float(adjusted_mutual_info_score(a_N, b_N, average_method="min"))


def reconstruction_errors(
    model: FittedTokenizer, features: FeatureMap, present: PresentMap, codes_IL: np.ndarray
) -> dict[str, dict[str, float]]:
    """Modality -> branch -> mean squared error over standardised features of items that have it; 1 is the mean item."""
    totals: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for start, stop in base.blocks(len(codes_IL)):
        targets = model.targets({m: values[start:stop] for m, values in features.items()})
        for branch in BRANCHES:
            guesses = model.reconstruct(codes_IL[start:stop], branch)
            for m, guess in guesses.items():
                error_B = np.square(guess - targets[m]).mean(1)[present[m][start:stop]]
                totals.setdefault(m, dict.fromkeys(BRANCHES, 0.0))[branch] += float(error_B.sum())
        for m in totals:
            counts[m] = counts.get(m, 0) + int(present[m][start:stop].sum())
    return {m: {branch: total / max(counts[m], 1) for branch, total in row.items()} for m, row in totals.items()}


def cross_modal(
    model: CrossModal, features: FeatureMap, present: PresentMap, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Finding an item's other view among 1,000 items by its latent and by its shared codes; equals rank in the middle.

    Keys are `from->to`, values recall at 1 and 10 for each, and the number of items.
    """
    names = [m for m in model.scales if present[m].any()]
    found = {}
    for a, b in itertools.permutations(names, 2):
        rows = np.flatnonzero(present[a] & present[b])
        rows = np.sort(rng.permutation(rows)[:RETRIEVAL_ITEMS])
        if len(rows) < 2:
            continue
        views = model.views({m: v[rows] for m, v in features.items()}, {m: v[rows] for m, v in present.items()})
        row = {"items": len(rows)}
        for kind, index in (("latent", 0), ("codes", 1)):
            rank_N = _ranks(views[a][index], views[b][index])
            row |= {f"{kind}_recall@{k}": float((rank_N < k).mean()) for k in (1, 10)}
        found[f"{a}->{b}"] = row
    return found


def _ranks(query_ND: np.ndarray, key_ND: np.ndarray) -> np.ndarray:
    query_ND, key_ND = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (query_ND, key_ND))
    score_NN = (query_ND @ key_ND.T).round(5)
    own_N1 = np.diagonal(score_NN)[:, None]
    return (score_NN > own_N1).sum(1) + ((score_NN == own_N1).sum(1) - 1) / 2


def _known(code_I: np.ndarray, level: Level) -> np.ndarray:
    return np.where(code_I < level.size, code_I, -1)
