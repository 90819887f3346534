"""A grid of runs: what is refused, the statistics against plain arithmetic, a kill and a failure on the way."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from fixtures import tiny_dataset
from sklearn.metrics import roc_auc_score

from hisam_jax.cells.processes import Failed, keep, note_failure
from hisam_jax.claims import claim
from hisam_jax.comparison import results, statistics, tables
from hisam_jax.comparison.execution import Workshop
from hisam_jax.comparison.grid import Grid, Tokenizer, flat
from hisam_jax.comparison.inputs import Inputs
from hisam_jax.comparison.plots import curves, curves_of
from hisam_jax.comparison.predictions import GROUPS, LISTS, LOGITS, PREDICTIONS, Frame, Scores, is_frame, load_scores
from hisam_jax.comparison.results import Scored
from hisam_jax.comparison.run import compare
from hisam_jax.comparison.runs import cut_from
from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.evaluation import ranking
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.retrieval import Ranks

QUICK = {
    "training": {
        "log_every": 2,
        "save_every": 2,
        "evaluate_every": 0,
        "monitor": None,
        "optimizer": {"warmup_steps": 1},
    },
    "data": {"items_per_row": 16, "window": 16, "rows": 4},
    "model": {"width": 16, "layers": 1, "mlp": 16},
    "evaluation": {"beams": 10, "resamples": 20, "samples": 1},
}
SHIPPED = sorted((Path(__file__).resolve().parents[1] / "configs" / "compare").glob("*.py"))
SMALL = {"residual_kmeans": {"sizes": (4, 4)}}


def listed(rows: dict) -> tuple:
    """Rows as a config file gives them."""
    return tuple({"name": name, **values} for name, values in rows.items())


def grid_config(rows: dict, **more) -> ml_collections.ConfigDict:
    """A grid over one tiny dataset."""
    tokenizers = {"rk": {"config": "configs/tokenizer/residual_kmeans.py", "overrides": SMALL}}
    base = {
        "title": "Tiny",
        "datasets": {"tiny": {"title": "A tiny shop"}},
        "tokenizers": tokenizers,
        "rows": listed(rows),
    }
    return ml_collections.ConfigDict({**base, "seeds": (0, 1), "reference": "hmat", "resamples": 50, **more})


def row(**model) -> dict:
    """A quick row over the shop's config, with other fields of its model."""
    given = {**QUICK, "training": {**QUICK["training"], "steps": 4}, "model": {**QUICK["model"], **model}}
    return {"config": "configs/shop.py", "tokenizer": "rk", "overrides": given}


def frame_of(users: int, rng: np.random.Generator) -> Frame:
    """Targets of `users` users, three rated events each."""
    masks = [{name: rng.random(n) < 0.5 for name in GROUPS} for n in (users, 3 * users)]
    labels = np.tile([True, False], 3 * users)[: 3 * users]
    return Frame(np.arange(users), rng.integers(0, 50, users), np.repeat(np.arange(users), 3), labels, *masks)


def scores_of(frame: Frame, rng: np.random.Generator, lists=("retrieval",)) -> Scores:
    """Random ranks and logits."""
    users = len(frame.user_T)
    ranks = {name: Ranks(rng.integers(1, 30, users), rng.integers(1, 30, users)) for name in lists}
    return Scores(ranks, {name: rng.normal(size=3 * users) for name in LOGITS})


def test_metrics_are_means_over_users_and_seeds():
    rng = np.random.default_rng(0)
    frame = frame_of(40, rng)
    seeds = [scores_of(frame, rng) for _ in range(3)]
    found = statistics.metrics(seeds, frame, Bootstrap(100))
    expected = [np.mean(scores.ranks["retrieval"].masked_T <= 10) for scores in seeds]
    assert found["retrieval/recall@10"]["value"] == pytest.approx(np.mean(expected))
    assert found["retrieval/recall@10"]["seeds"] == pytest.approx(expected)
    for name in LOGITS:
        by_seed = [ranking.gauc(frame.label_E, scores.logits[name], frame.rated_E) for scores in seeds]
        assert found[f"{name}/gauc"]["value"] == pytest.approx(np.mean(by_seed))
        pooled = [ranking.auc(frame.label_E, scores.logits[name]) for scores in seeds]
        assert found[f"{name}/auc"]["value"] == pytest.approx(np.mean(pooled))
    whole = statistics.metrics(seeds, frame, Bootstrap(100), "cold_user")  # in one request a user is cold or is not
    first = np.repeat(frame.of_E["cold_user"][::3], 3)
    of_users = [ranking.gauc(frame.label_E[first], s.logits["request"][first], frame.rated_E[first]) for s in seeds]
    assert whole["request/gauc"]["value"] == pytest.approx(np.mean(of_users))
    group = statistics.metrics(seeds, frame, Bootstrap(100), "cold_item")
    of = frame.of_T["cold_item"]
    plain = np.mean([np.mean(scores.ranks["retrieval"].unmasked_T[of] <= 5) for scores in seeds])
    assert group["retrieval/recall@5/unmasked"]["value"] == pytest.approx(plain)


