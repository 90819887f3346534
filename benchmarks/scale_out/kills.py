"""A run that is killed again and again, one process or two, beside one that never was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.common import table
from hisam_jax.progress import progress
from hisam_jax.training import checkpoints
from tests.process_fixtures import finish, make_problem, start, train
from tests.run_fixtures import equal, lines

ENDINGS = {"kill -9, at random": 6, "kill -9, inside a save": 4, "SIGTERM, at random": 3}
OFTEN = ("--config.training.save_every=2", "--config.training.steps=120", "--config.training.log_every=2")
MOST_SAVES, LONGEST = 4, 0.3  # whole checkpoints of a start before its end, and seconds behind the last of them
INSIDE = "*.orbax-checkpoint-tmp*"


def run(work: Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """How often each ending hit, and whether metrics and parameters are those of the undisturbed run, bit for bit."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folder, rows = make_problem(work.absolute()), []
    for processes in (1,) if quick else (1, 2):
        _undisturbed(folder, processes)
        endings = [name for name, count in ENDINGS.items() for _ in range(1 if quick else count)]
        random.Random(seed).shuffle(endings)
        rows.append({"processes": processes} | _disturbed(folder, processes, endings, random.Random(seed)))
    return {"seeds": [seed], "rows": rows}


def _undisturbed(folder: Path, processes: int) -> None:
    code, said = finish(start(folder, processes, 1, *train(folder, f"alone{processes}", *OFTEN)))
    assert code == 0, said


def _disturbed(folder: Path, processes: int, endings: list[str], rng: random.Random) -> dict[str, Any]:
    name, hit, torn = f"killed{processes}", dict.fromkeys(ENDINGS, 0), 0
    for ending in progress(endings, description=f"{processes} processes", unit="kill"):
        process = start(folder, processes, 1, *train(folder, name, *OFTEN))
        _wait(process, folder / name, ending, rng.randint(1, MOST_SAVES))
        if "random" in ending:
            time.sleep(rng.uniform(0, LONGEST))
        victims = _workers(folder / name)
        if process.poll() is None and victims:
            os.kill(rng.choice(victims), signal.SIGTERM if "SIGTERM" in ending else signal.SIGKILL)
            hit[ending] += 1
        torn += "ignored the incomplete checkpoint" in finish(process)[1]
    code, said = finish(start(folder, processes, 1, *train(folder, name, *OFTEN)))
    assert code == 0, said
    torn += "ignored the incomplete checkpoint" in said
    runs = folder / f"alone{processes}", folder / name
    same = {"metrics": lines(runs[0]) == lines(runs[1])}
    same |= {which: equal(*(checkpoints.load_params(run, which) for run in runs)) for which in ("last", "best")}
    return {"hit": hit, "torn": torn, "same": same}


def _wait(process: subprocess.Popen, workdir: Path, ending: str, saves: int) -> None:
    """Until so many more checkpoints are whole, or one is being written behind them, or the run's own end."""
    folder = workdir / "checkpoints"
    old, new = set(folder.glob("*")), set()
    while process.poll() is None:
        found = set(folder.glob("*")) - old
        torn = set(folder.glob(INSIDE)) & found
        new |= found - torn
        if len(new) >= saves and (torn or "inside" not in ending):
            return
        time.sleep(0.002)


def _workers(workdir: Path) -> list[int]:
    """The processes of the verb itself, not their launcher."""
    found = subprocess.run(["pgrep", "-f", f"hisam_jax.cli.*{workdir}"], capture_output=True, text=True).stdout.split()
    return [pid for pid in map(int, found) if b"HISAM_PROCESS_ID=" in _environment(pid)]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def markdown(result: dict[str, Any]) -> str:
    """One row a number of processes."""
    rows = [
        [
            str(row["processes"]),
            *(str(count) for count in row["hit"].values()),
            str(row["torn"]),
            *("yes" if row["same"][name] else "NO" for name in ("metrics", "last", "best")),
        ]
        for row in result["rows"]
    ]
    said = (
        "A small run of 120 steps that saves at every second one, started by `launch/local.sh`, ended by a signal to "
        "one of its processes and started again with the same arguments until it is done; then compared with one that "
        "was left alone. Torn: starts that passed over an incomplete checkpoint. Equal: bit for bit, all but "
        "the times.\n\n"
    )
    heads = ["processes", *ENDINGS, "torn", "metrics equal", "last parameters equal", "best parameters equal"]
    return said + table(heads, rows)
