"""The tables of `real`: codes, what they tell of categories, and the fixed model's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.common import interval, table
from benchmarks.tokenizers.tables import percent, rate

Figures = Mapping[str, Any]
METRICS = [(head, metric) for head in ("generation", "retrieval") for metric in ("recall@10", "ndcg@10")]
PROBE = ("accuracy", "permuted")
INTRODUCTION = """\
Every tokenizer has 4 codes of 256 (DST 2 shared, 1 text, 1 image, or 2 shared and 2 text where there are no pictures;
`qarm` its published 6, without alignment), is fitted on training items only, and is judged on all items before
collisions are resolved. DST and RQ-VAE take some 60 passes over the items: 1,000 steps of 256 on MovieLens, 3,000 on
Beauty. `random` is the floor.

*Codes.* Collisions: (N - unique) / N, and the share of items that are not unique. Lowest use and lowest perplexity (in
codes) of any level. Title -> poster: recall at 1 and 10 of an item's poster among 1,000, by shared codes and by
latents; only tokenizers that can place one view alone have it. Held out: the same for items that no user took in
training, their number in brackets. Fit: seconds on one core.

*What codes tell.* Adjusted mutual information over the smaller entropy, of a whole group (all its codes as one) and of
its first code, with the attribute; in brackets the same after a permutation. A star: so many items are alone with their
code that chance leaves less than a tenth of the entropy to be told, and the figure means little. `category` is the
first one of an item; `tags` is the mean over its commonest ones, each a label of its own. Probe: balanced accuracy of a
linear reader of the group's codes on items that it was not fitted on, in brackets after a permutation; it is sound
where the starred figures are not.

