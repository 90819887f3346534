"""IDs of a million items: assigned from features on disk, told apart, indexed, opened; seconds and peak memory.

Every measurement is a process of its own, so that its peak resident memory is its own. Codes of the collision runs are
drawn from a Zipf law, which crowds a few prefixes as popular categories do; costs are distances to a codebook.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table

WIDTH, SIZE, LEVELS = 384, 256, 3
BLOCK = 16384
LIMITS = {"digit": 5.0, "next_nearest": 5.0}  # seconds for a million items
GIB = 3.0


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Measures each task in a process of its own."""
    items = 20_000 if quick else 1_000_000
    write_features(work, items)
    tasks = ("digit", "next_nearest", "trie", "open", "assign_residual_kmeans", "assign_dst")
    return {
        "items": items,
        "modalities": ["text", "image"],
        "width": WIDTH,
        "tasks": {t: _apart(t, work) for t in tasks},
    }


def markdown(result: dict[str, Any]) -> str:
    """One table, with the limits beside the figures."""
    rows = []
    for name, found in result["tasks"].items():
        rate = f"{found['items_per_second']:,.0f}" if "items_per_second" in found else ""
        limit = f"< {LIMITS[name]:.0f} s" if name in LIMITS else f"< {GIB:.0f} GiB" if "assign" in name else ""
        times = f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.2f}"
        rows.append((name, *times, rate, f"{found['peak_gib']:.2f}", limit, found["what"]))
    header = ("task", "seconds", "CPU seconds", "items/s", "peak GiB", "limit", "what")
    about = (
        f"{result['items']:,} items, {' and '.join(result['modalities'])} of {result['width']} float32 columns each."
    )
    return f"{about}\n\n{table(header, rows)}"


def write_features(work: Path, items: int) -> None:
    """Two .npy files, written in blocks; kept when they are there already."""
    for seed, name in enumerate(("text", "image")):
        file = work / f"{name}-{items}.npy"
        if file.is_file():
            continue
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(512, WIDTH)).astype(np.float32)
        scratch = file.with_suffix(".partial")
        values = np.lib.format.open_memmap(scratch, "w+", np.float32, (items, WIDTH))
        for start in range(0, items, BLOCK):
            part = values[start : start + BLOCK]
            part[:] = rng.standard_normal(part.shape, np.float32) * 0.5 + centres[rng.integers(0, 512, len(part))]
        values.flush()
        scratch.replace(file)


def _apart(task: str, work: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.tokenizers.ids", task, str(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {' '.join(command)}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"ids, {task}: {found['seconds']:.2f} s, {found['peak_gib']:.2f} GiB", file=sys.stderr)
    return found


def _features(work: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    files = {name: max(work.glob(f"{name}-*.npy"), key=lambda file: file.stat().st_mtime) for name in ("text", "image")}
    features = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
    present = {name: np.ones(len(values), bool) for name, values in features.items()}
    present["image"][::25] = False
    return features, present


def _crowded(items: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    ranks = np.minimum(rng.zipf(1.3, (items, LEVELS)) - 1, 10**6) % SIZE
    return ranks.astype(np.int32)


def _resolve(policy: str, items: int) -> dict[str, Any]:
    from hisam_jax.tokenizer import collisions

    codes, rng = _crowded(items), np.random.default_rng(1)
    points, book = rng.normal(size=(4096, 64)).astype(np.float32), rng.normal(size=(SIZE, 64)).astype(np.float32)

    def costs(level: int, rows: np.ndarray) -> np.ndarray:
        return np.square(book).sum(1) - 2 * points[rows % len(points)] @ book.T

    with _Clock() as clock:
        found = collisions.resolve(policy, codes, [SIZE] * LEVELS, costs)
    full = found.codes_IL if found.digit_I is None else np.concatenate([found.codes_IL, found.digit_I[:, None]], 1)
    assert collisions.collision(full)["rate"] == 0
    share = collisions.collision(codes)["share"]
    return clock.found | {"what": f"{share:.0%} of items share all {LEVELS} codes; {found.digit_size} digits after"}


def _table(items: int):
    from hisam_jax.tokenizer import collisions
    from hisam_jax.tokenizer.base import Level
    from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

    levels = tuple(Level(f"shared/{depth}", "shared", SIZE) for depth in range(LEVELS))
    found = collisions.resolve("digit", _crowded(items), [SIZE] * LEVELS, None)
    ids = [f"item {row:09d}" for row in range(items)]
    return SemanticIDTable(levels, found.codes_IL, found.digit_I, found.digit_size, ids, {"name": "zipf"}, "digit")


def _trie(items: int) -> dict[str, Any]:
    from hisam_jax.tokenizer.trie import build_trie

    ids = _table(items)
    full = ids.full_codes()
    with _Clock() as clock:
        trie = build_trie(full, ids.vocab_sizes)
    return clock.found | {"what": f"nodes a level {trie.nodes}"}


def _open(items: int, work: Path) -> dict[str, Any]:
    from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

    _table(items).save(work / f"table-{items}")
    with _Clock() as clock:
        SemanticIDTable.load(work / f"table-{items}", verify=False)
    with _Clock() as checked:
        SemanticIDTable.load(work / f"table-{items}")
    return clock.found | {"what": f"memory-mapped; {checked.found['seconds']:.2f} s with every checksum"}


def _assign(name: str, work: Path) -> dict[str, Any]:
    from hisam_jax.tokenizer import registry
    from hisam_jax.tokenizer.assignment import assign
    from hisam_jax.tokenizer.dst_config import DSTConfig
    from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig

    features, present = _features(work)
    sample = ({m: np.array(v[:8192]) for m, v in part.items()} for part in (features, present))
    few = DSTConfig(steps=30) if name == "dst" else ResidualKMeansConfig(iterations=3)
    model = registry.entry(name).fit(few, *sample, np.ones(8192, bool), 0)
    assign(model, *({m: v[:4096] for m, v in part.items()} for part in (features, present)))  # compiled before
    with _Clock() as clock:
        codes = assign(model, features, present)
    rate = len(codes) / clock.found["seconds"]
    return clock.found | {"items_per_second": rate, "what": f"from disk; {codes.shape[1]} codes of {SIZE}"}


class _Clock:
    def __enter__(self) -> _Clock:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        spent = {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}
        self.found = {name: round(value, 4) for name, value in spent.items()}


def _peak_kib() -> int:
    """Peak resident memory, mapped pages included; `ru_maxrss` begins with what the parent held when it forked."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    task, items = arguments.task, len(_features(arguments.work)[0]["text"])
    if task.startswith("assign_"):
        found = _assign(task.removeprefix("assign_"), arguments.work)
    elif task == "open":
        found = _open(items, arguments.work)
    else:
        found = _trie(items) if task == "trie" else _resolve(task, items)
    found["peak_gib"] = round(_peak_kib() / 2**20, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
