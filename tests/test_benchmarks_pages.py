"""Pages of benchmarks that put others' pages together: scaling laws and comparisons, with planted results."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from scaling_fixtures import LAWS, planted

from benchmarks import comparison, scaling
from hisam_jax.comparison import tables
from hisam_jax.drawing import svg
from hisam_jax.scaling import fits, page, plots

ABOUT = {"command": "python -m benchmarks.x", "date": "2026-01-02", "device": "a laptop"}


def headings(text: str) -> list[str]:
    """Lines that are titles, in order."""
    return re.findall(r"^#+ .*$", text, re.M)


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    """What `scale` returns."""
    cells = planted(laws={"hmat": LAWS["hmat"]})
    found = fits.analyse(cells, "network", 4)
    return {"title": "Planted", "learning_rate": "1e-3", "failed": {}, "cells": cells, **found}


def test_every_picture_of_the_scaling_page_lies_where_the_page_says(sweep, tmp_path, monkeypatch):
    """The whole script but the runs: two sweeps, one of which has no picture of histories, the second one later."""
    results = tmp_path / "results"

    def scale(config: Any, file: str, out: Path, **_: Any) -> dict[str, Any]:
        found = sweep if out.name == "shop" else {**sweep, "histories": [], "title": "Second"}
        (out / "plots").mkdir(parents=True)
        for name, figure in plots.figures(found).items():
            (out / "plots" / f"{name}.svg").write_text(svg(figure))
        return found

    monkeypatch.setattr(scaling, "scale", scale)
    for name in ("shop", "tiny"):
        line = ["scaling", "--only", name, "--jobs", "1", "--work", str(tmp_path / "work"), "--results", str(results)]
        monkeypatch.setattr(sys, "argv", line)
        scaling.main()
    text = (results / "scaling.md").read_text()
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(linked) == len(set(linked)) == 5 + 4
    assert {results / target for target in linked} == set((results / "scaling").rglob("*.svg"))
    assert list(json.loads((results / "scaling.json").read_text())) == ["shop", "tiny"]


def test_titles_of_sweeps_stand_one_level_below_the_scaling_page(sweep):
    pictures = list(plots.figures(sweep))
    entry = {**ABOUT, "versions": {"jax": "1.2.3"}, "seeds": [0, 3], "pictures": pictures, "result": sweep}
    text = scaling.markdown({"shop": entry})
    single = page.markdown(sweep, pictures)
    assert headings(text) == ["# Scaling laws", *(f"#{title}" for title in headings(single))]
    lines = text.splitlines()
    below = lines[lines.index("## Planted") + 1 :]
    assert below[:2] == ["", "`python -m benchmarks.x`; 2026-01-02; a laptop; jax 1.2.3; seeds 0, 3."]
    rows = [line for line in single.splitlines() if line.startswith("|")]
    assert [line for line in lines if line.startswith("|")] == rows


def grid() -> dict[str, Any]:
    """What `compare` returns: a trained row and a baseline on one dataset."""
    found = {"value": 0.25, "ci95": [0.2, 0.3], "seeds": [0.25]}
    row = {"metrics": {"retrieval/recall@10": found}, "groups": {group: {} for group in tables.GROUPS}}
    trained = {
        **row, "seeds": [0], "group": "", "tokenizer": "dst", "parameters": {"total": 30, "tables": 20}, "steps": [40],
        "train_flops_per_item": 2e6, "items_per_second": 9.0, "peak_memory_bytes": 2**30, "minutes": 1.5,
        "best_step": [40], "device": ["cpu"],
    }  # fmt: skip
    table = {
        "title": "A shop", "users": 9, "items": 8, "protocol": "leave_one_out", "split_checksum": "0123456789abcdef",
        "tie_break": "file", "sizes": {"test_users": 7}, "lead": ["retrieval/recall@10"],
        "rows": {"hmat": trained, "popularity": row}, "failed": {"hmat/1": "killed"},
    }  # fmt: skip
    return {"title": "Planted", "datasets": {"shop": table}}


def test_grids_share_a_page_and_its_words_on_how_to_read_it():
    first, second = grid(), copy.deepcopy(grid())
    second["title"] = "Second"
    entries = {name: {**ABOUT, "versions": {"jax": "1"}, "result": result} for name, result in
               (("a", first), ("b", second))}  # fmt: skip
    text = comparison.markdown(entries)
    assert headings(text) == [
        "# Tokenizers, models and switches compared", "## Planted", "### A shop", "## Second", "### A shop",
    ]  # fmt: skip
    assert text.count(tables.READING) == 1 and text.index(tables.READING) < text.index("## Planted")
    assert text.count("`python -m benchmarks.x`, 2026-01-02, a laptop, jax 1.") == 2
    assert text.count("0.2500 [0.2000, 0.3000]") == 4 and text.count("- hmat/1 failed: killed") == 2


def test_running_one_grid_keeps_the_others_and_rewrites_no_line_of_theirs(tmp_path, monkeypatch):
    """The whole script but the runs: two grids, then the second one anew with another figure."""
    monkeypatch.setattr(comparison, "RESULTS", tmp_path / "results")
    found = {"beauty": grid(), "content": {**grid(), "title": "Content"}}

    def compare(_: Any, file: str, out: Path, **__: Any) -> dict[str, Any]:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        (out / "plots" / "shop.svg").write_text("<svg/>")
        return found[Path(file).stem]

    def run(*only: str) -> list[str]:
        line = ["comparison", "--data", str(tmp_path), "--only", *only, "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", line)
        comparison.main()
        return (tmp_path / "results" / "comparison.json").read_text().splitlines()

    monkeypatch.setattr(comparison, "compare", compare)
    first = run("content", "beauty")
    found["content"]["datasets"]["shop"]["rows"]["hmat"]["metrics"]["retrieval/recall@10"]["value"] = 0.26
    second = run("content")
    assert [line.split(":")[0] for line in second] == ["{", '"beauty"', '"content"', "}"]
    assert first[1] == second[1] and first[2] != second[2]
    assert list(json.loads("\n".join(second))) == ["beauty", "content"]
    text = (tmp_path / "results" / "comparison.md").read_text()
    assert headings(text)[1::2] == ["## Planted", "## Content"] and "0.2600 [0.2000, 0.3000]" in text
    assert text.count("](comparison/") == 2
