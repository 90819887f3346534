"""The items of a release as they come and go: IDs by the frozen tokenizer, no other moved."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.inference.engine import Engine, Items
from hisam_jax.serving.catalogue import Added, Names, Shelf, today
from hisam_jax.serving.describing import Describer
from hisam_jax.tokenizer.extension import extend
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.tokenizer.trie import build_trie


class Stock:
    """Holds `items`, which an engine reads; replaced whole when one comes or goes.

    Its `describer` makes features of what is told of a new one.

    Args:
        dataset: the catalogue that the model was trained on.
        table: its IDs.
        tokenizer: that made them; None of an imported table.
        shelf: host arrays with room.
        names: of all items; grow in place.
        engine: makes item vectors.
    """

    def __init__(
        self, dataset: Dataset, table: SemanticIDTable, tokenizer: Any, shelf: Shelf, names: Names, engine: Engine
    ):  # fmt: skip
        self._dataset, self._table, self._first, self._tokenizer = dataset, table, table.checksum, tokenizer
        self._shelf, self._names, self._engine = shelf, names, engine
        self.describer = Describer(dataset)
        self._added: dict[str, Added] = {}
        self._lock = threading.Lock()
        self._trie = build_trie(table.full_codes(), table.vocab_sizes, shelf.capacity)
        self.items: Items = self._made()

    @property
    def widths(self) -> dict[str, int]:
        """Modality -> columns of its features."""
        return {name: values.shape[1] for name, values in self._dataset.features.items()}

    @property
    def served(self) -> int:
        """How many items are served."""
        return int(self._shelf.servable_I.sum())

    def servable(self, row: int) -> bool:
        """Whether an item is served."""
        return bool(self._shelf.servable_I[row])

    def codes(self, row: int) -> list[int]:
        """An item's semantic ID, the digit last where there is one."""
        digit = [] if self._table.digit_I is None else [int(self._table.digit_I[row])]
        return self._table.codes_IL[row].tolist() + digit

    def features_of(self, item_id: str) -> dict[str, list[float]]:
        """Modality -> features of an item, those that it has."""
        if item_id in self._added:
            return dict(self._added[item_id].features)
        dataset, row = self._dataset, self._names.row[item_id]
        return {name: np.asarray(x[row]).tolist() for name, x in dataset.features.items() if dataset.present[name][row]}

    def picture(self, row: int) -> bytes | None:
        """A small JPEG of an item, None where there is none."""
        added = self._added.get(self._names.ids[row])
        if added is None:
            return self._dataset.thumbnail(row)
        return base64.b64decode(added.picture) if added.picture else None

    def add(self, item: Added) -> Added:
        """Gives a new item an ID by the frozen tokenizer, no other moved, and serves it; brings back a removed one.

        Raises:
            UserError: no tokenizer, features that do not fit it, no free ID or no room.
        """
        with self._lock:
            if item.item_id in self._names.row:
                item = self._added.get(item.item_id, item)
                return self._again(dataclasses.replace(item, removed=False))
            return self._new(item)

    def remove(self, item_id: str) -> Added:
        """No longer serves an item; its ID is not given away."""
        with self._lock:
            item = self._added.get(item_id) or Added(item_id, "", (), {})
            return self._again(dataclasses.replace(item, removed=True))

    def _new(self, item: Added) -> Added:
        row = len(self._names.ids)
        if row >= self._shelf.capacity:
            raise UserError(f"no room for another item, {row} are there", hint="start with a larger --room")
        if not item.codes or item.ids != self._first:
            item = self._coded(self.describer.again(item))
        table = _longer(self._table, item)
        trie = build_trie(table.full_codes(), table.vocab_sizes, like=self._trie)
        self._shelf.put(row, item, table.codes_IL[row], self._names)
        wider, self._table, self._trie = trie.fanouts != self._trie.fanouts, table, trie
        items = self._made()
        if wider:
            self._engine.warm_up(items)
        self.items = items
        self._added[item.item_id] = item
        self._names.ids.append(item.item_id)
        self._names.titles.append(item.title or item.item_id)
        self._names.row[item.item_id] = row
        return item

    def _coded(self, item: Added) -> Added:
        if self._tokenizer is None:
            raise UserError("the release's IDs were imported: there is no tokenizer to give a new item one")
        features, present = self._as_columns(item.features)
        found, _ = extend(self._table, self._tokenizer, [item.item_id], features, present)
        codes = tuple(int(code) for code in found.full_codes()[0])
        return dataclasses.replace(item, codes=codes, ids=self._first, day=item.day or today())

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
        self._shelf.servable_I[self._names.row[item.item_id]] = not item.removed
        if item.item_id in self._added:
            self._added[item.item_id] = item
        self.items = self._shelf.items(self.items.catalog, self._trie, self.items.vectors_ID)
        return item

    def _made(self) -> Items:
        catalog = self._shelf.catalog()
        return self._shelf.items(catalog, self._trie, self._engine.vectors(catalog))


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
