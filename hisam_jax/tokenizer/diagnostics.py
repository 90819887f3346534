"""Judging a tokenizer: use of its codes, collisions, reconstruction, disentanglement, cross-modal retrieval, probes.

On codes before collisions are resolved. Use and collisions are counted over all items; what needs features or pairs of
items is judged on a sample, so that a million items take little more memory than twenty thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hisam_jax.tokenizer import base, collisions
from hisam_jax.tokenizer.adjusted_information import adjusted_information
from hisam_jax.tokenizer.base import BRANCHES, CrossModal, FeatureMap, FittedTokenizer, Level, PresentMap
from hisam_jax.tokenizer.mutual_information import entropy
from hisam_jax.tokenizer.neighbours import lookalikes, neighbours
from hisam_jax.tokenizer.probes import probe_codes

SAMPLE = 20000
RETRIEVAL_ITEMS = 1000


def diagnose(
    model: FittedTokenizer,
    features: FeatureMap,
    present: PresentMap,
    codes_IL: np.ndarray,
    after_IL: np.ndarray,
    attributes: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    train_rows: np.ndarray | None = None,
    weight_I: np.ndarray | None = None,
) -> dict[str, Any]:
    """The whole of `diagnostics.json` but its timings.

    Args:
        model: the fitted tokenizer.
        features: modality -> [I, F_m].
        present: modality -> bool [I].
        codes_IL: codes before resolution.
        after_IL: full codes after it, digit included.
        attributes: name -> integer label [I], negative where unknown.
        seed: of samples and permutations.
        train_rows: bool [I], items that the tokenizer was fitted on; all of them by default.
        weight_I: how well users know each item; the best known are shown with their neighbours.
    """
    rng = np.random.default_rng(seed)
    items = len(codes_IL)
    train_rows = np.ones(items, bool) if train_rows is None else train_rows
    weight_I = np.zeros(items) if weight_I is None else weight_I
    sample = np.sort(rng.permutation(items)[:SAMPLE])
    part = {m: values[sample] for m, values in features.items()}, {m: values[sample] for m, values in present.items()}
    report = {
        "tokenizer": model.name,
        "levels": level_use(codes_IL, model.levels),
        "collision": {"before": collisions.collision(codes_IL), "after": collisions.collision(after_IL)},
        "bucket_gini": gini(np.bincount(collisions.keys_of(codes_IL))),
        "prefixes": prefix_counts(codes_IL),
        "reconstruction": reconstruction_errors(model, *part, codes_IL[sample]),
        **information(codes_IL[sample], model.levels, {n: v[sample] for n, v in (attributes or {}).items()}, rng),
        "notes": list(model.notes),
        "history": model.history,
    }
    if isinstance(model, CrossModal):
        report["cross_modal"] = cross_modal(model, features, present, rng, train_rows)
    report["neighbours"] = neighbours(model, codes_IL, present, weight_I, rng)
    queries = [entry["item"] for entry in report["neighbours"]]
    report["lookalikes"] = lookalikes(model, features, present, codes_IL, queries, rng)
    return report


def information(
    codes_NL: np.ndarray, levels: Sequence[Level], attributes: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, dict[str, dict[str, float]]]:
    """`ami` of levels, `ami_joint` of groups (all levels of one as one code), `ami_attributes` of both, and `probes`.

    Joint codes tell what two levels only tell together; see `adjusted_information` for when they are too fine for it.
    """
    columns = {level.name: _known(codes_NL[:, index], level) for index, level in enumerate(levels)}
    joint = joint_codes(codes_NL, levels)
    pairs = {
        "ami": itertools.combinations(columns.items(), 2),
        "ami_joint": itertools.combinations(joint.items(), 2),
        "ami_attributes": itertools.product({**columns, **joint}.items(), attributes.items()),
    }
    judge = {"ami": ami, "ami_joint": adjusted_information, "ami_attributes": adjusted_information}
    found = {
        key: {f"{a}|{b}": judge[key](x_N, y_N, rng) for (a, x_N), (b, y_N) in these} for key, these in pairs.items()
    }
    return found | {"probes": probe_codes(codes_NL, levels, attributes, rng)}


def ami(a_N: np.ndarray, b_N: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """`value` and `permuted` of `adjusted_information`: all that single levels need, which have headroom."""
    figures = adjusted_information(a_N, b_N, rng)
    return {name: figures[name] for name in ("value", "permuted")}


def joint_codes(codes_NL: np.ndarray, levels: Sequence[Level]) -> dict[str, np.ndarray]:
    """Group -> one number [N] for all its codes together; -1 where an item lacks one of them."""
    joint = {}
    for group in dict.fromkeys(level.modality for level in levels):
        own = [index for index, level in enumerate(levels) if level.modality == group]
        whole_N = (codes_NL[:, own] < [levels[index].size for index in own]).all(1)
        joint[group] = np.where(whole_N, collisions.keys_of(codes_NL[:, own]), -1)
    return joint


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
    model: CrossModal,
    features: FeatureMap,
    present: PresentMap,
    rng: np.random.Generator,
    train_rows: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """Finding an item's other view among 1,000 items by its latent and by the vector of its shared codes.

    Keys are `from->to`; values recall at 1 and 10 for each, and the number of `items` asked for and `pool` looked
    through. Equals rank in the middle. Items that the tokenizer was fitted on come first; those that it was not, where
    there are two, under `held_out`, among as many others.
    """
    names = [m for m in features if present[m].any()]
    train_rows = np.ones(len(next(iter(present.values()))), bool) if train_rows is None else train_rows
    found = {}
    for a, b in itertools.permutations(names, 2):
        both = present[a] & present[b]
        fitted, unseen = (rng.permutation(np.flatnonzero(both & part)) for part in (train_rows, ~train_rows))
        row = _retrieval(model, features, present, (a, b), fitted, unseen[:0])
        if row:
            held_out = _retrieval(model, features, present, (a, b), unseen, fitted)
            found[f"{a}->{b}"] = row | ({"held_out": held_out} if held_out else {})
    return found


def _retrieval(
    model: CrossModal,
    features: FeatureMap,
    present: PresentMap,
    way: tuple[str, str],
    asked: np.ndarray,
    others: np.ndarray,
) -> dict[str, float]:
    """Recall of `asked` items among themselves and as many `others` as make a full pool; {} of fewer than two."""
    asked = asked[:RETRIEVAL_ITEMS]
    pool = np.concatenate([asked, others[: RETRIEVAL_ITEMS - len(asked)]])
    if len(asked) < 2:
        return {}
    order = np.argsort(pool)  # a memory-mapped file is read in its own order
    rows = pool[order]
    views = model.views({m: v[rows] for m, v in features.items()}, {m: v[rows] for m, v in present.items()})
    if not set(way) <= views.keys():
        return {}
    is_asked = order < len(asked)
    row: dict[str, float] = {"items": len(asked), "pool": len(pool)}
    for kind, index in (("latent", 0), ("codes", 1)):
        rank_N = _ranks(views[way[0]][index], views[way[1]][index])[is_asked]
        row |= {f"{kind}_recall@{k}": float((rank_N < k).mean()) for k in (1, 10)}
    return row


def _ranks(query_ND: np.ndarray, key_ND: np.ndarray) -> np.ndarray:
    query_ND, key_ND = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (query_ND, key_ND))
    score_NN = (query_ND @ key_ND.T).round(5)
    own_N1 = np.diagonal(score_NN)[:, None]
    return (score_NN > own_N1).sum(1) + ((score_NN == own_N1).sum(1) - 1) / 2


def _known(code_I: np.ndarray, level: Level) -> np.ndarray:
    return np.where(code_I < level.size, code_I, -1)
