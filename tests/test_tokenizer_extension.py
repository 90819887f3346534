"""New items in a frozen table: nothing old moves, nothing is taken twice, no room left is said."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax import cli
from hisam_jax.data.dataset import Dataset, write_manifest
from hisam_jax.errors import UserError
from hisam_jax.tokenizer import collisions
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.extension import extend, extend_ids
from hisam_jax.tokenizer.registry import load_tokenizer, save_tokenizer
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable


class Columns:
    """A tokenizer whose features are the codes themselves; a code costs its distance to the feature."""

    name, config = "columns", {"step": 1}

    def __init__(self, sizes, groups=None):
        groups = groups or ["shared"] * len(sizes)
        self.levels = tuple(
            Level(f"{group}/{depth}", group, size)
            for depth, (group, size) in enumerate(zip(groups, sizes, strict=True))
        )

    def assign(self, features, present):
        return np.where(present["x"][:, None], features["x"], [level.size for level in self.levels]).astype(np.int32)

    def costs(self, features, present, level):
        return np.abs(features["x"][:, [level]] - np.arange(self.levels[level].size)).astype(np.float32)


def made(codes, present, sizes, policy, headroom=2.0, groups=None):
    """A table of given codes, resolved, of items "0", "1", ..."""
    model, features = Columns(sizes, groups), {"x": codes.astype(np.float32)}
    before = model.assign(features, {"x": present})
    ask = lambda level, rows: model.costs({"x": features["x"][rows]}, None, level)  # noqa: E731
    found = collisions.resolve(policy, before, sizes, ask, headroom=headroom)
    ids = [str(row) for row in range(len(codes))]
    parts = (found.codes_IL, found.digit_I, found.digit_size, ids, {"name": "columns", "config": {"step": 1}}, policy)
    return model, SemanticIDTable(model.levels, *parts)


@st.composite
def growths(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    old, new = draw(st.integers(1, 12)), draw(st.integers(0, 8))
    codes = np.stack([rng.integers(0, size, old + new) for size in sizes], 1)
    return codes, rng.random(old + new) < 0.9, sizes, old, rng


@given(growths(), st.sampled_from(["digit", "next_nearest", "sinkhorn", "none"]))
def test_old_ids_stay_and_new_ones_are_free(growth, policy):
    codes, present, sizes, old, rng = growth
    model, table = made(codes[:old], present[:old], sizes, policy)
    order = rng.permutation(len(codes))
    gone = rng.random(len(codes)) < 0.2
    order = order[~gone[order] | (order >= old)]
    order = order if len(order) else np.array([0])
    names, features = [str(row) for row in order], {"x": codes[order].astype(np.float32)}
    try:
        extended, report = extend(table, model, names, features, {"x": present[order]})
    except UserError as error:
        assert policy != "none" and "no free ID is left" in str(error)
        room = max(table.digit_size, 1)
        # Refused only where an item without any code, or a whole table, is out of room.
        assert not present[old:].all() or room * np.prod(sizes) < len(codes)
        return
    full = extended.full_codes()
    is_old = order < old
    assert np.array_equal(full[is_old], table.full_codes()[order[is_old]]) and full.dtype == np.int32
    assert extended.item_ids.to_list() == names and extended.vocab_sizes == table.vocab_sizes
    assert extended.parent == table.checksum != extended.checksum
    assert report["new"] == (~is_old).sum() and report["vanished"]["items"] == old - is_old.sum()
    if policy == "none":
        assert np.array_equal(extended.codes_IL, model.assign(features, {"x": present[order]}))
        return
    taken = set(map(tuple, table.full_codes().tolist()))
    fresh = list(map(tuple, full[~is_old].tolist()))
    assert len(set(fresh)) == len(fresh) and not taken & set(fresh), "not even an ID whose item has vanished"


def test_new_items_take_free_digits_before_any_code_moves():
    codes = np.array([[1], [1], [1], [0]])
    model, table = made(codes, np.ones(4, bool), [3], "digit")
    assert table.digit_size == 6
    names, x = [*"0123", "a", "b", "c", "d"], np.array([[1], [1], [1], [0], [1], [1], [1], [1]])
    extended, report = extend(table, model, names, {"x": x.astype(np.float32)}, {"x": np.ones(8, bool)})
    assert extended.codes_IL[4:, 0].tolist().count(1) == 3 and report["moved"] == {"shared/0": 1}
    assert sorted(extended.digit_I[extended.codes_IL[:, 0] == 1]) == list(range(6))


def test_a_full_last_level_moves_the_code_before_it():
    codes = np.array([[1, 0], [1, 1]])
    model, table = made(codes, np.ones(2, bool), [3, 2], "next_nearest")
    x = np.array([[1, 0], [1, 1], [1, 1]], np.float32)
    extended, report = extend(table, model, ["0", "1", "new"], {"x": x}, {"x": np.ones(3, bool)})
    assert report["moved"] == {"shared/0": 1} and extended.codes_IL[2].tolist() in ([0, 1], [2, 1])


def test_no_room_at_all_is_told_with_what_to_do():
    model, table = made(np.array([[0], [1]]), np.ones(2, bool), [2], "next_nearest")
    x = {"x": np.array([[0], [1], [1]], np.float32)}
    with pytest.raises(UserError, match=r"no free ID is left for 1 of 1 new items \(new\).*hisam tokenize"):
        extend(table, model, ["0", "1", "new"], x, {"x": np.ones(3, bool)})


def catalogue(path, source, rows, turn=None):
    """A dataset of the items `rows` of `source`, with their features and ids; `turn` turns the features' space."""
    tiny_dataset(path, items=len(rows))
    for m, values in source.features.items():
        values = np.asarray(values[rows])
        np.save(path / "features" / f"{m}.npy", values if turn is None else (values @ turn[m]).astype(np.float32))
        np.save(path / "features" / f"{m}.present.npy", source.present[m][rows])
    items = pl.read_parquet(path / "items.parquet")
    items.with_columns(item_id=source.items["item_id"].gather(rows)).write_parquet(path / "items.parquet")
    manifest = json.loads((path / "manifest.json").read_text())
    write_manifest(path, {key: value for key, value in manifest.items() if key != "files"})
    return Dataset.load(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("source") / "data", items=60)


