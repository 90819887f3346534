"""The shop's catalogue, pictures, folder and reader: what is planted where, and that it is the same every time."""

from __future__ import annotations

import dataclasses
import io
import json
from itertools import islice

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.preprocessing import StandardScaler

from hisam_jax.data.encoders import make_encoder
from hisam_jax.data.readers import shop as reader
from hisam_jax.data.readers.base import INTERACTION_SCHEMA, ITEM_SCHEMA
from hisam_jax.data.shop import ShopConfig, generate, item_table, make_catalogue, picture, stream_users, truth_table
from hisam_jax.data.shop.generator import TABLES
from hisam_jax.data.shop.tables import item_ids
from hisam_jax.data.shop.vocabulary import COLOURS, PATTERNS
from hisam_jax.errors import UserError

SIZES = dict(users=60, items=1_000, events_per_user=12.0, seed=3)
SMALL = ShopConfig(users=20, items=70, events_per_user=10.0, seed=1, picture_size=32)
FACTORS = ("category", "style", "colour", "pattern")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop read back from its folder."""
    folder = tmp_path_factory.mktemp("shop") / "raw"
    return folder, reader.read(folder, **SIZES)


@pytest.fixture(scope="module")
def probes(shop):
    """Accuracy of a linear probe on held-out items: modality -> factor -> bool [held-out items with the modality]."""
    _, raw = shop
    items, held_out = raw.items.rename({"item": "item_id"}), np.arange(raw.items.height) % 4 == 0
    out = {}
    for modality, name in (("text", "tfidf_svd"), ("image", "hog_color")):
        features = make_encoder(modality, name).encode(items, np.ones(items.height, bool))
        x = StandardScaler().fit_transform(features.values)
        fit, judge = features.present & ~held_out, features.present & held_out
        out[modality] = {}
        for factor in ("department", "kind", "emblem", "style", "colour", "pattern"):
            y = raw.truth[factor].to_numpy()
            out[modality][factor] = RidgeClassifier(alpha=10.0).fit(x[fit], y[fit]).predict(x[judge]) == y[judge]
    return out


@pytest.mark.parametrize("modality", ["text", "image"])
def test_text_and_picture_both_tell_the_category(probes, modality):
    hits = probes[modality]
    assert hits["department"].mean() > 0.9
    assert (hits["kind"] & hits["emblem"]).mean() > 0.85  # the leaf; chance is 1/256


@pytest.mark.parametrize(
    "factor, teller, other, chance",
    [("style", "text", "image", 16), ("colour", "image", "text", 12), ("pattern", "image", "text", 8)],
)
def test_style_colour_and_pattern_are_told_by_one_modality_only(probes, factor, teller, other, chance):
    assert probes[teller][factor].mean() > 0.75
    assert probes[other][factor].mean() < 1 / chance + 4 * np.sqrt(1 / chance / len(probes[other][factor]))


def test_no_word_names_a_colour_or_a_pattern():
    items = item_table(ShopConfig(items=4_000))
    used = set(
        " ".join(items["title"].drop_nulls().to_list() + items["text"].to_list()).lower().replace(",", "").split()
    )
    assert not used & ({name for name, _ in COLOURS} | set(PATTERNS))


def test_factors_are_independent_of_each_other_and_of_the_order():
    truth = truth_table(ShopConfig(items=20_000))
    for i, one in enumerate(FACTORS):
        for other in FACTORS[i + 1 :]:
            assert adjusted_mutual_info_score(truth[one], truth[other]) < 0.01
        assert adjusted_mutual_info_score(truth[one], np.arange(20_000) // 1_000) < 0.01
    assert truth["category"].n_unique() == 256
    assert truth.group_by("category").agg(pl.col("department", "kind").n_unique()).select(
        "department", "kind"
    ).max().row(0) == (1, 1)


def test_shares_of_missing_and_cold_items():
    config = ShopConfig(items=10_000, missing_picture=0.2, missing_title=0.1, cold_items=0.3)
    items, truth = item_table(config), truth_table(config)
    assert items["image"].null_count() / 10_000 == pytest.approx(0.2, abs=0.02)
    assert items["title"].null_count() / 10_000 == pytest.approx(0.1, abs=0.02)
    assert (items["title"].is_null() == ~truth["has_text"]).all() and (
        items["image"].is_null() == ~truth["has_picture"]
    ).all()
    bare = items.filter(pl.col("title").is_null())
    assert (bare["text"] == "").all() and (bare["categories"].list.len() == 0).all()
    assert (~truth["sold"]).sum() == 1_000 and truth["late"].sum() == 2_000


def test_a_picture_depends_on_its_item_alone_and_shows_its_colour():
    config = ShopConfig(items=300, seed=5)
    catalogue = make_catalogue(config)
    assert picture(config, catalogue, 7) == picture(dataclasses.replace(config, users=9), catalogue, 7)
    assert picture(config, catalogue, 7) != picture(dataclasses.replace(config, seed=6), catalogue, 7)
    image = Image.open(io.BytesIO(picture(dataclasses.replace(config, picture_size=48), catalogue, 7)))
    assert image.size == (48, 48) and image.format == "JPEG"


def test_what_is_written_is_what_is_streamed(shop):
    folder, raw = shop
    events = raw.interactions.collect()
    names = np.array(item_ids(SIZES["items"]))
    for user, rows in zip(
        islice(stream_users(ShopConfig(**SIZES)), SIZES["users"]), events.partition_by("user"), strict=True
    ):
        assert rows["user"][0] == f"u{user.user:07d}"
        assert (rows["item"].to_numpy() == names[user.item]).all()
        assert (rows["timestamp"].to_numpy() == user.timestamp).all()
        assert (rows["rating"].to_numpy() == user.rating).all()
    truth = pl.read_parquet(folder / "users_truth.parquet")
    mean = pl.read_parquet(folder / "events_truth.parquet").group_by("user").agg(pl.col("oracle_nll").mean())
    joined = truth.join(mean, on="user", suffix="_events")
    assert np.allclose(joined["oracle_nll"], joined["oracle_nll_events"], rtol=1e-5)


def test_the_reader_gives_the_common_schema_and_pictures_that_open(shop):
    _, raw = shop
    assert dict(raw.interactions.collect_schema()) == INTERACTION_SCHEMA and dict(raw.items.schema) == ITEM_SCHEMA
    events = raw.interactions.collect()
    assert (events["order"] + 1 == events["line"]).all() and events["reason"].null_count() == events.height
    assert raw.truth.columns[0] == "item" and (raw.truth["item"] == raw.items["item"]).all()
    for path in raw.items["image"].drop_nulls().head(5):
        assert Image.open(path).convert("RGB").size == (96, 96)


def test_two_shops_of_one_config_are_equal_and_seeds_differ(tmp_path):
    for name in "ab":
        generate(SMALL, tmp_path / name)
    generate(dataclasses.replace(SMALL, seed=2), tmp_path / "c")
    read = {
        name: {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    }
    assert read["a"] == read["b"]
    assert all((tmp_path / "a" / table).read_bytes() != (tmp_path / "c" / table).read_bytes() for table in TABLES)


def test_a_shop_is_reused_and_another_one_refused(tmp_path):
    options = dict(users=20, items=70, events_per_user=10.0, picture_size=32)
    reader.read(tmp_path / "raw", **options, seed=None)
    written = (tmp_path / "raw" / "shop.json").stat().st_mtime_ns
    reader.read(tmp_path / "raw", **options)
    assert (tmp_path / "raw" / "shop.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"another shop is here: users=20, seed=0.*expected users=21, seed=4"):
        reader.read(tmp_path / "raw", **options | {"users": 21, "seed": 4})


def test_altered_broken_and_foreign_folders_are_user_errors(tmp_path):
    generate(SMALL, tmp_path / "raw")
    fields = json.loads((tmp_path / "raw" / "shop.json").read_text())["config"]
    with open(tmp_path / "raw" / "interactions.parquet", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match="interactions.parquet: altered"):
        reader.read(tmp_path / "raw", **fields)
    (tmp_path / "raw" / "shop.json").write_text('{"format": 1')
    with pytest.raises(UserError, match="broken shop description"):
        reader.read(tmp_path / "raw", **fields)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(UserError, match="not a shop's folder"):
        reader.read(tmp_path / "mine", **fields)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hisam_jax.data.shop.generator.picture", full)
    with pytest.raises(UserError, match="disk is full"):
        generate(SMALL, tmp_path / "raw")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"user": 3}, "shop.user"),
        ({"items": 10}, "shop.items.*at least 64"),
        ({"missing_title": 1.5}, "missing_title.*between 0 and 1"),
        ({"sequence": 0.95}, "less than 1 together"),
        ({"users": "many"}, "shop.users.*int"),
    ],
)
def test_options_out_of_range_are_user_errors(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        reader.read(tmp_path / "raw", **options)
    assert not (tmp_path / "raw").exists()
