"""Fitted encoders kept with a dataset: they give its very features, and those of a catalogue that grew."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from raw_fixtures import movielens_rows, write_movielens
from test_data_encoders import COLORS, all_rows, catalogue, draw, titles_of
from test_data_encoders_pretrained import checkpoint  # noqa: F401  a fixture

from hisam_jax import cli
from hisam_jax.data import prepare as prepare_module
from hisam_jax.data.dataset import Dataset, write_manifest
from hisam_jax.data.encoders import encode_cached, image, pretrained
from hisam_jax.data.encoders.image import FittedHogColor, HogColor
from hisam_jax.data.encoders.saved import load_encoder, saved_checksum
from hisam_jax.data.encoders.text import FittedTfidf, TfidfSvd
from hisam_jax.data.encoders.word_vectors import FittedWordVectors, WordVectors
from hisam_jax.data.prepare import prepare
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

TEXTS = [(TfidfSvd(dim=16), FittedTfidf), (WordVectors(dim=16), FittedWordVectors)]


def write_shop(folder, movies: int, rows: list[str]):
    """Films of random titles with pictures of many colours, the first ones the same however many there are."""
    write_movielens(folder, rows, movies=movies)
    titles = titles_of(movies, seed=5)
    table = pl.read_csv(folder / "movies.csv").with_columns(title=pl.Series(titles))
    table.write_csv(folder / "movies.csv")
    (folder / "pictures").mkdir()
    for movie in range(1, movies + 1):
        rng = np.random.default_rng(movie)
        if movie % 6:
            shape = ("disc", "square")[movie % 2]
            draw(folder / "pictures" / f"{movie}.png", COLORS[movie % 4], shape, rng)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """(30 films, the same and 15 more that the same users and others took)."""
    root, rows = tmp_path_factory.mktemp("raw"), movielens_rows(movies=30, ties=False)
    more = [f"{100 + user},{film},5,{2 * 10**9 + 100 * film}" for user in range(8) for film in range(20, 46)]
    return write_shop(root / "small", 30, rows), write_shop(root / "grown", 45, rows + more)


@pytest.fixture(scope="module")
def old(raw, tmp_path_factory):
    """A dataset of the 30 films, with three modalities."""
    root = tmp_path_factory.mktemp("old")
    prepare(
        "movielens", raw[0], root / "d", images=raw[0] / "pictures", text_encoder="word_vectors",
        behaviour_encoder="ppmi_svd", cache_dir=root / "cache",
    )  # fmt: skip
    return Dataset.load(root / "d")


def copied(dataset: Dataset, path, change=None) -> Dataset:
    """A copy of a dataset, its manifest changed and its checksums made anew."""
    shutil.copytree(dataset.path, path)
    manifest = {key: value for key, value in dataset.manifest.items() if key != "files"}
    if change is not None:
        change(path)
        write_manifest(path, manifest)
    return Dataset.load(path, verify=False)


# states


@pytest.mark.parametrize(("encoder", "kind"), TEXTS)
def test_a_fitted_text_encoder_gives_the_same_bits_from_its_state_alone(encoder, kind):
    items = catalogue([*titles_of(200), "", "unseen words", "camera unseen"])
    made = encoder.encode(items, np.arange(203) < 150)
    assert made.present.sum() == 201 and made.fitted.kind == encoder.name
    again = kind.of(made.fitted).encode(items)
    np.testing.assert_array_equal(made.values, again.values)
    np.testing.assert_array_equal(made.present, again.present)


def test_a_fitted_picture_encoder_gives_the_same_bits_from_its_state_alone(tmp_path):
    rng = np.random.default_rng(0)
    paths = [draw(tmp_path / f"{r}.png", ("red", "blue")[r % 2], "disc", rng) for r in range(20)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = catalogue([None] * 22, [*paths, str(tmp_path / "broken.png"), None])
    made = HogColor(dim=8).encode(items, np.arange(22) < 15)
    again = FittedHogColor.of(made.fitted).encode(items)
    np.testing.assert_array_equal(made.values, again.values)
    np.testing.assert_array_equal(made.present, again.present)
    assert again.rejected == made.rejected == {"broken_image": 1}


@pytest.mark.parametrize(("encoder", "kind"), TEXTS)
def test_a_text_alone_is_encoded_as_among_others(encoder, kind):
    items = catalogue(titles_of(100))
    made = encoder.encode(items, all_rows(items))
    fitted = kind.of(made.fitted)
    for row in (0, 41, 99):
        np.testing.assert_array_equal(fitted.encode(items[row]).values[0], made.values[row])
    none = fitted.encode(catalogue(["of no word that it knows"]))
    assert none.values.shape == (1, made.values.shape[1]) and not none.present.any() and not none.values.any()


def test_a_row_of_any_product_has_the_bits_it_has_alone():
    """What a product of matrices does not promise: BLAS rounds by shapes and places."""
    rng = np.random.default_rng(0)
    x_ND, directions_DK = rng.normal(size=(150, 852)).astype(np.float32), rng.normal(size=(852, 50)).astype(np.float32)
    whole = image._each_alone(x_ND, directions_DK)
    np.testing.assert_allclose(whole, x_ND.astype(np.float64) @ directions_DK, atol=1e-3)
    for start, stop in ((0, 1), (149, 150), (63, 66), (5, 90)):
        np.testing.assert_array_equal(image._each_alone(x_ND[start:stop], directions_DK), whole[start:stop])


def test_the_cache_brings_what_was_fitted(tmp_path):
    items, fit = catalogue(titles_of(60)), np.arange(60) < 40
    first = encode_cached(TfidfSvd(), items, fit, tmp_path)
    again = encode_cached(TfidfSvd(), items, fit, tmp_path)
    assert again.fitted.kind == "tfidf_svd" and again.fitted.arrays.keys() == first.fitted.arrays.keys()
    np.testing.assert_array_equal(FittedTfidf.of(again.fitted).encode(items).values, first.values)


# datasets


def test_a_dataset_keeps_the_encoders_that_give_its_features(old):
    assert {"encoders/text.json", "encoders/text.npz", "encoders/image.npz", "encoders/behaviour.json"} <= set(
        old.manifest["files"]
    )
    assert "encoders/behaviour.npz" not in old.manifest["files"]
    for modality in ("text", "image", "behaviour"):
        encoded = load_encoder(old, modality).encode(old.items)
        np.testing.assert_array_equal(encoded.values, old.features[modality])
        np.testing.assert_array_equal(encoded.present, old.present[modality])
    strange = old.items.head(2).with_columns(item_id=pl.Series(["x", "y"]))
    behaviour = load_encoder(old, "behaviour").encode(strange)
    assert not behaviour.present.any() and behaviour.values.shape == (2, old.features["behaviour"].shape[1])


def test_a_model_is_known_by_its_files(raw, tmp_path, monkeypatch):
    """The same with a model of one line, where transformers is not installed."""
    means = lambda pictures: np.stack([np.asarray(picture, np.float32).mean((0, 1)) for picture in pictures])  # noqa: E731
    monkeypatch.setattr(pretrained, "_require", lambda *packages: None)
    monkeypatch.setattr(pretrained, "_versions", lambda *packages: "1")
    monkeypatch.setattr(pretrained, "_image_function", lambda folder, device: means)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments = {"images": raw[0] / "pictures", "text_encoder": "none", "image_encoder": "clip:model"}
    prepare("movielens", raw[0], tmp_path / "d", **arguments, cache_dir=tmp_path / "cache")
    monkeypatch.chdir(raw[0])  # its folder is found from anywhere
    dataset = Dataset.load(tmp_path / "d")
    for _ in range(2):
        encoded = load_encoder(dataset, "image").encode(dataset.items)
        np.testing.assert_array_equal(encoded.values, dataset.features["image"])
        arguments = {"images": raw[1] / "pictures", "encoders_from": dataset.path, "cache_dir": tmp_path / "cache"}
        prepare("movielens", raw[1], tmp_path / "grown", **arguments)
        dataset = Dataset.load(tmp_path / "grown")
    (tmp_path / "model" / "config.json").write_text('{"another": 1}')
    with pytest.raises(UserError, match="model: another model than the one that made the features"):
        load_encoder(dataset, "image")


@pytest.mark.parametrize("checkpoint", ["clip"], indirect=True)
def test_a_pretrained_encoder_is_kept_by_its_name_and_must_be_the_same(raw, checkpoint, tmp_path):  # noqa: F811
    folder = shutil.copytree(checkpoint[0], tmp_path / "model")
    arguments = {"images": raw[0] / "pictures", "text_encoder": "none", "image_encoder": f"clip:{folder}"}
    prepare("movielens", raw[0], tmp_path / "d", **arguments, cache_dir=tmp_path / "cache")
    dataset = Dataset.load(tmp_path / "d")
    assert [name for name in dataset.manifest["files"] if name.startswith("encoders")] == ["encoders/image.json"]
    encoded = load_encoder(dataset, "image").encode(dataset.items)
    np.testing.assert_allclose(encoded.values, dataset.features["image"], atol=1e-5)
    (folder / "more.json").write_text("{}")
    with pytest.raises(UserError, match="model: another model than the one that made the features"):
        load_encoder(dataset, "image")


@pytest.mark.parametrize("explicit", [False, True])
def test_a_grown_catalogue_has_the_old_features_and_its_ids_extend(raw, old, tmp_path, explicit, capsys, monkeypatch):
    from test_tokenizer_run import CONFIGS, SMALL

    monkeypatch.setattr(WordVectors, "encode", None)  # nothing is fitted
    arguments = ["prepare", "--source", "movielens", "--raw", raw[1], "--images", raw[1] / "pictures"]
    arguments += ["--encoders-from", old.path, "--out", tmp_path / "grown", "--cache", tmp_path / "cache"]
    arguments += ["--text-encoder", "word_vectors", "--behaviour-encoder", "ppmi_svd"] if explicit else []
    assert cli.main([str(argument) for argument in arguments]) == 0
    grown = Dataset.load(tmp_path / "grown")
    assert grown.num_items == 45 and grown.manifest["modalities"]["text"]["encoder"] == "word_vectors"
    assert grown.manifest["arguments"]["behaviour_encoder"] == "ppmi_svd"
    rows = grown.item_index(old.items["item_id"].to_list())
    for modality, values in old.features.items():
        np.testing.assert_array_equal(grown.features[modality][rows], values)
        np.testing.assert_array_equal(grown.present[modality][rows], old.present[modality])
        assert saved_checksum(grown, modality) == saved_checksum(old, modality)
    new = np.setdiff1d(np.arange(45), rows)
    assert grown.present["text"][new].all() and grown.present["image"][new].any()
    assert not grown.present["behaviour"][new].any()
    tokenize(old.path, CONFIGS / "residual_kmeans.py", tmp_path / "ids", SMALL["residual_kmeans"])
    capsys.readouterr()
    arguments = ["ids", "--ids", tmp_path / "ids", "--extend", grown.path, "--out", tmp_path / "more"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kept"], report["new"], report["recoded"]["agreement"]) == (30, 15, {"shared": 1.0})
    first, second = SemanticIDTable.load(tmp_path / "ids"), SemanticIDTable.load(tmp_path / "more")
    np.testing.assert_array_equal(second.full_codes()[rows], first.full_codes())


def test_the_cache_keeps_behaviour_of_two_datasets_apart(raw, old, tmp_path):
    """What is remembered lies in the features, not in the encoder's own files, which are the same."""
    double = lambda path: np.save(path / "features" / "behaviour.npy", 2 * old.features["behaviour"])  # noqa: E731
    other = copied(old, tmp_path / "other", double)
    arguments = {"images": raw[0] / "pictures", "cache_dir": tmp_path / "cache"}
    for name, source in (("a", old), ("b", other)):
        prepare("movielens", raw[0], tmp_path / name, **arguments, encoders_from=source.path)
        made = Dataset.load(tmp_path / name)
        np.testing.assert_array_equal(made.features["behaviour"], source.features["behaviour"])


