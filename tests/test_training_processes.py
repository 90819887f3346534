"""Several processes train, save, resume on another mesh and evaluate together as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.process_fixtures import finish, make_problem, start, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("processes"))


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


def test_damage_that_one_process_reads_is_passed_over_by_all(alone):
    """Without agreement the others wait for minutes in the barriers of Orbax."""
    arguments = train(alone, "damaged", "--config.mesh.fsdp=2")
    code, said = finish(start(alone, 2, 1, *arguments))
    assert code == 0, said
    last = alone / "damaged" / "checkpoints" / "24"
    files = [file for file in last.rglob("ocdbt.process_1/d/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"\0" * file.stat().st_size)
    (last / "checksums.json").unlink()  # so that only its reader notices
    began = time.monotonic()
    code, said = finish(start(alone, 2, 1, *arguments))
    assert code == 0 and time.monotonic() - began < 250, said
    assert f"{last} cannot be read; going on from step 18" in said
    assert_same(alone, "alone", "damaged")


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
