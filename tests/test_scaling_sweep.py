"""A sweep: what is refused, what cells are planned to be, the held-out loss, and one that is killed on the way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest
from fixtures import tiny_dataset

from hisam_jax import cli
from hisam_jax.cells.processes import Failed, Stopped, execute, note_failure, tries_of
from hisam_jax.config import load_config
from hisam_jax.data.shop import ShopConfig, oracle_nats, user_events
from hisam_jax.errors import UserError
from hisam_jax.evaluation.baselines import popularity
from hisam_jax.evaluation.targets import load_events
from hisam_jax.inference.run import Run, make_scorer
from hisam_jax.inference.scoring import HistoryReader
from hisam_jax.models.heads import make_objective
from hisam_jax.scaling import heldout, plan
from hisam_jax.scaling.flops import train_flops
from hisam_jax.scaling.run import list_cells, scale
from hisam_jax.scaling.sizes import Rate
from hisam_jax.scaling.sweep import Sweep, chosen, completed
from hisam_jax.scaling.yard import Yard
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.training.assembly import assemble
from hisam_jax.training.watching import lengths_of

ROOT = Path(__file__).resolve().parents[1]
TINY, SHOP = (ROOT / "configs" / "scaling" / f"{name}.py" for name in ("tiny", "shop"))


def sweep_of(**change) -> ml_collections.ConfigDict:
    """The tiny sweep with other fields."""
    return ml_collections.ConfigDict({**load_config(TINY).to_dict(), **change})


def part(**change) -> dict:
    """A part of the grid."""
    return {"one": {"sizes": ("w8",), "budgets": (1e9,), "histories": (16,), **change}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": 1}, "colour"),
        ({"parts": {}}, "parts"),
        ({"sizes": {}}, "sizes"),
        ({"models": {"Up/down": {}}}, "models"),
        ({"sizes": {"w8": {"width": 8, "layers": 1, "heads": 3}}}, "sizes.w8.heads"),
        ({"sizes": {"w8": {"width": 8, "layers": 1, "heads": 1, "depth": 2}}}, "sizes.w8.depth"),
        ({"sizes": {"w8": {"width": 8, "layers": 0, "heads": 1}}}, "sizes.w8.layers"),
        ({"parts": part(sizes=("w9",))}, "parts.one.sizes"),
        ({"parts": part(models=("sasrec",))}, "parts.one.models"),
        ({"parts": part(budgets=())}, "parts.one.budgets"),
        ({"parts": part(budgets=(0,))}, "parts.one.budgets"),
        ({"parts": part(budgets=("many",))}, "parts.one.budgets"),
        ({"parts": part(items=(2.5,))}, "parts.one.items"),
        ({"parts": part(histories=(1,))}, "parts.one.histories"),
        ({"parts": part(histories=(512,))}, "parts.one.histories"),  # more than a batch holds
        ({"parts": part(seeds=(-1,))}, "parts.one.seeds"),
        ({"learning_rate": {"base": 0.0}}, "learning_rate.base"),
        ({"learning_rate": {"found": {"64": 1e-3}}}, "learning_rate.found"),
        ({"warmup": 1.0}, "warmup"),
        ({"parameters": "all"}, "parameters"),
        ({"resamples": 3}, "resamples"),
        ({"sizes": {"w8": 8}}, "sizes.w8"),
        ({"sizes": 8}, "sizes"),
        ({"sizes": {8: {"width": 8, "layers": 1, "heads": 1}}}, "sizes"),
        ({"sizes": {"w8": {"layers": 1, "heads": 1}}}, "sizes.w8.width"),
        ({"sizes": {"w8": {"width": 8, "layers": 1}}}, "sizes.w8.heads"),
        ({"parts": [{"sizes": ("w8",)}]}, "parts"),
        ({"parts": "isoflop"}, "parts"),
        ({"parts": {"isoflop": "w8"}}, "parts.isoflop"),
        ({"parts": {"isoflop": {}}}, "parts.isoflop.sizes"),
        ({"parts": part(sizes="w8")}, "parts.one.sizes"),
        ({"parts": part(sizes=(["w8"],))}, "parts.one.sizes"),
        ({"parts": part(budgets=(1.001e9, 1.002e9))}, "parts"),
        ({"parts": part() | {"two": part(budgets=(1.0004e9,))["one"]}}, "parts"),
        ({"models": {"hmat": 3}}, "models.hmat"),
        ({"models": {"hmat": None}}, "models.hmat"),
        ({"models": ("hmat",)}, "models"),
        ({"data": 3}, "data"),
        ({"data": {"prepare": "shop"}}, "data.prepare"),
        ({"tokenizer": {}}, "tokenizer.config"),
        ({"tokenizer": "configs/tokenizer/dst.py"}, "tokenizer"),
        ({"overrides": "endless"}, "overrides"),
        ({"learning_rate": 4e-3}, "learning_rate"),
        ({"learning_rate": {"base": math.inf}}, "learning_rate.base"),
        ({"learning_rate": {"power": math.nan}}, "learning_rate.power"),
        ({"learning_rate": {"found": {"abc": 1e-3, "64": 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {6.5: 1e-3, 64: 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {"32": "x", "64": 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {"32": None, "64": 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {"32": math.inf, "64": 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {"0": 1e-3, "64": 1e-3}}}, "learning_rate.found"),
        ({"learning_rate": {"found": {"64": 1e-3, "064": 2e-3}}}, "learning_rate.found"),
    ],
)
def test_a_sweep_that_cannot_be_names_its_field(change, field):
    with pytest.raises(UserError) as caught:
        Sweep.of(sweep_of(**change))
    assert caught.value.field == field and caught.value.expected


def test_a_missing_field_is_named():
    config = load_config(TINY)
    del config.sizes
    with pytest.raises(UserError, match="field 'sizes': missing config field; expected Mapping"):
        Sweep.of(config)


@pytest.mark.parametrize("config", [TINY, SHOP])
@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("resamples", "20", 20),
        ("parameters", "total", "total"),
        ("epochs", "8", 8.0),
        ("attempts", "1", 1),
        ("overrides", "{'data': {'endless': False}}", {"data": {"endless": False}}),
        ("learning_rate.power", "1", 1.0),
        ("learning_rate.found", "{'32': 2e-3, '64': 1e-3}", {"32": 2e-3, "64": 1e-3}),
        ("sizes.w24.mlp", "40", 40),
        ("tokenizer.config", "configs/tokenizer/opq.py", "configs/tokenizer/opq.py"),
    ],
)
def test_fields_that_a_sweep_leaves_out_can_be_overridden(config, field, text, value):
    sweep = Sweep.of(load_config(config, {field: text}, completed))
    for name in field.split("."):
        sweep = sweep[name] if isinstance(sweep, dict) else getattr(sweep, name)
    assert sweep == value


def test_lists_of_a_part_can_be_overridden_and_what_is_left_out_stays_as_it_was():
    before, after = (
        Sweep.of(load_config(TINY, changed, completed)) for changed in ({}, {"parts.history.seeds": "[1, 2]"})
    )
    assert before == Sweep.of(load_config(TINY))
    assert after.parts["history"].seeds == (1, 2) and after.parts["isoflop"] == before.parts["isoflop"]


def test_budgets_that_share_digits_may_be_of_different_sizes():
    parts = part() | {"two": part(sizes=("w16",), budgets=(1.002e9,))["one"]}
    assert len(Sweep.of(sweep_of(parts=parts)).cells()) == 4


def test_cells_are_there_once_and_the_cheap_ones_first():
    parts = part(histories=(16, 4)) | {"again": part()["one"], "data": part(items=(500,), budgets=())["one"]}
    sweep = Sweep.of(sweep_of(parts=parts))
    cells = sweep.cells()
    assert len(set(cells)) == len(cells) == len({cell.name for cell in cells}) == 6
    assert [cell.items for cell in cells[:2]] == [500, 500] and cells[-1].flops == 1e9
    assert {cell.name for cell in cells} >= {"hmat-w8-h16-c1e09-s0", "flat-w8-h16-d500-s0"}
    assert chosen(cells, ["2", cells[0].name]) == [cells[1], cells[0]]
    with pytest.raises(UserError, match="'7'; expected 1 to 6"):
        chosen(cells, ["7"])


@pytest.mark.parametrize("config", [TINY, SHOP])
def test_shipped_sweeps_can_be(config):
    sweep = Sweep.of(load_config(config))
    flops = [cell.flops for cell in sweep.cells()]
    assert {cell.model for cell in sweep.cells()} == {"hmat", "flat"} and min(flops) > 0
    assert config == TINY or max(flops) / min(flops) >= 1000


def test_the_rate_goes_over_to_other_widths_by_its_rule():
    assert Rate(4e-3, 64, 0.5).at(256) == pytest.approx(2e-3)
    assert Rate(4e-3, 64, 1.0).at(256) == pytest.approx(1e-3)
    assert Rate(base_width=64, found={32: 8e-3, 64: 4e-3}).at(128) == pytest.approx(2e-3)
    fitted = Rate(base_width=64, found={"32": 8e-3, "64": 4e-3, "128": 2e-3})
    assert fitted.at(256) == pytest.approx(1e-3) and fitted.at(64) == pytest.approx(4e-3)
    assert fitted.said() == "0.004 (64 / width)^1, fitted to 3 widths"


def test_settings_of_a_cell_are_those_of_its_size_history_and_batch(tmp_path):
    yard = Yard(Sweep.of(load_config(TINY)), tmp_path, TINY)
    cell = next(cell for cell in yard.sweep.cells() if cell.name == "flat-w16-h4-c3e09-s0")
    run = yard.settings(cell)["run"]
    assert (run["model"]["width"], run["model"]["mlp"], run["model"]["kv_heads"], run["model"]["anchors"]) == (
        16, 44, 2, False,
    )  # fmt: skip
    assert (run["data"]["rows"], run["data"]["items_per_row"], run["data"]["window"]) == (64, 4, 4)
    assert run["training"]["optimizer"]["learning_rate"] == pytest.approx(4e-3 * 2)


CONFIG = {
    "model": {"width": 16, "layers": 1, "mlp": 24, "dropout": 0.0, "generation": 0.0},
    "data": {"items_per_row": 16, "window": 16, "rows": 2},
    "training": {"monitor": None},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """One tiny dataset and its IDs."""
    folder, rng = tmp_path_factory.mktemp("scaling"), np.random.default_rng(0)
    data = tiny_dataset(folder / "data", users=30, items=40)
    codes = rng.integers(0, 8, (40, 2)).astype(np.int32)
    levels = tuple(Level(f"text/{k}", "text", 8) for k in range(2))
    ids = data.items["item_id"]
    SemanticIDTable(levels, codes, np.arange(40, dtype=np.int32), 40, ids, {"name": "t"}, "digit").save(folder / "ids")
    return folder / "data", folder / "ids"


@pytest.fixture(scope="module")
def assembled(inputs):
    """`config -> Assembly` over them."""
    return lambda **data_fields: assemble(*inputs, {**CONFIG, "data": {**CONFIG["data"], **data_fields}})


def test_steps_spend_the_budget(assembled):
    found = plan.make_plan(assembled(), 1e9, 0, 1e9)
    assert found.flops == pytest.approx(1e9, rel=0.05) and found.steps > 10
    assert found.flops / found.items == pytest.approx(found.flops_per_item)
    assembly = assembled()
    batch = next(iter(plan.make_pipeline(assembly.dataset, assembly.table.codes_IL, assembly.configs.data)))
    lengths = lengths_of(batch["segment"])
    each = train_flops(assembly.configs.model, plan.vocabulary_of(assembly), lengths) / lengths.sum()
    assert found.flops_per_item == pytest.approx(each, rel=0.2)
    assert found.epochs == pytest.approx(found.items / assembly.dataset.users["train_events"].sum())
    assert plan.overrides_of(found, 0.1)["warmup_steps"] == round(0.1 * found.steps)


def test_items_may_be_given_in_place_of_a_budget(assembled):
    found = plan.make_plan(assembled(), 0, 1000, 100)
    assert found.items == pytest.approx(1000, rel=0.02)


def test_a_budget_below_one_step_is_refused(assembled):
    with pytest.raises(UserError, match="one step takes") as caught:
        plan.make_plan(assembled(), 10.0, 0, 4)
    assert caught.value.field == "parts.budgets" and "one step at least" in caught.value.expected


def test_data_that_would_be_seen_too_often_is_refused(assembled):
    with pytest.raises(UserError, match="passes") as caught:
        plan.make_plan(assembled(), 1e10, 0, 4)
    assert caught.value.field == "epochs" and "data.endless" in caught.value.hint


def run_of(assembly) -> Run:
    """A run that was never trained."""
    full = assembly.table.full_codes()
    _, init_fn = make_objective(assembly.model, assembly.catalog, full)
    batch = next(iter(plan.make_pipeline(assembly.dataset, assembly.table.codes_IL, assembly.configs.data)))
    params = jax.tree.map(lambda x: 2 * x, jax.jit(init_fn)(jax.random.key(0), batch))
    events = load_events(assembly.dataset)
    reader = HistoryReader(assembly.dataset, assembly.configs.data.window)
    return Run("w", {}, assembly, make_scorer(assembly, params, popularity(events)), reader, events)


def test_the_held_out_loss_is_that_of_each_event_by_itself(assembled):
    """Histories shorter than the window: a pass over a user's row, beside a score of the catalogue for each event."""
    assembly = assembled()
    run = run_of(assembly)
    events = heldout.held_out(assembly, run.events)
    nats_E = heldout.heldout_nats(run, events)
    trained_I = np.asarray(assembly.catalog.trained_I)
    histories = [run.reader.before(*of) for of in zip(events.user_E, events.position_E, strict=True)]
    score_EI = run.scorer.retrieval(histories).astype(float)
    for score_I, item, nats in zip(score_EI, events.item_E, nats_E, strict=True):
        expected = np.log(np.exp(score_I[trained_I]).sum()) - score_I[item]
        assert nats == pytest.approx(expected, rel=1e-4)
    assert len(nats_E) == (run.events.split_E[run.events.positive_E] == 1).sum() - _untrained(run, trained_I)


