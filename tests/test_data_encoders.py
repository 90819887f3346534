"""The light encoders and the cache: what is fitted on what, what is absent, what is counted, what is computed again."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

from hisam_jax.data.encoders import encode_cached, make_encoder
from hisam_jax.data.encoders.image import HogColor, open_picture
from hisam_jax.data.encoders.text import TfidfSvd
from hisam_jax.errors import UserError

COLORS = ("red", "green", "blue", "orange")
TOPICS = ("garden spade soil", "kitchen knife pan", "camera lens tripod")


def catalogue(titles, images=None, texts=None, categories=None) -> pl.DataFrame:
    count = len(titles)
    return pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(count)],
            "title": titles,
            "text": texts or [None] * count,
            "categories": categories or [None] * count,
            "image": images or [None] * count,
        },
        schema={
            "item_id": pl.String,
            "title": pl.String,
            "text": pl.String,
            "categories": pl.List(pl.String),
            "image": pl.String,
        },
    )


def titles_of(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{TOPICS[row % 3]} model{rng.integers(40)} kind{rng.integers(5)}" for row in range(count)]


def draw(path, color: str, shape: str, rng: np.random.Generator) -> str:
    """A shape of a colour somewhere on a grey ground."""
    picture = Image.new("RGB", (60, 80), (int(rng.integers(150, 220)),) * 3)
    x, y, size = int(rng.integers(2, 20)), int(rng.integers(2, 30)), int(rng.integers(28, 38))
    pen = ImageDraw.Draw(picture)
    box = (x, y, x + size, y + size)
    if shape == "stripes":
        for line in range(y, y + size, 6):
            pen.rectangle((x, line, x + size, line + 2), fill=color)
    else:
        {"disc": pen.ellipse, "square": pen.rectangle}[shape](box, fill=color)
    picture.save(path)
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """240 pictures with planted colour and shape, drawn independently."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    color, shape = rng.integers(4, size=240), rng.integers(3, size=240)
    names = ("disc", "square", "stripes")
    paths = [draw(folder / f"{r}.png", COLORS[color[r]], names[shape[r]], rng) for r in range(240)]
    return catalogue([None] * 240, paths), color, shape


def probe(values: np.ndarray, labels: np.ndarray, fit: np.ndarray) -> float:
    """Held-out accuracy of a linear probe on standardised features."""
    mean, std = values[fit].mean(axis=0), values[fit].std(axis=0) + 1e-6
    standard = (values - mean) / std
    model = LogisticRegression(C=0.1, max_iter=500).fit(standard[fit], labels[fit])
    return float(model.score(standard[~fit], labels[~fit]))


def all_rows(items: pl.DataFrame) -> np.ndarray:
    return np.ones(len(items), np.bool_)


# text


def test_text_features_tell_topics_apart():
    items = catalogue(titles_of(300))
    fit = np.arange(300) % 2 == 0
    features = TfidfSvd(dim=16).encode(items, fit)
    assert features.values.shape == (300, 16) and features.values.dtype == np.float32 and features.present.all()
    assert probe(features.values, np.arange(300) % 3, fit) > 0.95


def test_text_reads_title_attributes_and_categories():
    items = catalogue(["apple", None, None], texts=[None, "apple", ""], categories=[None, None, ["apple", None]])
    values = TfidfSvd().encode(items, all_rows(items)).values
    np.testing.assert_allclose(values, np.broadcast_to(values[:1], values.shape), atol=1e-6)
    assert abs(values[0, 0]) == pytest.approx(1.0, abs=1e-5)


def test_text_is_fitted_on_training_items_only():
    titles = titles_of(200)
    fit = np.arange(200) < 150
    before = TfidfSvd().encode(catalogue(titles), fit)
    after = TfidfSvd().encode(catalogue(titles[:199] + ["spade spade lens of another world"]), fit)
    np.testing.assert_array_equal(before.values[:199], after.values[:199])
    assert not np.array_equal(before.values[199], after.values[199])
    moved = TfidfSvd().encode(catalogue(["another training item"] + titles[1:]), fit)
    assert not np.array_equal(before.values[1:], moved.values[1:])