def test_differences_are_paired_and_of_the_same_sign_as_the_means():
    rng = np.random.default_rng(1)
    frame = frame_of(60, rng)
    ours, theirs = (
        [scores_of(frame, rng, lists) for _ in range(2)] for lists in (("retrieval", "generation"), ("retrieval",))
    )
    found = statistics.differences(ours, theirs, frame, Bootstrap(200))
    one, other = (statistics.metrics(side, frame, Bootstrap(200)) for side in (ours, theirs))
    for name in ("retrieval/ndcg@10", "ranking/gauc", "ranking/auc"):
        assert found[name]["value"] == pytest.approx(one[name]["value"] - other[name]["value"])
    assert found["generation/recall@10"]["value"] == pytest.approx(
        one["generation/recall@10"]["value"] - other["retrieval/recall@10"]["value"]
    )
    assert "list" not in found["retrieval/recall@10"] and found["generation/recall@10"]["list"] == "retrieval"
    assert tables.difference(found["generation/recall@10"]).endswith("(retrieval)")
    nothing = statistics.differences(ours, ours, frame, Bootstrap(200))
    assert all(value["ci95"] == [0.0, 0.0] for value in nothing.values())
    assert not any(statistics.significant(value) for value in nothing.values())


def test_a_planted_gain_is_significant_where_unpaired_intervals_overlap():
    rng = np.random.default_rng(2)
    frame = frame_of(400, rng)
    theirs = scores_of(frame, rng)
    ranks = theirs.ranks["retrieval"]
    better = Ranks(np.maximum(1, ranks.masked_T - 2), ranks.unmasked_T)
    found = statistics.differences([Scores({"retrieval": better})], [theirs], frame, Bootstrap(300))
    one, other = (
        statistics.metrics(side, frame, Bootstrap(300))["retrieval/recall@10"]
        for side in ([Scores({"retrieval": better})], [theirs])
    )
    assert one["ci95"][0] < other["ci95"][1]
    assert statistics.significant(found["retrieval/recall@10"])
    assert tables.difference(found["retrieval/recall@10"]).endswith("*")


def test_a_run_is_resampled_once_for_all_its_pairs_which_stay_those_of_plain_arithmetic(monkeypatch):
    rng = np.random.default_rng(5)
    frame = frame_of(40, rng)
    ours, theirs = ([scores_of(frame, rng) for _ in range(2)] for _ in range(2))
    bootstrap, weighed = Bootstrap(50), []
    weigh = ranking.weighted_auc
    monkeypatch.setattr(ranking, "weighted_auc", lambda order, counts: weighed.append(1) or weigh(order, counts))
    statistics.metrics(ours, frame, bootstrap)
    once = len(weighed)
    assert once == 2 * len(LOGITS) * (1 + 50)
    found = statistics.differences(ours, theirs, frame, bootstrap)["ranking/auc"]
    assert len(weighed) == 2 * once
    statistics.differences(theirs, ours, frame, bootstrap)
    statistics.metrics(theirs, frame, bootstrap)
    assert len(weighed) == 2 * once
    statistics.metrics(theirs, frame, bootstrap, "cold_user")  # other events are another matter
    statistics.metrics(theirs, frame, Bootstrap(50, seed=1))
    assert len(weighed) > 3 * once

    user_E = np.unique(frame.rated_E, return_inverse=True)[1]
    slow = []
    for counts in np.concatenate(list(bootstrap.counts(user_E.max() + 1))):
        drawn = [
            np.mean([roc_auc_score(frame.label_E, one.logits["ranking"], sample_weight=counts[user_E]) for one in side])
            for side in (ours, theirs)
        ]
        slow.append(drawn[0] - drawn[1])
    np.testing.assert_allclose(found["ci95"], np.quantile(slow, (0.025, 0.975)), rtol=1e-9, atol=1e-12)


