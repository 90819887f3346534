"""Word vectors: synonyms that never meet come out alike, fillers say nothing, nothing is learnt of held-out items."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from raw_fixtures import write_movielens

from hisam_jax import cli
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.encoders import encode_cached, make_encoder
from hisam_jax.data.encoders.word_vectors import WordVectors
from hisam_jax.errors import UserError

FIRE = {"names": ("crimson", "scarlet"), "beside": ("rose", "flame", "brick", "ruby")}
SEA = {"names": ("navy", "cobalt"), "beside": ("ocean", "denim", "sky", "ink")}
FILLERS = ("nice", "new", "great", "classic")
WORDS = (*FIRE["names"], *SEA["names"], *FILLERS)


def catalogue(titles) -> pl.DataFrame:
    nothing = [None] * len(titles)
    columns = {"item_id": [str(i) for i in range(len(titles))], "title": titles, "text": nothing}
    columns |= {"categories": nothing, "image": nothing}
    schema = dict.fromkeys(columns, pl.String) | {"categories": pl.List(pl.String)}
    return pl.DataFrame(columns, schema=schema)


def colours(count: int = 400, seed: int = 0) -> list[str]:
    """Each item has one colour's name, of two that mean the same, three words that go with it, and two fillers."""
    rng, titles = np.random.default_rng(seed), []
    for _ in range(count):
        kind = (FIRE, SEA)[rng.integers(2)]
        words = [rng.choice(kind["names"]), *rng.choice(kind["beside"], 3, replace=False), *rng.choice(FILLERS, 2)]
        titles.append(" ".join(rng.permutation(words)))
    return titles


def encode(titles, fit=None, **options):
    fit = np.ones(len(titles), bool) if fit is None else fit
    return WordVectors(**options).encode(catalogue(titles), fit)


@pytest.fixture(scope="module")
def words() -> dict[str, np.ndarray]:
    """The vectors of items of one word (or two), none of which is a training item; `` is where no word leads."""
    titles, probes = colours(), [*WORDS, *(f"crimson {word}" for word in WORDS)]
    features = encode(titles + probes, np.arange(len(titles) + len(probes)) < len(titles), dim=8)
    assert features.present.all()
    return dict(zip(probes, features.values[len(titles) :], strict=True))


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_synonyms_that_never_meet_are_closer_than_strangers(words):
    assert not any("crimson" in title and "scarlet" in title for title in colours())
    for first, second, stranger in (("crimson", "scarlet", "navy"), ("navy", "cobalt", "scarlet")):
        assert cosine(words[first], words[second]) > cosine(words[first], words[stranger]) + 0.5


def test_fillers_say_next_to_nothing(words):
    moved = {word: np.linalg.norm(words[f"crimson {word}"] - words["crimson"]) for word in WORDS}
    assert max(moved[word] for word in FILLERS) < 0.5 * min(moved[word] for word in (*SEA["names"], "scarlet"))


def test_training_items_have_unit_variance_and_as_many_columns_as_there_is_rank():
    features = encode(colours(), dim=6)
    assert features.values.shape == (400, 6) and features.values.dtype == np.float32
    np.testing.assert_allclose(features.values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features.values.std(0), 1, rtol=1e-3)
    assert 1 <= encode(colours(), dim=500).values.shape[1] <= len({*FIRE["names"], *FIRE["beside"]}) * 2 + len(FILLERS)


def test_held_out_texts_change_no_training_item():
    titles, fit = colours(150), np.arange(150) % 3 > 0
    other = [
        title if train else f"zebra violet {row}" for row, (title, train) in enumerate(zip(titles, fit, strict=True))
    ]
    first, second = encode(titles, fit, dim=8), encode(other, fit, dim=8)
    assert np.array_equal(first.values[fit], second.values[fit])
    assert first.present.all() and np.array_equal(second.present, fit), "words that no training item has say nothing"
    assert not second.values[~fit].any()


