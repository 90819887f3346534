"""New items in a table that is in use: IDs from its frozen tokenizer, no ID of an old item moved [ours].

Old codes and digits stay byte for byte, level sizes and digits stay as many, so that a trained model goes on fitting. A
new item takes its codes and a free digit, or under `next_nearest` and `sinkhorn` the nearest free last code. Where
neither is left its last code, then the one before, moves to the nearest with room.

A frozen tokenizer only fits features of the space that it was fitted in. Encoders that learn from the catalogue make
another space of another catalogue, with the same widths; so kept items are coded again, and must get their codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory
from hisam_jax.paths import output_path
from hisam_jax.remote import local
from hisam_jax.tokenizer import collisions, registry
from hisam_jax.tokenizer.assignment import assign, costs_of
from hisam_jax.tokenizer.base import FeatureMap, FittedTokenizer, PresentMap
from hisam_jax.tokenizer.id_files import writing
from hisam_jax.tokenizer.qarm_codes import VQ, Qarm
from hisam_jax.tokenizer.random_codes import RandomCodes
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

NAMED = 10  # items that a report names
RECODED = 2000  # kept items that are coded again, to tell whether the features are those of the tokenizer
AGREEMENT = 0.9  # share of codes that must come out as they were, in each group


def extend_ids(ids: str | os.PathLike, dataset: str | os.PathLike, out: str | os.PathLike) -> dict[str, Any]:
    """`hisam ids --extend`: the table at `ids` for the catalogue of `dataset`, written to `out` with its tokenizer.

    Returns:
        `items`, `kept`, `new`, `vanished{items, named}`, `moved{level: new items whose code there moved}`,
        `recoded{items, agreement{group: share}}`, `beside` and `left_out` (what the tokenizer tells of items beside
        their IDs, carried over or not), `checksum`, `parent`.

    Raises:
        UserError: no table, no tokenizer beside it (an imported table) or another one, features of another space,
            `out` is `ids`, no room left.
    """
    ids, out = local(ids, "ids"), output_path(out, "out")
    table = SemanticIDTable.load(ids)
    if not (ids / "tokenizer.json").is_file():
        raise UserError(
            f"no tokenizer beside the table (its IDs are {table.tokenizer.get('name', 'imported')!r})",
            path=ids,
            expected="a table that `hisam tokenize` left",
            hint="IDs that were imported cannot be extended; import them again with the new items",
        )
    if ids.resolve() == out.resolve():
        raise UserError(
            "the table that is extended",
            path=out,
            field="out",
            expected="another folder",
            hint="runs that were trained on the old table, and its diagnostics, need it as it is",
        )
    model, data = registry.load_tokenizer(ids), Dataset.load(dataset)
    extended, report = extend(table, model, data.items["item_id"], data.features, data.present)
    model, found = _beside(ids, table, model, data)
    lost = [VQ] if isinstance(model, Qarm) and VQ not in found else []
    with writing(out), atomic_directory(out, holds="codes.npy") as scratch:
        registry.save_tokenizer(model, scratch)
        extended.write_into(scratch, found)
    return report | {"beside": list(found), "left_out": lost}


def _beside(
    ids: Path, table: SemanticIDTable, model: FittedTokenizer, data: Dataset
) -> tuple[FittedTokenizer, dict[str, np.ndarray]]:
    """The tokenizer with the row numbers of the new catalogue, and what it tells of items beside their IDs.

    Without ids of its training items its row numbers are those of the first table: of this one where it is the first
    one, or where an earlier extension left such numbers because the first items had stayed where they were.
    """
    if not isinstance(model, Qarm):
        return model, registry.item_features(model, data.features, data.present)
    if model.item_ids is None:
        if table.parent and not (ids / f"{VQ}.npy").is_file():
            return model, {}
        model = model.named(table.item_ids)
    model = model.renumbered(data.items["item_id"])
    return model, registry.item_features(model, data.features, data.present)


def extend(
    table: SemanticIDTable,
    model: FittedTokenizer,
    item_ids: Sequence[str] | pl.Series,
    features: FeatureMap,
    present: PresentMap,
    seed: int = 0,
) -> tuple[SemanticIDTable, dict[str, Any]]:
    """A table of the items `item_ids`, in that order, and a report.

    Items are matched by id. One that has vanished from the catalogue is left out and reported; its ID is not given
    away in this extension, so extending the first table again gives it back to an item that returns.

    Args:
        table: whose items keep their IDs.
        model: the frozen tokenizer that made it.
        item_ids: keys of the new catalogue.
        features: modality -> [I, F_m] in its order.
        present: modality -> bool [I].
        seed: for the order among new items, which is not the catalogue's.

    Raises:
        UserError: another tokenizer, features of other widths or of another space, or new items that no free ID is
            left for.
    """
    check_tokenizer(table, model)
    item_ids = pl.Series("item_id", item_ids, dtype=pl.String)
    if item_ids.is_empty():
        raise UserError("no items", field="item_id", expected="a catalogue with at least one item")
    old_I, vanished_V = _match(table.item_ids, item_ids)
    new = np.flatnonzero(old_I < 0)
    recoded = _recode(table, model, features, present, old_I, seed)
    wanted_NL = _codes(table, model, features, present, new)
    codes_NL, digit_N = _place(table, wanted_NL, costs_of(model, features, present), new, seed)
    _refuse_full(table, codes_NL, digit_N, item_ids, new)
    codes_IL = np.empty((len(item_ids), len(table.levels)), np.int32)
    codes_IL[old_I >= 0] = table.codes_IL[old_I[old_I >= 0]]
    codes_IL[new] = codes_NL
    digit_I = None
    if table.digit_I is not None:
        digit_I = np.empty(len(item_ids), np.int32)
        digit_I[old_I >= 0], digit_I[new] = table.digit_I[old_I[old_I >= 0]], digit_N
    extended = SemanticIDTable(
        levels=table.levels,
        codes_IL=codes_IL,
        digit_I=digit_I,
        digit_size=table.digit_size,
        item_ids=item_ids,
        tokenizer=table.tokenizer,
        policy=table.policy,
        parent=table.checksum,
    )
    gone = table.item_ids.gather(vanished_V)
    moved_L = (codes_NL != wanted_NL).sum(0)
    report = {
        "items": len(item_ids),
        "kept": len(item_ids) - len(new),
        "new": len(new),
        "vanished": {"items": len(gone), "named": gone.head(NAMED).to_list()},
        "moved": {level.name: int(count) for level, count in zip(table.levels, moved_L, strict=True) if count},
        "recoded": recoded,
        "checksum": extended.checksum,
        "parent": table.checksum,
    }
    return extended, report


def _match(ours: pl.Series, theirs: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Row of the table of each item of the catalogue, -1 for a new one; rows of the table that the catalogue lacks."""
    rows = pl.DataFrame({"item_id": ours, "row": np.arange(len(ours))})
    joined = pl.DataFrame({"item_id": theirs}).join(rows, on="item_id", how="left", maintain_order="left")
    old_I = joined["row"].fill_null(-1).to_numpy().astype(np.int64)
    gone = np.ones(len(ours), bool)
    gone[old_I[old_I >= 0]] = False
    return old_I, np.flatnonzero(gone)