def test_items_without_known_words_are_absent():
    items = catalogue(["red shoe", "", None, " -- !", "red hat", "unseen words"])
    fit = np.array([True, True, True, True, True, False])
    features = TfidfSvd().encode(items, fit)
    assert features.present.tolist() == [True, False, False, False, True, False]
    assert not features.values[~features.present].any() and features.values[features.present].any(axis=1).all()


@pytest.mark.parametrize("titles", [["", None, " ... "], [None], []])
def test_a_catalogue_without_any_text_has_no_dimension(titles):
    items = catalogue(titles)
    features = TfidfSvd().encode(items, all_rows(items))
    assert features.values.shape == (len(titles), 0) and not features.present.any()


def test_text_of_untrained_items_alone_fits_nothing():
    items = catalogue(["a shoe", "a hat"])
    features = TfidfSvd().encode(items, np.zeros(2, np.bool_))
    assert features.values.shape == (2, 0) and not features.present.any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_catalogues_have_as_many_dimensions_as_items(count):
    items = catalogue(["red shoe", "blue hat", "M"][:count])
    features = TfidfSvd().encode(items, all_rows(items))
    assert features.values.shape == (count, count) and features.present.all()
    np.testing.assert_allclose(features.values @ features.values.T, np.eye(count), atol=1e-5)


def test_equal_texts_span_one_dimension():
    items = catalogue(["red shoe"] * 50 + ["red hat"] * 50)
    assert TfidfSvd().encode(items, all_rows(items)).values.shape == (100, 2)


def test_words_of_single_items_still_serve_where_there_are_no_others():
    items = catalogue([f"word{row}" for row in range(150)])
    features = TfidfSvd(dim=8).encode(items, all_rows(items))
    assert features.present.all() and features.values.shape == (150, 8)


def test_text_is_deterministic_in_the_seed():
    items = catalogue(titles_of(300))
    first, again, other = (TfidfSvd(dim=8, seed=seed).encode(items, all_rows(items)).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.abs(first[:, :2]), np.abs(other[:, :2]), atol=0.05)


# pictures


def test_pictures_tell_colour_and_shape(pictures):
    items, color, shape = pictures
    fit = np.arange(240) < 160
    features = HogColor(dim=64).encode(items, fit)
    assert features.values.shape == (240, 64) and features.present.all() and not features.rejected
    assert probe(features.values, color, fit) > 0.9  # chance .25
    assert probe(features.values, shape, fit) > 0.8  # chance .33


def test_pictures_are_fitted_on_training_items_only(pictures, tmp_path):
    items, _, _ = pictures
    items = items.head(40)
    fit = np.arange(40) < 30
    other = items.with_columns(
        image=pl.Series([*items["image"][:39], draw(tmp_path / "o.png", "white", "disc", np.random.default_rng(0))])
    )
    before, after = HogColor(dim=16).encode(items, fit), HogColor(dim=16).encode(other, fit)
    np.testing.assert_array_equal(before.values[:39], after.values[:39])
    assert not np.array_equal(before.values[39], after.values[39])


def test_processes_give_what_one_process_gives(pictures, monkeypatch):
    items, _, _ = pictures
    alone = HogColor(dim=8).encode(items, all_rows(items))
    monkeypatch.setattr("hisam_jax.data.encoders.image.PARALLEL_FROM", 10)
    np.testing.assert_array_equal(HogColor(dim=8).encode(items, all_rows(items)).values, alone.values)


