"""Which rows can be used, and when too many cannot: from a reader's strings to compact integer columns on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from hisam_jax.data.identity import digests, shuffled
from hisam_jax.data.readers.base import REASONS, RawData
from hisam_jax.data.readers.columns import whole_parquet
from hisam_jax.errors import UserError

LATEST = 4_102_444_800  # the year 2100
_ROW_GROUP = 1 << 18


@dataclasses.dataclass(frozen=True)
class Staged:
    """Usable events in a Parquet file of small integers, in no order that matters.

    Attributes:
        path: columns user int32, item int32, time uint32 (timestamp, or place in the source), and rating float32.
        user_ids, item_ids: the ids that the codes stand for, in shuffled order.
        user_digests, item_digests: uint64, seeded, of those ids.
        rows: rows of the source, unusable ones included.
        rejected: reason -> count.
    """

    path: Path
    user_ids: pl.Series
    item_ids: pl.Series
    user_digests: np.ndarray
    item_digests: np.ndarray
    rows: int
    rejected: dict[str, int]

    def column(self, name: str) -> np.ndarray:
        return pl.read_parquet(self.path, columns=[name])[name].to_numpy()


def stage(raw: RawData, scratch: Path, seed: int, max_rejected: float) -> Staged:
    """Streams the events to `scratch`, ids as codes in a seeded order that says nothing about them.

    Raises:
        UserError: a larger share of rows than `max_rejected` cannot be used, or none can.
    """
    check_catalogue(raw, max_rejected)
    item_ids = shuffled(raw.items["item"], seed, "item")
    file = scratch / "checked.parquet"
    with whole_parquet(raw.interactions_path):
        _sink(checked(raw.interactions, codes(item_ids, "item"), raw.has_timestamps, raw.has_ratings), file)
    rows, rejected = judge(raw, tally(pl.scan_parquet(file).with_columns(rows=pl.lit(1, pl.Int64))), max_rejected)
    usable = pl.scan_parquet(file).filter(pl.col("reason").is_null())
    user_ids = shuffled(usable.select("user").unique().collect(engine="streaming")["user"], seed, "user")
    columns = ["user", "item", "time"] + ["rating"] * raw.has_ratings
    compact = with_codes(usable.select(columns), "user", codes(user_ids, "user"))
    _sink(compact.with_columns(user=pl.col("user_code")).select(columns), scratch / "events.parquet")
    return Staged(
        path=scratch / "events.parquet",
        user_ids=user_ids,
        item_ids=item_ids,
        user_digests=digests(user_ids, seed, "user"),
        item_digests=digests(item_ids, seed, "item"),
        rows=rows,
        rejected=rejected,
    )


def check_catalogue(raw: RawData, max_rejected: float) -> None:
    """Stops where a larger share of the catalogue's rows than `max_rejected` cannot be used."""
    refused = sum(raw.rejected_items.values())
    if refused > max_rejected * (len(raw.items) + refused):
        reason, (_, line) = max(raw.refused_items.items(), key=lambda entry: entry[1][0])
        field, expected = REASONS[reason]
        problem = f"{refused:,} of {len(raw.items) + refused:,} catalogue rows cannot be used (most often {reason})"
        hint = _hint(max_rejected)
        raise UserError(problem, path=raw.items_path, line=line, field=field, expected=expected, hint=hint)


def check_share(
    raw: RawData, rows: int, refused: int, max_rejected: float, reason: str, line: int | None, value: str = ""
) -> None:
    """Stops, naming the first bad row, where more than `max_rejected` of the rows are refused."""
    if refused > max_rejected * rows:
        field, expected = REASONS[reason]
        what = f"{reason} {value!r}" if value else reason
        raise UserError(
            f"{what}; {refused:,} of {rows:,} rows ({refused / rows:.1%}) cannot be used",
            path=raw.interactions_path,
            line=line,
            field=field,
            expected=expected,
            hint=_hint(max_rejected),
        )