@pytest.fixture(scope="module")
def tokenized(source, tmp_path_factory):
    """Name -> (dataset of the first 40 items, folder of its IDs), made once."""
    from test_tokenizer_run import CONFIGS, SMALL

    root = tmp_path_factory.mktemp("ids")
    data = catalogue(root / "data", source, np.arange(40))
    for name in ("residual_kmeans", "qarm", "random"):
        tokenize(data.path, CONFIGS / f"{name}.py", root / name, SMALL[name])
    return data, root


@pytest.mark.parametrize("name", ["residual_kmeans", "random"])
def test_a_dataset_that_grew(tmp_path, name, capsys, source, tokenized):
    small, ids = tokenized[0], tokenized[1] / name
    arguments = ["ids", "--ids", ids, "--extend", source.path, "--out", tmp_path / "more"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kept"], report["new"], report["vanished"]) == (40, 20, {"items": 0, "named": []})
    first = SemanticIDTable.load(ids)
    second = SemanticIDTable.load(tmp_path / "more", source.items["item_id"])
    assert np.array_equal(second.full_codes()[:40], first.full_codes()) and second.parent == first.checksum
    assert len(np.unique(second.full_codes(), axis=0)) == 60
    codes = load_tokenizer(tmp_path / "more").assign(source.features, source.present)
    assert name == "random" or np.array_equal(second.codes_IL[40:], codes[40:])
    back = extend_ids(tmp_path / "more", small.path, tmp_path / "less")
    assert back["vanished"]["items"] == 20 and back["vanished"]["named"] == [f"i{row}" for row in range(40, 50)]
    assert np.array_equal(SemanticIDTable.load(tmp_path / "less").full_codes(), first.full_codes())


def test_features_of_another_space_are_refused(tmp_path, source, tokenized):
    """What a TF-IDF or a PCA of the new catalogue makes: as many columns, that mean something else."""
    rng = np.random.default_rng(1)
    turn = {m: np.linalg.qr(rng.normal(size=(v.shape[1],) * 2))[0] for m, v in source.features.items()}
    other = catalogue(tmp_path / "other", source, np.arange(60), turn)
    with pytest.raises(
        UserError, match=r"40 items.*same are shared \d+%; expected at least 90%.*pretrained or precomp"
    ):
        extend_ids(tokenized[1] / "residual_kmeans", other.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = extend_ids(tokenized[1] / "random", other.path, tmp_path / "out")
    assert report["recoded"] == {"items": 0, "agreement": {}}, "random codes ask nothing of features"
    same = extend_ids(tokenized[1] / "residual_kmeans", source.path, tmp_path / "same")["recoded"]
    assert same == {"items": 40, "agreement": {"shared": 1.0}}


def test_each_group_is_told_apart_and_codes_that_may_have_moved_are_not_asked_for():
    codes, sizes = np.array([[0, 1], [1, 1], [2, 1], [2, 1], [2, 1]] * 2), [3, 4]
    names, all_here = [str(row) for row in range(10)], {"x": np.ones(10, bool)}
    model, table = made(codes, all_here["x"], sizes, "digit", groups=["text", "image"])
    x = codes.astype(np.float32)
    x[:2, 1] = 0  # a fifth of the image codes
    with pytest.raises(UserError, match="same are text 100%, image 80%"):
        extend(table, model, names, {"x": x}, all_here)
    x[1, 1] = 1
    _, report = extend(table, model, names, {"x": x}, all_here)
    assert report["recoded"] == {"items": 10, "agreement": {"text": 1.0, "image": 0.9}}
    model, table = made(codes, all_here["x"], sizes, "next_nearest", groups=["text", "image"])
    assert (table.codes_IL[:, 1] != 1).mean() > 0.1
    _, report = extend(table, model, names, {"x": codes.astype(np.float32)}, all_here)
    assert report["recoded"] == {"items": 10, "agreement": {"text": 1.0}}


def test_codes_that_an_extension_moved_are_not_asked_for_by_the_next_one():
    codes = np.array([[1, 0]] + [[0, 1]] * 12)
    model, table = made(codes[:4], np.ones(4, bool), [3, 3], "digit")
    arguments = [str(row) for row in range(13)], {"x": codes.astype(np.float32)}, {"x": np.ones(13, bool)}
    extended, report = extend(table, model, *arguments)
    assert report["moved"] == {"shared/1": 6}
    _, report = extend(extended, model, *arguments)
    assert report["recoded"] == {"items": 13, "agreement": {"shared": 1.0}} and report["new"] == 0


def test_an_item_that_lost_a_modality_counts_as_another_code():
    codes = np.zeros((4, 2), int)
    model, table = made(codes, np.ones(4, bool), [3, 3], "digit")
    with pytest.raises(UserError, match="same are shared 50%"):
        extend(table, model, list("0123"), {"x": codes.astype(np.float32)}, {"x": np.arange(4) < 2})


def test_qarms_neighbours_follow_their_items(tmp_path, source, tokenized):
    first, names = np.load(tokenized[1] / "qarm" / "neighbours.npy"), source.items["item_id"]
    rows = np.random.default_rng(0).permutation(np.arange(5, 60))  # five vanish, all are somewhere else
    grown = catalogue(tmp_path / "grown", source, rows)
    report = extend_ids(tokenized[1] / "qarm", grown.path, tmp_path / "more")
    assert (report["beside"], report["left_out"]) == (["neighbours"], [])
    found = np.load(tmp_path / "more" / "neighbours.npy")
    where = np.full(60, -1)
    where[rows] = np.arange(55)
    for row, item in enumerate(rows):
        if item < 40:
            assert found[row].tolist() == [where[old] if old >= 0 else -1 for old in first[item]], names[int(item)]
    qarm = load_tokenizer(tmp_path / "more")
    x = qarm.residual.joined.at(source.features, source.present, slice(None))
    nearest = ((x[40:, None] - qarm.keys_TF) ** 2).sum(-1).argsort(1, kind="stable")[:, :3]
    new = [row for row in range(40, 60) if source.present["text"][row] or source.present["image"][row]]
    assert all(np.array_equal(found[where[row]], qarm.rows_T[nearest[row - 40]]) for row in new)
    assert (first[5:] < 5).any() and (found == -1).any() and len(new) > 10
    extend_ids(tmp_path / "more", source.path, tmp_path / "all")
    assert np.array_equal(np.load(tmp_path / "all" / "neighbours.npy")[:40], first), "the vanished ones are back"


def test_neighbours_that_cannot_be_carried_are_told(tmp_path, source, tokenized):
    """An extension made when the training items' ids were not kept, whose first items had moved."""
    table, model = SemanticIDTable.load(tokenized[1] / "qarm"), load_tokenizer(tokenized[1] / "qarm")
    (tmp_path / "old").mkdir()
    save_tokenizer(model, tmp_path / "old")
    dataclasses.replace(table, checksum="", parent="p").write_into(tmp_path / "old")
    report = extend_ids(tmp_path / "old", source.path, tmp_path / "more")
    assert (report["beside"], report["left_out"]) == ([], ["neighbours"])
    assert not (tmp_path / "more" / "neighbours.npy").exists()


def test_features_of_another_width_or_no_tokenizer_are_told(tmp_path, tokenized):
    data, ids = tokenized[0], tokenized[1] / "residual_kmeans"
    wide = tiny_dataset(tmp_path / "wide", items=50, features={"text": 17, "image": 12})
    with pytest.raises(UserError, match="features.text.*17 columns; expected 16 columns"):
        extend_ids(ids, wide.path, tmp_path / "out")
    table = SemanticIDTable.load(ids)
    table.save(tmp_path / "imported")
    with pytest.raises(UserError, match="no tokenizer beside the table.*cannot be extended"):
        extend_ids(tmp_path / "imported", data.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "dst"}, "another tokenizer lies beside the table: name 'columns'; expected name 'dst'"),
        ({"config": {"step": 2, "gone": 3}}, "step 1; expected step 2"),
        ({"config": {"gone": 3}}, None),
    ],
)
def test_another_tokenizer_than_the_tables_is_refused(change, words):
    model, table = made(np.array([[0], [1]]), np.ones(2, bool), [3], "digit")
    table = dataclasses.replace(table, checksum="", tokenizer=table.tokenizer | change)
    arguments = list("01"), {"x": np.array([[0], [1]], np.float32)}, {"x": np.ones(2, bool)}
    if words is None:
        assert extend(table, model, *arguments)[1]["kept"] == 2
        return
    with pytest.raises(UserError, match=words):
        extend(table, model, *arguments)
    with pytest.raises(UserError, match="levels.*expected those of the table"):
        extend(dataclasses.replace(table, checksum="", tokenizer={}), Columns([4]), *arguments)


