"""The prepared dataset on disk: manifest, items, users, features, thumbnails and ArrayRecord sequences.

Beside them `encoders/`, of what was fitted (`hisam_jax.data.encoders.saved`); older datasets have none.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from array_record.python.array_record_data_source import ArrayRecordDataSource

from hisam_jax.data.records import VALIDATION, UserSequence, decode
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file, sha256_of
from hisam_jax.remote import local

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COLD_ITEM_EVENTS = 10  # fewer training interactions than this: a cold item
COLD_USER_EVENTS = 10  # fewer events before the scored one: a cold user
_AGAIN = "run `hisam prepare` again"


class Dataset:
    """A folder written by `hisam_jax.data.prepare.prepare`, opened for reading.

    Attributes:
        path: the folder.
        manifest: `manifest.json`.
        items: one row an item index: item_id, title, text, categories, image, train_count, cold.
        users: one row a user index: user_id, events, train_events.
        features: modality -> float32 [I, D], memory-mapped; zero rows where an item lacks the modality.
        present: modality -> bool [I].
        train_items: bool [I], items with at least one TRAIN interaction; what every statistic is fitted on.
        record_paths: the ArrayRecord files; record u of their concatenation is user u.
    """

    def __init__(self, path: str | Path, manifest: Mapping[str, Any]):
        self.path, self.manifest = Path(path), dict(manifest)
        self.items = pl.read_parquet(self.path / "items.parquet")
        self.users = pl.read_parquet(self.path / "users.parquet")
        folder = self.path / "features"
        self.features = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in manifest["modalities"]}
        self.present = {name: np.load(folder / f"{name}.present.npy") for name in manifest["modalities"]}
        self.train_items = self.items["train_count"].to_numpy() > 0
        self.record_paths = [str(file) for file in sorted((self.path / "sequences").glob("*.array_record"))]

    @classmethod
    def load(cls, path: str | Path, verify: bool = True) -> Dataset:
        """Opens a prepared folder, or a copy of one behind a URL; `verify` also checks every file against its checksum.

        Raises:
            UserError: no manifest (a killed run leaves none), another format, a file missing or altered.
        """
        path = local(path, "dataset")
        manifest = read_manifest(path)
        check_files(path, manifest["files"], verify)
        return cls(path, manifest)

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def item_index(self, ids: Sequence[str]) -> np.ndarray:
        """int32: the item index of each id, -1 of those that are no item here."""
        index = {name: item for item, name in enumerate(self.items["item_id"].to_list())}
        return np.array([index.get(name, -1) for name in ids], np.int32)

    def sequence(self, user: int) -> UserSequence:
        """The events of one user index, oldest first."""
        return decode(self._records[int(user)])

    def sequences(self, users: Iterable[int] | None = None, block: int = 1024) -> Iterator[UserSequence]:
        """The sequences of `users` in their order, all users when None, read `block` records at a time."""
        chosen = np.arange(self.num_users) if users is None else np.asarray(list(users), dtype=np.int64)
        for start in range(0, len(chosen), block):
            yield from map(decode, self._records.__getitems__(chosen[start : start + block].tolist()))

    def train_events(self, validation_too: bool = False) -> np.ndarray:
        """int64 `[U]`: each user's training events, counting validation ones where they are trained on."""
        events_U = self.users["train_events"].to_numpy().astype(np.int64)
        return events_U + self._validation[0] if validation_too else events_U

    def train_counts(self, validation_too: bool = False) -> np.ndarray:
        """int64 `[I]`: each item's training events, counting validation ones where they are trained on."""
        events_I = self.items["train_count"].to_numpy().astype(np.int64)
        return events_I + self._validation[1] if validation_too else events_I

    def thumbnail(self, item: int) -> bytes | None:
        """A JPEG at most 112 pixels wide and 168 high, None where the item has no picture."""
        return self._thumbnails.get(int(item))

    def truth(self) -> pl.DataFrame | None:
        """Planted factors by item, for tests and diagnostics; no model reads them."""
        file = self.path / "truth.parquet"
        return pl.read_parquet(file) if file.exists() else None

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self.record_paths)

    @functools.cached_property
    def _validation(self) -> tuple[np.ndarray, np.ndarray]:
        users_U, items_I = np.zeros(self.num_users, np.int64), np.zeros(self.num_items, np.int64)
        for sequence in self.sequences():
            held = sequence.item[sequence.split == VALIDATION]
            users_U[sequence.user] = len(held)
            np.add.at(items_I, held, 1)
        return users_U, items_I

    @functools.cached_property
    def _thumbnails(self) -> dict[int, bytes]:
        file = self.path / "thumbnails.parquet"
        return dict(pl.read_parquet(file).iter_rows()) if file.exists() else {}

    def __getstate__(self) -> dict[str, Any]:  # a worker process opens the records by itself
        return {name: value for name, value in self.__dict__.items() if name not in ("_records", "_thumbnails")}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """`manifest.json` of a prepared folder, with its keys and format version checked."""
    file = Path(path) / MANIFEST
    if not Path(path).is_dir():
        raise UserError("no such dataset folder", path=path, expected="what `hisam prepare --out` left")
    if not file.is_file():
        raise UserError("no manifest: this is no prepared dataset, or half of one", path=file, hint=_AGAIN)
    try:
        manifest = json.loads(file.read_text())
        version, _ = manifest["format_version"], manifest["files"].items()
        kinds = [manifest[key] for key in ("users", "items", "interactions", "modalities", "split")]
        _ = kinds[-2].items(), kinds[-1]["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"unreadable manifest ({error})", path=file, hint=_AGAIN) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"dataset format {version!r}", path=file, field="format_version", expected=str(FORMAT_VERSION), hint=_AGAIN
        )
    return manifest


def content_checksum(path: str | Path) -> str:
    """SHA-256 over the checksums of a prepared dataset's files: what it is, wherever it lies."""
    return sha256_of(json.dumps(read_manifest(local(path, "dataset"))["files"], sort_keys=True))


def check_files(root: str | Path, files: Mapping[str, str], verify: bool = True) -> None:
    """Raises a `UserError` that names the first file missing or, with `verify`, changed since it was written."""
    for name, checksum in files.items():
        file = Path(root) / name
        if not file.is_file():
            raise UserError("missing file of the dataset", path=file, hint=_AGAIN)
        if verify and sha256_file(file) != checksum:
            raise UserError(
                "altered or damaged since it was written", path=file, expected=f"SHA-256 {checksum}", hint=_AGAIN
            )


def checksums(root: str | Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file under a dataset folder but the manifest."""
    files = sorted(file for file in Path(root).rglob("*") if file.is_file() and file.name != MANIFEST)
    return {file.relative_to(root).as_posix(): sha256_file(file) for file in files}


def write_manifest(root: str | Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest, with the checksums of all other files, as the last file of a dataset."""
    whole = {**manifest, "format_version": FORMAT_VERSION, "files": checksums(root)}
    (Path(root) / MANIFEST).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole
