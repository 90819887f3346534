"""Raw data that is missing, empty, mislabelled or broken: rows are counted with a reason, files stop with one line."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.data.prepare import prepare
from hisam_jax.data.readers import read
from hisam_jax.data.readers.base import REASONS
from hisam_jax.errors import UserError

HEADER = "userId,movieId,rating,timestamp\n"
GOOD = "1,10,4.0,964982703\n"
MOVIES = "movieId,title,genres\n10,A (1990),Drama\n"


def movielens(folder: Path, ratings: str | bytes = HEADER + GOOD, movies: str | bytes = MOVIES) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (("ratings.csv", ratings), ("movies.csv", movies)):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def reasons(folder: Path, source: str = "movielens", **options) -> list[str | None]:
    frame = read(source, folder, **options).interactions.collect(engine="streaming")
    assert set(frame["reason"].drop_nulls()) <= set(REASONS)
    return frame["reason"].to_list()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2,10,4.0", "broken_row"),
        ("2,10,4.0,964982703,extra", "broken_row"),
        ("2,10,4.0,964982703,extra,more,yet more", "broken_row"),
        ("just some words", "broken_row"),
        ("\x00\x01", "broken_row"),
        (",10,4.0,964982703", "missing_user"),
        ("2,  ,4.0,964982703", "missing_item"),
        ("2,10,NaN,964982703", "bad_rating"),
        ("2,10,inf,964982703", "bad_rating"),
        ("2,10,1e39,964982703", "bad_rating"),
        ("2,10,four,964982703", "bad_rating"),
        ("2,10,,964982703", "bad_rating"),
        ("2,10,4.0,-1", "bad_timestamp"),
        ("2,10,4.0,4102444801", "bad_timestamp"),
        ("2,10,4.0,99999999999999999999999", "bad_timestamp"),
        ("2,10,4.0,nan", "bad_timestamp"),
        ("2,10,4.0,yesterday", "bad_timestamp"),
        ("2,10,4.0,", "bad_timestamp"),
        ("2,10,4.0,4102444800", None),
        ("2,10,-4,0", None),
        ("2,unknown,4.0,0", None),  # the catalogue is the preparation's business
    ],
)
def test_a_bad_row_has_its_reason_and_spares_its_neighbours(tmp_path, row, reason):
    assert reasons(movielens(tmp_path, HEADER + GOOD + row + "\n" + GOOD)) == [None, reason, None]
    assert reasons(movielens(tmp_path, HEADER + GOOD + row)) == [None, reason]


def test_a_byte_that_is_not_utf8(tmp_path):
    ratings = (HEADER + GOOD).encode() + b"caf\xe9,10,4.0,1\n" + b"1,10,\xff,1\n" + GOOD.encode()
    assert reasons(movielens(tmp_path, ratings)) == [None, "not_utf8", "not_utf8", None]


def test_a_stray_quote_in_a_table_spoils_only_its_own_line(tmp_path):
    rows = 'user,item\n"a,b",1\n"stray,1\nc,1\nd"e,1\n"f"g,1\n"h",1,"extra"\n'
    (tmp_path / "interactions.csv").write_text(rows)
    (tmp_path / "items.csv").write_text("item\n1\n")
    assert reasons(tmp_path, "table") == [None, "broken_row", None, None, "broken_row", "broken_row"]


def test_lines_are_those_of_the_file(tmp_path):
    frame = read("movielens", movielens(tmp_path, HEADER + "\n\n" + GOOD + "bad\n" + GOOD)).interactions.collect()
    assert frame.filter(pl.col("reason").is_not_null())["line"].to_list() == [5]


@given(st.binary(max_size=300))
def test_no_bytes_below_the_header_can_raise(tmp_path_factory, tail):
    folder = tmp_path_factory.mktemp("any")
    assert reasons(movielens(folder, (HEADER + GOOD).encode() + tail, MOVIES.encode() + tail))[0] is None
    (folder / "sequences.txt").write_bytes(b"1 10\n" + tail)
    assert reasons(folder, "sequences")[0] is None
    (folder / "interactions.csv").write_bytes(b'user,item,at\n"1",10,5\n' + tail)
    (folder / "items.csv").write_bytes(b"item\n10\n" + tail)
    assert reasons(folder, "table", timestamp="at")[0] is None
    (folder / "x.inter").write_bytes(b"user_id:token\titem_id:token\n1\t10\n" + tail)
    (folder / "x.item").write_bytes(b"item_id:token\tgenre:token_seq\n10\ta\n" + tail)
    assert reasons(folder, "recbole")[0] is None
    (folder / "X.jsonl").write_bytes(b'{"user_id": "u", "parent_asin": "p", "rating": 1, "timestamp": 5}\n' + tail)
    (folder / "meta_X.jsonl").write_bytes(b"{'parent_asin': 'p'}\n" + tail)
    assert reasons(folder, "amazon2023")[0] is None


def test_catalogue_rows_are_counted_and_the_first_of_an_id_is_kept(tmp_path):
    movies = MOVIES.encode() + b"10,B (1991),War\n11,C\n,D,War\n12,E\xe9,War\n" + b'13,"F,War\n14,"G, The",War\n'
    data = read("movielens", movielens(tmp_path, movies=movies))
    assert data.items.select("item", "title").rows() == [("10", "A (1990)"), ("14", "G, The")]
    expected = {"broken_row": 2, "duplicate_item": 1, "missing_item": 1, "not_utf8": 1}
    assert data.rejected_items == expected and set(expected) <= set(REASONS)


@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv"])
def test_missing_and_empty_files(tmp_path, name):
    folder = movielens(tmp_path / "raw")
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name}.*empty.*expected"):
        read("movielens", folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"raw.*no {name}.*expected"):
        read("movielens", folder)
    with pytest.raises(UserError, match="no such folder"):
        read("movielens", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("movielens", {"ratings.csv": "user,movieId,rating,timestamp\n", "movies.csv": MOVIES}, r"ratings.csv:1: field "
         r"'userId'.*found user, movieId, rating, timestamp; expected a header with userId, movieId"),
        ("movielens", {"ratings.csv": "\n" + HEADER, "movies.csv": MOVIES}, r"ratings.csv:1: .*first line is empty"),
        ("movielens", {"ratings.csv": HEADER, "movies.csv": MOVIES}, r"ratings.csv: .*no rows"),
        ("movielens", {"ratings.csv": HEADER + GOOD, "movies.csv": "movieId,title,genres\n"}, r"movies.csv: no us"),
        ("movielens", {"ratings.csv": HEADER + GOOD, "movies.csv": "movieId,title,genres\n1,a\n2\n"},
         r"movies.csv: no usable item \(2 broken_row\)"),
        ("sequences", {"sequences.txt": "1 2\n", "items.csv": "id,title\n2,x\n"},
         r"items.csv:1: field 'item_id'.*found id, title"),
        ("sequences", {"sequences.txt": " \n\n", "items.csv": "item_id\n2\n"}, r"sequences.txt: .*no rows"),
        ("sequences", {"sequences.txt": "1 2\n"}, r"no items.csv or movies.dat"),
        ("recbole", {"a.inter": "user_id\titem_id\n1\t2\n", "a.item": "item_id:token\n2\n"}, r"a.inter:1: .*name:type"),
        ("recbole", {"a.inter": "user_id:token\n1\n", "a.item": "item_id:token\n2\n"}, r"a.inter:1: field 'item_id'"),
        ("recbole", {"a.inter": "user_id:token\titem_id:token\n1\t2\n"}, r"a.item: no such file"),
        ("recbole", {"a.item": "item_id:token\n"}, r"no .inter file"),
        ("table", {"interactions.csv": "user,item\n1,2\n"}, r"items.csv: no such file"),
        ("table", {"interactions.csv": "user;item\n1;2\n", "items.csv": "item\n2\n"},
         r"interactions.csv:1: field 'separator'.*one column 'user;item'; expected .* --separator ';'"),
        ("table", {"interactions.csv": "user,item\r1,2\r", "items.csv": "item\n2\n"},
         r"interactions.csv:1: not a line of text.*UTF-8"),
        ("table", {"interactions.csv": "user,item\n1,2\n", "items.csv": "\0\0PK\n2\n"},
         r"items.csv:1: not a line of text"),
        ("table", {"interactions.csv": "x" * 70_000, "items.csv": "item\n2\n"},
         r"interactions.csv:1: not a line of text"),
        ("movielens", {"ratings.csv": "rating," + HEADER + "1," + GOOD, "movies.csv": MOVIES},
         r"ratings.csv:1: field 'rating': column 'rating' is there twice"),
        ("recbole", {"a.inter": "user_id:token\tuser_id:token\n1\t2\n", "a.item": "item_id:token\n2\n"},
         r"a.inter:1: field 'user_id': column 'user_id' is there twice"),
        ("amazon2014", {"meta_A.json": "{}\n"}, r"no reviews here.*reviews_CATEGORY_5.json"),
        ("amazon2014", {"reviews_A_5.json": "{}\n"}, r"meta_A.json.gz: no such file"),
        ("amazon2023", {"A.jsonl": "{}\n", "meta_A.jsonl": "[1]\nno\n{'a': \n"},
         r"meta_A.jsonl: no usable item \(3 broken_row\)"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_where_and_what_was_expected(tmp_path, source, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read(source, tmp_path)
    assert str(tmp_path) in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_user_without_items_and_a_repeated_id(tmp_path):
    (tmp_path / "sequences.txt").write_bytes(b"u1 1 2\nlonely\nu\xff 1\n")
    (tmp_path / "items.csv").write_text("item_id\n1\n2\n1\n")
    assert reasons(tmp_path, "sequences") == [None, None, "missing_item", "not_utf8"]
    assert read("sequences", tmp_path).rejected_items == {"duplicate_item": 1}


def test_broken_reviews(tmp_path):
    good = {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1}
    lines = [json.dumps(good), "not json", '{"reviewerID": "A", "asin": ', json.dumps(good | {"asin": None})]
    lines += [
        "[1, 2]",
        json.dumps(good | {"overall": "NaN"}),
        json.dumps(good | {"unixReviewTime": -5}),
        json.dumps(good),
    ]
    (tmp_path / "reviews_X_5.json").write_text("\n".join(lines))
    metadata = "{'asin': 'B', 'imUrl': 5, 'categories': None, 'brand': ['x'], 'title': '\\d'}\n{[]: 1}\n"
    (tmp_path / "meta_X.json").write_text(metadata + "[" * 100_000 + "\n")
    expected = [None, "broken_row", "broken_row", "missing_item", "broken_row", "bad_rating", "bad_timestamp", None]
    assert reasons(tmp_path, "amazon2014") == expected
    assert read("amazon2014", tmp_path).rejected_items == {"broken_row": 2}


def test_archives_that_are_cut_off(tmp_path):
    whole = gzip.compress(b'{"reviewerID": "A", "asin": "B", "overall": 1, "unixReviewTime": 1}\n' * 50)
    (tmp_path / "reviews_X_5.json.gz").write_bytes(whole[:-9])
    (tmp_path / "meta_X.json").write_text('{"asin": "B"}\n')
    with pytest.raises(UserError, match=r"reviews_X_5.json.gz: damaged gzip archive"):
        read("amazon2014", tmp_path)


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "items.csv").write_text("item\n1\n")
    with pytest.raises(UserError, match=r"log.parquet: not a Parquet file"):
        read("table", tmp_path, interactions="log.parquet")


@pytest.mark.parametrize("torn", ["log.parquet", "items.parquet"])
def test_parquet_with_a_damaged_page(tmp_path, torn):
    table = pl.DataFrame({"item": [f"i{n}" for n in range(500)], "user": [f"u{n}" for n in range(500)]})
    for name in ("log.parquet", "items.parquet"):
        table.write_parquet(tmp_path / name)
    whole = (tmp_path / torn).read_bytes()
    (tmp_path / torn).write_bytes(whole[:20] + b"\xff" * 60 + whole[80:])
    options = {"interactions": "log.parquet", "items": "items.parquet"}
    with pytest.raises(UserError, match=rf"{torn}: damaged .*expected a whole Parquet file"):
        prepare("table", tmp_path, tmp_path / "out", image_encoder="none", reader_options=options)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("column", [[["a"]], [{"a": 1}], [datetime.timedelta(1)]])
def test_parquet_columns_that_hold_no_ids(tmp_path, column):
    (tmp_path / "items.csv").write_text("item\n1\n")
    pl.DataFrame({"user": column, "item": ["1"]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"log.parquet: field 'user': a column of .*expected text, numbers or dates"):
        read("table", tmp_path, interactions="log.parquet")


def test_picture_names_that_name_no_file(tmp_path):
    (tmp_path / "interactions.csv").write_text("user,item\n1,1\n")
    (tmp_path / "items.csv").write_text(f"item,image\n1,{'a' * 5000}.jpg\n2,a\0b.jpg\n3,gone.jpg\n")
    assert read("table", tmp_path).items["image"].to_list() == [None] * 3


@pytest.mark.parametrize("separator", ["::", '"', "\n"])
def test_separators_that_part_nothing(tmp_path, separator):
    with pytest.raises(UserError, match="field 'separator'.*expected one character"):
        read("table", tmp_path, separator=separator)


def test_the_first_refused_row_of_a_catalogue_is_named(tmp_path):
    rows = MOVIES + '11,"two\nlines (1990)",War\n\n12,C (1990),War\n11,again,War\n12,again,War\nbroken\n'
    folder = movielens(tmp_path, movies=rows)
    assert read("movielens", folder).refused_items == {"broken_row": (1, 9), "duplicate_item": (2, 7)}
    with pytest.raises(UserError, match=r"movies.csv:7: field 'item': 3 of 6 catalogue rows.*duplicate_item"):
        prepare("movielens", folder, tmp_path / "out", image_encoder="none")


def test_picture_folders_that_hold_no_pictures(tmp_path):
    folder = movielens(tmp_path / "raw")
    with pytest.raises(UserError, match="field 'images'.*no such folder"):
        read("movielens", folder, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="field 'images'.*no picture"):
        read("movielens", folder, tmp_path / "empty")
