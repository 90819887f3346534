"""A comparison as Markdown: for each dataset the leading metrics with differences, cold and warm, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hisam_jax.comparison.grid_checks import ABOUT, WHY
from hisam_jax.comparison.statistics import significant
from hisam_jax.evaluation.cold_start import GROUPS
from hisam_jax.markdown import interval, markdown_table

READING = (
    "Seen items leave every list unless a metric says unmasked. Brackets: 95 % bootstrap interval over users, of the "
    "mean over a row's seeds; ± is the standard deviation between seeds. Differences are paired over the same users; "
    "an asterisk marks an interval that excludes zero, each for itself: their number is not corrected for, and with "
    "one seed it says nothing of another. Pace and minutes are those of a machine that did other work too. What is "
    "cold is counted in the training split, also for rows that train on validation events too.\n"
)


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    parts: list[str] = [f"# {result['title']}\n", READING]
    for table in result["datasets"].values():
        parts += [f"## {table['title']}\n", _about(table), *_leading(table), *_grouped(table)]
        parts += [_pairs(table)] if table.get("pairs") else []
        parts += [_published(table)] if table.get("published") else []
        parts += [_cost(table), _cut(table)]
        parts += [f"- {cell} failed: {said}" for cell, said in table["failed"].items()]
    if result.get("across"):
        parts += ["## Across datasets\n", _differences(result["across"], result["across"][0]["lead"])]
    return "\n".join(filter(None, parts)).rstrip("\n") + "\n"


def _about(table: Mapping[str, Any]) -> str:
    said = (
        f"{table['users']:,} users, {table['items']:,} items, {table['protocol']}, split "
        f"`{table['split_checksum'][:12]}`, ties by {table['tie_break']}; targets: {_counted(table['sizes'])}."
    )
    judged = any(metric.startswith(("ranking/", "request/")) for metric in _shown(table))
    rated = f"Rated events: {_counted(table['rated'])}." if judged and table.get("rated") else ""
    return " ".join(filter(None, (said, rated, table.get("note")))) + "\n"


def _counted(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sizes.items())


def _leading(table: Mapping[str, Any]) -> list[str]:
    """A table of the leading metrics with the rows' notes, and one of those that leave seen items in."""
    lead = _shown(table)
    free = [metric for metric in lead if metric.endswith("/unmasked")]
    halves = [[metric for metric in lead if metric not in free], free]
    notes = [f"- {name}: {row['note']}\n" for name, row in table["rows"].items() if row.get("note")]
    return [*(_metrics(table, half) for half in halves if half), *(["".join(notes)] if notes else [])]


def _metrics(table: Mapping[str, Any], lead: Sequence[str]) -> str:
    header = ["row", "seeds", *lead, "against", *(f"Δ {metric}" for metric in lead)]
    return markdown_table(header, _with_groups(_having(table, lead), len(header), _leading_row(lead)))


def _leading_row(lead: Sequence[str]):
    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        against = row.get("against") or {"row": "", "metrics": {}}
        differences = [difference(against["metrics"].get(metric)) for metric in lead]
        return [name, str(len(row.get("seeds", [])) or ""), *(interval(row["metrics"].get(m)) for m in lead),
                against["row"], *differences]  # fmt: skip

    return cells


def _grouped(table: Mapping[str, Any]) -> list[str]:
    """A table by groups of users and items for each metric that is told by them."""
    return [_by_group(table, metric) for metric in _told_by_group(_shown(table))]


def _told_by_group(lead: Sequence[str]) -> list[str]:
    """The first metric; and an AUC behind a GAUC, which has nothing to say of users with one rated event each."""
    pooled = [metric for metric in lead[1:] if metric.endswith("/auc")] if lead[:1] and "gauc" in lead[0] else []
    return [*lead[:1], *pooled[:1]]


def _by_group(table: Mapping[str, Any], metric: str) -> str:
    header = [metric, *(name.replace("_", " ") for name in GROUPS)]

    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        return [name, *(interval(row["groups"][group].get(metric), seeds=False) for group in GROUPS)]

    return markdown_table(header, _with_groups(_having(table, [metric]), len(header), cells))


def _pairs(table: Mapping[str, Any]) -> str:
    return _differences(table["pairs"], _shown(table)) if _shown(table) else ""