def broken_files(folder, good: str) -> dict[str, str]:
    data = open(good, "rb").read()
    contents = {"truncated.png": data[: len(data) // 2], "text.jpg": b"<html>not found</html>", "empty.jpg": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: str(folder / name) for name in [*contents, "missing.jpg"]}


def test_missing_and_broken_pictures_are_absent_and_counted(pictures, tmp_path):
    items, _, _ = pictures
    good = items["image"][:5].to_list()
    broken = list(broken_files(tmp_path, good[0]).values())
    mixed = catalogue([None] * 11, [*good, *broken, None, ""])
    features = HogColor().encode(mixed, all_rows(mixed))
    assert features.present.tolist() == [True] * 5 + [False] * 6
    assert features.rejected == {"broken_image": 4}
    np.testing.assert_array_equal(features.values[:5], HogColor().encode(items.head(5), np.ones(5, np.bool_)).values)


def test_only_broken_pictures_leave_no_dimension(pictures, tmp_path):
    broken = list(broken_files(tmp_path, pictures[0]["image"][0]).values())
    items = catalogue([None] * 4, broken)
    features = HogColor().encode(items, all_rows(items))
    assert features.values.shape == (4, 0) and features.rejected == {"broken_image": 4}


@pytest.mark.parametrize(("count", "width"), [(1, 1), (2, 1), (3, 2)])
def test_tiny_catalogues_of_pictures(pictures, count, width):
    items = pictures[0].head(count)
    features = HogColor().encode(items, all_rows(items))
    assert features.values.shape == (count, width) and features.present.all() and np.isfinite(features.values).all()


def test_a_flat_picture_and_one_pixel_are_pictures(tmp_path):
    for name, size, color in (("flat.png", (50, 50), 0), ("dot.png", (1, 1), 255), ("wide.png", (300, 3), 90)):
        Image.new("L", size, color).save(tmp_path / name)
    items = catalogue([None] * 3, [str(tmp_path / name) for name in ("flat.png", "dot.png", "wide.png")])
    features = HogColor().encode(items, all_rows(items))
    assert features.present.all() and np.isfinite(features.values).all() and not features.rejected


def test_pictures_of_every_mode_open_upright_on_white(tmp_path):
    for mode in ("1", "L", "P", "RGB", "CMYK"):
        path = tmp_path / f"{mode}.tiff"
        Image.new(mode, (20, 30)).save(path)
        assert open_picture(path).mode == "RGB" and open_picture(path).size == (20, 30)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.new("RGB", (20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (30, 20)


@pytest.mark.real_data
def test_posters_tell_genres(real_data):
    folder = real_data / "movielens-posters"
    movies = pl.read_csv(real_data / "ml-latest-small" / "movies.csv", schema_overrides={"movieId": pl.String})
    movies = movies.with_columns(image=str(folder) + "/" + pl.col("movieId") + ".jpg")
    known = {file.stem for file in folder.glob("*.jpg")}
    movies = movies.filter(pl.col("movieId").is_in(known)).head(1500)
    items = catalogue(movies["title"].to_list(), movies["image"].to_list())
    labels = movies["genres"].str.contains("Animation|Children").to_numpy()
    fit = np.arange(len(items)) % 3 > 0
    features = HogColor().encode(items, fit)
    assert features.present.mean() > 0.99
    standard = (features.values - features.values[fit].mean(axis=0)) / features.values[fit].std(axis=0)
    score = LogisticRegression(C=0.01, max_iter=300).fit(standard[fit], labels[fit]).decision_function(standard[~fit])
    ranks = score.argsort().argsort()[labels[~fit]]
    positives, negatives = labels[~fit].sum(), (~labels[~fit]).sum()
    assert (ranks.sum() - positives * (positives - 1) / 2) / (positives * negatives) > 0.65  # AUC; chance .5


# the cache


class Poisoned(TfidfSvd):
    def encode(self, items, fit_rows):
        raise AssertionError("computed again")


def test_a_cache_hit_does_not_compute(tmp_path):
    items, fit = catalogue(titles_of(30)), np.arange(30) < 20
    first = encode_cached(TfidfSvd(), items, fit, tmp_path)
    again = encode_cached(Poisoned(), items, fit, tmp_path)
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.present, again.present)


@pytest.mark.parametrize("change", ["text", "categories", "fit_rows", "option", "order"])
def test_a_change_computes_again(tmp_path, change):
    titles, fit = titles_of(30), np.arange(30) < 20
    encode_cached(TfidfSvd(), catalogue(titles), fit, tmp_path)
    items, encoder = catalogue(titles), Poisoned()
    if change == "text":
        items = catalogue([*titles[:-1], "changed"])
    elif change == "categories":
        items = catalogue(titles, categories=[["new"], *[None] * 29])
    elif change == "fit_rows":
        fit = np.arange(30) < 21
    elif change == "option":
        encoder = Poisoned(dim=4)
    else:
        items = items.reverse()
    with pytest.raises(AssertionError, match="computed again"):
        encode_cached(encoder, items, fit, tmp_path)


def test_a_changed_picture_computes_again_and_a_moved_one_does_not(pictures, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    first = [draw(tmp_path / f"{r}.png", "red", "disc", rng) for r in range(3)]
    items, fit, cache = catalogue([None] * 3, first), np.ones(3, np.bool_), tmp_path / "cache"
    values = encode_cached(HogColor(), items, fit, cache).values
    moved = [str((tmp_path / f"{r}.png").rename(tmp_path / f"moved{r}.png")) for r in range(3)]
    calls = []
    encode = HogColor.encode
    monkeypatch.setattr(HogColor, "encode", lambda *args: calls.append(1) or encode(*args))
    again = encode_cached(HogColor(), catalogue([None] * 3, moved), fit, cache).values
    assert not calls and np.array_equal(values, again)
    draw(moved[0], "blue", "disc", rng)
    encode_cached(HogColor(), catalogue([None] * 3, moved), fit, cache)
    assert calls == [1]


def test_rejected_counts_survive_the_cache(tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    items = catalogue([None], [str(tmp_path / "text.jpg")])
    for _ in range(2):
        assert encode_cached(HogColor(), items, np.ones(1, np.bool_), tmp_path).rejected == {"broken_image": 1}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_entry_is_computed_anew(tmp_path, damage):
    items, fit = catalogue(titles_of(30)), np.ones(30, np.bool_)
    first = encode_cached(TfidfSvd(), items, fit, tmp_path)
    (entry,) = (tmp_path / "features").iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    entry.write_bytes({"flip": data, "cut": data[:-40], "empty": b"", "other": b"some words"}[damage])
    np.testing.assert_array_equal(encode_cached(TfidfSvd(), items, fit, tmp_path).values, first.values)
    np.testing.assert_array_equal(encode_cached(Poisoned(), items, fit, tmp_path).values, first.values)  # healed
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HISAM_CACHE", str(tmp_path / "own"))
    encode_cached(TfidfSvd(), catalogue(["red shoe"]), np.ones(1, np.bool_))
    assert len(list((tmp_path / "own").rglob("*.npz"))) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    features = encode_cached(TfidfSvd(), catalogue(["red shoe"]), np.ones(1, np.bool_), tmp_path / "file")
    assert features.present.all() and "not cached" in caplog.text


def test_fit_rows_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fit_rows"):
        encode_cached(TfidfSvd(), catalogue(["a", "b"]), np.ones(3, np.bool_), tmp_path)
    with pytest.raises(ValueError, match="fit_rows"):
        encode_cached(TfidfSvd(), catalogue(["a", "b"]), np.array([0, 1]), tmp_path)


# names


@pytest.mark.parametrize(
    ("modality", "name"),
    [
        ("text", "tfidf"),
        ("text", "hog_color"),
        ("image", "tfidf_svd"),
        ("image", "clip:"),
        ("image", "clip"),
        ("text", "tfidf_svd:x"),
        ("behaviour", "tfidf_svd"),
        ("text", "precomputed:"),
        ("text", ""),
    ],
)
def test_unknown_names_say_what_is_known(modality, name):
    with pytest.raises(UserError, match=f"{modality}_encoder.*none"):
        make_encoder(modality, name)


def test_options_reach_the_encoder_and_unknown_ones_are_refused():
    assert make_encoder("text", "tfidf_svd", dim=7, seed=3) == TfidfSvd(dim=7, seed=3)
    assert make_encoder("text", "tfidf_svd:7", seed=3) == TfidfSvd(dim=7, seed=3)
    with pytest.raises(UserError, match="width.*dim"):
        make_encoder("image", "hog_color", width=3)


def test_none_gives_no_features():
    features = make_encoder("image", "none").encode(catalogue(["a", "b"]), np.ones(2, np.bool_))
    assert features.values.shape == (2, 0) and not features.present.any()