def published(**change) -> dict:
    """The tiny dataset with one figure of others."""
    entry = {"name": "Them", "row": "hmat", "source": "a paper", "retrieval/recall@10": 0.1, **change}
    kept = {name: value for name, value in entry.items() if value is not ...}
    return {"datasets": {"tiny": {"published": (kept,)}}}


def without(field: str) -> dict:
    """A row that lacks a field."""
    return {name: value for name, value in row().items() if name != field}


def rows(**change) -> dict:
    """The one row of the grid with other fields."""
    return {"rows": listed({"hmat": {**row(), **change}})}


RK = "configs/tokenizer/residual_kmeans.py"
METRICS = {"title": "A tiny shop", "metrics": ("retrieval/recal@10",)}


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"sedes": (0,)}, "sedes", "seeds"),
        ({"title": None}, "title", "None; expected text"),
        ({"reference": "hmatt"}, "reference", "'hmatt'; expected hmat or"),
        ({"reference": None}, "reference", "None"),
        ({"resamples": 0}, "resamples", "0; expected a whole number, 10 or more"),
        ({"resamples": "many"}, "resamples", "'many'"),
        ({"resamples": True}, "resamples", "True"),
        ({"seeds": 0}, "seeds", "value 0; expected seeds such as"),
        ({"seeds": ()}, "seeds", "different whole numbers"),
        ({"seeds": (-1,)}, "seeds", "-1"),
        ({"seeds": (0, 0)}, "seeds", "different"),
        ({"seeds": ("0",)}, "seeds", "'0'"),
        ({"rows": None}, "rows", "None; expected a list"),
        ({"rows": {"hmat": row()}}, "rows", "expected a list"),
        ({"rows": ("hmat",)}, "rows[0]", "'hmat'; expected a row with name"),
        ({"rows": ()}, "rows", "at least one"),
        ({"rows": (row(),)}, "rows[0].name", "no name"),
        ({"rows": ({"name": 7, **row()},)}, "rows[0].name", "name 7"),
        ({"rows": ({"name": "up/down", **row()},)}, "rows[0].name", "'up/down'"),
        ({"rows": ({"name": "hmat", **row()},) * 2}, "rows[1].name", "again"),
        ({"rows": listed({"popularity": row()})}, "rows", "'popularity'"),
        ({"rows": listed({"hmat": without("config")})}, "rows.hmat.config", "missing config field; expected str"),
        ({"rows": listed({"hmat": without("tokenizer")})}, "rows.hmat.tokenizer", "missing config field"),
        (rows(config=3), "rows.hmat.config", "3"),
        (rows(config={"other": "a.py"}), "rows.hmat.config", "'tiny'"),
        (rows(config={"tiny": 3}), "rows.hmat.config.tiny", "3"),
        (rows(tokenizer="none"), "rows.hmat.tokenizer", "'none'; expected rk"),
        (rows(datasets=("other",)), "rows.hmat.datasets", "'other'"),
        (rows(datasets="tiny"), "rows.hmat.datasets", "tuple"),
        (rows(against="other"), "rows.hmat.against", "'other'"),
        (rows(seeds=(1, 1)), "rows.hmat.seeds", "different"),
        (rows(seeds=1), "rows.hmat.seeds", "tuple"),
        (rows(overrides="model"), "rows.hmat.overrides", "'model'"),
        (rows(colour=1), "rows.hmat.colour", "unknown"),
        ({"tokenizers": {"rk": RK}}, "tokenizers.rk", "a section of config, overrides"),
        ({"tokenizers": {"rk": {}}}, "tokenizers.rk.config", "missing config field"),
        ({"tokenizers": (RK,)}, "tokenizers", "by name"),
        ({"datasets": ("tiny",)}, "datasets", "('tiny',); expected datasets by name"),
        ({"datasets": {"tiny": None}}, "datasets.tiny", "None"),
        ({"datasets": {"a/b": {}}}, "datasets", "'a/b'"),
        ({"datasets": {}}, "datasets", "at least one"),
        ({"datasets": {"tiny": METRICS}}, "datasets.tiny.metrics", "expected retrieval/recall@10, or"),
        ({"datasets": {"tiny": METRICS}, "pairs": (("hmat", "popularity"),)}, "datasets.tiny.metrics", "recal@10"),
        ({"datasets": {"tiny": {"metrics": (3,)}}}, "datasets.tiny.metrics", "3"),
        ({"pairs": 3}, "pairs", "3"),
        ({"pairs": ("hmat",)}, "pairs", "'hmat'; expected (row, rival)"),
        ({"pairs": (("hmat", "hmat"),)}, "pairs", "two different names"),
        ({"pairs": (("hmat", "hmatt"),)}, "pairs", "'hmatt'"),
        ({"pairs": (("hmat",),)}, "pairs", "('hmat',)"),
        ({"across": (("tiny/hmat", "tiny/hmat"),)}, "across", "two different names"),
        ({"across": (("tiny/hmat", "hmat"),)}, "across", "'hmat'"),
        ({"across": (("tiny/hmat", "tiny/popularity"),)}, "across", "tiny/popularity"),
        (published(row="b"), "datasets.tiny.published[0].row", "'b'"),
        (published(source=...), "datasets.tiny.published[0].source", "missing config field"),
        (published(name=3), "datasets.tiny.published[0].name", "3; expected text"),
        (published(**{"retrieval/recall@10": "0.1"}), "datasets.tiny.published[0].retrieval/recall@10", "a number"),
        (published(recall=0.1), "datasets.tiny.published[0]", "'recall'"),
        ({"datasets": {"tiny": {"published": (3,)}}}, "datasets.tiny.published[0]", "3; expected name, row"),
    ],
)
def test_a_grid_that_cannot_be_names_its_field(change, field, said):
    config = ml_collections.ConfigDict({**grid_config({"hmat": row()}).to_dict(), **change})
    with pytest.raises(UserError) as caught:
        Grid.of(config)
    assert caught.value.field == field and caught.value.expected and said in str(caught.value)


@pytest.mark.parametrize("field", ["title", "datasets", "tokenizers", "rows", "seeds", "reference"])
def test_a_missing_field_of_the_grid_is_named(field):
    config = grid_config({"hmat": row()}).to_dict()
    del config[field]
    with pytest.raises(UserError, match="missing config field") as caught:
        Grid.of(config)
    assert caught.value.field == field


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_grids_can_be_and_no_row_overrides_what_is_not_there(file, tmp_path):
    grid = Grid.of(load_config(file))
    cells = list(grid.cells())
    shop = Workshop(grid, tmp_path, file)
    shop.check(cells)
    for cell in cells:
        settings = shop.settings(cell)
        wanted = flat(grid.rows[cell.row].overrides) | {"seed": cell.seed}
        assert {name: flat(settings["run"])[name] for name in wanted} == json.loads(json.dumps(wanted))
    assert not list(tmp_path.iterdir())


def test_metrics_that_a_grid_may_name_are_those_of_a_table():
    rng = np.random.default_rng(0)
    frame = frame_of(40, rng)
    found = statistics.metrics([scores_of(frame, rng, LISTS)], frame, Bootstrap(20))
    assert {f"{name}/{one}" for name, of in statistics.metric_names().items() for one in of} == set(found)


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        (rows(overrides={"model": {"widht": 8}}), "rows.hmat.overrides", "model.widht: unknown config field"),
        (rows(overrides={"modle": {"width": 8}}), "rows.hmat.overrides", "modle.width"),
        (rows(overrides={"model": {"width": "wide"}}), "rows.hmat.overrides", "model.width: value 'wide'"),
        (rows(overrides={"model": {"width": 17}}), "rows.hmat.overrides", "model.heads"),
        (rows(overrides={"data": {"validation_too": True}}), "rows.hmat.overrides", "training.monitor"),
        (rows(config="configs/no_such.py"), "rows.hmat.config", "configs/no_such.py: no such config file"),
        (rows(config=RK), "rows.hmat.config", "residual_kmeans.py: "),
        (
            {"tokenizers": {"rk": {"config": RK, "overrides": {"residual_kmeans": {"size": 4}}}}},
            "tokenizers.rk.overrides",
            "residual_kmeans.size: unknown config field",
        ),
        ({"tokenizers": {"rk": {"config": "configs/shop.py"}}}, "tokenizers.rk.config", "missing config field"),
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_mistake_in_a_row_is_told_before_any_work(change, field, said, steps, tmp_path):
    config = ml_collections.ConfigDict({**grid_config({"hmat": row()}).to_dict(), **change})
    with pytest.raises(UserError) as caught:
        compare(config, tmp_path / "grid.py", tmp_path / "out", steps=steps)
    assert caught.value.field == field and said in str(caught.value) and caught.value.path == tmp_path / "grid.py"
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_asked_for_keeps_none_back(tmp_path):
    grid = Grid.of(grid_config({"hmat": row(), "bad": row(widht=3)}))
    shop = Workshop(grid, tmp_path, tmp_path / "grid.py")
    shop.check([cell for cell in grid.cells() if cell.row == "hmat"])
    with pytest.raises(UserError, match="widht"):
        shop.check(list(grid.cells()))


def test_a_cell_of_other_settings_is_refused_before_any_work_unless_it_failed(tmp_path):
    shops = [
        Workshop(Grid.of(grid_config({"hmat": row(width=width)})), tmp_path, tmp_path / "grid.py") for width in (16, 32)
    ]
    cell = next(shops[0].grid.cells())
    keep(tmp_path / cell.folder / "cell.json", shops[0].settings(cell))
    shops[0].check([cell])
    with pytest.raises(UserError, match="model.width was 16, is 32"):
        shops[1].check([cell])
    note_failure(tmp_path / cell.folder, Failed("broke"))
    shops[1].check([cell])


def test_the_first_seed_of_all_rows_comes_before_the_second_of_any():
    grid = Grid.of(grid_config({"hmat": row(), "flat": {**row(), "seeds": (5,)}}))
    assert [(cell.row, cell.seed) for cell in grid.cells()] == [("hmat", 0), ("flat", 5), ("hmat", 1)]


def test_a_claim_lasts_as_long_as_the_child_that_holds_it(tmp_path):
    with claim(tmp_path / "lock") as held:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[held])
    try:
        with claim(tmp_path / "lock") as again:
            assert again is None
        child.kill()
        child.wait()
        with claim(tmp_path / "lock") as again:
            assert again is not None
    finally:
        child.kill()


