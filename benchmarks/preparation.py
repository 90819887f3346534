"""Prepares a generated log of MovieLens-25M's size and form in a subprocess: minutes and peak memory.

    python -m benchmarks.preparation [--rows 25000000] [--protocol leave_one_out] [--scratch DIR]

The peak is the subprocess's own `ru_maxrss`; features are left out, as their cost goes with items, not with events.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import RESULTS, processor, today, versions
from hisam_jax.progress import progress

USERS, ITEMS = 162_541, 62_423  # MovieLens-25M, at 25,000,095 ratings
BUDGET_GIB = 4.0
_BLOCK = 1_000_000
_CHILD = """
import json, resource, sys, time
from hisam_jax.data.prepare import prepare
raw, out, protocol, seed = sys.argv[1:]
start = time.monotonic()
manifest = prepare("movielens", raw, out, protocol=protocol, text_encoder="none", image_encoder="none", seed=int(seed))
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.monotonic() - start, "peak_gib": usage.ru_maxrss / 2**20,
                  "cpu_seconds": usage.ru_utime + usage.ru_stime,
                  **{key: manifest[key] for key in ("users", "items", "interactions", "rejected", "split")}}))
"""


def generate(folder: Path, rows: int, seed: int) -> None:
    """`ratings.csv` and `movies.csv`: users one after the other, as GroupLens sorts them, times clustered and tied."""
    rng = np.random.default_rng(seed)
    users, items = max(1, round(USERS * rows / 25e6)), min(ITEMS, max(10, rows // 20))
    activity = rng.lognormal(0, 1.2, users)
    popularity = np.cumsum(1 / np.arange(1, items + 1))
    bounds = np.floor(np.concatenate([[0], np.cumsum(activity)]) / activity.sum() * rows).astype(np.int64)
    joined = rng.integers(789_652_009, 1_574_327_703, users)
    with open(folder / "ratings.csv", "wb") as stream:
        stream.write(b"userId,movieId,rating,timestamp\n")
        for start in progress(range(0, rows, _BLOCK), description="generating", unit="block"):
            row = np.arange(start, min(start + _BLOCK, rows))
            user = np.minimum(np.searchsorted(bounds, row, side="right") - 1, users - 1)
            item = np.minimum(np.searchsorted(popularity, rng.random(len(row)) * popularity[-1]), items - 1)
            rating = rng.integers(1, 11, len(row)) / 2
            timestamp = joined[user] + rng.integers(0, 4_000, len(row)) * 15
            frame = pl.DataFrame({"user": user + 1, "item": item + 1, "rating": rating, "timestamp": timestamp})
            frame.write_csv(stream, include_header=False)
    item = np.arange(items) + 1
    titles = pl.format("Film {} (1999)", pl.col("movieId"))
    pl.DataFrame({"movieId": item}).with_columns(title=titles, genres=pl.lit("Drama|Comedy")).write_csv(
        folder / "movies.csv"
    )


def measure(rows: int, protocol: str, seed: int, scratch: str | None) -> dict:
    """One run on freshly generated rows."""
    folder = Path(tempfile.mkdtemp(prefix="hisam-preparation-", dir=scratch))
    try:
        generate(folder, rows, seed)
        started = time.monotonic()
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(folder), str(folder / "out"), protocol, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        result = json.loads(child.stdout.splitlines()[-1])
        size = {
            "csv_mb": (folder / "ratings.csv").stat().st_size / 1e6,
            "dataset_mb": sum(f.stat().st_size for f in (folder / "out").rglob("*") if f.is_file()) / 1e6,
        }
        return {"rows": rows, "wall_seconds": time.monotonic() - started, **result, **size}
    finally:
        shutil.rmtree(folder)


def write(results: Path, record: dict) -> None:
    """`preparation.json` and `preparation.md`."""
    results.mkdir(parents=True, exist_ok=True)
    (results / "preparation.json").write_text(json.dumps(record, indent=1) + "\n")
    run, versions = record["result"], ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    (results / "preparation.md").write_text(
        f"""# Preparing a log of MovieLens-25M's size

| events | users | items | minutes | CPU minutes | peak memory | CSV | dataset |
|---|---|---|---|---|---|---|---|
| {run["interactions"]:,} | {run["users"]:,} | {run["items"]:,} | {run["wall_seconds"] / 60:.1f} | \
{run["cpu_seconds"] / 60:.1f} | {run["peak_gib"]:.2f} GiB (budget {BUDGET_GIB:.0f}) | {run["csv_mb"]:,.0f} MB | \
{run["dataset_mb"]:,.0f} MB |

Generated rows in MovieLens CSV form ({run["rejected"].get("duplicate_interaction", 0):,} of {run["rows"]:,} were \
duplicates and refused), protocol {run["split"]["protocol"]}, features left out. Peak: the subprocess's `ru_maxrss`.

{record["device"]}; {record["date"]}; {versions}; seed {record["seed"]}; `{record["command"]}`.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=25_000_000)
    parser.add_argument("--protocol", default="leave_one_out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", metavar="DIR", help="a folder with 3 GB to spare (default: the system's)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    arguments = parser.parse_args()
    result = measure(arguments.rows, arguments.protocol, arguments.seed, arguments.scratch)
    command = f"python -m benchmarks.preparation --rows {arguments.rows} --protocol {arguments.protocol}"
    environment = {"device": processor(), "date": today(), "versions": versions("numpy", "polars", "array_record")}
    write(arguments.results, {**environment, "seed": arguments.seed, "command": command, "result": result})
    print((arguments.results / "preparation.md").read_text())
    if result["peak_gib"] > BUDGET_GIB:
        sys.exit(f"peak memory {result['peak_gib']:.2f} GiB is over the budget of {BUDGET_GIB} GiB")


if __name__ == "__main__":
    main()