*Downstream.* One HMAT, the same steps, batches, width (64) and depth (2) for every tokenizer, one core each, a few
minutes. **An item is its codes and nothing else**: no item-id embedding and no features, so that the tokenizer is what
is measured (with either of them codes matter little); collisions move to the next-nearest free code, so that every item
has an ID of its own and no fifth code. Full ranking, seen items masked, test targets. Brackets: 95 % bootstrap
interval over users; differences are paired. Short training: compare rows, not papers.
"""


def markdown(result: Figures) -> str:
    """All sets, one after the other."""
    return "\n".join([INTRODUCTION, *(_section(entry) for entry in result["sets"].values())])


def _section(entry: Figures) -> str:
    tokenizers = entry["tokenizers"]
    scored = next(iter(tokenizers.values()))["scored_users"]
    head = (
        f"### {entry['title']}\n\n{entry['items']:,} items, {entry['interactions']:,} events, split "
        f"`{entry['split_checksum'][:12]}`, ties by {entry['tie_break']}, {scored:,} of {entry['users']:,} users "
        "scored.\n"
    )
    parts = [head, _codes(tokenizers), _attributes(tokenizers), _downstream(tokenizers), _differences(tokenizers)]
    return "\n".join(part for part in parts if part)


def _mean(cells: Iterable[Figures], read: Callable[[Figures], float | None]) -> float | None:
    values = [value for cell in cells if (value := read(cell["diagnostics"])) is not None]
    return float(np.mean(values)) if values else None


def _codes(tokenizers: Figures) -> str:
    header = ("tokenizer", "codes", "collisions, rate", "not unique", "lowest use", "lowest perplexity")
    header += ("title -> poster @1 / @10, codes", "latents", "codes, held out", "fit, s")
    rows = []
    for name, entry in tokenizers.items():
        cells = entry["cells"]
        rows.append(
            [
                name,
                len(cells[0]["diagnostics"]["levels"]),
                percent(_mean(cells, lambda d: d["collision"]["before"]["rate"])),
                percent(_mean(cells, lambda d: d["collision"]["before"]["share"])),
                percent(_mean(cells, lambda d: min(level["utilisation"] for level in d["levels"]))),
                f"{_mean(cells, lambda d: min(level['perplexity'] for level in d['levels'])):.0f}",
                *(_recalls(cells, _title_to_poster, kind) for kind in ("codes", "latent")),
                _held_out(cells),
                f"{_mean(cells, lambda d: d['fit_seconds']):.0f}",
            ]
        )
    return table(header, rows)


def _recalls(cells: list[Figures], read: Callable[[Figures], Figures], kind: str) -> str:
    found = [_mean(cells, lambda d, k=k: read(d).get(f"{kind}_recall@{k}")) for k in (1, 10)]
    return " / ".join(map(rate, found)) if all(value is not None for value in found) else ""


def _held_out(cells: list[Figures]) -> str:
    recalls = _recalls(cells, lambda d: _title_to_poster(d).get("held_out", {}), "codes")
    return f"{recalls} ({_title_to_poster(cells[0]['diagnostics'])['held_out']['items']})" if recalls else ""


def _title_to_poster(diagnostics: Figures) -> Figures:
    return diagnostics.get("cross_modal", {}).get("text->image", {})


def _attributes(tokenizers: Figures) -> str:
    """AMI by group and by the group's first code, with `category` and averaged over the other attributes."""
    cells = {name: entry["cells"] for name, entry in tokenizers.items()}
    known = {key for of in cells.values() for key in of[0]["diagnostics"].get("ami_attributes", {})}
    levels = {key.partition("|")[0] for key in known}
    columns = [c for g in ("shared", "text", "image") for c in (g, f"{g}/0") if c in levels]
    columns = [c for c in columns if "/" in c or f"{c}/1" in levels]  # the whole of one code is that code
    labels = {key.partition("|")[2] for key in known}
    kinds = {"category": labels & {"category"}, "tags": labels - {"category"}}
    kinds = {kind: chosen for kind, chosen in kinds.items() if chosen}
    if not kinds:
        return ""
    probed = [group for group in ("shared", "text", "image") if f"{group}/0" in levels] if "category" in kinds else []
    header = ["tokenizer", *(f"{column}, {kind}" for kind in kinds for column in columns)]
    rows = [
        [name, *(_told(of, column, chosen) for chosen in kinds.values() for column in columns), *_probes(of, probed)]
        for name, of in cells.items()
    ]
    return table([*header, *(f"{group}, category, probe" for group in probed)], rows)


def _probes(cells: list[Figures], groups: Iterable[str]) -> list[str]:
    found = []
    for group in groups:
        both = [_mean(cells, lambda d, g=group, k=k: d["probes"].get(f"{g}|category", {}).get(k)) for k in PROBE]
        found.append("" if None in both else f"{both[0]:.3f} ({both[1]:.3f})")
    return found


def _told(cells: list[Figures], column: str, labels: Iterable[str]) -> str:
    keys = [f"{column}|{label}" for label in sorted(labels)]
    found = [cell["diagnostics"]["ami_attributes"].get(key) for cell in cells for key in keys]
    found = [figures for figures in found if figures is not None]
    if not found:
        return ""
    value, permuted = (np.mean([figures[name] for figures in found]) for name in ("value", "permuted"))
    star = "*" if min(figures.get("headroom", 1) for figures in found) < 0.1 else ""
    return f"{value:.3f}{star} ({permuted:.3f})"


def _downstream(tokenizers: Figures) -> str:
    header = ("tokenizer", *(f"{head} {metric}" for head, metric in METRICS))
    rows = [
        [name, *(interval(entry["metrics"][head][metric]) for head, metric in METRICS)]
        for name, entry in tokenizers.items()
    ]
    return table(header, rows)


def _differences(tokenizers: Figures) -> str:
    header = ("paired", *(f"{head} {metric}" for head, metric in METRICS))
    rows = [
        [f"{name} - dst", *(interval(entry["minus_base"][head][metric]) for head, metric in METRICS)]
        for name, entry in tokenizers.items()
        if "minus_base" in entry
    ]
    return table(header, rows)
