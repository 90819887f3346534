"""Precomputed features: every form of file, matched by id, and what is wrong with a file said plainly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hisam_jax.data.encoders import encode_cached, make_encoder
from hisam_jax.errors import UserError

IDS = ["7", "2", "9"]
VALUES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float64)
ITEMS = pl.DataFrame({"item_id": ["9", "404", "7", "2"]})
FIT = np.ones(4, np.bool_)


def write(path, ids=IDS, values=VALUES) -> str:
    """Writes the rows in the form that the name of `path` says."""
    ids = list(ids)
    if path.suffix == ".npz":
        np.savez(path, ids=np.array(ids), values=values)
    elif path.suffix == ".npy":
        np.save(path, values)
        path.with_name(path.name + ".ids.txt").write_text("".join(f"{i}\n" for i in ids))
    elif path.stem == "wide":
        pl.DataFrame({"item_id": ids} | {f"f{d}": values[:, d] for d in range(values.shape[1])}).write_parquet(path)
    elif path.stem == "array":
        pl.DataFrame({"item_id": ids, "vector": pl.Series(values, dtype=pl.Array(pl.Float64, 2))}).write_parquet(path)
    else:
        pl.DataFrame({"item_id": ids, "vector": values.tolist()}).write_parquet(path)
    return str(path)


FORMS = pytest.mark.parametrize("form", ["x.npz", "x.npy", "wide.parquet", "list.parquet", "array.parquet"])


def encode(path: str, items: pl.DataFrame = ITEMS, **options):
    return make_encoder("behaviour", f"precomputed:{path}", **options).encode(items, np.ones(len(items), np.bool_))


@FORMS
def test_rows_are_matched_by_id(tmp_path, form):
    features = encode(write(tmp_path / form))
    np.testing.assert_array_equal(features.values, np.array([[5, 6], [0, 0], [1, 2], [3, 4]], np.float32))
    assert features.present.tolist() == [True, False, True, True] and features.values.dtype == np.float32
    assert not features.rejected


@FORMS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_are_not_finite_are_absent_and_counted(tmp_path, form, bad):
    values = VALUES.copy()
    values[1, 0] = bad
    features = encode(write(tmp_path / form, values=values))
    assert features.present.tolist() == [True, False, True, False] and not features.values[3].any()
    assert features.rejected == {"non_finite_feature": 1}


@FORMS
def test_an_item_twice_is_refused_by_name(tmp_path, form):
    with pytest.raises(UserError, match="'7' is there twice"):
        encode(write(tmp_path / form, ids=["7", "2", "7"]))


@FORMS
def test_another_catalogue_is_refused(tmp_path, form):
    with pytest.raises(UserError, match="none of its 3 ids.*'9'"):
        encode(write(tmp_path / form, ids=["a", "b", "c"]))


@pytest.mark.parametrize("form", ["x.npz", "x.npy"])
@pytest.mark.parametrize(
    "values", [VALUES[:, 0], VALUES[:, :0], VALUES[None], VALUES[:2], VALUES.astype(str), VALUES.astype(complex)]
)
def test_wrong_shapes_and_types_are_refused(tmp_path, form, values):
    with pytest.raises(UserError, match=r"x\.np"):
        encode(write(tmp_path / form, values=values))


@pytest.mark.parametrize("form", ["x.npz", "x.npy", "x.parquet"])
@pytest.mark.parametrize("content", [b"", b"not an array at all"])
def test_unreadable_files_are_refused(tmp_path, form, content):
    (tmp_path / form).write_bytes(content)
    with pytest.raises(UserError, match="not a readable"):
        encode(str(tmp_path / form))


@pytest.mark.parametrize("form", ["x.npz", "x.npy", "list.parquet"])
def test_truncated_files_are_refused(tmp_path, form):
    path = tmp_path / form
    write(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a readable"):
        encode(str(path))


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", ids=np.array(IDS, dtype=object), values=VALUES)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match="not a readable"):
            encode(str(tmp_path / name))


def test_a_bare_array_says_what_it_needs(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    path = str(tmp_path / "x.npy")
    for options in (
        {},
        {"catalogue_ids": IDS},
        {"order": "catalogue"},
        {"order": "catalogue", "catalogue_ids": IDS[:2]},
    ):
        with pytest.raises(UserError, match=r"x\.npy\.ids\.txt"):
            encode(path, **options)
    features = encode(path, order="catalogue", catalogue_ids=tuple(IDS))
    np.testing.assert_array_equal(features.values[0], [5, 6])


def test_integer_and_byte_ids_are_ids(tmp_path):
    np.savez(tmp_path / "int.npz", ids=np.array([7, 2, 9]), values=VALUES.astype(np.int16))
    np.savez(tmp_path / "bytes.npz", ids=np.array([b"7", b"2", b"9"]), values=VALUES.astype(np.float16))
    pl.DataFrame({"item_id": [7, 2, 9], "a": [1, 3, 5], "b": [2, 4, 6]}).write_parquet(tmp_path / "int.parquet")
    for name in ("int.npz", "bytes.npz", "int.parquet"):
        np.testing.assert_array_equal(encode(str(tmp_path / name)).values[0], [5, 6])


def test_a_null_list_is_an_absent_item_and_a_null_number_is_counted(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"item_id": IDS, "v": [[1.0, 2.0], None, [5.0, None]]}).write_parquet(path)
    features = encode(str(path))
    assert features.present.tolist() == [False, False, True, False] and features.rejected == {"non_finite_feature": 1}


@pytest.mark.parametrize(
    "table",
    [
        {"id": IDS, "v": [1.0, 2.0, 3.0]},
        {"item_id": IDS},
        {"item_id": IDS, "v": ["a", "b", "c"]},
        {"item_id": ["7", None, "9"], "v": [1.0, 2.0, 3.0]},
        {"item_id": IDS, "v": [[1.0], [1.0, 2.0], [3.0]]},
        {"item_id": IDS, "v": [["a"], ["b"], ["c"]]},
        {"item_id": IDS, "v": [[], [], []]},
        {"item_id": IDS, "v": [None, None, None]},
    ],
)
def test_wrong_tables_are_refused(tmp_path, table):
    pl.DataFrame(table).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet"):
        encode(str(tmp_path / "x.parquet"))


def test_missing_files_and_unknown_forms_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        make_encoder("text", f"precomputed:{tmp_path}/none.npy")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"\.npy or \.npz or \.parquet"):
        make_encoder("text", f"precomputed:{tmp_path}/x.csv")


def test_a_sidecar_in_another_encoding_is_refused(tmp_path):
    path = write(tmp_path / "x.npy")
    (tmp_path / "x.npy.ids.txt").write_bytes(b"\xff\xfe\n2\n9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        encode(path)


@pytest.mark.parametrize("changed", ["values", "sidecar"])
def test_a_changed_file_is_read_again(tmp_path, changed):
    path = write(tmp_path / "x.npy")
    encoder = make_encoder("text", f"precomputed:{path}")
    before = encode_cached(encoder, ITEMS, FIT, tmp_path / "cache").values
    write(tmp_path / "x.npy", **({"values": VALUES + 1} if changed == "values" else {"ids": ["7", "9", "2"]}))
    assert not np.array_equal(encode_cached(encoder, ITEMS, FIT, tmp_path / "cache").values, before)
