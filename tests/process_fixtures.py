"""A small problem for `hisam train` in several processes: its dataset, IDs and config, started by `launch/local.sh`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hisam_jax.config import load_config
from hisam_jax.tokenizer.run import tokenize
from tests.fixtures import tiny_dataset

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


def make_problem(root: Path) -> Path:
    """Writes dataset, IDs, config and a `hisam` into a folder."""
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
