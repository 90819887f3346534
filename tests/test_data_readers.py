"""Each reader on small files in the documented form, and on the public sets where they are."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.data.readers import READERS, read, reader_options
from hisam_jax.data.readers.base import INTERACTION_SCHEMA, ITEM_SCHEMA, RawData
from hisam_jax.data.readers.columns import scan_lines, split_events, to_interactions
from hisam_jax.errors import UserError


def write(folder: Path, **files: str | bytes) -> Path:
    """`write(folder, ratings_csv='...')` makes `folder/ratings.csv`."""
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        path = folder / ".".join(name.rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"picture")
    return folder


def events(data: RawData) -> pl.DataFrame:
    frame = data.interactions.collect(engine="streaming")
    assert dict(frame.schema) == INTERACTION_SCHEMA
    assert dict(data.items.schema) == ITEM_SCHEMA
    assert data.items["item"].is_unique().all()
    return frame


MOVIES = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n2,"American President, The (1995)",Drama\n'
MOVIES += '3,"Say ""Hi"" (2001)",(no genres listed)\n'


def test_movielens_csv(tmp_path):
    ratings = "userId,movieId,rating,timestamp\r\n7,1,4.5,964982703\r\n\r\n7,3,0.5,964982704\r\n8,2,5,0\r\n"
    write(tmp_path, ratings_csv=ratings, movies_csv=MOVIES, tags_csv="userId,movieId,tag,timestamp\n7,1,leak,1\n")
    data = read("movielens", tmp_path, pictures(tmp_path / "p", "1.jpg", "2.WEBP", "1.png", "notes.txt"))
    frame = events(data)
    assert frame.select("user", "item", "rating", "timestamp").rows() == [
        ("7", "1", 4.5, 964982703),
        ("7", "3", 0.5, 964982704),
        ("8", "2", 5.0, 0),
    ]
    assert frame["line"].to_list() == [2, 4, 5] and frame["order"].to_list() == [0, 2, 3]
    assert frame["reason"].null_count() == 3 and data.has_ratings and data.has_timestamps
    assert data.items["title"].to_list() == ["Toy Story (1995)", "American President, The (1995)", 'Say "Hi" (2001)']
    assert data.items["categories"].to_list() == [["Adventure", "Comedy"], ["Drama"], []]
    assert data.items["text"].to_list() == ["Adventure Comedy", "Drama", ""]
    names = [path and Path(path).name for path in data.items["image"]]
    assert names == ["1.jpg", "2.WEBP", None] and data.rejected_items == {}


def test_movielens_dat_is_latin_1_and_may_lie_in_the_archives_folder(tmp_path):
    movies = "1::Café Noir (1990)::Drama\n2::Mission: Impossible (1996)::Action|Children's\n".encode("latin-1")
    write(tmp_path / "ml-1m", ratings_dat="1::2::5::978300760\n2::1::3::978302109\n", movies_dat=movies)
    data = read("movielens", tmp_path)
    frame = events(data)
    assert frame.select("user", "item", "rating", "timestamp", "line").rows() == [
        ("1", "2", 5.0, 978300760, 1),
        ("2", "1", 3.0, 978302109, 2),
    ]
    assert data.items["title"].to_list() == ["Café Noir (1990)", "Mission: Impossible (1996)"]
    assert data.items["categories"].to_list() == [["Drama"], ["Action", "Children's"]]
    assert data.items["image"].null_count() == 2


def test_sequences_keep_repeats_and_the_order_of_the_file(tmp_path):
    items = 'item_id,asin,title,categories\n1,B01,"Oil, 50 ml",Unknown|Skin Care|Oils\n2,B02,,\n'
    write(tmp_path, sequences_txt="u1 1 2 1\n\nu2  2\t1\n", items_csv=items)
    data = read("sequences", tmp_path, pictures(tmp_path / "p", "B02.jpg", "1.jpg"))
    frame = events(data)
    assert frame.select("user", "item", "order", "line").rows() == [
        ("u1", "1", 0, 1),
        ("u1", "2", 1, 1),
        ("u1", "1", 2, 1),
        ("u2", "2", 3, 3),
        ("u2", "1", 4, 3),
    ]
    assert not data.has_ratings and not data.has_timestamps
    assert frame["rating"].null_count() == frame["timestamp"].null_count() == frame["reason"].null_count() == 5
    assert data.items["categories"].to_list() == [["Skin Care", "Oils"], []]
    assert data.items["title"].to_list() == ["Oil, 50 ml", None]
    assert [Path(path).name for path in data.items["image"]] == ["1.jpg", "B02.jpg"]


def test_sequences_with_movies_dat(tmp_path):
    write(tmp_path, sequences_txt="1 10 20\n", movies_dat="10::A (1990)::Drama\n20::B (1991)::War\n")
    assert read("sequences", tmp_path).items["item"].to_list() == ["10", "20"]


RECBOLE_ITEMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\n"
RECBOLE_ITEMS += "1\tToy Story\t1995\tAnimation Children's\t3.5\n2\tGoldenEye\t1995\tAction\t2\n"


def test_recbole(tmp_path):
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t1\t3\t881250949\n186\t2\t4.5\t8.9e8\n"
    write(tmp_path, ml_inter=inter, ml_item=RECBOLE_ITEMS)
    data = read("recbole", tmp_path)
    assert events(data).select("user", "item", "rating", "timestamp").rows() == [
        ("196", "1", 3.0, 881250949),
        ("186", "2", 4.5, 890000000),
    ]
    assert data.items["title"].to_list() == ["Toy Story", "GoldenEye"]
    assert data.items["categories"].to_list() == [["Animation", "Children's"], ["Action"]]
    assert data.items["text"].to_list() == ["1995 Animation Children's", "1995 Action"]


def test_recbole_with_its_own_feature_names_and_no_ratings(tmp_path):
    inter = "uid:token\tsid:token\tunix:float\nu\ts1\t1400000000123\n"
    item = "sid:token\tname:token_seq\tgenre:token_seq\ttype:token\ns1\tYour Name\tDrama, School, Drama\tMovie\n"
    write(tmp_path, a_inter=inter, a_item=item, b_inter=inter)
    data = read("recbole", tmp_path, name="a", user="uid", item="sid", timestamp="unix")
    assert events(data)["timestamp"].to_list() == [1400000000] and not data.has_ratings
    assert data.items.row(0)[1:4] == ("Your Name", "Movie Drama School", ["Drama", "School"])
    with pytest.raises(UserError, match="2 .inter files"):
        read("recbole", tmp_path)


TABLE = {"user": "who", "item": "sku", "rating": "stars", "timestamp": "at", "title": "name"}


def table_files(folder: Path, moments: list[str]) -> Path:
    rows = "".join(f'"Ann, ""A""",s{place},{4 - place % 2}.0,{moment}\n' for place, moment in enumerate(moments))
    items = "sku,name,brand,words,kind,photo\n" + "".join(
        f's{place},"Mug, large\nwith a line",Acme,for tea,home|mugs,x/{place}.png\n' for place in range(len(moments))
    )
    return write(folder, interactions_csv="who,sku,stars,at\n" + rows, items_csv=items)


