"""The table of semantic IDs: item -> codes, on disk with its tokenizer, its item keys and a checksum."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, sha256_file, sha256_of
from hisam_jax.remote import local
from hisam_jax.tokenizer.base import Level

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FILES = ("tokenizer.npz", "tokenizer.json")
HINT = "make it again with `hisam tokenize`"


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIDTable:
    """Codes of every item of one catalogue.

    Attributes:
        levels: the positions of a code, coarse to fine.
        codes_IL: int32 [I, L]; `levels[l].size` where the item lacks the level's modality.
        digit_I: int32 [I] that tells items of equal codes apart, or None; predicted last, never an input.
        digit_size: how many digits there are, headroom included; 0 without digits.
        item_ids: String [I], the key of each row; any sequence of strings is taken.
        tokenizer: name, seed and settings of what made the codes.
        policy: how collisions were resolved.
        checksum: of all of the above.
        parent: checksum of the table that this one extends, whose items keep their IDs; empty for a first table.
    """

    levels: tuple[Level, ...]
    codes_IL: np.ndarray
    digit_I: np.ndarray | None
    digit_size: int
    item_ids: pl.Series
    tokenizer: dict[str, Any]
    policy: str
    checksum: str = ""
    parent: str = ""

    def __post_init__(self):
        object.__setattr__(self, "item_ids", _ids(self.item_ids))
        self._check_shapes()
        if not self.checksum:
            self._check_values()
            object.__setattr__(self, "checksum", self._digest())

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Codes of each level, the reserved one included, then the number of digits where there are any."""
        return tuple(level.size + 1 for level in self.levels) + ((self.digit_size,) if self.digit_I is not None else ())

    def full_codes(self) -> np.ndarray:
        """int32 [I, L], or [I, L + 1] with the digit last."""
        return self.codes_IL if self.digit_I is None else np.concatenate([self.codes_IL, self.digit_I[:, None]], axis=1)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a folder of its own, whole or not at all."""
        with atomic_directory(path) as scratch:
            self.write_into(scratch)

    def write_into(self, folder: Path, extra: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes codes.npy, digit.npy, items.parquet, NAME.npy of `extra` and manifest.json into a folder that is.

        The manifest lists the checksums of these files, and of a tokenizer that is there already.
        """
        np.save(folder / "codes.npy", self.codes_IL)
        if self.digit_I is not None:
            np.save(folder / "digit.npy", self.digit_I)
        pl.DataFrame({"item_id": self.item_ids}).write_parquet(folder / "items.parquet")
        names = ["codes.npy", "items.parquet"] + (["digit.npy"] if self.digit_I is not None else [])
        for name, array in (extra or {}).items():
            np.save(folder / f"{name}.npy", array)
            names.append(f"{name}.npy")
        names += [name for name in TOKENIZER_FILES if (folder / name).is_file()]
        manifest = {
            "format_version": FORMAT_VERSION,
            "items": len(self.item_ids),
            "levels": [dataclasses.asdict(level) for level in self.levels],
            "vocab_sizes": self.vocab_sizes,
            "policy": self.policy,
            "digit_size": self.digit_size,
            "tokenizer": self.tokenizer,
            "checksum": self.checksum,
            "parent": self.parent,
            "files": {name: sha256_file(folder / name) for name in names},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def load(
        cls, path: str | os.PathLike, item_ids: Sequence[str] | pl.Series | None = None, verify: bool = True
    ) -> SemanticIDTable:
        """Opens a table with its arrays memory-mapped; with `item_ids`, checks that it is that catalogue's.

        `path` may be a URL, of which a copy is opened.

        `verify` reads everything once, against the checksums and the levels' ranges; without it opening a table takes
        the time of reading its manifest and item keys, whatever its size.

        Raises:
            UserError: no table there, another version, a file that is missing or altered, another catalogue.
        """
        folder = local(path, "ids")
        manifest = _read_manifest(folder)
        _check_files(folder, manifest["files"], verify)
        try:
            table = cls(
                levels=tuple(Level(**level) for level in manifest["levels"]),
                codes_IL=_mapped(folder / "codes.npy"),
                digit_I=_mapped(folder / "digit.npy") if "digit.npy" in manifest["files"] else None,
                digit_size=manifest["digit_size"],
                item_ids=pl.read_parquet(folder / "items.parquet")["item_id"],
                tokenizer=manifest["tokenizer"],
                policy=manifest["policy"],
                checksum=manifest["checksum"],
                parent=manifest.get("parent", ""),
            )
            if verify:
                table._check_values()
            altered = verify and table._digest() != table.checksum
        except (KeyError, TypeError, ValueError, EOFError, OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"not a table of IDs ({error})", path=folder / MANIFEST, hint=HINT) from error
        if altered:
            problem = "its levels, policy or tokenizer were altered"
            raise UserError(problem, path=folder / MANIFEST, expected=f"checksum {table.checksum}", hint=HINT)
        if item_ids is not None:
            table.check_catalogue(item_ids, path)
        return table

    def check_catalogue(self, item_ids: Sequence[str] | pl.Series, path: str | os.PathLike | None = None) -> None:
        """Raises a `UserError` that counts and names the items in which the table and a catalogue differ."""
        ours, theirs = self.item_ids, _ids(item_ids)
        if ours.equals(theirs):
            return
        missing, extra = (a.filter(~a.is_in(b.implode())) for a, b in ((theirs, ours), (ours, theirs)))
        if missing.is_empty() and extra.is_empty():
            length = min(len(ours), len(theirs))
            other = (ours.head(length) != theirs.head(length)).arg_max() if length else 0
            problem = f"the same items in another order, from row {other} on"
        else:
            problem = f"a table of another catalogue: {_some(missing, 'lacks')}{_some(extra, 'has besides')}"
            problem = problem.rstrip(", ")
        expected = f"the {len(theirs)} items of the dataset in its order"
        raise UserError(problem, path=path, field="item_id", expected=expected, hint=HINT)

    def _check_shapes(self) -> None:
        items, problem = len(self.item_ids), None
        if self.codes_IL.dtype != np.int32 or self.codes_IL.shape != (items, len(self.levels)):
            problem = f"codes {self.codes_IL.dtype}{self.codes_IL.shape} for {items} items, {len(self.levels)} levels"
        elif self.digit_I is not None and (self.digit_I.dtype != np.int32 or self.digit_I.shape != (items,)):
            problem = f"digits {self.digit_I.dtype}{self.digit_I.shape} for {items} items"
        if problem:
            raise ValueError(problem)

    def _check_values(self) -> None:
        sizes, problem = np.asarray([level.size for level in self.levels]), None
        if not len(self.item_ids):
            problem = "no items"
        elif self.item_ids.null_count() or self.item_ids.n_unique() != len(self.item_ids):
            problem = f"an item without an id or twice: {_twice(self.item_ids)!r}"
        elif ((self.codes_IL < 0) | (self.codes_IL > sizes)).any():
            problem = "a code outside its level"
        elif self.digit_I is not None and not 0 <= self.digit_I.min() <= self.digit_I.max() < self.digit_size:
            problem = f"a digit outside 0..{self.digit_size - 1}"
        if problem:
            raise ValueError(problem)

    def _digest(self) -> str:
        about = [[dataclasses.asdict(level) for level in self.levels], self.digit_size, self.policy, self.tokenizer]
        about += [self.parent] if self.parent else []
        arrays = [self.codes_IL] + ([self.digit_I] if self.digit_I is not None else [])
        return sha256_of(json.dumps(about, sort_keys=True), self.item_ids.str.join("\n").item(), *arrays)


def _ids(item_ids: Sequence[str] | pl.Series) -> pl.Series:
    return pl.Series("item_id", item_ids, dtype=pl.String)


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def _check_files(folder: Path, files: Mapping[str, str], verify: bool) -> None:
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise UserError("the file is missing", path=folder / name, expected="a whole table of IDs", hint=HINT)
        if verify and sha256_file(folder / name) != expected:
            raise UserError("the file was altered", path=folder / name, expected=f"SHA-256 {expected}", hint=HINT)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError("no table of semantic IDs here", path=folder, expected="a folder that `hisam tokenize` left")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        manifest["files"]["codes.npy"], manifest["files"]["items.parquet"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"not a table's manifest ({error!r})", path=path, hint=HINT) from error
    if version != FORMAT_VERSION:
        raise UserError(f"version {version}", path=path, expected=f"version {FORMAT_VERSION}", hint=HINT)
    return manifest


def _twice(item_ids: pl.Series) -> str | None:
    return None if item_ids.null_count() else item_ids.filter(item_ids.is_duplicated())[0]


def _some(names: pl.Series, verb: str) -> str:
    few = ", ".join(names.head(3).to_list()) + (", ..." if len(names) > 3 else "")
    return "" if names.is_empty() else f"it {verb} {len(names)} ({few}), "