GRID = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict({config!r})
"""


def command(folder: Path, *more: str) -> list[str]:
    """`hisam compare` of the grid in a folder."""
    words = ["compare", str(folder / "grid.py"), "--out", str(folder / "out"), "--dataset", f"tiny={folder / 'tiny'}"]
    return [sys.executable, "-m", "hisam_jax", *words, *more]


def write_grid(folder: Path, rows: dict, **more) -> None:
    """A dataset and a grid over it."""
    tiny_dataset(folder / "tiny", users=30, items=40)
    (folder / "grid.py").write_text(GRID.format(config=grid_config(rows, **more).to_dict()))


def outcome(folder: Path) -> dict:
    """What a comparison found, without times."""
    result = json.loads((folder / "out" / "comparison.json").read_text())
    for entry in result["datasets"]["tiny"]["rows"].values():
        for name in ("items_per_second", "minutes", "peak_memory_bytes"):
            entry.pop(name, None)
    return result


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_tables(tmp_path):
    rows = {"hmat": row(), "flat": row(anchors=False)}
    figures = ({"name": "Them", "row": "hmat", "source": "a paper", "retrieval/recall@10": 2.0},)
    tiny = {"tiny": {"title": "A tiny shop", "published": figures}}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        both = {"pairs": (("flat", "hmat"), ("hmat", "flat")), "across": (("tiny/flat", "tiny/hmat"),)}
        write_grid(tmp_path / name, rows, seeds=(0,), datasets=tiny, **both)
    done = subprocess.run(command(tmp_path / "whole", "--jobs", "2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    killed = subprocess.Popen(command(tmp_path / "killed"), start_new_session=True, stderr=subprocess.PIPE)
    first = tmp_path / "killed" / "out" / "cells" / "tiny" / "hmat" / "seed-0" / "run" / "checkpoints"
    while not list(first.glob("*")) and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = subprocess.run(command(tmp_path / "killed"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    page = (tmp_path / "whole" / "out" / "comparison.md").read_text()
    assert all(name in page for name in ("| hmat |", "| flat |", "| item_knn |", "| popularity |"))
    assert (tmp_path / "whole" / "out" / "plots" / "tiny.svg").read_text().startswith("<?xml")
    (across,) = outcome(tmp_path / "whole")["across"]
    found = outcome(tmp_path / "whole")["datasets"]["tiny"]
    assert across["metrics"] == found["pairs"][0]["metrics"] and "| tiny/flat less tiny/hmat | " in page
    there, back = (pair["metrics"]["retrieval/recall@10"] for pair in found["pairs"])
    assert there["value"] == -back["value"] and "| flat less hmat | " + tables.difference(there) in page
    missing = found["rows"]["hmat"]["metrics"]["retrieval/recall@10"]["value"] - 2.0
    assert "| Them | a paper | retrieval/recall@10 | 2.0000 | hmat |" in page and f": {missing:+.4f} |" in page
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "whole").rglob("metrics.jsonl")}
    assert subprocess.run(command(tmp_path / "whole"), capture_output=True).returncode == 0
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "whole").rglob("metrics.jsonl")}
    only, frames = command(tmp_path / "whole", "--tables"), tmp_path / "whole" / "out" / "frames" / "tiny"
    whole = outcome(tmp_path / "whole")
    with np.load(frames / "targets.npz") as held:
        older = {name: held[name] for name in held if name != "baselines"}
    np.savez(frames / "targets.npz", **older)  # of a version with other baselines: made anew
    assert subprocess.run(only, capture_output=True).returncode == 0 and outcome(tmp_path / "whole") == whole
    assert is_frame(frames / "targets.npz")
    shutil.rmtree(frames)
    assert subprocess.run(only, capture_output=True).returncode == 0 and outcome(tmp_path / "whole") == whole


@pytest.mark.slow
def test_a_failed_cell_is_recorded_and_the_others_go_on(tmp_path):
    bad = row()
    bad["overrides"] = {**bad["overrides"], "training": {**bad["overrides"]["training"], "monitor": "validation/luck"}}
    write_grid(tmp_path, {"bad": bad, "hmat": row()}, seeds=(0,))
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert "1 of 2 cells failed" in done.stderr.splitlines()[-1] and "training.monitor" in done.stderr
    result = outcome(tmp_path)["datasets"]["tiny"]
    assert "hmat" in result["rows"] and "bad" not in result["rows"] and "bad, seed 0" in result["failed"]
    record = tmp_path / "out" / "cells" / "tiny" / "bad" / "seed-0" / "failed.json"
    assert json.loads(record.read_text())["tries"] == 1
    write_grid_again = grid_config({"bad": row(), "hmat": row()}, seeds=(0,))
    (tmp_path / "grid.py").write_text(GRID.format(config=write_grid_again.to_dict()))
    other = tmp_path / "out" / "cells" / "tiny" / "hmat" / "seed-0" / "run" / "evaluation.json"
    before = other.stat().st_mtime_ns
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = outcome(tmp_path)["datasets"]["tiny"]
    assert {"hmat", "bad"} <= set(result["rows"]) and not result["failed"] and not record.exists()
    assert other.stat().st_mtime_ns == before


@pytest.mark.slow
def test_another_dataset_under_the_same_name_is_refused(tmp_path):
    write_grid(tmp_path, {"hmat": row()}, seeds=(0,))
    tiny_dataset(tmp_path / "other", users=30, items=40, seed=9)
    grid = Grid.of(grid_config({"hmat": row()}))
    first, moved, other = (
        Workshop(grid, tmp_path / "out", tmp_path / "grid.py", given={"tiny": tmp_path / name})
        for name in ("tiny", "moved", "other")
    )
    folder = first.frame("tiny")
    before = (folder / "targets.npz").read_bytes()
    shutil.copytree(tmp_path / "tiny", tmp_path / "moved")
    assert moved.frame("tiny") == folder
    with pytest.raises(UserError, match="other settings") as caught:
        other.frame("tiny")
    assert "another --out" in str(caught.value) and (folder / "targets.npz").read_bytes() == before


def test_a_tokenizer_that_could_not_be_fitted_may_be_mended(tmp_path, monkeypatch):
    """What is kept of IDs that were never made holds nobody to it; IDs that are there do."""
    made = tmp_path / "ids" / "tiny" / "rk"

    def fails(*_) -> None:
        raise Failed("broke")

    inputs = Inputs(tmp_path, tmp_path / "grid.py", {}, given={"tiny": tmp_path / "tiny"})
    bad, mended = (Tokenizer(RK, {"residual_kmeans": {"sizes": sizes}}) for sizes in ((4,), (4, 4)))
    monkeypatch.setattr("hisam_jax.comparison.inputs.execute", fails)
    with pytest.raises(Failed):
        inputs.ids("tiny", "rk", bad, "remove it")
    monkeypatch.setattr("hisam_jax.comparison.inputs.execute", lambda *_: made.mkdir())
    assert inputs.ids("tiny", "rk", mended, "remove it") == inputs.ids("tiny", "rk", mended, "remove it") == made
    with pytest.raises(UserError, match="other settings.*sizes"):
        inputs.ids("tiny", "rk", bad, "remove it")
    made.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="unknown settings.*remove it"):
        inputs.ids("tiny", "rk", mended, "remove it")


def test_scores_are_read_once_until_their_run_is_another(tmp_path):
    """What was drawn of a run that is gone must not stand for the one in its place."""
    rng = np.random.default_rng(3)
    frame, file = frame_of(30, rng), tmp_path / PREDICTIONS
    shop = Workshop(Grid.of(grid_config({"hmat": row()})), tmp_path, tmp_path / "grid.py")

    def leave(logits: np.ndarray) -> None:
        of_frame = {"user": frame.user_T, "item": frame.item_T, "label": frame.label_E}
        np.savez(file, **of_frame, ranking_logits=logits)

    def area() -> float:
        known = results._read(shop, file, lambda: load_scores(tmp_path, frame))
        scored = Scored("tiny", frame, {}, {"hmat": [known]})
        return results._measured(shop, scored, "hmat")["metrics"]["ranking/auc"]["value"]

    leave(frame.label_E.astype(float))
    assert area() == 1.0
    once = shop.read[file][1]
    assert area() == 1.0 and shop.read[file][1] is once and len(shop.rows) == 1
    leave(-frame.label_E.astype(float))
    os.utime(file, ns=(0, 1))  # two files of one tick of the clock would pass for one
    assert area() == 0.0 and shop.read[file][1] is not once


@pytest.mark.parametrize("seeded", [False, True])
def test_a_seeded_tokenizer_is_fitted_for_every_seed_and_the_others_once(seeded, tmp_path, monkeypatch):
    made = []

    def fits(command, *_) -> None:
        made.append(command)
        Path(command[command.index("--out") + 1]).mkdir()

    monkeypatch.setattr("hisam_jax.comparison.inputs.execute", fits)
    entry = {"config": RK, "overrides": SMALL, "seeded": seeded}
    grid = Grid.of(grid_config({"hmat": row(), "flat": row(anchors=False)}, tokenizers={"rk": entry}, seeds=(0, 1, 2)))
    shop = Workshop(grid, tmp_path / "out", tmp_path / "grid.py", given={"tiny": tmp_path / "tiny"})
    shop.check(list(grid.cells()))
    found = {cell: shop.ids(cell) for cell in grid.cells()}
    assert all(found[cell] == found[dataclasses.replace(cell, row="flat")] for cell in found)
    for cell, folder in found.items():
        seed = cell.seed if seeded else 0
        assert folder.name == (f"rk.seed-{seed}" if seeded else "rk")
        assert json.loads((folder.parent / f"{folder.name}.json").read_text())["tokenizer"]["seed"] == seed
        assert shop.settings(cell)["tokenizer"]["seed"] == seed
    asked = [[word for word in command if "seed=" in word] for command in made]
    assert asked == ([["--config.seed=0"], ["--config.seed=1"], ["--config.seed=2"]] if seeded else [[]])


def test_a_run_that_its_time_limit_ended_is_told_from_those_that_ended_otherwise():
    training = {"steps": 100, "max_minutes": 20.0}
    assert cut_from(60, training, {"stopped": None}) == 100
    assert cut_from(100, training, {"stopped": None}) is None
    assert cut_from(60, training, {"stopped": "no better validation/gauc in 3 evaluations"}) is None
    assert cut_from(60, {**training, "max_minutes": None}, {}) is None


def table_of(**change) -> dict:
    """A dataset's table with one row of two seeds, without a metric."""
    run = {
        "metrics": {}, "groups": {group: {} for group in GROUPS}, "group": "", "seeds": [3, 5], "tokenizer": "dst",
        "parameters": {"total": 10, "tables": 4}, "train_flops_per_item": 1e6, "items_per_second": 9.0,
        "peak_memory_bytes": 2**30, "minutes": 20.0, "steps": [812, 2000], "best_step": [800, 2000], "device": ["cpu"],
    }  # fmt: skip
    return {
        "title": "Tiny", "lead": ["retrieval/recall@10"], "sizes": {}, "users": 1, "items": 1, "protocol": "p",
        "split_checksum": "c", "tie_break": None, "rows": {"hmat": {**run, **change}}, "failed": {},
    }  # fmt: skip


