"""Whether every served slot holds an item that exists, is served, fits the request, and stands there once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.inference.service import demo_run
from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.inference.engine import Wanted
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import load_run
from hisam_jax.progress import progress_bar
from hisam_jax.serving.catalogue import Added
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import Release, load_release

SLOTS, K, ROOM = 1_000_000, 100, 300
CHANGED = 4  # batches of histories between two changes of the catalogue
DAYS = (20_000, 20_010, 20_020)  # on which items come
FAULTS = ("not there", "not served", "hidden", "too old", "of another category", "repeated")


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Slots and faults of each way, while items come and go."""
    folder = demo_run(work, quick)
    release = load_release(folder, Limits(k=K, room=ROOM))
    truth = Truth.of(load_run(folder).assembly.dataset)
    return {"seeds": [0], **counted(release, truth, 20_000 if quick else SLOTS, K)}


@dataclasses.dataclass
class Truth:
    """What is so of each row, kept apart from all that the engine reads."""

    served: list[bool]
    day: list[int]
    categories: list[frozenset[str]]

    @classmethod
    def of(cls, dataset: Dataset) -> Truth:
        """Of a catalogue to which nothing has come yet."""
        held = dataset.items["categories"].to_list()
        return cls([True] * len(held), [0] * len(held), [frozenset(names or ()) for names in held])

    def faults(self, found: np.ndarray, hidden: set[int], oldest: int, any_of: Sequence[str]) -> collections.Counter:
        """Of one list, by kind."""
        faults, asked = collections.Counter(repeated=len(found) - len(np.unique(found))), set(any_of)
        for row in found.tolist():
            if not 0 <= row < len(self.served):
                faults["not there"] += 1
                continue
            faults["not served"] += not self.served[row]
            faults["hidden"] += row in hidden
            faults["too old"] += 0 < self.day[row] < oldest
            faults["of another category"] += bool(asked) and not asked & self.categories[row]
        return faults


def counted(release: Release, truth: Truth, slots: int, k: int, seed: int = 0) -> dict[str, Any]:
    """Asks in every way until so many slots were served; the catalogue changes meanwhile."""
    rng = np.random.default_rng(seed)
    ways = {way: collections.Counter() for way in release.engine.ways}
    changes: collections.Counter = collections.Counter()
    done = rounds = 0
    with progress_bar(slots, description="slots", unit="slot") as progress:
        while done < slots:
            if rounds % CHANGED == 0:
                _change(release, truth, rng, changes)
            rounds += 1
            before = done
            for way, count in ways.items():
                count.update(_asked(release, truth, rng, way, k))
            done = sum(count["slots"] for count in ways.values())
            progress.update(done - before)
    return {
        "slots": done,
        "changes": dict(changes),
        "ways": {way: dict.fromkeys(FAULTS, 0) | count for way, count in ways.items()},
    }


def _asked(release: Release, truth: Truth, rng: np.random.Generator, way: str, k: int) -> collections.Counter:
    """One batch of random histories, each with filters of its own."""
    engine, names = release.engine, release.names
    histories = [_history(rng, len(names.ids), engine.window) for _ in range(engine.config.rows[-1])]
    asked, wanted = [], []
    for history in histories:
        more = rng.integers(0, len(names.ids), rng.integers(0, len(names.ids) // 4))
        hidden = np.union1d(history.item, more).astype(np.int32)
        oldest = int(rng.choice([0, 0, *DAYS]))
        some = list(rng.choice(sorted(names.categories), 2, replace=False)) if rng.random() < 0.5 else []
        asked.append((set(hidden.tolist()), oldest, some))
        wanted.append(Wanted(hidden, oldest, names.any_of(some) if some else None))
    by = "ranking" if engine.model.config.ranking else "retrieval"
    lists = engine.recommend(release.items, engine.read(release.items, histories), wanted, k, way, by)
    count = collections.Counter(lists=len(lists), slots=sum(len(found) for found, _ in lists))
    for (found, _), conditions in zip(lists, asked, strict=True):
        count.update(truth.faults(found, *conditions))
    return count


def _change(release: Release, truth: Truth, rng: np.random.Generator, changes: collections.Counter) -> None:
    """One item comes, one goes, and one that went comes back."""
    stock, names = release.stock, release.names
    features = {
        name: np.add(x, rng.normal(0, 0.1, len(x))) for name, x in stock.features_of(_any(rng, names.ids)).items()
    }
    some = tuple(rng.choice(sorted(names.categories), 2, replace=False))
    item = Added(
        f"new {len(names.ids)}", "", some, {name: x.tolist() for name, x in features.items()}, day=int(rng.choice(DAYS))
    )
    try:
        stock.add(item)
    except UserError:  # no room, or no free ID
        changes["refused"] += 1
    else:
        truth.served.append(True)
        truth.day.append(item.day)
        truth.categories.append(frozenset(some))
        changes["came"] += 1
    gone = [row for row, served in enumerate(truth.served) if not served]
    if gone:
        back = int(rng.choice(gone))
        stock.add(Added(names.ids[back], "", (), {}))
        truth.served[back] = True
        changes["came back"] += 1
    for row in rng.choice(np.flatnonzero(truth.served), 2, replace=False).tolist():
        stock.remove(names.ids[row])
        truth.served[row] = False
        changes["went"] += 1


def _any(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _history(rng: np.random.Generator, items: int, window: int) -> History:
    length = int(rng.integers(0, window + 1))
    item, action = rng.integers(0, items, length), rng.integers(0, 11, length)
    return History(item.astype(np.int32), action.astype(np.int32), rng.random(length).astype(np.float32))


def markdown(result: Mapping[str, Any]) -> str:
    """One row a way."""
    rows = [
        [way, f"{count['lists']:,}", f"{count['slots']:,}", *(f"{count.get(fault, 0):,}" for fault in FAULTS)]
        for way, count in result["ways"].items()
    ]
    changes = ", ".join(f"{count:,} {what}" for what, count in result["changes"].items())
    said = (
        f"The demo model, {result['slots']:,} slots of lists of up to {K} for random histories, through the engine in "
        f"batches. Each request hides items, half ask for one of two categories, some for items that came lately. "
        f"Meanwhile items: {changes}.\n\n"
    )
    return said + table(("way", "lists", "slots", *FAULTS), rows)
