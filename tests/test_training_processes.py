"""Several processes train, save, resume on another mesh and evaluate together as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hisam_jax.config import load_config
from hisam_jax.tokenizer.run import tokenize
from tests.fixtures import tiny_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
HISAM = f"{sys.executable} -c 'import sys; from hisam_jax.cli import main; sys.exit(main())'"
CONFIG = """
import ml_collections

def get_config():
    heads = {"ranking": 1.0, "generation": 0.0, "retrieval": 1.0}
    return ml_collections.ConfigDict({
        "seed": 3,
        "model": {"width": 16, "heads": 2, "kv_heads": 2, "mlp": 32, "layers": 1, "actions": True, **heads},
        "data": {"items_per_row": 32, "rows": 8, "window": 16, "streams": 4},
        "training": {"steps": 24, "log_every": 4, "save_every": 6, "evaluate_every": 12,
                     "monitor": "validation/retrieval/recall@10"},
        "evaluation": {"resamples": 20, "rows": 16, "beams": 10},
        "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "context": 1},
    })
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    tiny_dataset(root / "dataset", users=40, items=50, seed=1)
    tokenize(root / "dataset", load_config("configs/tokenizer/random.py", {"random.sizes": "(8, 8)"}), root / "ids")
    (root / "config.py").write_text(CONFIG)
    (root / "hisam").write_text(f'#!/bin/sh\nexec {HISAM} "$@"\n')
    (root / "hisam").chmod(0o755)
    return root


def start(folder: Path, processes: int, devices: int, *arguments: str) -> subprocess.Popen:
    """`launch/local.sh` over so many processes of so many devices each."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "HISAM": str(folder / "hisam"), "DEVICES_PER_PROCESS": str(devices)}
    env |= {"HISAM_HEARTBEAT_TIMEOUT": "20", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # the same programs, over and over
    return subprocess.Popen(
        [str(ROOT / "launch" / "local.sh"), str(processes), "--", *arguments],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(folder: Path, workdir: str, *overrides: str) -> list[str]:
    """Arguments of the verb."""
    given = {"dataset": folder / "dataset", "ids": folder / "ids", "config": folder / "config.py"}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["train", *flags, "--workdir", str(folder / workdir), *overrides]


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and all that was printed."""
    said, _ = process.communicate(timeout=400)
    return process.returncode, said


def curve(folder: Path, workdir: str) -> dict[int, tuple[float, ...]]:
    """Step -> loss and, where there is one, the monitored metric."""
    rows = map(json.loads, (folder / workdir / "metrics.jsonl").read_text().splitlines())
    names = ("loss", "loss/ranking", "loss/retrieval", "validation/retrieval/recall@10")
    return {row["step"]: tuple(row[name] for name in names if name in row) for row in rows}


def assert_same(folder: Path, one: str, other: str) -> None:
    """Curves within rounding: sums over devices add in another order."""
    first, second = curve(folder, one), curve(folder, other)
    assert first.keys() == second.keys()
    for step, values in first.items():
        np.testing.assert_allclose(second[step], values, rtol=1e-4, err_msg=f"step {step}")


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    code, said = finish(start(folder, 1, 1, *train(folder, "alone")))
    assert code == 0, said
    return folder


def test_two_processes_train_and_evaluate_as_one(alone):
    code, said = finish(start(alone, 2, 2, *train(alone, "two", "--config.mesh.tensor=2")))
    assert code == 0, said
    assert_same(alone, "alone", "two")
    for workdir, processes in (("alone", 1), ("two", 2)):
        code, said = finish(start(alone, processes, 1, "evaluate", "--workdir", str(alone / workdir)))
        assert code == 0, said
    one, two = (json.loads((alone / name / "evaluation.json").read_text()) for name in ("alone", "two"))
    for head, metric in (("retrieval", "recall@10"), ("retrieval", "ndcg@10"), ("ranking", "logloss")):
        assert one[head][metric]["value"] == pytest.approx(two[head][metric]["value"], abs=1e-3)


def test_told_to_end_all_save_and_go_on_as_four_on_another_mesh(alone):
    """SIGTERM to the launcher; the rest is trained by twice the processes, parameters split between them."""
    process = start(alone, 2, 1, *train(alone, "moved"))
    wait_for_step(alone / "moved", 4)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 143, said
    code, said = finish(start(alone, 4, 1, *train(alone, "moved", "--config.mesh.fsdp=2")))
    assert code == 0, said
    assert_same(alone, "alone", "moved")


def test_one_that_is_killed_ends_the_other_and_the_run_goes_on(alone):
    process = start(alone, 2, 1, *train(alone, "killed"))
    wait_for_step(alone / "killed", 8)
    children = subprocess.run(["pgrep", "-f", f"{alone}/killed"], capture_output=True, text=True).stdout.split()
    victim = next(int(pid) for pid in children if _is_process(int(pid), 1))
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    code, said = finish(process)
    assert code != 0 and time.monotonic() - began < 90, said
    code, said = finish(start(alone, 2, 1, *train(alone, "killed")))
    assert code == 0, said
    assert_same(alone, "alone", "killed")


def test_processes_that_do_not_divide_the_streams_are_told_what_would(alone):
    code, said = finish(start(alone, 2, 1, *train(alone, "odd", "--config.data.streams=1")))
    assert code == 2 and "data.streams" in said and "a multiple of 2" in said and "Traceback" not in said


def wait_for_step(workdir: Path, step: int, seconds: float = 200.0) -> None:
    """Until the log has a line of that step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {n},' in path.read_text() for n in range(step, 25)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {seconds} s")


def _is_process(pid: int, index: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"HISAM_PROCESS_ID={index}".encode() in environment