def _untrained(run: Run, trained_I: np.ndarray) -> int:
    of = (run.events.split_E == 1) & run.events.positive_E
    return int((~trained_I[run.events.item_E[of]]).sum())


def test_without_end_every_liked_event_of_the_datasets_users_is_held_out(assembled):
    assembly = assembled()
    data = dataclasses.replace(assembly.configs.data, endless=True)
    endless = dataclasses.replace(assembly, configs=dataclasses.replace(assembly.configs, data=data))
    events = load_events(assembly.dataset)
    found = heldout.held_out(endless, events)
    known = (events.train_count_I > 0)[events.item_E]
    assert len(found.user_E) == (events.positive_E & (events.position_E > 0) & known).sum()


def test_the_oracle_knows_what_would_be_liked():
    """What was not liked has none; where everything counts as liked, it is the recorded probability of the draw."""
    config = ShopConfig(items=64, events_per_user=12.0, cold_items=0.0, horizon_days=300.0)
    users = np.arange(6)
    nats = oracle_nats(config, users, 3.0)
    for user, found in zip(users.tolist(), nats, strict=True):
        assert (
            np.array_equal(np.isfinite(found), user_events(config, user).rating > 3)
            and (found[found == found] > 0).all()
        )
    everything = np.concatenate(oracle_nats(config, users, -9.0))
    plain = np.concatenate([user_events(config, user).nll for user in users.tolist()])
    assert everything == pytest.approx(plain, abs=1e-4)


