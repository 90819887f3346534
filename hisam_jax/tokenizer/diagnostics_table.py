"""diagnostics.json as a table for a terminal or a log: what `hisam tokenize` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hisam_jax.tokenizer.adjusted_information import LEAST_HEADROOM

BRANCHES = {"full": "all codes", "shared_only": "shared only", "specific_only": "specific only"}


def diagnostics_table(report: Mapping[str, Any], out: str) -> str:
    """The text, parts without figures left out; lines stay within 100 columns but for long names.

    Args:
        report: what diagnostics.json holds.
        out: the folder that holds it.
    """
    parts = [
        _head(report, out),
        _levels(report),
        _collisions(report),
        _reconstruction(report),
        _retrieval(report),
        _matrix("what codes tell of one another (adjusted information; shuffled)", report.get("ami")),
        _matrix("groups of codes as one", report.get("ami_joint")),
        _attributes(report),
        _probes(report),
        "\n".join(f"note: {note}" for note in report.get("notes", [])),
        "\n".join(f"alarm: {one['subject']}: {one['found']} ({one['cause']})" for one in report.get("alarms", [])),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(report: Mapping[str, Any], out: str) -> str:
    pace = f"{report['items_per_second']:,.0f} items a second" if "items_per_second" in report else ""
    taken = f"{report['seconds']:.0f} s" if "seconds" in report else ""
    items = f"{report['items']:,} items, {report['train_items']:,} of them fitted on" if "items" in report else ""
    return f"{out}: {', '.join(word for word in (report['tokenizer'], items, taken, pace) if word)}"


def _levels(report: Mapping[str, Any]) -> str:
    prefixes = report.get("prefixes", [])
    rows = [
        [
            level["name"],
            f"{level['size']}",
            f"{level['utilisation']:.1%}",
            f"{level['dead']}",
            f"{level['perplexity']:.1f}",
            f"{level['gini']:.2f}" if "gini" in level else "",
            f"{level['items']:,}" if "items" in level else "",
            f"{prefixes[index]:,}" if index < len(prefixes) else "",
        ]
        for index, level in enumerate(report["levels"])
    ]
    return _table(["level", "codes", "in use", "dead", "perplexity", "Gini", "items", "prefixes"], rows)


def _collisions(report: Mapping[str, Any]) -> str:
    rows = [
        [f"{when} resolution", f"{found['rate']:.2%}", f"{found['share']:.2%}"]
        for when, found in report["collision"].items()
    ]
    return _table(["collisions", "items beyond their codes", "items not unique"], rows)


def _reconstruction(report: Mapping[str, Any]) -> str:
    ranks, rivals = (report.get("lookalikes", {}).get(key, {}) for key in ("rank", "rivals"))
    rows = []
    for modality, errors in report.get("reconstruction", {}).items():
        for branch, name in BRANCHES.items():
            rank = ranks.get(modality, {}).get(branch)
            place = f"{rank['median']:.0f} of {rivals[modality]}" if rank else ""
            rows.append([modality, name, f"{errors[branch]:.3f}", place])
    return _table(["rebuilt from codes", "", "error (mean item 1)", "own item's place"], rows)


def _retrieval(report: Mapping[str, Any]) -> str:
    rows = []
    for way, found in report.get("cross_modal", {}).items():
        for who, row in (("fitted", found), ("held out", found.get("held_out"))):
            if row:
                shares = [f"{row[key]:.1%}" for key in ("latent_recall@1", "latent_recall@10")]
                shares += [f"{row[key]:.1%}" for key in ("codes_recall@1", "codes_recall@10")]
                rows.append([way, who, f"{row['items']} of {row.get('pool', row['items'])}", *shares])
    return _table(["finding the other view", "", "items", "latent @1", "@10", "shared codes @1", "@10"], rows)


def _matrix(title: str, cells: Mapping[str, Mapping[str, float]] | None) -> str:
    """One row a first name, one column a second; `-` where codes are too fine for the figure to mean anything."""
    if not cells:
        return ""
    pairs = {tuple(key.split("|", 1)): cell for key, cell in cells.items()}
    rows, columns = (list(dict.fromkeys(key[side] for key in pairs)) for side in (0, 1))

    def shown(cell: Mapping[str, float] | None) -> str:
        if cell is None:
            return ""
        return (
            "-" if cell.get("headroom", 1.0) < LEAST_HEADROOM else f"{_two(cell['value'])} {_two(cell['permuted']):>5}"
        )

    body = [[row, *(shown(pairs.get((row, column))) for column in columns)] for row in rows]
    return f"{title}\n{_table(['', *columns], body)}"


def _attributes(report: Mapping[str, Any]) -> str:
    """Levels, then groups of several levels; a group of one would repeat its level."""
    single = [level["modality"] for level in report["levels"]]
    single = [f"{group}|" for group in single if single.count(group) == 1]
    cells = {k: cell for k, cell in report.get("ami_attributes", {}).items() if not k.startswith(tuple(single))}
    return _matrix("what codes tell of attributes (adjusted information; shuffled)", cells)


def _probes(report: Mapping[str, Any]) -> str:
    cells = {
        key: {"value": row["accuracy"], "permuted": row["permuted"]} for key, row in report.get("probes", {}).items()
    }
    return _matrix("attributes read from codes of unseen items (balanced accuracy; shuffled)", cells)


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # the sum makes -0.0 a 0.0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, numbers to the right; empty without rows."""
    if not rows:
        return ""
    lines = [list(head), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    plain = [column < 2 and not any(_is_number(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, plain, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] == "-"
