"""`python -m hisam_jax.scaling.cell FOLDER DATASET IDS`: trains and judges one cell of a sweep, or goes on with it.

FOLDER holds `task.json`; `run/` and `cell.json` are left there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from hisam_jax.errors import UserError, tell
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.targets import retrieval_targets
from hisam_jax.files import atomic_write
from hisam_jax.inference.run import Run, load_run
from hisam_jax.scaling.heldout import held_out, heldout_nats, loss_of, oracle_loss
from hisam_jax.scaling.plan import Plan, make_plan, overrides_of
from hisam_jax.training.assembly import assemble
from hisam_jax.training.metrics import read_metrics
from hisam_jax.training.run import train

TASK, RESULT = "task.json", "cell.json"
RECALL = "validation/retrieval/recall@10"


def read_record(file: Path, needs: Iterable[str], hint: str) -> dict[str, Any]:
    """A JSON object that a cell left.

    Raises:
        UserError: it is none, or lacks a field that it `needs`; `hint` says what to do.
    """
    try:
        held = json.loads(file.read_text())
    except ValueError:
        held = None
    lacks = [name for name in needs if not isinstance(held, dict) or name not in held]
    if lacks:
        raise UserError(f"a damaged file, without {lacks[0]}", path=file, expected="what a cell wrote", hint=hint)
    return held


def run_cell(folder: Path, dataset: str, ids: str) -> dict[str, Any]:
    """Trains what `task.json` says and writes `cell.json`.

    Raises:
        UserError: a plan that cannot be, or what `hisam train` refuses.
    """
    task = read_record(folder / TASK, ("run", "cell"), "remove the cell's folder")
    plan = _plan(folder, task, dataset, ids)
    config = ml_collections.ConfigDict(task["run"])
    training = overrides_of(plan, task["cell"]["warmup"])
    config.training.optimizer.warmup_steps = training.pop("warmup_steps")
    with config.ignore_type():
        config.training.update(training)
    record = train(dataset, ids, config, folder / "run")
    result = {**task["cell"], **_spent(folder / "run", plan), **_judged(load_run(folder / "run"))}
    result |= {
        "n": {"network": record["parameters"]["total"] - record["parameters"]["tables"], **record["parameters"]},
        "planned": dataclasses.asdict(plan),
        "learning_rate": task["run"]["training"]["optimizer"]["learning_rate"],
        **{name: record[name] for name in ("seconds", "items_per_second", "device", "versions", "split_checksum")},
    }
    atomic_write(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _plan(folder: Path, task: Mapping[str, Any], dataset: str, ids: str) -> Plan:
    """The plan that the cell began with, made where there is none."""
    file = folder / "plan.json"
    if file.is_file():
        names = [field.name for field in dataclasses.fields(Plan)]
        held = read_record(file, names, "remove the cell's folder")
        return Plan(**{name: held[name] for name in names})
    assembly = assemble(dataset, ids, ml_collections.ConfigDict(task["run"]))
    plan = make_plan(assembly, task["cell"]["flops"], task["cell"]["items"], task["cell"]["epochs"])
    atomic_write(file, json.dumps(dataclasses.asdict(plan)) + "\n")
    return plan


def _spent(run: Path, plan: Plan) -> dict[str, Any]:
    """What training really took, over all starts, from the lines of its log."""
    lines = read_metrics(run / "metrics.jsonl")
    if RECALL not in lines[-1]:
        raise UserError(
            f"no {RECALL} in the last line", path=run / "metrics.jsonl", field="data",
            expected="a dataset with liked events in its validation split, and a retrieval head",
        )  # fmt: skip
    steps_L = np.diff([line["step"] for line in lines], prepend=0)
    config = json.loads((run / "config.json").read_text())["data"]
    held_L = np.array([1 - line["padding"] for line in lines]) * config["rows"] * config["items_per_row"]
    return {
        "d": round(float(steps_L @ held_L)),
        "spent": float(steps_L @ np.array([line["flops"] for line in lines])),
        "steps": int(steps_L.sum()),
        "train_loss": lines[-1]["loss"],
        "recall@10": lines[-1][RECALL],
    }


def _judged(run: Run) -> dict[str, Any]:
    assembly = run.assembly
    events = held_out(assembly, run.events)
    nats_E = heldout_nats(run, events)
    if not np.isfinite(nats_E).all():
        raise UserError("a held-out loss that is not finite", path=run.workdir, field="learning_rate", expected="less")
    bootstrap = Bootstrap(assembly.configs.evaluation.resamples, assembly.configs.seed)
    return {
        "loss": loss_of(nats_E, events, bootstrap),
        "oracle": oracle_loss(assembly, events),
        "uniform": math.log(int((run.events.train_count_I > 0).sum())),
        "heldout": {"users": len(np.unique(events.user_E)), "events": len(events.user_E)},
        "recall_users": len(retrieval_targets(run.events, "validation").user_T),
    }


def main(folder: str, dataset: str, ids: str) -> int:
    """Exit code 2 after one line for what the user can mend."""
    try:
        run_cell(Path(folder), dataset, ids)
    except UserError as error:
        tell(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
