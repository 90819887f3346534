"""Requests a second that the service sustains on this machine, and what it does at twice as many."""

from __future__ import annotations

import collections
import csv
import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.inference.service import demo_run, serving
from hisam_jax.data.dataset import Dataset

CONNECTIONS, SECONDS, TARGET = (1, 2, 4, 8, 16, 32), 8, 0.05  # seconds of a measurement, p99 in seconds
OVERLOAD = 256  # connections at twice the sustained rate: enough of them that the rate is that whatever they wait
WAYS = ("retrieval", "generation")


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Latencies of `recommend` by the number of connections, then at twice the best rate, by hey."""
    if shutil.which("hey") is None:
        raise SystemExit("the load generator hey is not installed: apt-get install hey")
    folder = demo_run(work, quick)
    user = Dataset.load(folder.parent / "dataset").users["user_id"][3]
    rows, over = [], []
    with serving(folder) as address:
        for way in WAYS:
            body = json.dumps({"user": user, "k": 10, "way": way})
            found = [
                _load(address, body, n, None, 1 if quick else SECONDS) for n in CONNECTIONS[: 2 if quick else None]
            ]
            rows += [{"way": way, **row} for row in found]
            rate = max((row["rate"] for row in found if row["p99"] < TARGET), default=found[0]["rate"])
            twice = _load(address, body, OVERLOAD, math.ceil(2 * rate / OVERLOAD), 2 if quick else SECONDS)
            over.append({"way": way, "sustained": rate, **twice})
    return {"rows": rows, "over": over}


def _load(address: str, body: str, connections: int, rate: int | None, seconds: int) -> dict[str, Any]:
    """One measurement; `rate` is requests a second of each connection, None as fast as it can."""
    command = ["hey", "-z", f"{seconds}s", "-c", str(connections), "-m", "POST", "-T", "application/json", "-d", body]
    command += ["-o", "csv", *(["-q", str(rate)] if rate else []), f"{address}/recommend"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = list(csv.DictReader(said.splitlines()))
    taken = np.array([float(line["response-time"]) for line in lines if line["status-code"] == "200"])
    codes = collections.Counter(line["status-code"] for line in lines)
    percentiles = np.percentile(taken, [50, 95, 99]) if len(taken) else [math.nan] * 3
    return {
        "connections": connections,
        "rate": len(taken) / seconds,
        "codes": dict(codes),
        **dict(zip(("p50", "p95", "p99"), map(float, percentiles), strict=True)),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """One row a number of connections, and the overload."""

    def row(r: Mapping[str, Any]) -> list[str]:
        times = [f"{1e3 * r[name]:.1f}" for name in ("p50", "p95", "p99")]
        codes = ", ".join(f"{code}: {count:,}" for code, count in sorted(r["codes"].items()))
        return [r["way"], str(r["connections"]), f"{r['rate']:,.0f}", *times, codes]

    heads = ["way", "connections", "answered a second", "p50, ms", "p95", "p99", "status codes"]
    said = (
        "`hisam serve` over the demo model (`configs/shop.py`), the load generator hey on the same two cores, "
        "`POST /recommend` of a known user, k = 10.\n\n"
    )
    best = " and ".join(f"{r['sustained']:,.0f} ({r['way']})" for r in result["over"])
    more = f"\nSustained at a p99 under {1e3 * TARGET:.0f} ms: {best} a second. At twice that rate:\n\n"
    return said + table(heads, map(row, result["rows"])) + more + table(heads, map(row, result["over"]))