@pytest.mark.parametrize(
    "moments",
    [
        ["1400000000", "1400000060.9"],
        ["1400000000000", "1400000060999"],
        ["1400000000000000", "1400000060000000"],
        ["2014-05-13T16:53:20Z", "2014-05-13 18:54:20.5+02:00"],
        ["2014-05-13 16:53:20", "2014-05-13T16:54:20 UTC"],
    ],
)
def test_table_csv_and_its_times(tmp_path, moments):
    folder = table_files(tmp_path / "raw", moments)
    shots = pictures(tmp_path / "shots", "0.png", "s1.jpg")
    data = read("table", folder, shots, **TABLE, text="brand,words", categories="kind", image="photo")
    frame = events(data)
    assert frame["timestamp"].to_list() == [1400000000, 1400000060]
    assert frame["user"].to_list() == ['Ann, "A"'] * 2 and frame["rating"].to_list() == [4.0, 3.0]
    assert frame["line"].to_list() == [2, 3] and frame["reason"].null_count() == 2
    assert data.items["title"][0] == "Mug, large with a line"
    assert data.items["text"][0] == "Acme for tea home mugs"
    assert data.items["categories"][1].to_list() == ["home", "mugs"]
    assert [Path(path).name for path in data.items["image"]] == ["0.png", "s1.jpg"]


def test_table_dates_without_a_clock_are_midnight(tmp_path):
    folder = table_files(tmp_path, ["1970-01-03", "2014-02-30"])
    frame = events(read("table", folder, **TABLE))
    assert frame["timestamp"].to_list() == [2 * 86400, None] and frame["reason"].to_list() == [None, "bad_timestamp"]