def check_duplicates(
    raw: RawData, rows: int, rejected: Mapping[str, int], duplicates: int, max_rejected: float
) -> dict[str, int]:
    """`rejected` with the duplicates in it; stops where they make it too many."""
    if not duplicates:
        return dict(rejected)
    total = {**rejected, "duplicate_interaction": duplicates}
    check_share(raw, rows, sum(total.values()), max_rejected, "duplicate_interaction", None)
    return total


def checked(interactions: pl.LazyFrame, item_codes: pl.LazyFrame, timestamps: bool, ratings: bool) -> pl.LazyFrame:
    """Columns user, item (code), time, rating, line, reason, value (the unknown item's id, for the message).

    Args:
        interactions: INTERACTION_SCHEMA.
        item_codes: `codes` of the catalogue, or of all that may be in it of these interactions.
        timestamps, ratings: whether the source has them.
    """
    time, rules = pl.col("order"), []
    if timestamps:
        time = pl.col("timestamp")
        rules.append(("bad_timestamp", ~time.is_between(0, LATEST).fill_null(False)))
    if ratings:
        rules.append(("bad_rating", ~pl.col("rating").is_finite().fill_null(False)))
    rules = [(f"missing_{name}", pl.col(name).is_null()) for name in ("user", "item")] + rules
    rules.append(("unknown_item", pl.col("item_code").is_null()))
    reason = pl.coalesce("reason", *(pl.when(rule).then(pl.lit(name)) for name, rule in rules))
    return (
        with_codes(interactions, "item", item_codes)
        .with_columns(reason=reason)
        .select(
            "user",
            "rating",
            "line",
            "reason",
            item="item_code",
            time=pl.when(pl.col("reason").is_null()).then(time).cast(pl.UInt32),
            value=pl.when(pl.col("reason") == "unknown_item").then("item"),
        )
    )


def codes(ids: pl.Series, name: str) -> pl.LazyFrame:
    """Columns `name` and `name`_code: each id's place, int32."""
    return pl.LazyFrame({name: ids, f"{name}_code": np.arange(len(ids), dtype=np.int32)})


def with_codes(events: pl.LazyFrame, name: str, codes: pl.LazyFrame) -> pl.LazyFrame:
    """The events, in no order that matters, with `name`_code; null where `codes` lacks the id."""
    return events.join(codes, on=name, how="left", maintain_order="none")


def tally(rows: pl.LazyFrame) -> pl.DataFrame:
    """reason -> rows, the first line and its value; `rows` are checked ones, each counting 1, or other tallies."""
    first = [pl.col("line").min(), pl.col("value").sort_by("line", "value").first()]
    return rows.group_by("reason").agg(pl.col("rows").sum(), *first).collect(engine="streaming")


def judge(raw: RawData, counted: pl.DataFrame, max_rejected: float) -> tuple[int, dict[str, int]]:
    """Rows of the log and reason -> rows refused, of a whole tally; stops where too many are refused, or all."""
    bad = counted.filter(pl.col("reason").is_not_null()).sort("line", "reason")
    rows, refused = int(counted["rows"].sum()), int(bad["rows"].sum())
    if rows == refused:
        max_rejected = min(max_rejected, 0.999)  # not one usable row is too few, whatever is allowed
    if len(bad):
        first = bad.row(0, named=True)
        check_share(raw, rows, refused, max_rejected, first["reason"], first["line"], first["value"] or "")
    return rows, dict(sorted(bad.select("reason", "rows").iter_rows()))


def _hint(max_rejected: float) -> str:
    return f"mend them, or allow more than {max_rejected:.1%} with --max-rejected"


def _sink(events: pl.LazyFrame, path: Path) -> None:
    events.sink_parquet(path, compression="lz4", row_group_size=_ROW_GROUP, engine="streaming", maintain_order=False)