def test_draws_that_were_liked_follow_the_oracle():
    """It loses less on liked events than the probabilities of all events do, if it has their ratings right."""
    config = ShopConfig(items=64, events_per_user=24.0, cold_items=0.0)
    users = np.arange(40)
    liked = np.concatenate(oracle_nats(config, users, 3.0))
    plain = np.concatenate([user_events(config, user).nll for user in users.tolist()])
    kept = np.isfinite(liked)
    assert 0.02 < (plain[kept] - liked[kept]).mean() < 1.0


def test_a_cell_that_failed_too_often_is_not_tried_again(tmp_path):
    yard = Yard(Sweep.of(sweep_of(attempts=2)), tmp_path, TINY)
    cell = yard.sweep.cells()[0]
    folder = tmp_path / cell.folder
    folder.mkdir(parents=True)
    assert yard.again(cell, Failed("killed", -9)) and not yard.again(cell, Failed("no such field", 2))
    for _ in range(2):
        note_failure(folder, Failed("killed", -9))
    assert tries_of(folder) == 2 and not yard.again(cell, Failed("killed", -9))
    with pytest.raises(Failed, match="killed .2 times; remove"):
        yard.run(cell, 0, threading.Event())
    assert yard.failed() == {cell.name: "killed"}


def test_a_cell_that_failed_too_often_is_tried_again_once_it_is_mended(tmp_path, monkeypatch):
    yards = [Yard(Sweep.of(sweep_of(attempts=1, warmup=warmup)), tmp_path, TINY) for warmup in (0.1, 0.2)]
    cell = yards[0].sweep.cells()[0]
    folder = tmp_path / cell.folder
    monkeypatch.setattr(Yard, "inputs", lambda yard: (tmp_path, tmp_path))

    def fails(*_) -> None:
        (folder / "plan.json").write_text("{}")
        raise Failed("broke", 2)

    monkeypatch.setattr("hisam_jax.scaling.yard.execute", fails)
    with pytest.raises(Failed):
        yards[0].run(cell, 0, threading.Event())
    assert tries_of(folder) == 1
    monkeypatch.setattr("hisam_jax.scaling.yard.execute", lambda *_: None)
    yards[1].run(cell, 0, threading.Event())
    assert json.loads((folder / "task.json").read_text()) == yards[1].settings(cell)
    assert not (folder / "plan.json").exists() and tries_of(folder) == 0
    with pytest.raises(UserError, match="warmup was 0.2, is 0.1"):
        yards[0].run(cell, 0, threading.Event())