def test_the_same_seed_gives_the_same_bytes():
    assert encode(colours(100), dim=8).values.tobytes() == encode(colours(100), dim=8).values.tobytes()


def test_items_without_words_are_absent_and_change_nothing():
    titles = colours(60)
    empty = [None, "", "  ", "!?", "..."]
    features = encode(titles + empty, dim=4)
    assert features.present.tolist() == [True] * 60 + [False] * 5 and not features.values[60:].any()


@pytest.mark.parametrize(
    "titles",
    [
        [],
        [None, ""],
        ["!", "..."],
        ["shoe"],
        ["shoe"] * 5,
        ["shoe", "hat", "sock"],
        ["red shoe"],
        ["red shoe"] * 4,
        ["red red red", "red"],
    ],
)
@pytest.mark.filterwarnings("error")
def test_texts_whose_words_have_no_company_or_do_not_differ_are_absent(titles):
    features = encode(titles)
    assert features.values.shape == (len(titles), 0) and not features.present.any()


@pytest.mark.filterwarnings("error")
def test_no_training_item_means_no_vector():
    assert not encode(colours(20), np.zeros(20, bool)).present.any()


@pytest.mark.filterwarnings("error")
def test_tiny_catalogues_have_finite_vectors_that_tell_items_apart():
    features = encode(["red shoe", "blue hat", "red hat"])
    assert features.present.all() and np.isfinite(features.values).all()
    assert len(np.unique(features.values.round(3), axis=0)) == 3


def test_near_is_by_place_and_by_item():
    """With a window of 1, only neighbours in a text count: the ends of long texts never meet."""
    rng = np.random.default_rng(0)
    titles = [f"{rng.choice(['aa', 'bb'])} mid{rng.integers(30)} {rng.choice(['yy', 'zz'])}" for _ in range(90)]
    narrow, wide = (encode(titles, window=window).values for window in (1, 20))
    assert narrow.shape != wide.shape or not np.allclose(np.abs(narrow), np.abs(wide), atol=1e-2)


@pytest.mark.parametrize("option", [{"dim": 0}, {"window": 0}, {"smoothing": -1.0}, {"weight": 0.0}, {"weight": -1.0}])
def test_options_without_a_meaning_are_refused(option):
    with pytest.raises(UserError, match=f"word_vectors.{next(iter(option))}"):
        make_encoder("text", "word_vectors", **option)


def test_the_cache_tells_it_from_tfidf_and_its_options_apart(tmp_path):
    items, fit = catalogue(colours(50)), np.ones(50, bool)
    encoder = make_encoder("text", "word_vectors", dim=4)
    assert encoder == WordVectors(dim=4)
    first = encode_cached(encoder, items, fit, tmp_path)
    assert np.array_equal(encode_cached(encoder, items, fit, tmp_path).values, first.values)
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    for other in (make_encoder("text", "tfidf_svd", dim=4), WordVectors(dim=4, window=2), WordVectors(dim=3)):
        assert not np.array_equal(encode_cached(other, items, fit, tmp_path).values, first.values)
    assert len(list(tmp_path.rglob("*.npz"))) == 4


def test_prepare_takes_it_by_name(tmp_path, capsys):
    raw = write_movielens(tmp_path / "raw")
    flags = {"--source": "movielens", "--raw": raw, "--out": tmp_path / "d", "--cache": tmp_path / "cache"}
    flags |= {"--text-encoder": "word_vectors", "--image-encoder": "none"}
    assert cli.main(["prepare", *(str(part) for pair in flags.items() for part in pair)]) == 0
    assert "text" in json.loads(capsys.readouterr().out)["modalities"]
    data = Dataset.load(tmp_path / "d")
    assert data.manifest["modalities"]["text"]["encoder"] == "word_vectors"
    assert data.present["text"].all() and np.isfinite(data.features["text"]).all()


def test_help_names_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    assert "word_vectors" in capsys.readouterr().out
