"""What each tokenizer's codes tell, and what that is worth; collapse, speed and memory.

    python -m benchmarks.tokenizers [--data DIR] [--work DIR] [--only PART ...] [--seeds N] [--quick]

Rewrites benchmarks/results/tokenizers.md and tokenizers.json. Parts that are not asked for again keep their figures; a
part that was killed goes on from the cells that it had finished under --work. Cells are known by their settings: after
a change of the code, give another --work.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, processor, today, versions
from benchmarks.tokenizers import tables
from hisam_jax.files import atomic_write

PARTS = ("planted", "real", "mi", "collapse", "kmeans", "ids", "training")
NEED_DATA = ("real", "mi", "collapse")


def main() -> None:
    """Runs what was asked for and rewrites the results after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("HISAM_DATA")
    parser.add_argument("--data", type=Path, default=given, help=f"public data sets, for {', '.join(NEED_DATA)}")
    parser.add_argument("--work", type=Path, default=Path("runs/tokenizers"), help="scratch folder, reused")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="which parts")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each cell of `real`")
    parser.add_argument("--quick", action="store_true", help="tiny settings, results under --work: does it run?")
    arguments = parser.parse_args()
    results = arguments.work / "quick" if arguments.quick else RESULTS
    work = arguments.work / "quick" if arguments.quick else arguments.work
    for name in [part for part in PARTS if part in arguments.only]:
        if arguments.data is None and name in NEED_DATA:
            print(f"{name}: left out, as it needs --data or $HISAM_DATA", file=sys.stderr)
            continue
        options = {"work": work / name, "data": arguments.data, "datasets": arguments.work / "datasets"}
        options |= {"quick": arguments.quick, "seeds": arguments.seeds}
        write(results, name, record(name, options))


def record(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """One part's result with where, when and how it was made."""
    started, module = time.monotonic(), importlib.import_module(f"benchmarks.tokenizers.{name}")
    options["work"].mkdir(parents=True, exist_ok=True)
    accepted = inspect.signature(module.run).parameters
    result = module.run(**{key: value for key, value in options.items() if key in accepted})
    return {
        "command": command_of(name, options.get("seeds", 1) if "seeds" in accepted else 1),
        "date": today(),
        "device": device(),
        "versions": versions("jax", "numpy", "scikit-learn"),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "result": result,
    }


def command_of(name: str, seeds: int) -> str:
    """What makes one part anew; DIR stands for the public data sets."""
    words = ["python -m benchmarks.tokenizers", *(["--data DIR"] if name in NEED_DATA else []), f"--only {name}"]
    return " ".join(words + ([f"--seeds {seeds}"] if seeds != 1 else []))


@functools.cache
def device() -> str:
    """The processor, and the accelerator where there is one."""
    import jax

    kind = jax.devices()[0]
    return processor() if kind.platform == "cpu" else f"{kind.device_kind} x {jax.device_count()}, {processor()}"


def write(folder: Path, name: str, made: dict[str, Any]) -> None:
    """Puts one part's record into tokenizers.json and writes tokenizers.md anew."""
    target = folder / "tokenizers.json"
    known = json.loads(target.read_text()) if target.is_file() else {}
    known[name] = json.loads(json.dumps(made))
    ordered = {part: known[part] for part in PARTS if part in known}
    atomic_write(target, json.dumps(ordered, indent=1) + "\n")
    sections = {
        part: (entry, importlib.import_module(f"benchmarks.tokenizers.{part}").markdown(entry["result"]))
        for part, entry in ordered.items()
    }
    atomic_write(folder / "tokenizers.md", tables.page(sections))


if __name__ == "__main__":
    main()
