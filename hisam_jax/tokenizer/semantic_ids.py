"""The table of semantic IDs: item -> codes, on disk with its tokenizer, its item keys and a checksum."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, sha256_file, sha256_of
from hisam_jax.tokenizer.base import Level

FORMAT_VERSION = 1
HINT = "make it again with `hisam tokenize`"


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIDTable:
    """Codes of every item of one catalogue.

    Attributes:
        levels: the positions of a code, coarse to fine.
        codes_IL: int32 [I, L]; `levels[l].size` where the item lacks the level's modality.
        digit_I: int32 [I] that tells items of equal codes apart, or None; predicted last, never an input.
        digit_size: how many digits there are, headroom included; 0 without digits.
        item_ids: the key of each row.
        tokenizer: name, seed and settings of what made the codes.
        policy: how collisions were resolved.
        checksum: of all of the above.
    """

    levels: tuple[Level, ...]
    codes_IL: np.ndarray
    digit_I: np.ndarray | None
    digit_size: int
    item_ids: list[str]
    tokenizer: dict[str, Any]
    policy: str
    checksum: str = ""

    def __post_init__(self):
        self._check()
        if not self.checksum:
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

    def write_into(self, folder: Path) -> None:
        """Writes codes.npy, digit.npy, items.parquet and manifest.json into a folder that exists."""
        np.save(folder / "codes.npy", self.codes_IL)
        if self.digit_I is not None:
            np.save(folder / "digit.npy", self.digit_I)
        pl.DataFrame({"item_id": self.item_ids}, schema={"item_id": pl.String}).write_parquet(folder / "items.parquet")
        names = ["codes.npy", "items.parquet"] + (["digit.npy"] if self.digit_I is not None else [])
        manifest = {
            "format_version": FORMAT_VERSION,
            "items": len(self.item_ids),
            "levels": [dataclasses.asdict(level) for level in self.levels],
            "vocab_sizes": self.vocab_sizes,
            "policy": self.policy,
            "digit_size": self.digit_size,
            "tokenizer": self.tokenizer,
            "checksum": self.checksum,
            "files": {name: sha256_file(folder / name) for name in names},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike, item_ids: Sequence[str] | None = None) -> SemanticIDTable:
        """Reads and verifies a table; with `item_ids`, also that it was made for exactly that catalogue.

        Raises:
            UserError: no table there, another version, a file that is missing or altered, another catalogue.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        for name, expected in manifest["files"].items():
            if not (folder / name).is_file():
                raise UserError("the file is missing", path=folder / name, expected="a whole table of IDs", hint=HINT)
            if sha256_file(folder / name) != expected:
                raise UserError("the file was altered", path=folder / name, expected=f"SHA-256 {expected}", hint=HINT)
        has_digit = "digit.npy" in manifest["files"]
        try:
            table = cls(
                levels=tuple(Level(**level) for level in manifest["levels"]),
                codes_IL=np.load(folder / "codes.npy"),
                digit_I=np.load(folder / "digit.npy") if has_digit else None,
                digit_size=manifest["digit_size"],
                item_ids=pl.read_parquet(folder / "items.parquet")["item_id"].to_list(),
                tokenizer=manifest["tokenizer"],
                policy=manifest["policy"],
                checksum=manifest["checksum"],
            )
            altered = table._digest() != table.checksum
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a table of IDs ({error})", path=folder / "manifest.json", hint=HINT) from error
        if altered:
            problem = "its levels, policy or tokenizer were altered"
            raise UserError(problem, path=folder / "manifest.json", expected=f"checksum {table.checksum}", hint=HINT)
        if item_ids is not None:
            table.check_catalogue(item_ids, path)
        return table

    def check_catalogue(self, item_ids: Sequence[str], path: str | os.PathLike | None = None) -> None:
        """Raises a `UserError` that counts and names the items in which the table and a catalogue differ."""
        ours, theirs = self.item_ids, list(item_ids)
        if ours == theirs:
            return
        missing, extra = _difference(theirs, ours), _difference(ours, theirs)
        if not missing and not extra:
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((row for row, (mine, other) in pairs if mine != other), len(ours))
            problem = f"the same items in another order, from row {at} on"
        else:
            problem = f"a table of another catalogue: {_some(missing, 'lacks')}{_some(extra, 'has besides')}"
            problem = problem.rstrip(", ")
        expected = f"the {len(theirs)} items of the dataset in its order"
        raise UserError(problem, path=path, field="item_id", expected=expected, hint=HINT)

    def _check(self) -> None:
        items, problem = len(self.item_ids), None
        sizes = np.asarray([level.size for level in self.levels])
        if self.codes_IL.dtype != np.int32 or self.codes_IL.shape != (items, len(self.levels)):
            problem = f"codes {self.codes_IL.dtype}{self.codes_IL.shape} for {items} items, {len(self.levels)} levels"
        elif items and ((self.codes_IL < 0) | (self.codes_IL > sizes)).any():
            problem = "a code outside its level"
        elif self.digit_I is not None and (self.digit_I.dtype != np.int32 or self.digit_I.shape != (items,)):
            problem = f"digits {self.digit_I.dtype}{self.digit_I.shape} for {items} items"
        elif self.digit_I is not None and items and not 0 <= self.digit_I.min() <= self.digit_I.max() < self.digit_size:
            problem = f"a digit outside 0..{self.digit_size - 1}"
        if problem:
            raise ValueError(problem)

    def _digest(self) -> str:
        about = [[dataclasses.asdict(level) for level in self.levels], self.digit_size, self.policy, self.tokenizer]
        arrays = [self.codes_IL] + ([self.digit_I] if self.digit_I is not None else [])
        return sha256_of(json.dumps(about, sort_keys=True), "\n".join(self.item_ids), *arrays)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError("no table of semantic IDs here", path=folder, expected="a folder that `hisam tokenize` left")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        manifest["files"]["codes.npy"], manifest["files"]["items.parquet"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a table's manifest ({error!r})", path=path, hint=HINT) from error
    if version != FORMAT_VERSION:
        raise UserError(f"version {version}", path=path, expected=f"version {FORMAT_VERSION}", hint=HINT)
    return manifest


def _difference(ids: Sequence[str], without: Sequence[str]) -> list[str]:
    known = set(without)
    return [name for name in ids if name not in known]


def _some(names: list[str], verb: str) -> str:
    return f"it {verb} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), " if names else ""
