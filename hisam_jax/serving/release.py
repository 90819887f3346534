"""One versioned unit: a model, its tokenizer, the table of IDs and the trie, bound together by their checksums."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.files import sha256_of
from hisam_jax.inference.engine import Engine, EngineConfig, Items
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import Run, load_run
from hisam_jax.remote import local
from hisam_jax.serving.binding import check_bound, checksums
from hisam_jax.serving.catalogue import Names, Shelf
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.stock import Stock
from hisam_jax.tokenizer import registry


class Release:
    """A trained run that is ready to serve.

    Attributes:
        id: of the checksums; the same files make the same id.
        checksums: part -> SHA-256.
        engine, names, stock: what answers requests.

    Args:
        run: loaded and checked.
        limits: of the service.
        config: of the engine; None: by the run and the limits.
    """

    def __init__(self, run: Run, limits: Limits, config: EngineConfig | None = None):
        run.check_served()
        assembly, names = run.assembly, Names.of(run.assembly.dataset)
        ids = local(run.info["ids"], "ids")
        tokenizer = registry.load_tokenizer(ids) if (ids / "tokenizer.json").is_file() else None
        check_bound(run, tokenizer)
        self.workdir, self._run, self.names = run.workdir, run, names
        self.checksums = checksums(run, ids)
        self.id = sha256_of(*(f"{name}={value}" for name, value in sorted(self.checksums.items())))[:16]
        self.engine = Engine(assembly.model, run.scorer.params, config or engine_config(run, limits))
        shelf = Shelf(assembly.dataset, assembly.catalog, run.events.train_count_I, names, limits.room)
        self.stock = Stock(assembly.dataset, assembly.table, tokenizer, shelf, names, self.engine)
        self._users = {name: row for row, name in enumerate(assembly.dataset.users["user_id"].to_list())}

    @property
    def items(self) -> Items:
        """What the engine reads."""
        return self.stock.items

    def warm_up(self) -> int:
        """Compiles every shape that a request can ask for; how many programs there are then."""
        return self.engine.warm_up(self.items)

    @property
    def deep(self) -> int:
        """Events that a state depends on at most."""
        return self.engine.read_lengths[-1]

    def serves(self, item_id: str) -> bool:
        """Whether an item is here and not removed."""
        row = self.names.row.get(item_id)
        return row is not None and self.stock.servable(row)

    def knows(self, user: str) -> bool:
        """Whether the dataset has a user."""
        return user in self._users

    def past(self, user: str) -> tuple[History, int] | None:
        """A user's history in the dataset and the time of its last event; None of a user that it does not know."""
        row = self._users.get(user)
        if row is None:
            return None
        time = self._run.assembly.dataset.sequence(row).timestamp
        features = self._run.reader.features(row)
        return History(features["item"], features["action"], features["gap"]), int(time[-1]) if len(time) else 0

    @functools.cached_property
    def popular(self) -> list[int]:
        """Rows of the dataset's items, most popular first."""
        return np.argsort(-np.asarray(self._run.events.train_count_I), kind="stable").tolist()

    def about(self) -> dict[str, Any]:
        """What `GET /releases` says of it."""
        return {
            "release": self.id,
            "workdir": os.fspath(self.workdir),
            "checksums": self.checksums,
            "items": self.stock.served,
            "ways": list(self.engine.ways),
            "heads": list(self._run.heads),
            "modalities": self.stock.widths,
            "k": self.engine.config.k,
        }


def load_release(workdir: str | os.PathLike, limits: Limits, config: EngineConfig | None = None) -> Release:
    """A release of a run's folder as it lies there now.

    Raises:
        UserError: something is missing, torn, or not of this run.
    """
    return Release(load_run(workdir, again=True), limits, config)


def engine_config(run: Run, limits: Limits, rows: Sequence[int] = (1, 8, 32)) -> EngineConfig:
    """Shapes for a run: its window of items, its beams, no more than the limits ask for."""
    configs = run.assembly.configs
    window, most = configs.data.window, limits.candidates
    return EngineConfig(
        rows=tuple(rows),
        lengths=(*(size for size in (16, 64, 256) if size < window), window),
        candidates=(*(size for size in (100, 1000) if size < most), most),
        k=limits.k,
        ranked=limits.ranked,
        beams=configs.evaluation.beams,
    )