def test_a_cell_in_this_process_may_be_mended_too(tmp_path, monkeypatch):
    yards = [Yard(Sweep.of(sweep_of(warmup=warmup)), tmp_path, TINY) for warmup in (0.1, 0.2)]
    cell = yards[0].sweep.cells()[0]
    monkeypatch.setattr(Yard, "inputs", lambda yard: (tmp_path, tmp_path))

    def fails(*_) -> None:
        raise UserError("one step takes more", field="parts.budgets")

    monkeypatch.setattr("hisam_jax.scaling.yard.run_cell", fails)
    with pytest.raises(UserError, match="one step"):
        yards[0].run_here(cell)
    assert "one step takes more" in yards[0].failed()[cell.name]
    monkeypatch.setattr("hisam_jax.scaling.yard.run_cell", lambda *_: None)
    yards[1].run_here(cell)
    assert not yards[1].failed()


def test_a_step_is_stopped_when_we_are(tmp_path):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(open('saved', 'w').close()))"
    (tmp_path / "step.py").write_text(f"import os; os.chdir({str(tmp_path)!r})\n{code}\ntime.sleep(60)")
    with pytest.raises(Stopped):
        execute([str(tmp_path / "step.py")], tmp_path / "log", (), stop)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scale {tiny}", "field '--out': no folder"),
        ("scale {tiny} --out o --chip-hours 3", "field '--chip-hours': hours and their device come together"),
        ("scale {tiny} --out o --chip-hours 3 --device h300", "field '--device': value 'h300'"),
        ("scale {tiny} --out {out} --only 99", "field '--only': value '99'"),
        ("scale {tiny} --out {out} --fits-only", "no law"),
        ("scale {tiny} --out {out} --config.sizes.w8.heads=3", "field 'sizes.w8.heads'"),
        ("scale {tiny} --list --config.resample=3", "field 'resample': unknown config field; expected resamples or"),
        ("scale {tiny} --list --config.sizes=3", "field 'sizes': value 3"),
        ("scale {tiny} --list --config.parts={{'a':{{}}}}", "field 'parts.a.sizes': missing config field"),
        (
            "scale {tiny} --list --config.overrides={{'a.b':1}}",
            "field 'overrides': value {'a.b': 1}; expected names of text without dots",
        ),
        ("scale {tiny} --list --config.overrides=None", "field 'overrides': value None"),
        ("scale {tiny} --out {out} --ids i", "field '--ids': IDs without their dataset"),
        ("scale {tiny} --out {out} --dataset {out}/none", "none: field '--dataset': no such dataset folder"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(line, said, tmp_path, capsys):
    arguments = line.format(tiny=TINY, out=tmp_path / "out").split()
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hisam: error: ") and captured.err.count("\n") == 1 and said in captured.err


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"models": {"hmat": {"model": {"wdith": 8}}}}, "models.hmat.model.wdith"),
        ({"models": {"hmat": {"model": 3}}}, "models.hmat.model"),
        ({"models": {"hmat": {"mesh": None}}}, "models.hmat.mesh"),
        ({"models": {"hmat": {"model": {"dropout": 2.0}}}}, "models.hmat.model.dropout"),
        ({"overrides": {"training": {"stps": 3}}}, "overrides.training.stps"),
        ({"tokenizer": {"config": "configs/tokenizer/opq.py", "overrides": {"opq": {"a": 1}}}},
         "tokenizer.overrides.opq.a"),
        ({"tokenizer": {"config": "configs/tokenizer/opq.py", "overrides": {"collisions": "none of these"}}},
         "tokenizer.overrides.collisions"),
        ({"models": {"hmat": {}, "flat": {"data": {"endless": False}}}}, "models"),
    ],
)  # fmt: skip
def test_configs_are_refused_before_anything_is_made(change, field, tmp_path):
    with pytest.raises(UserError) as caught:
        scale(sweep_of(**{"parts": part(), **change}), TINY, tmp_path / "out")
    assert caught.value.field == field and caught.value.path == TINY and caught.value.expected
    assert not (tmp_path / "out" / "datasets").exists() and not list((tmp_path / "out").glob("locks/*"))