def _differences(pairs: Sequence[Mapping[str, Any]], lead: Sequence[str]) -> str:
    grouped = [(metric, group) for metric in _told_by_group(lead) for group in GROUPS]
    header = [
        "pair",
        *(f"Δ {metric}" for metric in lead),
        *(f"Δ {metric}, {group.replace('_', ' ')}" for metric, group in grouped),
    ]
    rows = []
    for pair in pairs:
        by_group = (pair["groups"][group].get(metric) for metric, group in grouped)
        found = [*(pair["metrics"].get(metric) for metric in lead), *by_group]
        rows.append([f"{pair['row']} less {pair['rival']}", *map(difference, found)])
    return markdown_table(header, rows)


def _published(table: Mapping[str, Any]) -> str:
    rows = []
    for entry in table["published"]:
        row = table["rows"].get(entry["row"])
        for metric, value in entry.items():
            if metric in (*ABOUT, WHY):
                continue
            ours = [row["metrics"].get(name) if row else None for name in (metric, f"{metric}/unmasked")]
            said = [_beside(value, found) for found in ours]
            why = entry.get(WHY, "")
            rows.append([entry["name"], entry["source"], metric, f"{value:.4f}", entry["row"], *said, why])
    return markdown_table(["published", "source", "metric", "figure", "row", "masked", "unmasked", "ours"], rows)


def _beside(value: float, found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low, high = found["ci95"]
    place = "holds it" if low <= value <= high else f"{found['value'] - value:+.4f}"
    return f"{interval(found, seeds=False)}: {place}"


def _cost(table: Mapping[str, Any]) -> str:
    trained = {**table, "rows": {name: row for name, row in table["rows"].items() if "seeds" in row}}
    if not trained["rows"]:
        return ""
    header = ["row", "tokenizer", "parameters", "of them tables", "MFLOPs an item", "items/s", "host GiB", "minutes",
              "best step", "device"]  # fmt: skip

    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        flops = row["train_flops_per_item"]
        best = [f"{best} of {last}" for best, last in zip(row["best_step"], row["steps"], strict=True)]
        return [
            name, str(row["tokenizer"]), f"{row['parameters']['total']:,}", f"{row['parameters']['tables']:,}",
            f"{flops / 1e6:,.2f}" if flops else "", f"{row['items_per_second'] or 0:,.0f}",
            f"{row['peak_memory_bytes'] / 2**30:.2f}", f"{row['minutes']:.1f}",
            ", ".join(best), _device(row),
        ]  # fmt: skip

    return markdown_table(header, _with_groups(trained, len(header), cells))


def _device(row: Mapping[str, Any]) -> str:
    held = row.get("device_memory_bytes")
    return ", ".join(row["device"]) + (f", {held / 2**30:.2f} GiB of one at its fullest" if held else "")


def _cut(table: Mapping[str, Any]) -> str:
    """A line for each run that its time limit ended: another machine, or another load of this one, cuts elsewhere."""
    said = [
        f"- {name}, seed {seed}: stopped by its time limit at step {step} of {planned}\n"
        for name, row in table["rows"].items()
        if "cut_from" in row
        for seed, step, planned in zip(row["seeds"], row["steps"], row["cut_from"], strict=True)
        if planned
    ]
    return "".join(said)


def _shown(table: Mapping[str, Any]) -> list[str]:
    """The leading metrics that any row has."""
    return [metric for metric in table["lead"] if any(metric in row["metrics"] for row in table["rows"].values())]


def _having(table: Mapping[str, Any], metrics: Sequence[str]) -> Mapping[str, Any]:
    """The table with the rows that have any of the metrics."""
    rows = {name: row for name, row in table["rows"].items() if any(metric in row["metrics"] for metric in metrics)}
    return {**table, "rows": rows}


def _with_groups(table: Mapping[str, Any], columns: int, cells) -> Iterable[list[str]]:
    last = None
    for name, row in table["rows"].items():
        group = row.get("group", "baselines") or "models"
        if group != last and group:
            yield [f"*{group}*", *[""] * (columns - 1)]
        last = group
        yield cells(name, row)


def difference(found: Mapping[str, Any] | None, digits: int = 4) -> str:
    """A paired difference with its sign, its interval and an asterisk where that excludes zero.

    One from another list of the rival has the list's name behind it.
    """
    if not found:
        return ""
    low, high = found["ci95"]
    star, other = "*" if significant(found) else "", f" ({found['list']})" if "list" in found else ""
    return f"{found['value']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{star}{other}"
