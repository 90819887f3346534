"""A tiny run and a service over it, for several test files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import ml_collections

from hisam_jax.config import load_config
from hisam_jax.inference.engine import EngineConfig
from hisam_jax.inference.run import load_run
from hisam_jax.serving.app import create_app
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.metrics import Metrics
from hisam_jax.serving.release import Release
from hisam_jax.serving.service import Service
from hisam_jax.serving.store import open_store
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train
from tests.fixtures import tiny_dataset

LIMITS = Limits(body=20_000, history=30, k=10, candidates=12, room=8, deadline=30.0)
FEW = ("--rows", "1", "--max-candidates", "4", "--max-k", "5", "--deadline", "30")
ENGINE = EngineConfig(rows=(1, 4), lengths=(8,), candidates=(12,), k=10, beams=10, cold=4)


def tiny_run(root: Path, seed: int = 3) -> Path:
    """A folder with dataset, ids and run; of two layers and every head."""
    tiny_dataset(root / "dataset", users=24, items=50, seed=1)
    sizes = {"residual_kmeans.sizes": "(6, 4)"}
    tokenize(root / "dataset", load_config("configs/tokenizer/residual_kmeans.py", sizes), root / "ids")
    return train_tiny(root, root / "run", seed)


def train_tiny(root: Path, workdir: Path, seed: int, heads=("ranking", "generation", "retrieval")) -> Path:
    """Another run over the same data."""
    model = {"width": 16, "heads": 2, "kv_heads": 2, "mlp": 32, "layers": 2, "actions": True}
    weights = {"ranking": 1.0, "generation": 0.5, "retrieval": 1.0}
    weights = {name: weight if name in heads else 0.0 for name, weight in weights.items()}
    config = {
        "seed": seed,
        "model": {**model, **weights},
        "data": {"items_per_row": 32, "rows": 4, "window": 8},
        "training": {"steps": 4, "log_every": 4, "save_every": 4, "evaluate_every": 4},
        "evaluation": {"resamples": 20, "rows": 16, "beams": 10},
    }
    train(root / "dataset", root / "ids", ml_collections.ConfigDict(config), workdir)
    return workdir


def load(path, limits: Limits = LIMITS) -> Release:
    """A release with the tests' few shapes."""
    return Release(load_run(path, again=True), limits, ENGINE)


class Warm:
    """Loads a release and hands on the compiled steps of an earlier one of the same parameters."""

    def __init__(self):
        self._engines = {}

    def __call__(self, path) -> Release:
        release = load(path)
        release.engine = release.stock._engine = self._engines.setdefault(release.id, release.engine)
        return release


@contextlib.asynccontextmanager
async def serving(
    loader, run: Path, store: Path | str, limits: Limits = LIMITS, token: str | None = None, wait: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a service that is ready."""
    service = Service(loader, run, open_store(str(store)), limits)
    app = create_app(service, token)
    async with app.router.lifespan_context(app):
        if wait:
            await service.ready()
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client, service


def run_async(work) -> None:
    """Runs a coroutine to its end."""
    asyncio.run(work)


def metrics() -> Metrics:
    """Counters of nothing yet."""
    return Metrics()


def serving_each(run: Path, warm: Warm, store: Path):
    """`served(check)` runs `check(client, service)` against a service of its own."""

    def served(check, **more):
        async def whole():
            async with serving(warm, run, store, **more) as (client, service):
                await check(client, service)

        run_async(whole())

    return served


@contextlib.contextmanager
def process(run, store, *more):
    """`(process, address)` of a service that listens; killed at the end if it has not ended."""
    command = [
        sys.executable,
        "-m",
        "hisam_jax",
        "serve",
        "--workdir",
        run,
        "--port",
        "0",
        "--store",
        store,
        *FEW,
        *more,
    ]
    started = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        for line in started.stderr:
            if found := re.search(r"http://\S+", line):
                threading.Thread(target=started.stderr.read, daemon=True).start()
                yield started, found[0]
                break
        else:
            raise AssertionError(f"ended with {started.wait()}")
    finally:
        started.kill()
        started.wait()


def until_ready(address, seconds=240):
    for _ in range(10 * seconds):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("not ready")
