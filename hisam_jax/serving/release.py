"""One versioned unit: a model, its tokenizer, the table of IDs and the trie, bound together by their checksums."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file, sha256_of
from hisam_jax.inference.engine import Engine, EngineConfig, Items
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import Run, load_run
from hisam_jax.remote import local
from hisam_jax.serving.catalogue import Added, Names, Shelf, grown_trie, today
from hisam_jax.serving.limits import Limits
from hisam_jax.tokenizer import registry
from hisam_jax.tokenizer.extension import check_tokenizer, extend
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.training.checkpoints import Saved, describe, differences, saved_steps

BOUND = ("model", "split_checksum", "items_checksum", "ids_checksum")


class Release:
    """A trained run that is ready to serve.

    Attributes:
        id: of the checksums; the same files make the same id.
        checksums: part -> SHA-256.
        engine, items, names: what answers requests; `items` is replaced whole when one comes or goes.

    Args:
        run: loaded and checked.
        limits: of the service.
        config: of the engine; None: by the run and the limits.
    """

    def __init__(self, run: Run, limits: Limits, config: EngineConfig | None = None):
        assembly = run.assembly
        ids = local(run.info["ids"], "ids")
        self.workdir, self._run = run.workdir, run
        self._tokenizer = registry.load_tokenizer(ids) if (ids / "tokenizer.json").is_file() else None
        _check_bound(run, self._tokenizer)
        self.engine = Engine(assembly.model, run.scorer.params, config or engine_config(run, limits))
        self.names = Names.of(assembly.dataset)
        counts_I = run.events.train_count_I
        self._shelf = Shelf(assembly.dataset, assembly.catalog, counts_I, self.names, limits.room)
        self._base, self._table, self._trie = len(self.names.ids), assembly.table, None
        self._added: dict[str, Added] = {}
        self._lock = threading.Lock()
        self.checksums = _checksums(run, ids)
        self.id = sha256_of(*(f"{name}={value}" for name, value in sorted(self.checksums.items())))[:16]
        self._users = {name: row for row, name in enumerate(assembly.dataset.users["user_id"].to_list())}
        self.items: Items = self._made()

    def warm_up(self) -> int:
        """Compiles every shape that a request can ask for; how many programs there are then."""
        engine, c = self.engine, self.engine.config
        engine.warm_up(self.items)
        layers = engine.model.config.layers if engine.model.config.anchors else 1
        for rows in c.rows:
            for length in range(2 * engine.window, layers * engine.window + 1, engine.window):
                none = np.zeros(length, np.int32)
                engine.read(self.items, [History(none, none, none.astype(np.float32))] * rows)
        return engine.compiled()

    @property
    def deep(self) -> int:
        """Events that a state depends on at most."""
        c = self.engine.model.config
        return self.engine.window * (c.layers if c.anchors else 1)

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

    def picture(self, row: int) -> bytes | None:
        """A JPEG, of items of the dataset."""
        return self._run.assembly.dataset.thumbnail(row) if row < self._base else None

    def codes(self, row: int) -> list[int]:
        """An item's semantic ID, the digit last where there is one."""
        digit = [] if self._table.digit_I is None else [int(self._table.digit_I[row])]
        return self._table.codes_IL[row].tolist() + digit

    def servable(self, row: int) -> bool:
        """Whether an item is served."""
        return bool(self._shelf.servable_I[row])

    @functools.cached_property
    def popular(self) -> list[int]:
        """Rows of the dataset's items, most popular first."""
        return np.argsort(-np.asarray(self._run.events.train_count_I), kind="stable").tolist()

    @property
    def widths(self) -> dict[str, int]:
        """Modality -> columns of its features."""
        return {name: values.shape[1] for name, values in self._run.assembly.dataset.features.items()}

    def features_of(self, item_id: str) -> dict[str, list[float]]:
        """Modality -> features of an item, those that it has."""
        if item_id in self._added:
            return dict(self._added[item_id].features)
        dataset, row = self._run.assembly.dataset, self.names.row[item_id]
        return {name: np.asarray(x[row]).tolist() for name, x in dataset.features.items() if dataset.present[name][row]}

    def add(self, item: Added) -> Added:
        """Gives a new item an ID by the frozen tokenizer, no other moved, and serves it; brings back a removed one.

        Raises:
            UserError: no tokenizer, features that do not fit it, no free ID or no room.
        """
        with self._lock:
            if item.item_id in self.names.row:
                item = self._added.get(item.item_id, item)
                return self._again(dataclasses.replace(item, removed=False))
            return self._new(item)

    def remove(self, item_id: str) -> Added:
        """No longer serves an item; its ID is not given away."""
        with self._lock:
            item = self._added.get(item_id) or Added(item_id, "", (), {})
            return self._again(dataclasses.replace(item, removed=True))

    def about(self) -> dict[str, Any]:
        """What `GET /releases` says of it."""
        return {
            "release": self.id,
            "workdir": os.fspath(self.workdir),
            "checksums": self.checksums,
            "items": int(self._shelf.servable_I.sum()),
            "ways": list(self.engine.ways),
            "heads": list(self._run.heads),
            "modalities": self.widths,
        }

    def _new(self, item: Added) -> Added:
        row = len(self.names.ids)
        if row >= self._shelf.capacity:
            raise UserError(f"no room for another item, {row} are there", hint="start with a larger --room")
        if not item.codes or item.ids != self._run.assembly.table.checksum:
            item = self._coded(item)
        table = _longer(self._table, item)
        self._shelf.put(row, item, table.codes_IL[row], self.names)
        trie = grown_trie(table, self._shelf.capacity, self._trie)
        items = self._made(trie)
        if self._trie is not None and trie.fanouts != self._trie.fanouts:
            self.engine.warm_up(items)
        self._table, self._trie, self.items = table, trie, items
        self._added[item.item_id] = item
        self.names.ids.append(item.item_id)
        self.names.titles.append(item.title or item.item_id)
        self.names.row[item.item_id] = row
        return item

    def _coded(self, item: Added) -> Added:
        if self._tokenizer is None:
            raise UserError("the release's IDs were imported: there is no tokenizer to give a new item one")
        features, present = self._as_columns(item.features)
        found, _ = extend(self._table, self._tokenizer, [item.item_id], features, present)
        codes = tuple(int(code) for code in found.full_codes()[0])
        return dataclasses.replace(item, codes=codes, ids=self._run.assembly.table.checksum, day=item.day or today())

    def _as_columns(self, given: Mapping[str, Sequence[float]]):
        widths = self.widths
        for name, values in given.items():
            if name not in widths:
                raise UserError(f"unknown modality {name!r}", field="features", expected=" or ".join(widths))
            if len(values) != widths[name]:
                raise UserError(f"{len(values)} numbers", field=f"features.{name}", expected=f"{widths[name]}")
        features = {m: np.asarray([given.get(m, np.zeros(width))], np.float32) for m, width in widths.items()}
        return features, {m: np.array([m in given]) for m in widths}

    def _again(self, item: Added) -> Added:
        self._shelf.servable_I[self.names.row[item.item_id]] = not item.removed
        if item.item_id in self._added:
            self._added[item.item_id] = item
        self.items = self._shelf.items(self.items.catalog, self._trie, self.items.vectors_ID)
        return item

    def _made(self, trie=None) -> Items:
        catalog = self._shelf.catalog()
        if trie is None:
            trie = self._trie = grown_trie(self._table, self._shelf.capacity)
        return self._shelf.items(catalog, trie, self.engine.vectors(catalog))


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
        beams=configs.evaluation.beams,
    )


