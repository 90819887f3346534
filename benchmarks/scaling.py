"""Scaling laws of HMAT and its flat twin: the sweeps of configs/scaling, through `hisam scale`.

    python -m benchmarks.scaling [--only SWEEP ...] [--jobs N] [--work DIR] [--fits-only]

A sweep goes on where it was stopped. Pictures go to results/scaling/; results of sweeps that are not asked for again
are kept.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, keep_pictures, processor, today, versions
from hisam_jax.config import load_config
from hisam_jax.files import atomic_write
from hisam_jax.scaling import frontier, page
from hisam_jax.scaling.run import scale

SWEEPS = ("shop",)
BUDGETS = (1e15, 1e18)  # useful FLOPs to predict for
HOURS = {"v5e": 1.0, "h100": 1.0}  # chip-hours to predict for


def main() -> None:
    """Runs what was asked for and rewrites the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=(*SWEEPS, "tiny"), default=list(SWEEPS), help="which sweeps")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="scratch folder, reused")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--fits-only", action="store_true", help="write the page of what is done, run nothing")
    arguments = parser.parse_args()
    target = arguments.results / "scaling.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    targets = [frontier.target_of_flops(flops) for flops in BUDGETS]
    targets += [frontier.target_of_chips(hours, device) for device, hours in HOURS.items()]
    for name in arguments.only:
        file, out = f"configs/scaling/{name}.py", arguments.work / name
        found = scale(
            load_config(file), file, out, jobs=arguments.jobs, fits_only=arguments.fits_only, targets=targets
        )  # fmt: skip
        pictures = keep_pictures(out / "plots", arguments.results / "scaling" / name)
        results[name] = {
            "command": f"python -m benchmarks.scaling --only {name}",
            "date": today(),
            "device": f"{processor()}, {arguments.jobs} cells at a time",
            "versions": versions("jax", "numpy", "scipy"),
            "seeds": sorted({cell["seed"] for cell in found["cells"]}),
            "pictures": pictures,
            "result": found,
        }
        atomic_write(target, json.dumps(results, indent=1) + "\n")
        atomic_write(arguments.results / "scaling.md", markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """All sweeps on one page."""
    parts = ["# Scaling laws\n"]
    for name, entry in results.items():
        packages = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
        seeds = ", ".join(map(str, entry["seeds"]))
        source = f"`{entry['command']}`; {entry['date']}; {entry['device']}; {packages}; seeds {seeds}.\n"
        body = page.markdown(entry["result"], entry["pictures"]).replace("](plots/", f"](scaling/{name}/")
        title, _, rest = body.partition("\n")
        lines = [f"#{line}" if line.startswith("#") else line for line in [title, "", source, *rest.splitlines()[1:]]]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