def test_a_page_says_which_runs_their_time_limit_ended():
    page = tables.markdown({"title": "T", "datasets": {"tiny": table_of(cut_from=[2000, None])}})
    assert "- hmat, seed 3: stopped by its time limit at step 812 of 2000\n" in page and "seed 5" not in page
    assert "time limit" not in tables.markdown({"title": "T", "datasets": {"tiny": table_of()}})  # of an older version


def test_a_page_without_any_metric_has_no_table_of_them():
    pair = {"row": "hmat", "rival": "flat", "metrics": {}, "groups": {group: {} for group in GROUPS}}
    page = tables.markdown({"title": "T", "datasets": {"tiny": table_of() | {"pairs": [pair]}}})
    assert "hmat less flat" not in page and "cold user" not in page and "| hmat | dst | 10 |" in page


def test_users_with_one_rated_event_are_told_of_by_auc():
    """GAUC judges inside a user: of cold users with an event each it has nothing to say."""
    lead = ["request/gauc", "ranking/gauc", "ranking/auc", "request/auc"]
    value = {"value": 0.5, "ci95": [0.4, 0.6]}
    groups = {group: {"ranking/auc": value} | ({} if group == "cold_user" else {lead[0]: value}) for group in GROUPS}
    table = table_of(metrics=dict.fromkeys(lead, value), groups=groups) | {"lead": lead}
    pair = {"row": "hmat", "rival": "din", "metrics": dict.fromkeys(lead, value), "groups": groups}
    page = tables.markdown({"title": "T", "datasets": {"tiny": table | {"pairs": [pair]}}})
    assert "| ranking/auc | cold user |" in page and "| request/gauc | cold user |" in page
    assert "| ranking/gauc | cold user |" not in page and "| request/auc | cold user |" not in page
    by_auc = page[page.index("| ranking/auc | cold user |") :].splitlines()
    assert next(line for line in by_auc if line.startswith("| hmat |")).startswith("| hmat | 0.5000 [0.4000, 0.6000] |")
    assert "Δ ranking/auc, cold user" in page
    lists = table_of(metrics={"retrieval/recall@10": value}, groups={group: {} for group in GROUPS})
    assert "auc" not in tables.markdown({"title": "T", "datasets": {"tiny": lists}})


