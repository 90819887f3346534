"""The page: one section a part, the question that it answers and where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUESTIONS = {
    "planted": "Planted truth: does each code tell what it should, and nothing else?",
    "real": "Real data: what do the codes tell, and what does one model make of them?",
    "mi": "Mutual information: what does its weight buy, and what does it cost downstream?",
    "collapse": "No collapse: is every level in use, whatever the seed?",
    "kmeans": "k-means: how fast is it beside faiss?",
    "ids": "IDs for a million items: how fast, in how much memory?",
    "training": "Training DST: how far is it from its matrix products alone?",
}


def page(sections: Mapping[str, tuple[Mapping[str, Any], str]]) -> str:
    """tokenizers.md from part -> (its record, its own Markdown)."""
    parts = ["# Tokenizers\n", "Each section is one part of `python -m benchmarks.tokenizers`.\n"]
    for name, (record, body) in sections.items():
        parts += [f"## {QUESTIONS[name]}\n", body.rstrip("\n") + "\n", _source(record)]
    return "\n".join(parts)


def _source(record: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seeds = record["result"].get("seeds")
    of = [f"seeds {', '.join(map(str, seeds))}"] if isinstance(seeds, list) else []
    parts = [
        f"`{record['command']}`",
        record["date"],
        record["device"],
        packages,
        f"{record['minutes']:.1f} minutes in its last start, cells kept from earlier ones not counted",
    ]
    return f"{'; '.join(parts[:1] + of + parts[1:])}.\n"


def rate(value: float | None) -> str:
    """A share or a correlation, three places."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "" if value is None else f"{value:.1%}"
