"""A sweep as Markdown: what the laws say, what they predict, and every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hisam_jax.chips import CHIPS
from hisam_jax.markdown import interval, markdown_table
from hisam_jax.scaling.fits import best_cells, endless, recall_of, repeats
from hisam_jax.scaling.frontier import FAR, MFU

READING = (
    "L(N, D) = E + A / N^a + B / D^b, with N in {parameters}, D in items trained on and L in nats an item: the exact "
    "softmax cross-entropy of the retrieval head over all training items, on {held_out}, the same for every model. "
    "Laws by Huber's loss of log residuals, L-BFGS from many starts (approach 3 of arXiv 2203.15556); brackets are "
    "95 % intervals: of a cell over users, of a law over a bootstrap at the sweep's own N and D. Cells are single runs "
    "where they have one seed: intervals do not tell how much another seed would differ. FLOPs are useful ones: "
    "products with weights, allowed attention pairs, softmaxes; nothing padded or computed again. Peak "
    "learning rate of a cell: {learning_rate}.\n"
)
HELD_OUT = {
    True: "liked events of held-out users, none of whom training has",
    False: "liked events of the validation split, which are later ones and not other users'",
}
FAR_OFF = (
    f"- Past {FAR:g} times the largest budget that was run, or below the smallest by as much, a row is an "
    "extrapolation: its interval does not cover that the law may not hold there.\n"
)
WHAT = {"network": "parameters without tables of codes and item ids", "total": "parameters, tables included"}
PICTURES = {
    "isoflop": "Loss against size at equal FLOPs; a star is a parabola's least",
    "loss": "Loss against FLOPs",
    "recall": "Recall@10 against FLOPs",
    "frontier": "The best size and data of a budget, by law and by parabolas",
    "history": "Loss and Recall@10 against the length of history",
}


def markdown(result: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page."""
    shown = [f"![{PICTURES[name]}](plots/{name}.svg)\n" for name in pictures]
    parts = [f"# {result['title']}\n", _reading(result)]
    parts += ["## Laws\n", _laws(result), *_doubts(result), *_pick(shown, pictures, "loss", "recall")]
    parts += ["## The best size at a budget\n", _exponents(result), *_pick(shown, pictures, "isoflop", "frontier")]
    parts += [_bowls(result), "## What a budget would give\n", _predictions(result)]
    parts += ["## At equal FLOPs\n", _equal(result)]
    if result["histories"]:
        parts += ["## Length of history\n", *_pick(shown, pictures, "history"), _histories(result)]
    parts += ["## Cells\n", _cells(result), *(f"- {name} failed: {said}" for name, said in result["failed"].items())]
    return "\n".join(part for part in parts if part).rstrip("\n") + "\n"


def _reading(result: Mapping[str, Any]) -> str:
    held_out = HELD_OUT[endless(result["cells"])]
    return READING.format(
        parameters=WHAT[result["parameters"]], held_out=held_out, learning_rate=result["learning_rate"]
    )


def _pick(shown: Sequence[str], pictures: Sequence[str], *names: str) -> list[str]:
    return [text for text, name in zip(shown, pictures, strict=True) if name in names]


def _laws(result: Mapping[str, Any]) -> str:
    header = ["model", "cells", "E", "E - oracle", "A", "a", "B", "b", "rms of log L", "identified"]
    rows = []
    for model, entry in result["models"].items():
        law = entry["law"]
        if law is None:
            rows.append([model, entry["cells"], *[""] * 7, entry["why"]])
            continue
        above = "" if result["oracle"] is None else f"{law['E']['value'] - result['oracle']:.3f}"
        told = [
            interval(law["E"], 3),
            above,
            _wide(law["A"]),
            interval(law["a"], 3),
            _wide(law["B"]),
            interval(law["b"], 3),
        ]
        rows.append([model, law["cells"], *told, f"{law['rms']:.4f}", "yes" if law["identified"] else "no, see below"])
    return markdown_table(header, rows) + _oracle(result)


def _oracle(result: Mapping[str, Any]) -> str:
    """What E is to be held against."""
    text = f"\nA uniform guess loses {result['uniform']:.3f} nats."
    if result["oracle"] is not None:
        text += (
            f" The generator's own probabilities, of what such a user would like, lose {result['oracle']:.3f} on the "
            "same events: they know the tastes that a model must infer from the history, so E is to lie above that."
        )
    return text + "\n"


def _doubts(result: Mapping[str, Any]) -> list[str]:
    found = [(model, entry["law"]["doubts"]) for model, entry in result["models"].items() if entry["law"]]
    text = "- **{}: these cells do not identify the law**: {}.\n"
    return [text.format(model, "; ".join(doubts)) for model, doubts in found if doubts]


