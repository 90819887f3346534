"""`tokenize` from a prepared dataset to a folder of IDs, and what diagnostics.json says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures import tiny_dataset

from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.tokenizer import assignment, base, diagnostics, registry
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.registry import load_tokenizer
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tokenizer"
SMALL = {
    "dst": {"dst.steps": "20", "dst.shared": "(8, 8)", "dst.specific.text": "(8,)", "dst.specific.image": "(8,)"}
    | {"dst.width": "8", "dst.hidden": "16", "dst.mi_hidden": "8"},
    "residual_kmeans": {"residual_kmeans.sizes": "(8, 8)"},
    "rqvae": {"rqvae.sizes": "(8, 8)", "rqvae.steps": "20", "rqvae.width": "8", "rqvae.hidden": "(16,)"},
    "opq": {"opq.sizes": "(8, 8)", "opq.rotations": "2", "opq.iterations": "5"},
    "qarm": {"qarm.sizes": "(8, 8)", "qarm.neighbours": "3", "qarm.alignment": "False"},
    "random": {"random.sizes": "(8, 8)"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def dst_ids(dataset, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("ids") / "dst"
    return out, tokenize(dataset.path, CONFIGS / "dst.py", out, SMALL["dst"])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "dst" else n for n in SMALL])
def test_every_tokenizer_leaves_a_table_that_loads(dataset, tmp_path, name):
    report = tokenize(dataset.path, CONFIGS / f"{name}.py", tmp_path / "ids", SMALL[name])
    table = SemanticIDTable.load(tmp_path / "ids", dataset.items["item_id"].to_list())
    assert len(np.unique(table.full_codes(), axis=0)) == dataset.num_items
    assert table.policy == "digit" and table.tokenizer["name"] == name
    model = load_tokenizer(tmp_path / "ids")
    assert np.array_equal(model.assign(dataset.features, dataset.present), table.codes_IL)
    assert json.loads((tmp_path / "ids" / "diagnostics.json").read_text()) == json.loads(json.dumps(report))
    assert report["collision"]["after"] == {"rate": 0.0, "share": 0.0} and report["checksum"] == table.checksum


def test_the_keys_of_the_contract_are_there(dst_ids):
    report = dst_ids[1]
    assert [level["name"] for level in report["levels"]] == ["shared/0", "shared/1", "text/0", "image/0"]
    for level in report["levels"]:
        assert {"name", "modality", "size", "utilisation", "perplexity", "dead"} <= level.keys()
        assert 0 < level["utilisation"] <= 1 and level["dead"] == round(level["size"] * (1 - level["utilisation"]))
        assert 1 <= level["perplexity"] <= level["size"] * (1 + 1e-6)
    assert set(report["collision"]) == {"before", "after"} and set(report["collision"]["before"]) == {"rate", "share"}
    assert set(report["reconstruction"]) == {"text", "image"}
    assert set(report["reconstruction"]["text"]) == {"full", "shared_only", "specific_only"}
    assert set(report["ami"]["shared/0|text/0"]) == {"value", "permuted"} and len(report["ami"]) == 6
    assert set(report["cross_modal"]) == {"text->image", "image->text"}
    assert report["seconds"] > 0 and report["items_per_second"] > 0
    assert len(report["history"]) >= 1 and {"loss", "alignment", "step"} <= report["history"][0].keys()


def test_the_same_seed_gives_the_same_bytes_of_codes(dataset, dst_ids, tmp_path):
    tokenize(dataset.path, CONFIGS / "dst.py", tmp_path / "again", SMALL["dst"])
    for name in ("codes.npy", "digit.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (dst_ids[0] / name).read_bytes()


@pytest.mark.parametrize("policy", ["next_nearest", "sinkhorn", "none"])
def test_policies_by_config(dataset, tmp_path, policy):
    overrides = SMALL["residual_kmeans"] | {"collisions": policy}
    report = tokenize(dataset.path, CONFIGS / "residual_kmeans.py", tmp_path / "ids", overrides)
    after = report["collision"]["after"]
    assert after == report["collision"]["before"] if policy == "none" else after["rate"] == 0


def test_a_dataset_of_text_alone(tmp_path):
    data = tiny_dataset(tmp_path / "data", features={"text": 16})
    report = tokenize(data.path, CONFIGS / "dst.py", tmp_path / "ids", SMALL["dst"])
    assert [level["name"] for level in report["levels"]] == ["shared/0", "shared/1", "text/0", "text/1"]
    assert "cross_modal" not in report or report["cross_modal"] == {}


def test_a_dataset_without_features_is_a_user_error_and_leaves_nothing(tmp_path):
    for name, data in (
        ("none", tiny_dataset(tmp_path / "none", features={})),
        ("absent", tiny_dataset(tmp_path / "absent", missing=1.0)),
    ):
        with pytest.raises(UserError, match="no features"):
            tokenize(data.path, CONFIGS / "dst.py", tmp_path / f"ids {name}", SMALL["dst"])
        assert not (tmp_path / f"ids {name}").exists()


def test_an_unknown_field_or_tokenizer_is_a_user_error(dataset, tmp_path):
    with pytest.raises(UserError, match="widht"):
        tokenize(dataset.path, CONFIGS / "dst.py", tmp_path / "ids", {"dst.widht": "3"})
    config = load_config(CONFIGS / "dst.py")
    config.name = "dts"
    with pytest.raises(UserError, match="dts"):
        tokenize(dataset.path, config, tmp_path / "ids")


def test_an_unknown_policy_is_refused_before_anything_is_fitted(dataset, tmp_path, monkeypatch):
    fitted = []
    entry = registry.TOKENIZERS["random"]._replace(fit=lambda *given: fitted.append(given))
    monkeypatch.setitem(registry.TOKENIZERS, "random", entry)
    with pytest.raises(UserError, match="collisions.*hash.*next_nearest"):
        tokenize(dataset.path, CONFIGS / "random.py", tmp_path / "ids", {"collisions": "hash"})
    assert not fitted and not (tmp_path / "ids").exists()


def test_a_run_that_fails_leaves_the_table_that_was_there(dataset, tmp_path, monkeypatch):
    tokenize(dataset.path, CONFIGS / "random.py", tmp_path / "ids", SMALL["random"])
    before = (tmp_path / "ids" / "codes.npy").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(SemanticIDTable, "write_into", full)
    with pytest.raises(OSError, match="no space"):
        tokenize(dataset.path, CONFIGS / "random.py", tmp_path / "ids", SMALL["random"] | {"seed": "1"})
    assert (tmp_path / "ids" / "codes.npy").read_bytes() == before


def test_use_of_levels_counts_no_reserved_codes():
    levels = (Level("text/0", "text", 4),)
    codes = np.array([[0], [0], [1], [1], [4], [4]])
    (row,) = diagnostics.level_use(codes, levels)
    assert row["utilisation"] == 0.5 and row["dead"] == 2 and row["items"] == 4
    np.testing.assert_allclose(row["perplexity"], 2)
    (row,) = diagnostics.level_use(np.full((3, 1), 4), levels)
    assert row["utilisation"] == 0 and row["perplexity"] == 0


def test_gini_of_equal_and_of_one_sided_use():
    assert diagnostics.gini(np.full(10, 3)) == 0
    np.testing.assert_allclose(diagnostics.gini(np.eye(1, 10)[0] * 7), 0.9)


def test_information_of_independent_fine_codes_is_zero_and_of_a_coarsening_one():
    """12,101 items, 256 codes: unadjusted normalised information is .32 for nothing at all."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 12101))
    assert abs(diagnostics.ami(a, b, rng)["value"]) < 0.02
    fine = diagnostics.ami(a, a // 16, rng)
    assert fine["value"] > 0.99 and abs(fine["permuted"]) < 0.02
    assert diagnostics.ami(np.where(a < 128, a, -1), a, rng)["value"] > 0.99
    assert diagnostics.ami(a * 0, b * 0, rng) == {"value": 0.0, "permuted": 0.0}
    assert diagnostics.ami(a[:0], b[:0], rng) == {"value": 0.0, "permuted": 0.0}


class _Spy:
    """Counts what a tokenizer is given at a time; an item's code is its first feature."""

    levels = (Level("shared/0", "shared", 9),)

    def __init__(self):
        self.rows = []

    def assign(self, features, present):
        self.rows.append(len(features["text"]))
        return np.where(present["text"], features["text"][:, 0], 9).astype(np.int32)[:, None]


def test_codes_are_assigned_in_spans_and_pages_let_go_of(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 9, (100, 3)).astype(np.float32)
    np.save(tmp_path / "text.npy", values)
    features, present = {"text": np.load(tmp_path / "text.npy", mmap_mode="r")}, {"text": np.arange(100) % 7 > 0}
    monkeypatch.setattr(assignment, "SPAN", 30)
    released = []
    monkeypatch.setattr(assignment, "release", lambda features: (released.append(1), base.release(features)))
    spy = _Spy()
    codes = assignment.assign(spy, features, present)
    assert spy.rows == [30, 30, 30, 10] and len(released) == 4
    assert np.array_equal(codes[:, 0], np.where(present["text"], values[:, 0], 9)), "pages come back when read again"
    rows = np.array([99, 3, 3, 50])
    assert np.array_equal(assignment.assign(spy, features, present, rows), codes[rows])
    assert assignment.assign(spy, features, present, rows[:0]).shape == (0, 1)


def test_pages_that_may_be_written_are_kept(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5000, 3), np.float32))
    values = np.load(tmp_path / "x.npy", mmap_mode="c")
    values[:] = 1
    base.release({"x": values, "plain": np.ones(3)})
    assert values.sum() == 15000, "a private copy's changes would be lost with its pages"