def test_ids_of_another_catalogue_are_refused_by_their_flag(inputs, tmp_path):
    other = tiny_dataset(tmp_path / "data", users=20, items=30)
    for ids, problem in ((inputs[1], "other|30|40"), (tmp_path / "none", "no ")):
        with pytest.raises(UserError, match=problem) as caught:
            scale(load_config(TINY), TINY, tmp_path / "out", dataset=other.path, ids=ids)
        assert caught.value.field == "--ids"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"model": "hmat"}'])
@pytest.mark.parametrize("name", ["cell.json", "task.json"])
def test_a_damaged_file_of_a_cell_is_named(name, text, tmp_path):
    yard = Yard(Sweep.of(load_config(TINY)), tmp_path, TINY)
    cell = yard.sweep.cells()[0]
    folder = tmp_path / cell.folder
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text("{}")
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="a damaged file") as caught:
        yard.results() if name == "cell.json" else yard.done(cell)
    assert caught.value.path == folder / name and "remove" in caught.value.hint


def test_more_epochs_leave_finished_cells_finished_and_serve_the_others(tmp_path, monkeypatch):
    """`task.json` holds the `epochs` that it was made with, which only say what is refused."""
    yards = [Yard(Sweep.of(sweep_of(epochs=epochs)), tmp_path, TINY) for epochs in (4.0, 8.0)]
    cell, ran = yards[0].sweep.cells()[0], []
    folder = tmp_path / cell.folder
    monkeypatch.setattr("hisam_jax.scaling.yard.execute", lambda command, *_: ran.append(command))
    monkeypatch.setattr(Yard, "inputs", lambda yard: ("data", "ids"))
    for yard in yards:
        yard.run(cell, 0, threading.Event())
        task = json.loads((folder / "task.json").read_text())
        assert task == json.loads(json.dumps(yard.settings(cell))) and task["cell"]["epochs"] == yard.sweep.epochs
    assert len(ran) == 2
    (folder / "cell.json").write_text("{}")
    assert yards[0].done(cell) and yards[1].done(cell)
    assert json.loads((folder / "task.json").read_text())["cell"]["epochs"] == 8.0, "what it was trained with"
    with pytest.raises(UserError, match="other settings .*warmup was 0.1, is 0.2"):
        Yard(Sweep.of(sweep_of(warmup=0.2)), tmp_path, TINY).done(cell)