def _checksums(run: Run, ids: Path) -> dict[str, str]:
    leaves = sorted(jax.tree_util.tree_leaves_with_path(run.scorer.params), key=lambda leaf: str(leaf[0]))
    parts = [part for path, leaf in leaves for part in (str(path), np.asarray(leaf))]
    trie = run.assembly.trie
    found = {
        "parameters": sha256_of(*parts),
        "ids": run.assembly.table.checksum,
        "items": run.info["identity"]["items_checksum"],
        "trie": sha256_of(*(np.asarray(leaf) for leaf in jax.tree.leaves(trie))),
    }
    files = [ids / name for name in ("tokenizer.json", "tokenizer.npz") if (ids / name).is_file()]
    return found | {f"tokenizer{file.suffix}": sha256_file(file) for file in files}


def _check_bound(run: Run, tokenizer: Any) -> None:
    """Refuses checkpoints of another run in its folder, and a tokenizer that did not make the table."""
    folder = local(run.workdir, "workdir", without=("tensorboard", "profile"))
    if tokenizer is not None:
        check_tokenizer(run.assembly.table, tokenizer)
    for step in saved_steps(folder / "checkpoints"):
        saved = _described(folder / "checkpoints", step)
        then, now = ({name: part.get(name) for name in BOUND} for part in (saved.identity, run.info["identity"]))
        if differing := differences(then, now):
            raise UserError(
                f"a checkpoint of another run: {differing[0]}", path=saved.path, expected="the run's own checkpoints"
            )


def _described(folder: Path, step: int) -> Saved:
    try:
        return describe(folder, step)
    except Exception as error:
        raise UserError(f"unreadable checkpoint ({type(error).__name__}: {error})", path=folder / str(step)) from error


def _longer(table: SemanticIDTable, item: Added) -> SemanticIDTable:
    """The table with one more row."""
    levels, codes = len(table.levels), np.asarray(item.codes, np.int32)
    digit_I = None if table.digit_I is None else np.append(table.digit_I, codes[levels]).astype(np.int32)
    return dataclasses.replace(
        table,
        codes_IL=np.concatenate([table.codes_IL, codes[None, :levels]]),
        digit_I=digit_I,
        item_ids=pl.concat([table.item_ids, pl.Series("item_id", [item.item_id], dtype=pl.String)]),
        checksum="",
        parent=table.checksum,
    )
