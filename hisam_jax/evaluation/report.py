"""`hisam report`: one self-contained HTML page about a run, for a person who likes to look at it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.evaluation import report_data, report_results, report_samples, report_tokenizer, report_training
from hisam_jax.evaluation.report_pictures import Pictures
from hisam_jax.remote import local, write_results
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

PAGE = "report.html"


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run left, as read; `evaluation`, `samples` and `diagnostics` are None where they are not there."""

    workdir: Path
    config: dict[str, Any]
    run: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    samples: list[dict[str, Any]] | None
    diagnostics: dict[str, Any] | None
    dataset: Dataset
    table: SemanticIDTable


def report(workdir: str | os.PathLike) -> Path | str:
    """Writes `RUN/report.html` and gives its path or URL; what the run does not have yet is left out with a word.

    Raises:
        UserError: no run there, a file of it that cannot be read, or its dataset or IDs gone or changed since.
    """
    files = read_run(workdir)
    return write_results(workdir, {PAGE: render(files)})[PAGE]


def read_run(workdir: str | os.PathLike) -> RunFiles:
    """Reads a run's files, and the dataset and table of IDs that run.json names."""
    folder = local(workdir, "workdir", without=("checkpoints", "tensorboard", "profile"))
    if not (folder / "run.json").is_file():
        raise UserError("no run here (no run.json)", path=folder, expected="a folder that `hisam train` left")
    run, config = _json(folder / "run.json"), _json(folder / "config.json")
    for field in ("dataset", "ids"):
        if not isinstance(run.get(field), str):
            raise UserError("missing", path=folder / "run.json", field=field, expected=f"the path of the {field}")
    dataset, ids = Dataset.load(run["dataset"], verify=False), local(run["ids"], "ids")
    was, now = run.get("split_checksum"), dataset.manifest["split"]["checksum"]
    if was is not None and was != now:
        hint = "prepare it again as it was, or train on what it is now"
        raise UserError(f"the dataset changed since training: split {now}", path=dataset.path, expected=was, hint=hint)
    return RunFiles(
        workdir=folder,
        config=config or {},
        run=run,
        metrics=_json_lines(folder / "metrics.jsonl"),
        evaluation=_json(folder / "evaluation.json"),
        samples=_json(folder / "samples.json"),
        diagnostics=_json(ids / "diagnostics.json"),
        dataset=dataset,
        table=SemanticIDTable.load(ids, dataset.items["item_id"].to_list()),
    )


def render(files: RunFiles) -> str:
    """The page, pictures and style inline."""
    pictures = Pictures(files.dataset)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        sections = {
            "head": report_results.head(files.config, files.run, files.evaluation, files.dataset),
            "data": report_data.section(files.dataset),
            "tokenizer": report_tokenizer.section(files.table, files.diagnostics, files.dataset, pictures),
            "training": report_training.section(files.metrics, files.run),
            "results": report_results.section(files.evaluation),
            "samples": report_samples.section(files.samples, files.dataset, pictures),
        }
    sections["mosaic"] = pictures.most_popular(28)
    sections["ratio"] = pictures.ratio
    sections["config"] = json.dumps(files.config, indent=2)
    sections["record"] = json.dumps(files.run, indent=2)
    return _environment().get_template("report.html.j2").render(sections)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hisam_jax.evaluation", "templates"),
        autoescape=True,  # titles come from anyone's catalogue
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # our own charts, whose text matplotlib escapes
    environment.filters["count"] = lambda value: f"{value:,.0f}".replace(",", "\u2009")
    environment.filters["percent"] = percent
    environment.filters["two"] = lambda value: f"{round(value, 2) + 0.0:.2f}"  # the sum makes -0.0 a 0.0
    return environment


def percent(share: float) -> str:
    """0.1234 -> 12.3 %; what is not quite none or all does not round to it."""
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1\u2009%"
    if 99.95 <= value < 100:
        return "> 99.9\u2009%"
    return f"{value:.1f}\u2009%" if value % 100 else f"{value:.0f}\u2009%"


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON ({error})", path=path, expected="what the verb that wrote it left") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; one that a kill cut short ends the reading."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