def test_more_epochs_give_a_cell_that_they_refused_all_its_attempts_again(tmp_path, monkeypatch):
    yards = [Yard(Sweep.of(sweep_of(attempts=1, epochs=epochs)), tmp_path, TINY) for epochs in (4.0, 4.0, 8.0)]
    cell = yards[0].sweep.cells()[0]
    monkeypatch.setattr(Yard, "inputs", lambda yard: ("data", "ids"))

    def refuses(*_) -> None:
        raise Failed("5.0 passes", 2)

    monkeypatch.setattr("hisam_jax.scaling.yard.execute", refuses)
    for yard, said in zip(yards, ("^5.0 passes$", "1 times; remove", "^5.0 passes$"), strict=True):
        with pytest.raises(Failed, match=said):
            yard.run(cell, 0, threading.Event())


def test_what_a_step_said_is_not_marked_as_an_error_twice(tmp_path):
    (tmp_path / "step.py").write_text("import sys; sys.exit('hisam: error: no such thing')")
    with pytest.raises(Failed, match="^no such thing .exit code 1"):
        execute([str(tmp_path / "step.py")], tmp_path / "log")


def test_ids_come_with_their_dataset(tmp_path):
    with pytest.raises(UserError, match="dataset") as caught:
        scale(load_config(TINY), TINY, tmp_path, ids=tmp_path / "ids")
    assert caught.value.field == "--ids"


