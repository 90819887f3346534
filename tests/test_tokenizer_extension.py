"""New items in a frozen table: nothing old moves, nothing is taken twice, no room left is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax import cli
from hisam_jax.errors import UserError
from hisam_jax.tokenizer import collisions
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.extension import extend, extend_ids
from hisam_jax.tokenizer.registry import load_tokenizer
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable


class Columns:
    """A tokenizer whose features are the codes themselves; a code costs its distance to the feature."""

    def __init__(self, sizes):
        self.levels = tuple(Level(f"shared/{depth}", "shared", size) for depth, size in enumerate(sizes))

    def assign(self, features, present):
        return np.where(present["x"][:, None], features["x"], [level.size for level in self.levels]).astype(np.int32)

    def costs(self, features, present, level):
        return np.abs(features["x"][:, [level]] - np.arange(self.levels[level].size)).astype(np.float32)


def made(codes, present, sizes, policy, headroom=2.0):
    """A table of given codes, resolved, of items "0", "1", ..."""
    model, features = Columns(sizes), {"x": codes.astype(np.float32)}
    before = model.assign(features, {"x": present})
    ask = lambda level, rows: model.costs({"x": features["x"][rows]}, None, level)  # noqa: E731
    found = collisions.resolve(policy, before, sizes, ask, headroom=headroom)
    ids = [str(row) for row in range(len(codes))]
    parts = (found.codes_IL, found.digit_I, found.digit_size, ids, {"name": "columns"}, policy)
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


@pytest.mark.parametrize("name", ["residual_kmeans", "random"])
def test_a_dataset_that_grew(tmp_path, name, capsys):
    from test_tokenizer_run import CONFIGS, SMALL

    small, large = (tiny_dataset(tmp_path / f"data {items}", items=items) for items in (40, 60))
    tokenize(small.path, CONFIGS / f"{name}.py", tmp_path / "ids", SMALL[name])
    arguments = ["ids", "--ids", tmp_path / "ids", "--extend", large.path, "--out", tmp_path / "more"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kept"], report["new"], report["vanished"]) == (40, 20, {"items": 0, "named": []})
    first = SemanticIDTable.load(tmp_path / "ids")
    second = SemanticIDTable.load(tmp_path / "more", large.items["item_id"])
    assert np.array_equal(second.full_codes()[:40], first.full_codes()) and second.parent == first.checksum
    assert len(np.unique(second.full_codes(), axis=0)) == 60
    codes = load_tokenizer(tmp_path / "more").assign(large.features, large.present)
    assert name == "random" or np.array_equal(second.codes_IL[40:], codes[40:])
    back = extend_ids(tmp_path / "more", small.path, tmp_path / "less")
    assert back["vanished"]["items"] == 20 and back["vanished"]["named"] == [f"i{row}" for row in range(40, 50)]
    assert np.array_equal(SemanticIDTable.load(tmp_path / "less").full_codes(), first.full_codes())


def test_features_of_another_width_or_no_tokenizer_are_told(tmp_path):
    from test_tokenizer_run import CONFIGS, SMALL

    data = tiny_dataset(tmp_path / "data")
    tokenize(data.path, CONFIGS / "residual_kmeans.py", tmp_path / "ids", SMALL["residual_kmeans"])
    wide = tiny_dataset(tmp_path / "wide", items=50, features={"text": 17, "image": 12})
    with pytest.raises(UserError, match="features.text.*17 columns; expected 16 columns"):
        extend_ids(tmp_path / "ids", wide.path, tmp_path / "out")
    shutil.copytree(tmp_path / "ids", tmp_path / "imported")
    (tmp_path / "imported" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer beside the table.*cannot be extended"):
        extend_ids(tmp_path / "imported", data.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    table = SemanticIDTable.load(tmp_path / "ids")
    with pytest.raises(UserError, match="levels.*expected those of the table"):
        extend(table, Columns([3]), pl.Series(["a"]), {}, {})