def test_the_second_growth_starts_from_the_first(raw, old, tmp_path):
    arguments = {"images": raw[1] / "pictures", "cache_dir": tmp_path / "cache"}
    prepare("movielens", raw[1], tmp_path / "a", **arguments, encoders_from=old.path)
    prepare("movielens", raw[1], tmp_path / "b", **arguments, encoders_from=tmp_path / "a")
    first, second = Dataset.load(tmp_path / "a"), Dataset.load(tmp_path / "b")
    assert first.manifest["files"] == second.manifest["files"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"text_encoder": "tfidf_svd"},
            r"field 'text_encoder': 'tfidf_svd', while .* has 'word_vectors'; expected w",
        ),
        ({"image_encoder": "none"}, "field 'image_encoder': 'none', while .* has 'hog_color'"),
        ({"behaviour_encoder": "none"}, "field 'behaviour_encoder': 'none', while .* has 'ppmi_svd'"),
    ],
)
def test_other_encoders_than_the_old_ones_are_refused(raw, old, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        prepare("movielens", raw[1], tmp_path / "d", encoders_from=old.path, **arguments)
    assert not (tmp_path / "d").exists()


def rewritten(path, change) -> None:
    """The text encoder's JSON, changed."""
    file = path / "encoders" / "text.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: shutil.rmtree(path / "encoders"), "no fitted encoder of text: .*before they were kept.*prepare"),
        (
            lambda path: rewritten(path, {"format_version": 9}),
            "text.json: field 'format_version': format 9",
        ),
        (lambda path: rewritten(path, {"kind": "magic"}), "text.json: unreadable encoder .KeyError: 'magic'"),
        (lambda path: rewritten(path, {"arrays": []}), "text.json: unreadable encoder .KeyError"),
        (lambda path: (path / "encoders" / "text.json").write_text("{"), "text.json: unreadable encoder"),
        (lambda path: (path / "encoders" / "text.npz").write_bytes(b"PK"), "text.json: unreadable encoder"),
    ],
)
def test_a_dataset_without_usable_encoders_still_loads_but_lends_none(raw, old, tmp_path, change, words):
    without = copied(old, tmp_path / "without", change)
    assert Dataset.load(without.path).num_items == 30
    with pytest.raises(UserError, match=words) as refused:
        prepare("movielens", raw[1], tmp_path / "d", images=raw[1] / "pictures", encoders_from=without.path)
    assert "\n" not in str(refused.value) and not (tmp_path / "d").exists()