def test_random_codes_of_another_seed_are_refused(source, tokenized):
    table, model = SemanticIDTable.load(tokenized[1] / "random"), load_tokenizer(tokenized[1] / "random")
    with pytest.raises(UserError, match="seed 7; expected seed 0"):
        extend(table, dataclasses.replace(model, seed=7), source.items["item_id"], source.features, source.present)


def test_a_table_is_not_extended_in_its_own_folder_and_a_fit_may_replace_an_extension(tmp_path, source, tokenized):
    from test_tokenizer_run import CONFIGS, SMALL

    (tmp_path / "link").symlink_to(tokenized[1])
    before = sorted(file.name for file in (tokenized[1] / "random").iterdir())
    with pytest.raises(UserError, match="'out': the table that is extended; expected another folder"):
        extend_ids(tokenized[1] / "random", source.path, tmp_path / "link" / "random")
    assert sorted(file.name for file in (tokenized[1] / "random").iterdir()) == before
    extend_ids(tokenized[1] / "random", source.path, tmp_path / "more")
    tokenize(source.path, CONFIGS / "random.py", tmp_path / "more", SMALL["random"])
    assert (tmp_path / "more" / "diagnostics.json").is_file() and not SemanticIDTable.load(tmp_path / "more").parent


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_broken_tokenizer_is_told(tmp_path, kept, source, tokenized):
    """Beside a table of old, whose manifest has no checksum of it, and beside one of now, which has."""
    shutil.copytree(tokenized[1] / "residual_kmeans", tmp_path / "ids")
    file, manifest = tmp_path / "ids" / "tokenizer.npz", tmp_path / "ids" / "manifest.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"tokenizer\.npz: the file was altered"):
        extend_ids(tmp_path / "ids", source.path, tmp_path / "out")
    about = json.loads(manifest.read_text())
    about["files"] = {name: sha for name, sha in about["files"].items() if not name.startswith("tokenizer")}
    manifest.write_text(json.dumps(about))
    with pytest.raises(UserError, match="not a tokenizer"):
        extend_ids(tmp_path / "ids", source.path, tmp_path / "out")
    entry = whole.rindex(b"PK\x01\x02")  # of the zip's directory; its compression method lies 10 bytes on
    for broken in (whole[: entry + 10] + b"\x63" + whole[entry + 11 :], whole.replace(b"descr", b"desk=")):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="not a tokenizer"):
            load_tokenizer(tmp_path / "ids")
    file.write_bytes(whole)
    assert extend_ids(tmp_path / "ids", source.path, tmp_path / "out")["new"] == 20