def test_curves_are_those_of_each_metric_that_was_watched():
    one, two = ([[10, 0.1], [20, 0.3]], [[5, 0.2], [10, 0.1]])
    table = table_of(curve={"metric": "validation/a", "points": one})
    run = table["rows"]["hmat"]
    others = {
        "flat": {"metric": "validation/a", "points": two},
        "din": {"metric": "validation/b", "points": two},
        "short": {"metric": "validation/a", "points": one[:1]},
        "old": None,
    }
    table["rows"] |= {name: {**run, "curve": curve} for name, curve in others.items()}
    assert curves_of(table) == {"validation/a": {"hmat": one, "flat": two}, "validation/b": {"din": two}}
    drawn = curves(table)
    assert drawn == curves(table) and drawn.startswith("<?xml") and drawn.count("PathCollection") == 0


def test_a_published_figure_that_is_missed_says_why():
    entry = {"name": "Them", "row": "hmat", "source": "a paper", "retrieval/recall@10": 0.5, "why": "cut short"}
    page = tables.markdown({"title": "T", "datasets": {"tiny": table_of() | {"published": [entry]}}})
    assert "| Them | a paper | retrieval/recall@10 | 0.5000 | hmat |  |  | cut short |" in page


def test_frames_of_other_events_are_not_the_same():
    frame = frame_of(5, np.random.default_rng(0))
    assert frame.same(frame_of(5, np.random.default_rng(0)))
    assert not frame.same(dataclasses.replace(frame, item_T=frame.item_T + 1))


def test_a_frame_refuses_scores_of_other_targets():
    frame = frame_of(5, np.random.default_rng(0))
    arrays = {"user": frame.user_T, "item": frame.item_T + 1, "label": frame.label_E}
    with pytest.raises(UserError, match="other targets"):
        frame.check(arrays, Path("predictions.npz"))