def check_tokenizer(table: SemanticIDTable, model: FittedTokenizer) -> None:
    """Refuses a tokenizer that is not the one that the table names; settings that either does not know are no matter,
    for a later version may have added them."""
    ours, theirs = table.tokenizer, json.loads(json.dumps(model.config))
    settings = ours.get("config") or {}
    differ = {key: theirs[key] for key in theirs.keys() & settings.keys() if theirs[key] != settings[key]}
    said = {"name": model.name} | ({"seed": model.seed} if isinstance(model, RandomCodes) else {})
    differ |= {key: value for key, value in said.items() if key in ours and ours[key] != value}
    if differ:
        key = min(differ)
        raise UserError(
            f"another tokenizer lies beside the table: {key} {differ[key]!r}",
            field="tokenizer",
            expected=f"{key} {(settings if key in settings else ours)[key]!r}, which made the table",
        )
    if model.levels != table.levels:
        raise UserError(
            f"levels {[level.name for level in model.levels]}",
            field="tokenizer",
            expected=f"those of the table: {[level.name for level in table.levels]}",
        )


def _recode(
    table: SemanticIDTable,
    model: FittedTokenizer,
    features: FeatureMap,
    present: PresentMap,
    old_I: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """`items` that were coded again and, for each group of levels, the share of codes that came out as in the table.

    Codes that resolution or an earlier extension may have moved, an item's last one, are not asked for; `items` is 0
    where no other is left, and for codes that features do not tell.

    Raises:
        UserError: under AGREEMENT of a group's codes are the same.
    """
    kept = np.flatnonzero(old_I >= 0)
    rows = np.sort(np.random.default_rng(seed).permutation(kept)[:RECODED])
    stored_NL, sizes = table.codes_IL[old_I[rows]], np.array([level.size for level in table.levels])
    asked_NL = stored_NL < sizes
    if table.policy in ("next_nearest", "sinkhorn") or (table.policy == "digit" and table.parent):
        asked_NL &= np.arange(len(sizes)) != collisions.last_level(stored_NL, sizes)[:, None]
    if isinstance(model, RandomCodes) or not asked_NL.any():
        return {"items": 0, "agreement": {}}
    same_NL = assign(model, features, present, rows) == stored_NL
    agreement = {}
    for group in dict.fromkeys(level.modality for level in table.levels):
        own_NL = asked_NL & [level.modality == group for level in table.levels]
        if own_NL.any():
            agreement[group] = float(same_NL[own_NL].mean())
    if min(agreement.values()) < AGREEMENT:
        shares = ", ".join(f"{group} {share:.0%}" for group, share in agreement.items())
        raise UserError(
            f"the frozen tokenizer gives {len(rows)} items of the table other codes than they have: same are {shares}",
            field="features",
            expected=f"at least {AGREEMENT:.0%} of each group",
            hint="encoders that learn from the catalogue (tfidf_svd, word_vectors, hog_color, ppmi_svd) were fitted "
            "again on the new one: prepare it with `--encoders-from` the old one, or both with the same pretrained or "
            "precomputed features",
        )
    return {"items": len(rows), "agreement": agreement}


def _codes(
    table: SemanticIDTable, model: FittedTokenizer, features: FeatureMap, present: PresentMap, new: np.ndarray
) -> np.ndarray:
    if isinstance(model, RandomCodes):  # numbers its rows: new items go on where the old ones end
        numbered = {"rows": np.empty((len(table.item_ids) + len(new), 0))}
        return model.assign(numbered, {})[len(table.item_ids) :]
    return assign(model, features, present, new)


def _place(
    table: SemanticIDTable, wanted_NL: np.ndarray, costs: collisions.Costs, new: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, L] and digits [N] of new items beside all that the table holds; too high a digit is no room left.

    Rows of both are numbered old items first, so that among equals the old ones are never asked to move.
    """
    old, sizes = len(table.item_ids), [level.size for level in table.levels]
    codes_AL = np.concatenate([table.codes_IL, wanted_NL])
    order_A = np.concatenate([np.arange(old), old + np.random.default_rng(seed).permutation(len(new))])
    room = max(table.digit_size, 1)

    def moved(codes_AL: np.ndarray, back: int, capacity: int) -> np.ndarray:
        level_A = np.concatenate([np.full(old, -1), collisions.last_level(codes_AL[old:], sizes, back)])
        ask = lambda level, rows: costs(level, new[rows - old])  # noqa: E731
        return collisions.relocate(codes_AL, level_A, sizes, ask, order_A, capacity=capacity)

    if table.policy != "none":
        if table.policy != "digit":
            codes_AL = moved(codes_AL, 0, 1)
        for back in range(len(sizes)):
            codes_AL = moved(codes_AL, back, room)
    return codes_AL[old:], _free_digits(table, codes_AL, order_A)[old:]


def _free_digits(table: SemanticIDTable, codes_AL: np.ndarray, order_A: np.ndarray) -> np.ndarray:
    """int32 [A]: old digits as they are; the r-th new item of a bucket takes the r-th digit that is free in it."""
    old, size = len(table.item_ids), max(table.digit_size, 1)
    key_A = collisions.keys_of(codes_AL)
    new_A = order_A[old:]
    new_A = new_A[collisions.order_of(key_A[new_A])]
    rank_N = collisions.rank_within(key_A[new_A])
    digit_A = np.zeros(len(codes_AL), np.int32)
    if table.digit_I is not None:
        digit_A[:old] = table.digit_I
    crowd = np.isin(key_A[:old], key_A[new_A])
    taken_T = np.unique(key_A[:old][crowd] * size + digit_A[:old][crowd])
    # The r-th free digit is r plus the taken digits t with t - (taken before t in its bucket) <= r.
    taken_key, taken_digit = np.divmod(taken_T, size)
    gap_T = taken_key * (size + 1) + taken_digit - collisions.rank_within(taken_key)
    wanted_N = key_A[new_A] * (size + 1) + np.minimum(rank_N, size)
    below_N = np.searchsorted(gap_T, wanted_N, side="right") - np.searchsorted(gap_T, key_A[new_A] * (size + 1))
    digit_A[new_A] = rank_N + below_N
    return digit_A


def _refuse_full(
    table: SemanticIDTable, codes_NL: np.ndarray, digit_N: np.ndarray, item_ids: pl.Series, new: np.ndarray
) -> None:
    if table.policy == "none":
        return
    full = digit_N >= max(table.digit_size, 1)
    if not full.any():
        return
    names = item_ids.gather(new[full])
    raise UserError(
        f"no free ID is left for {len(names)} of {len(new)} new items "
        f"({', '.join(names.head(3).to_list())}{', ...' if len(names) > 3 else ''})",
        field="item_id",
        expected=f"room in {max(table.digit_size, 1)} digits and all codes of their levels",
        hint="fit a table of the whole catalogue with `hisam tokenize`, with `collisions: digit` or larger levels, and "
        "train on it; or leave these items out",
    )