def _exponents(result: Mapping[str, Any]) -> str:
    rows = []
    for model, entry in result["models"].items():
        law, power = entry.get("exponents") or {}, entry["isoflop"]["power"]
        cost = entry.get("cost")
        rows.append([
            model, interval(law.get("n"), 3), interval(law.get("d"), 3), _wide(power["p"]) if power else "",
            f"{cost['u']:.3g} N + {cost['v']:.3g} sqrt N, worst {cost['worst']:.0%} off" if cost else "",
        ])  # fmt: skip
    header = ["model", "N* ~ C^p, law", "D* ~ C^p, law", "N* ~ C^p, parabolas", "FLOPs an item"]
    return markdown_table(header, rows)


def _bowls(result: Mapping[str, Any]) -> str:
    rows = []
    for model, entry in result["models"].items():
        for bowl in entry["isoflop"]["bowls"]:
            where = "" if bowl["inside"] else "no least among these sizes"
            size = _wide({"value": bowl["n"], "ci95": bowl["n_ci95"]}) if bowl["inside"] else ""
            rows.append([model, f"{bowl['flops']:.3g}", size, f"{bowl['loss']:.4f}", where])
    return markdown_table(["model", "FLOPs", "best N, parabola", "nats", ""], rows) if rows else ""


def _predictions(result: Mapping[str, Any]) -> str:
    rows, doubtful, far = [], [], False
    for model, entry in result["models"].items():
        for found in entry.get("predictions", []):
            said = found["said"] + ("" if "FLOPs" in found["said"] else f" = {found['flops']:.3g} FLOPs")
            far |= found["far"]
            figures = [_wide(found["n"]), _wide(found["d"]), interval(found["loss"], 3)]
            rows.append([said, model, *figures, f"{found['times_largest']:,.3g}"])
        doubtful += [model] if rows and entry["law"] and entry["law"]["doubts"] else []
    if not rows:
        return "No law, no prediction.\n"
    notes = [FAR_OFF] if far else []
    notes += [
        f"- **{model}: the law is not identified, see above**: more a drawing than a figure.\n" for model in doubtful
    ]
    hours = f"--chip-hours H --device {'|'.join(CHIPS)} [--mfu {MFU:g}] [--compiled FILE]"
    hint = f"`--flops F` and `{hours}` ask for others.\n"
    header = ["budget", "model", "best N", "items", "nats", "times the largest run"]
    return "\n".join([markdown_table(header, rows), *notes, hint])


def _equal(result: Mapping[str, Any]) -> str:
    header = ["FLOPs", "model", "best cell", "items", "nats", "Recall@10", "items/s"]
    of = {model: best_cells(result["cells"], model, result["history"]) for model in result["models"]}
    best = {model: {cell["flops"]: cell for cell in cells} for model, cells in of.items()}
    rows = [
        [f"{budget:.3g}", model, cell["size"], f"{cell['d']:,}", interval(cell["loss"]), interval(recall_of(cell)),
         f"{cell['items_per_second'] or 0:,.0f}"]
        for budget in sorted({budget for cells in best.values() for budget in cells})
        for model in result["models"]
        if (cell := best[model].get(budget))
    ]  # fmt: skip
    return markdown_table(header, rows)


def _histories(result: Mapping[str, Any]) -> str:
    rows = [
        [group["model"], group["size"], f"{cell['spent']:.2g}", cell["history"], f"{cell['d']:,}",
         interval(cell["loss"]), interval(cell["recall@10"])]
        for group in result["histories"]
        for cell in group["cells"]
    ]  # fmt: skip
    return markdown_table(["model", "size", "FLOPs", "history", "items", "nats", "Recall@10"], rows)


def _cells(result: Mapping[str, Any]) -> str:
    header = ["cell", "N", "N with tables", "D, items", "FLOPs planned", "spent", "steps", "rate", "nats", "Recall@10",
              "seconds", "device"]  # fmt: skip
    rows = [
        [
            cell["name"] + (f" ({cell['planned']['epochs']:.1f} passes)" if repeats(cell) else ""),
            f"{cell['n']['network']:,}", f"{cell['n']['total']:,}", f"{cell['d']:,}", f"{cell['planned']['flops']:.3g}",
            f"{cell['spent']:.3g}", cell["steps"], f"{cell['learning_rate']:.2g}", interval(cell["loss"]),
            interval(recall_of(cell)), f"{cell['seconds']:.0f}", cell["device"],
        ]
        for cell in result["cells"]
    ]  # fmt: skip
    return markdown_table(header, rows)


def _wide(found: Mapping[str, Any]) -> str:
    """A figure of any size with its interval, where it has one."""
    ends = found["ci95"]
    return f"{found['value']:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else "")
