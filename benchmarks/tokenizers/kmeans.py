"""Residual k-means beside faiss: the same points, first centres and iterations, in one process a number of threads.

Points are a mixture of 1,000 Gaussians in 384 columns, sizes falling as 1 / rank, plus noise of .7 of the centres'
standard deviation in every column: made, not real, but clustered as catalogues are, with more clusters than centres.
faiss-cpu is not a requirement (`pip install faiss-cpu`); without it its row says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import table

ROWS, WIDTH, SIZES, ITERATIONS, ROUNDS, THREADS = 200_000, 384, (256, 256, 256), 20, 2, (1, 2)
COMPONENTS, NOISE = 1000, 0.7
INTRODUCTION = """\
Fitting residual k-means, every level on what the levels before it leave, both from the same first centres (of each
level three iterations of Lloyd on 12,800 points), the assignments between levels included. Seconds: the least of
{rounds} round(s), the two in turn, on {threads} thread(s) each; our first round compiles and is given apart. Error:
mean squared distance that three levels leave, computed by one function for both. Points: a mixture of {components:,}
Gaussians, sizes as 1 / rank, plus noise of {noise} of the centres' standard deviation in every column.
"""
Fit = Callable[[np.ndarray, Sequence[np.ndarray], int], list[np.ndarray]]


def points(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, width] with a mean squared norm of 1; see the module."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, COMPONENTS + 1)
    centres_MD = rng.standard_normal((COMPONENTS, width), dtype=np.float32)
    x_ND = centres_MD[rng.choice(COMPONENTS, rows, p=share / share.sum())]
    x_ND += NOISE * rng.standard_normal((rows, width), dtype=np.float32)
    return x_ND / np.sqrt(np.mean(np.einsum("nd,nd->n", x_ND, x_ND)))


def ours(x_ND: np.ndarray, starts: Sequence[np.ndarray], iterations: int) -> list[np.ndarray]:
    """Centres of each level by `fit_levels`."""
    import jax

    from hisam_jax.tokenizer.residual_kmeans import fit_levels

    sizes = [len(start_KD) for start_KD in starts]
    return [fitted.centres_KD for fitted in fit_levels(jax.random.key(0), x_ND, sizes, iterations, starts)]


def theirs(x_ND: np.ndarray, starts: Sequence[np.ndarray], iterations: int) -> list[np.ndarray]:
    """Centres of each level by faiss, on all points."""
    import faiss

    left_ND, books = x_ND, []
    for start_KD in starts:
        engine = faiss.Kmeans(x_ND.shape[1], len(start_KD), niter=iterations, max_points_per_centroid=len(x_ND))
        engine.train(left_ND, init_centroids=start_KD)
        books.append(engine.centroids.copy())
        left_ND = left_ND - books[-1][engine.index.search(left_ND, 1)[1][:, 0]]
    return books


def error(x_ND: np.ndarray, books: Sequence[np.ndarray]) -> float:
    """Mean squared distance that residual quantisation with `books` leaves, by plain numpy."""
    total = 0.0
    for left_BD in np.array_split(x_ND, max(len(x_ND) // 8192, 1)):
        for book_KD in books:
            left_BD = left_BD - book_KD[(left_BD @ book_KD.T - 0.5 * np.square(book_KD).sum(1)).argmax(1)]
        total += float(np.square(left_BD, dtype=np.float64).sum())
    return total / len(x_ND)


def first_centres(x_ND: np.ndarray, sizes: Sequence[int], seed: int = 1) -> list[np.ndarray]:
    """Of each level: rows at random after three iterations of Lloyd by plain numpy on 50 rows a centre."""
    rng, left_ND, starts = np.random.default_rng(seed), x_ND[: 50 * max(sizes)], []
    for size in sizes:
        centres_KD = left_ND[rng.choice(len(left_ND), size, replace=False)]
        for _ in range(3):
            code_N = (left_ND @ centres_KD.T - 0.5 * np.square(centres_KD).sum(1)).argmax(1)
            means = [left_ND[code_N == k].mean(0) if (code_N == k).any() else centres_KD[k] for k in range(size)]
            centres_KD = np.stack(means).astype(np.float32)
        starts.append(centres_KD)
        left_ND = left_ND - centres_KD[code_N]
    return starts


def measure(threads: int, rows: int, rounds: int) -> dict[str, Any]:
    """Both on `threads` threads, in this process, in turn."""
    fits: dict[str, Fit] = {"hisam_jax": ours}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        fits["faiss"] = theirs
    x_ND = points(rows, WIDTH)
    starts = first_centres(x_ND, SIZES)
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    cpu: dict[str, list[float]] = {name: [] for name in fits}
    errors = {}
    for _ in range(rounds):
        for name, fit in fits.items():
            began, used = time.perf_counter(), time.process_time()
            books = fit(x_ND, starts, ITERATIONS)
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
            errors[name] = error(x_ND, books)
    return {"seconds": seconds, "cpu_seconds": cpu, "errors": errors, "load": os.getloadavg()[0]}


def run(quick: bool = False, rounds: int = ROUNDS, threads: Sequence[int] = THREADS) -> dict[str, Any]:
    """Each number of threads in a process of its own, which sees as many cores; `quick`: a tenth of the rows."""
    found, rows = {}, ROWS // 10 if quick else ROWS
    for count in threads:
        cores = sorted(os.sched_getaffinity(0))[-count:] if hasattr(os, "sched_getaffinity") else None
        if cores is not None and len(cores) < count:
            continue
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.tokenizers.kmeans", str(count), str(rows), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(count)},
            preexec_fn=(lambda cores=cores: os.sched_setaffinity(0, cores)) if cores is not None else None,
        )
        found[str(count)] = json.loads(process.stdout.splitlines()[-1])
    settings = {"rows": rows, "width": WIDTH, "sizes": SIZES, "iterations": ITERATIONS, "rounds": rounds}
    return {"settings": settings, "threads": found, "machine": platform.machine()}


def markdown(result: Mapping[str, Any]) -> str:
    """One row a number of threads and library."""
    settings, lines = result["settings"], []
    for count, row in result["threads"].items():
        for name in ("hisam_jax", "faiss"):
            if name not in row["seconds"]:
                lines.append([count, name, "not measured: faiss-cpu is not installed", "", "", ""])
                continue
            seconds, ratio = row["seconds"][name], row["errors"][name] / row["errors"].get("faiss", np.nan) - 1
            lines.append(
                [
                    count,
                    name,
                    f"{min(seconds):.1f}",
                    f"{seconds[0]:.1f}",
                    f"{min(row['cpu_seconds'][name]):.1f}",
                    f"{row['errors'][name]:.5f} ({ratio:+.2%})",
                ]
            )
    header = ["threads", "library", "seconds", "first round", "CPU seconds", "error (against faiss)"]
    about = INTRODUCTION.format(
        rounds=settings["rounds"],
        threads=" or ".join(result["threads"]),
        components=COMPONENTS,
        noise=NOISE,
    )
    sizes = " x ".join(map(str, settings["sizes"]))
    what = f"{settings['rows']:,} x {settings['width']} float32, levels {sizes}, {settings['iterations']} iterations.\n"
    return f"{about}\n{what}\n{table(header, lines)}"


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
