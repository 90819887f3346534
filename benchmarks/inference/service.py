"""The demo model, shortly trained, and `hisam serve` over it as a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from hisam_jax.config import load_config
from hisam_jax.data.prepare import prepare
from hisam_jax.evaluation.run import evaluate
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train

STEPS = 60


def demo_run(work: Path, quick: bool = False) -> Path:
    """A run of `configs/shop.py` over the embedded shop, evaluated; what is there already is kept."""
    folder = work / "quick" if quick else work
    if not (folder / "dataset").is_dir():
        options = {"users": 300, "items": 300} if quick else {}
        prepare("shop", folder / "raw", folder / "dataset", reader_options=options, cache_dir=folder / "cache")
    if not (folder / "ids").is_dir():
        tokenize(folder / "dataset", load_config("configs/tokenizer/residual_kmeans.py"), folder / "ids")
    if not (folder / "run" / "evaluation.json").is_file():
        over = {"training.steps": str(4 if quick else STEPS), "training.evaluate_every": "0"}
        over |= {"training.monitor": "None", "evaluation.beams": "20"}
        train(folder / "dataset", folder / "ids", load_config("configs/shop.py", over), folder / "run")
        evaluate(folder / "run")
    return folder / "run"


@contextlib.contextmanager
def serving(run: Path, *flags: str) -> Iterator[str]:
    """The address of a service that is ready, ended behind the block."""
    store = run / "benchmark.sqlite"
    for old in run.glob("benchmark.sqlite*"):
        old.unlink()
    command = [sys.executable, "-m", "hisam_jax", "serve", "--workdir", str(run), "--port", "0", "--store", str(store)]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    try:
        address = next((found[0] for line in process.stderr if (found := re.search(r"http://\S+", line))), None)
        if address is None:
            raise SystemExit(f"hisam serve ended with {process.wait()}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        _until_ready(address)
        yield address
    finally:
        process.terminate()
        process.wait()


def _until_ready(address: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/ready", timeout=5).status_code == 200:
                return
        time.sleep(1)
    raise SystemExit(f"{address} was not ready within ten minutes")
