"""A comparison as Markdown: for each dataset the leading metrics with differences, cold and warm, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hisam_jax.comparison.statistics import significant
from hisam_jax.evaluation.cold_start import GROUPS
from hisam_jax.markdown import interval, markdown_table

READING = (
    "Seen items leave every list unless a metric says unmasked. Brackets: 95 % bootstrap interval over users, of the "
    "mean over a row's seeds; ± is the standard deviation between seeds. Differences are paired over the same users; "
    "an asterisk marks an interval that excludes zero.\n"
)


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    parts = [f"# {result['title']}\n", READING]
    for table in result["datasets"].values():
        parts += [f"## {table['title']}\n", _about(table), _leading(table), _grouped(table), _cost(table)]
        parts += [f"- {cell} failed: {said}" for cell, said in table["failed"].items()]
    return "\n".join(parts).rstrip("\n") + "\n"


def _about(table: Mapping[str, Any]) -> str:
    cold = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in table["sizes"].items())
    return (
        f"{table['users']:,} users, {table['items']:,} items, {table['protocol']}, split "
        f"`{table['split_checksum'][:12]}`, ties by {table['tie_break']}; targets: {cold}.\n"
    )


def _leading(table: Mapping[str, Any]) -> str:
    lead = _shown(table)
    header = ["row", "seeds", *lead, "against", *(f"Δ {metric}" for metric in lead)]
    return markdown_table(header, _with_groups(table, len(header), _leading_row(lead)))


def _leading_row(lead: Sequence[str]):
    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        against = row.get("against") or {"row": "", "metrics": {}}
        differences = [difference(against["metrics"].get(metric)) for metric in lead]
        return [name, str(len(row.get("seeds", [])) or ""), *(interval(row["metrics"].get(m)) for m in lead),
                against["row"], *differences]  # fmt: skip

    return cells


def _grouped(table: Mapping[str, Any]) -> str:
    metric = _shown(table)[0] if _shown(table) else ""
    header = [metric, *(name.replace("_", " ") for name in GROUPS)]

    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        return [name, *(interval(row["groups"][group].get(metric), seeds=False) for group in GROUPS)]

    return markdown_table(header, _with_groups(table, len(header), cells))


def _cost(table: Mapping[str, Any]) -> str:
    header = ["row", "tokenizer", "parameters", "of them tables", "MFLOPs an item", "items/s", "host GiB", "minutes",
              "best step", "device"]  # fmt: skip

    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        flops = row["train_flops_per_item"]
        best = [f"{best} of {last}" for best, last in zip(row["best_step"], row["steps"], strict=True)]
        return [
            name, str(row["tokenizer"]), f"{row['parameters']['total']:,}", f"{row['parameters']['tables']:,}",
            f"{flops / 1e6:,.2f}" if flops else "", f"{row['items_per_second'] or 0:,.0f}",
            f"{row['peak_memory_bytes'] / 2**30:.2f}", f"{row['minutes']:.1f}",
            ", ".join(best), ", ".join(row["device"]),
        ]  # fmt: skip

    trained = {**table, "rows": {name: row for name, row in table["rows"].items() if "seeds" in row}}
    return markdown_table(header, _with_groups(trained, len(header), cells))


def _shown(table: Mapping[str, Any]) -> list[str]:
    """The leading metrics that any row has."""
    return [metric for metric in table["lead"] if any(metric in row["metrics"] for row in table["rows"].values())]


def _with_groups(table: Mapping[str, Any], columns: int, cells) -> Iterable[list[str]]:
    last = None
    for name, row in table["rows"].items():
        group = row.get("group", "baselines") or "models"
        if group != last and group:
            yield [f"*{group}*", *[""] * (columns - 1)]
        last = group
        yield cells(name, row)


def difference(found: Mapping[str, Any] | None, digits: int = 4) -> str:
    """A paired difference with its sign, its interval and an asterisk where that excludes zero."""
    if not found:
        return ""
    low, high = found["ci95"]
    return f"{found['value']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" + ("*" if significant(found) else "")
