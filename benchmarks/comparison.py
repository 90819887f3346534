"""Every tokenizer, model and switch on the same data: the grids of configs/compare, through `hisam compare`.

    python -m benchmarks.comparison --data DIR [--only GRID ...] [--jobs N] [--work DIR]

DIR holds the public data sets, as data/README names them. A grid goes on where it was stopped, and its tables are
rewritten by each start; results of grids that are not asked for again are kept.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, keep_pictures, processor, today, versions
from hisam_jax.comparison import tables
from hisam_jax.comparison.run import compare
from hisam_jax.config import load_config
from hisam_jax.files import atomic_write

GRIDS = ("beauty", "ml_1m", "ranking", "ranking_shop", "ablations", "content")


def main() -> None:
    """Runs what was asked for and rewrites the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--only", nargs="*", choices=GRIDS, default=list(GRIDS), help="which grids")
    parser.add_argument("--rows", nargs="*", default=[], help="rows to run, of one grid; all that are done are shown")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"), help="scratch folder, reused")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is done, run nothing")
    arguments = parser.parse_args()
    target = RESULTS / "comparison.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    for name in arguments.only:
        file = f"configs/compare/{name}.py"
        found = compare(
            load_config(file), file, arguments.work / name, data=arguments.data, only=arguments.rows,
            jobs=arguments.jobs, tables_only=arguments.tables,
        )  # fmt: skip
        keep_pictures(arguments.work / name / "plots", RESULTS / "comparison" / name)
        made = {
            "command": f"python -m benchmarks.comparison --data DIR --only {name}",
            "date": today(),
            "device": processor(),
            "versions": versions("jax"),
        }
        kept = {key: results[name][key] for key in made} if arguments.tables and name in results else {}
        results[name] = {**made, **kept, "result": found}
        ordered = {key: results[key] for key in GRIDS if key in results}
        atomic_write(target, a_line_each(ordered))
        atomic_write(RESULTS / "comparison.md", markdown(ordered))


def a_line_each(results: dict[str, Any]) -> str:
    """JSON with a line a grid: indented it would be twice as long, and running one grid rewrites no other's line."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in results.items()) + "\n}\n"


def pictures_of(grid: str, result: dict[str, Any]) -> str:
    """Links to the pictures that lie beside the page."""
    found = []
    for dataset, table in result["datasets"].items():
        kinds = {"": "the leading metric", "-curves": "what validation said of each row as it trained"}
        for kind, said in kinds.items():
            place = f"comparison/{grid}/{dataset}{kind}.svg"
            if (RESULTS / place).is_file():
                found.append(f"![{table['title']}: {said}]({place})\n")
    return "\n".join(found)


def markdown(results: dict[str, Any]) -> str:
    """All grids on one page."""
    parts = ["# Tokenizers, models and switches compared\n", tables.READING]
    for grid, entry in results.items():
        packages = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
        source = f"`{entry['command']}`, {entry['date']}, {entry['device']}, {packages}.\n"
        body = tables.markdown(entry["result"]).replace(tables.READING, source)
        parts.append("\n".join(f"#{line}" if line.startswith("#") else line for line in body.splitlines()) + "\n")
        parts.append(pictures_of(grid, entry["result"]))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