def test_a_cell_in_this_process_raises_what_is_wrong_with_it(tmp_path):
    missing = tmp_path / "no-such-dataset"
    with pytest.raises(UserError, match="no-such-dataset"):
        scale(load_config(TINY), TINY, tmp_path, dataset=missing, ids=missing, here=True)


def test_a_sweep_over_given_ids_refuses_others(tmp_path, monkeypatch):
    dataset, found = tiny_dataset(tmp_path / "data", users=20), {"first": "a", "second": "b"}
    monkeypatch.setattr(
        "hisam_jax.scaling.yard.SemanticIDTable.load", lambda path: SimpleNamespace(checksum=found[path.name])
    )
    sweep, out = Sweep.of(load_config(TINY)), tmp_path / "out"
    yards = [Yard(sweep, out, TINY, given=dataset.path, coded=tmp_path / name) for name in found]
    assert yards[0].inputs() == yards[0].inputs() == (dataset.path, tmp_path / "first")
    with pytest.raises(UserError, match="other settings.*table"):
        yards[1].inputs()


def test_list_prints_a_line_a_cell(capsys):
    assert cli.main(["scale", str(TINY), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list_cells(load_config(TINY))


SWEEP = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict({config!r})
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_cells(tmp_path):
    """Both models at one budget: run whole, and killed by SIGKILL in the middle of the first cell."""
    parts = {"one": {"models": ("hmat", "flat"), "sizes": ("w8",), "budgets": (1e9,), "histories": (8,)}}
    prepare = {**load_config(TINY).data.prepare.to_dict(), "shop_users": 60, "shop_items": 100}
    config = sweep_of(parts=parts, batch_items=64, data={"prepare": prepare}).to_dict()
    (tmp_path / "sweep.py").write_text(SWEEP.format(config=config))
    command = [sys.executable, "-m", "hisam_jax", "scale", str(tmp_path / "sweep.py")]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, "--out", str(tmp_path / "whole")], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    dataset, out = tmp_path / "whole" / "datasets" / "data", tmp_path / "killed"
    command += ["--out", str(out), "--dataset", str(dataset)]
    killed = subprocess.Popen(command, env=environ, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(out.glob("cells/*/run/checkpoints/*")) and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(out.glob("cells/*/cell.json"))
    result = scale(load_config(tmp_path / "sweep.py"), tmp_path / "sweep.py", out, dataset=dataset)
    whole = json.loads((tmp_path / "whole" / "scale.json").read_text())
    for ours, theirs in zip(result["cells"], whole["cells"], strict=True):
        for name in ("d", "spent", "steps", "loss", "recall@10", "n", "oracle", "planned"):
            assert ours[name] == theirs[name], name
        assert ours["spent"] == pytest.approx(ours["flops"], rel=0.05)
        assert ours["oracle"] < ours["loss"]["value"] < 1.1 * math.log(100)
    assert (out / "scale.md").is_file() and result["left"] == 0 and not result["failed"]
    ids, config_file = tmp_path / "whole" / "ids" / "data" / "ids", tmp_path / "sweep.py"
    inside, again = (
        scale(load_config(config_file), config_file, tmp_path / "here", dataset=dataset, ids=ids, here=True)
        for _ in range(2)
    )
    assert [cell["loss"] for cell in inside["cells"]] == [cell["loss"] for cell in whole["cells"]]
    assert again["cells"] == inside["cells"], "with their seconds: nothing is trained twice"
    assert not (tmp_path / "here" / "ids").exists()


@pytest.mark.slow
def test_a_cell_on_a_given_dataset_is_judged_on_later_events_of_its_users(inputs, assembled, tmp_path, capsys):
    """Refused first, as it would see its data too often, then trained with more `epochs` allowed."""
    (dataset, ids), out = inputs, tmp_path / "out"
    one = part(models=("hmat",), items=(600,), budgets=())
    config = sweep_of(parts=one, batch_items=64, overrides={"data": {"endless": False}}).to_dict()
    (tmp_path / "sweep.py").write_text(SWEEP.format(config=config))
    line = ["scale", str(tmp_path / "sweep.py"), "--out", str(out), "--dataset", str(dataset), "--ids", str(ids)]
    assert cli.main([*line, "--config.epochs=1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "field 'epochs'" in said and said.count("hisam: error") == 1
    assert cli.main([*line, "--config.epochs=4"]) == 0
    result = json.loads((out / "scale.json").read_text())
    (cell,), assembly = result["cells"], assembled(endless=False)
    assert 1 < cell["planned"]["epochs"] < 4 and cell["d"] == pytest.approx(600, rel=0.1)
    assert cell["heldout"]["events"] == len(heldout.held_out(assembly, load_events(assembly.dataset)).user_E)
    assert 0 < cell["loss"]["value"] < 1.2 * cell["uniform"] and result["endless"] is False and cell["oracle"] is None
    page = (out / "scale.md").read_text()
    assert "on liked events of the validation split" in page and "held-out users" not in page