def test_table_parquet(tmp_path):
    frame = pl.DataFrame(
        {
            "who": [1, 2, None],
            "sku": [10.0, 20.0, 10.0],
            "stars": [5.0, float("nan"), 3.0],
            "at": pl.Series(["2014-05-13T16:53:20", "2014-05-13T16:53:21", None]).str.to_datetime(),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    pl.DataFrame({"sku": [10, 20], "name": ["a", None], "tags": [["x", "y"], None]}).write_parquet(tmp_path / "c.pq")
    data = read("table", tmp_path, **TABLE, interactions="log.parquet", items="c.pq", categories="tags")
    assert events(data).select("user", "item", "timestamp", "line", "reason").rows() == [
        ("1", "10", 1400000000, 1, None),
        ("2", "20", 1400000001, 2, "bad_rating"),
        (None, "10", None, 3, "missing_user"),
    ]
    assert data.items["item"].to_list() == ["10", "20"] and data.items["categories"].to_list() == [["x", "y"], []]


def test_table_columns_go_by_their_usual_names(tmp_path):
    write(
        tmp_path,
        interactions_csv="user,item,rating,timestamp\nu,1,4,2014-05-13\n",
        items_csv="item,name,description,category,price\n1,Mug,for tea,home|mugs,9\n",
    )
    data = read("table", tmp_path)
    assert events(data).select("rating", "timestamp").row(0) == (4.0, 1399939200)
    assert data.has_ratings and data.has_timestamps
    assert data.items.select("title", "text").row(0) == ("Mug", "for tea home mugs")
    bare = read("table", tmp_path, rating="", timestamp="", title="", text="", categories="")
    assert not bare.has_ratings and not bare.has_timestamps and events(bare)["rating"].null_count() == 1
    assert bare.items.select("title", "text").row(0) == (None, "")


def test_item_ids_that_pandas_made_floats_are_whole_in_both_tables(tmp_path):
    pl.DataFrame({"item": [7.0, None]}).write_parquet(tmp_path / "items.parquet")
    write(tmp_path, interactions_csv="user,item\nu,7\n")
    assert read("table", tmp_path, items="items.parquet").items["item"].to_list() == ["7"]


def test_recbole_in_the_folder_of_its_archive(tmp_path):
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ml.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    (tmp_path / "ml" / "ml.item").write_text("item_id:token\n2\n")
    assert events(read("recbole", tmp_path)).height == 1
    with pytest.raises(UserError, match="no other.inter file"):
        read("recbole", tmp_path, name="other")


def test_table_tabs_gzip_and_an_image_path_below_raw(tmp_path):
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfuser\titem\nu1\ti1\n"))
    write(tmp_path, items_tsv='item\tpicture\ni1\tshots/a.png\ni2\t5" nail\n')
    pictures(tmp_path / "shots", "a.png")
    options = {"interactions": "log.tsv.gz", "items": "items.tsv", "separator": "\\t", "image": "picture"}
    data = read("table", tmp_path, **options)
    assert events(data).select("user", "item").rows() == [("u1", "i1")]
    assert data.items["image"].to_list() == [str((tmp_path / "shots/a.png").resolve()), None]


REVIEW_2014 = {"reviewerID": "A1", "asin": "B1", "reviewerName": 'J. "Jay"', "helpful": [0, 0], "reviewText": "b, c\né"}
REVIEW_2014 |= {"overall": 5.0, "summary": "s", "unixReviewTime": 1400000000, "reviewTime": "05 13, 2014"}


@pytest.mark.parametrize("zipped", [True, False])
def test_amazon_2014_metadata_are_python_literals_or_json(tmp_path, zipped):
    reviews = "".join(json.dumps(REVIEW_2014 | {"asin": asin, "overall": 3.0}) + "\n" for asin in ("B1", "B2"))
    first = {"asin": "B1", "title": 'Miss "Dior"\'s', "brand": "Dior", "imUrl": "http://e.com/images/I/51x._SX300_.jpg"}
    first["categories"] = [["Beauty", "Fragrance"], ["Beauty", "Women's"]]
    second = {"asin": "B2", "categories": [["Beauty"]], "title": None}
    metadata = f"{first!r}\n{json.dumps(second)}\n"
    for name, text in (("reviews_Beauty_5.json", reviews), ("meta_Beauty.json", metadata)):
        target = tmp_path / (name + ".gz" if zipped else name)
        target.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    data = read("amazon2014", tmp_path, pictures(tmp_path / "p", "51x._SX300_.jpg", "B2.jpg"))
    assert events(data).select("user", "item", "rating", "timestamp", "line", "reason").rows() == [
        ("A1", "B1", 3.0, 1400000000, 1, None),
        ("A1", "B2", 3.0, 1400000000, 2, None),
    ]
    assert data.items["title"].to_list() == ['Miss "Dior"\'s', None]
    assert data.items["text"][0] == "Dior Beauty Fragrance Women's"
    assert data.items["categories"].to_list() == [["Beauty", "Fragrance", "Women's"], ["Beauty"]]
    assert [Path(path).name for path in data.items["image"]] == ["51x._SX300_.jpg", "B2.jpg"]


def test_amazon_2023_counts_milliseconds_and_parents(tmp_path):
    review = {"rating": 4.0, "title": "t", "text": "x", "images": [], "asin": "B0", "parent_asin": "P1"}
    review |= {"user_id": "U1", "timestamp": 1588687728923, "verified_purchase": True}
    image = {"thumb": "https://m.example/I/41q_t.jpg", "large": "https://m.example/I/41q.jpg", "hi_res": None}
    meta = {"main_category": "Books", "title": "A Book", "store": "Ann Author", "categories": ["Books", "Poetry"]}
    meta |= {"parent_asin": "P1", "images": [image], "price": None, "details": {"Publisher": "x"}}
    (tmp_path / "Books.jsonl.gz").write_bytes(gzip.compress(json.dumps(review).encode()))
    (tmp_path / "meta_Books.jsonl.gz").write_bytes(gzip.compress(json.dumps(meta).encode()))
    data = read("amazon2023", tmp_path, pictures(tmp_path / "p", "41q_t.jpg"))
    assert events(data).select("user", "item", "rating", "timestamp").rows() == [("U1", "P1", 4.0, 1588687728)]
    assert data.items.row(0)[1:4] == ("A Book", "Ann Author Books Poetry", ["Books", "Poetry"])
    assert Path(data.items["image"][0]).name == "41q_t.jpg"


def test_amazon_with_several_categories_asks_which(tmp_path):
    for category in ("Baby", "Beauty"):
        write(tmp_path, **{f"reviews_{category}_5_json": json.dumps(REVIEW_2014)})
        write(tmp_path, **{f"meta_{category}_json": json.dumps({"asin": "B1", "title": category})})
    with pytest.raises(UserError, match="several categories.*--amazon-category NAME"):
        read("amazon2014", tmp_path)
    assert read("amazon2014", tmp_path, category="Baby").items["title"].to_list() == ["Baby"]


def test_unknown_sources_and_options_name_the_known_ones(tmp_path):
    with pytest.raises(
        UserError, match="'netflix'.*movielens, sequences, recbole, table, amazon2014, amazon2023, shop"
    ):
        read("netflix", tmp_path)
    with pytest.raises(UserError, match="unknown option 'usr'.*one of interactions, items, user"):
        read("table", tmp_path, usr="x")
    with pytest.raises(UserError, match="no option with source movielens"):
        read("movielens", tmp_path, tags="x")
    with pytest.raises(UserError, match="shop.colour"):
        read("shop", tmp_path, colour="red")  # the shop checks its own
    assert {source for source in READERS if reader_options(source) is None} == {"shop"}
    assert reader_options("amazon2023") == {"category": None}


FIELD = st.text(
    st.characters(exclude_characters="\r\n\x1f\x00\ufffd", exclude_categories=("Cs", "Cc", "Z")), max_size=8
)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=8))
def test_quoted_rows_are_read_as_the_csv_module_wrote_them(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("q") / "log.csv"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("user", "note", "item"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    names = ["user", "note", "item"]
    columns = {"user": "user", "item": "item"}
    scanned = split_events(scan_lines(path), separator=",", header=names, columns=columns, quoted=True)
    frame = to_interactions(scanned, first_line=1).collect(engine="streaming")
    kept = [(user, item) for user, note, item in rows]
    assert [(user or "", item or "") for user, item in frame.select("user", "item").rows()] == kept
    assert "broken_row" not in frame["reason"].to_list()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "name", "images", "counts"),
    [
        ("movielens", "ml-latest-small", "movielens-posters", (100_836, 610, 9_724, 9_742)),
        ("sequences", "ml-1m", "movielens-posters", (1_000_209, 6_040, 3_706, 3_883)),
        ("sequences", "amazon-beauty-2014", None, (198_502, 22_363, 12_101, 12_101)),
    ],
)
def test_public_sets_have_their_published_sizes(real_data, source, name, images, counts):
    data = read(source, real_data / name, real_data / images if images else None)
    frame = events(data)
    assert (frame.height, frame["user"].n_unique(), frame["item"].n_unique(), data.items.height) == counts
    assert frame["reason"].null_count() == frame.height and data.rejected_items == {}
    assert frame["order"].to_list() == list(range(frame.height))
    if images:
        shown = data.items.filter(pl.col("image").is_not_null())["item"]
        assert frame["item"].is_in(shown.implode()).mean() > 0.9
