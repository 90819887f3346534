"""Features that somebody else computed, from .npy, .npz or Parquet, matched to the items by id."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from hisam_jax.data.encoders.base import Features, absent, describe, scatter
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file, sha256_of


@dataclasses.dataclass(frozen=True)
class NoEncoder:
    """The modality is left out: no item has it and `D = 0`."""

    modality: str
    name: ClassVar[str] = "none"

    def fingerprint(self) -> str:
        return describe(self, 1, ())

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return str(len(items))

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        return absent(len(items))


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Rows of a file, each belonging to an item id; items not in the file are absent.

    Forms: `.npz` with `ids [R]` and `values [R, D]`; Parquet with `item_id` and either one list column or numeric
    columns; `.npy` `[R, D]` whose ids stand in `<file>.ids.txt`, one a line. A bare `.npy` is taken only with
    `order='catalogue'` and the `catalogue_ids` (the ids as the source's catalogue lists them) when the counts match.
    Rows with a NaN or an infinity are absent and counted as `non_finite_feature`.

    Raises:
        UserError: no such file, an unknown form, wrong shapes, an id twice, no id of the catalogue.
    """

    modality: str
    source: str
    order: str | None = None
    catalogue_ids: Sequence[str] | None = None
    name: ClassVar[str] = "precomputed"

    def __post_init__(self):
        if not Path(self.source).is_file():
            raise UserError(f"no such file of {self.modality} features", path=self.source)
        if Path(self.source).suffix not in _READERS:
            raise UserError("unknown form of features", path=self.source, expected=" or ".join(_READERS))

    def fingerprint(self) -> str:
        sidecar = _sidecar(self)
        parts = (sha256_file(self.source), sha256_file(sidecar) if sidecar.is_file() else "none")
        return sha256_of("precomputed 1", *parts, str(self.order), "\0".join(self.catalogue_ids or ()))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(items["item_id"].to_list()))

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        ids, values_RD = _READERS[Path(self.source).suffix](self)
        _check(self.source, ids, values_RD)
        wanted = items.select("item_id").with_row_index("row")
        found = wanted.join(pl.DataFrame({"item_id": ids}).with_row_index("place"), on="item_id").sort("row")
        if len(items) and not len(found):
            raise UserError(
                f"none of its {len(ids)} ids is in the catalogue",
                path=self.source,
                expected=f"ids like {items['item_id'][0]!r}",
            )
        with np.errstate(over="ignore"):  # float64 past float32's range becomes infinite and is counted
            values_ND = np.asarray(values_RD[found["place"].to_numpy()], np.float32)
        finite = np.isfinite(values_ND).all(axis=1)
        rejected = {"non_finite_feature": int(np.sum(~finite))}
        return scatter(len(items), found["row"].to_numpy()[finite], values_ND[finite], rejected)


def _check(path: str, ids: list[str], values_RD: np.ndarray) -> None:
    if values_RD.ndim != 2 or values_RD.shape[1] == 0 or values_RD.dtype.kind not in "fiub":
        raise UserError(
            f"{values_RD.dtype} values of shape {values_RD.shape}",
            path=path,
            expected="numbers of shape [items, width]",
        )
    if len(ids) != len(values_RD):
        raise UserError(f"{len(ids)} ids for {len(values_RD)} rows", path=path, expected="one id a row")
    twice = pl.Series(ids, dtype=pl.String).is_duplicated()
    if twice.any():
        row = int(twice.arg_true()[0])
        raise UserError(
            f"item {ids[row]!r} is there twice, first in row {row}", path=path, field="ids", expected="an item once"
        )


def _sidecar(encoder: Precomputed) -> Path:
    return Path(f"{encoder.source}.ids.txt")


def _read_npy(encoder: Precomputed) -> tuple[list[str], np.ndarray]:
    try:
        values = np.load(encoder.source, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"not a readable array ({error})", path=encoder.source, expected="numbers saved by numpy.save"
        ) from error
    sidecar = _sidecar(encoder)
    if sidecar.is_file():
        try:
            return sidecar.read_text("utf-8").splitlines(), values
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 ({error})", path=sidecar, expected="one item id a line") from error
    catalogue = encoder.catalogue_ids
    if encoder.order == "catalogue" and catalogue is not None and values.ndim and len(catalogue) == len(values):
        return list(catalogue), values
    have = "unknown" if catalogue is None else str(len(catalogue))
    raise UserError(
        f"nothing says which item a row belongs to (rows: {len(values) if values.ndim else 0}, catalogue: {have})",
        path=encoder.source,
        expected=f"the ids in {sidecar.name}, one a line, or order='catalogue' with as many rows as the catalogue has",
    )


def _read_npz(encoder: Precomputed) -> tuple[list[str], np.ndarray]:
    expected = "arrays 'ids' and 'values' saved by numpy.savez"
    try:
        with np.load(encoder.source, allow_pickle=False) as stored:
            ids, values = stored["ids"], stored["values"]
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable archive ({error})", path=encoder.source, expected=expected) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
        raise UserError(
            f"{ids.dtype} ids of shape {ids.shape}", path=encoder.source, field="ids", expected="a list of ids"
        )
    return [i.decode() if isinstance(i, bytes) else str(i) for i in ids.tolist()], values


def _read_parquet(encoder: Precomputed) -> tuple[list[str], np.ndarray]:
    path = encoder.source
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"not a readable Parquet file ({error})", path=path) from error
    expected = "item_id and either one list column or numeric columns"
    if "item_id" not in table.columns or table["item_id"].null_count():
        raise UserError("no item_id, or an empty one", path=path, field="item_id", expected=expected)
    ids, rest = table["item_id"].cast(pl.String), table.drop("item_id")
    if rest.width == 1 and isinstance(rest.dtypes[0], (pl.List, pl.Array)):
        ids, values = _stack_lists(path, ids, rest.to_series())
    elif rest.width and all(dtype.is_numeric() for dtype in rest.dtypes):
        values = rest.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    else:
        raise UserError(f"columns {dict(rest.schema)}", path=path, expected=expected)
    return ids.to_list(), values


def _stack_lists(path: str, ids: pl.Series, lists: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The rows that have a list (a null is an item without the modality), all of one width."""
    kept = lists.is_not_null()
    ids, lists = ids.filter(kept), lists.filter(kept)
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    if not lists.dtype.inner.is_numeric():
        raise UserError(f"a list of {lists.dtype.inner}", path=path, field=lists.name, expected="a list of numbers")
    widths = lists.list.len()
    if widths.n_unique() != 1:
        raise UserError(
            f"lists of {widths.min()} to {widths.max()} numbers",
            path=path,
            field=lists.name,
            expected="lists of one length",
        )
    flat = lists.explode().cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return ids, flat.reshape(len(lists), -1)


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}