def test_a_damaged_file_is_named(raw, old, tmp_path):
    damaged = copied(old, tmp_path / "damaged")
    file = damaged.path / "encoders" / "text.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="encoders/text.npz: altered or damaged"):
        prepare("movielens", raw[1], tmp_path / "d", encoders_from=damaged.path)
    with pytest.raises(UserError, match="encoders/text.npz: altered or damaged"):
        load_encoder(damaged, "text")  # though opened without a look at its checksums
    file.unlink()
    with pytest.raises(UserError, match="encoders/text.npz: missing file"):
        load_encoder(damaged, "text")


def test_features_computed_elsewhere_have_no_encoder_and_may_come_from_another_file(raw, tmp_path):
    for movies, name in ((30, "a"), (45, "b")):
        values = np.random.default_rng(0).normal(size=(45, 4))[:movies]
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(1, movies + 1), values=values)
    arguments = {"image_encoder": "none", "cache_dir": tmp_path / "cache"}
    prepare("movielens", raw[0], tmp_path / "old", **arguments, text_encoder=f"precomputed:{tmp_path / 'a.npz'}")
    old = Dataset.load(tmp_path / "old")
    with pytest.raises(UserError, match="text features were computed elsewhere .*a.npz.: there is no encoder"):
        load_encoder(old, "text")
    with pytest.raises(UserError, match="no image features; expected text"):
        load_encoder(old, "image")
    more = {"text_encoder": f"precomputed:{tmp_path / 'b.npz'}", "encoders_from": old.path}
    manifest = prepare("movielens", raw[1], tmp_path / "new", **arguments, **more)
    assert manifest["modalities"]["text"]["coverage"] == 1.0
    manifest = prepare("movielens", raw[1], tmp_path / "same", cache_dir=tmp_path / "cache", encoders_from=old.path)
    assert manifest["modalities"]["text"]["coverage"] == pytest.approx(30 / 45)
    assert manifest["dropped_modalities"] == {"image": "not in the dataset of the encoders"}


def test_encoders_from_nothing_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "read", None)
    with pytest.raises(UserError, match="nothing: no such dataset folder"):
        prepare("movielens", tmp_path, tmp_path / "d", encoders_from=tmp_path / "nothing")
