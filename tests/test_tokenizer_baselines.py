"""Residual k-means and random codes: the same protocol as DST, from the same kind of features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import registry
from hisam_jax.tokenizer.base import CrossModal, FittedTokenizer
from hisam_jax.tokenizer.random_codes import RandomConfig
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig

CONFIGS = {"residual_kmeans": ResidualKMeansConfig((16, 8), iterations=5), "random": RandomConfig((16, 8))}


def fit(name, features, present, train=None, seed=0):
    train = np.ones(len(features["text"]), bool) if train is None else train
    return registry.entry(name).fit(CONFIGS[name], features, present, train, seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_protocol_determinism_and_a_round_trip_through_disk(name, tmp_path):
    features, present, _ = planted(200, categories=8, width=12)
    model = fit(name, features, present)
    codes = model.assign(features, present)
    assert isinstance(model, FittedTokenizer) and not isinstance(model, CrossModal)
    assert codes.shape == (200, 2) and codes.dtype == np.int32
    assert np.all((codes >= 0) & (codes < [level.size for level in model.levels]))
    assert np.array_equal(codes, fit(name, features, present).assign(features, present))
    assert not np.array_equal(codes, fit(name, features, present, seed=1).assign(features, present))
    assert model.costs(features, present, 1).shape == (200, 8)
    registry.save_tokenizer(model, tmp_path)
    again = registry.load_tokenizer(tmp_path)
    assert np.array_equal(again.assign(features, present), codes) and again.levels == model.levels


def test_kmeans_codes_tell_the_category_and_the_costs_are_what_codes_minimise():
    features, present, truth = planted(400, categories=8, styles=2, colours=2, width=12)
    model = fit("residual_kmeans", features, present)
    codes = model.assign(features, present)
    assert adjusted_mutual_info_score(truth["category"], codes[:, 0], average_method="min") > 0.7
    for level in (0, 1):
        assert np.array_equal(model.costs(features, present, level).argmin(1), codes[:, level])
    errors = [level_error(model, features, present, codes[:, :depth]) for depth in (1, 2)]
    assert errors[1] < errors[0] < 0.7


def level_error(model, features, present, codes):
    sizes = [level.size for level in model.levels]
    codes = np.concatenate([codes, np.tile(sizes[codes.shape[1] :], (len(codes), 1)).astype(np.int32)], 1)
    guess, target = model.reconstruct(codes, "full"), model.targets(features)
    return np.mean([np.square(guess[m] - target[m])[present[m]].mean() for m in guess])


def test_kmeans_reserves_the_code_of_items_with_nothing_and_shrinks_for_few():
    features, present, _ = planted(10, categories=3, width=4)
    present["text"][3] = present["image"][3] = False
    model = fit("residual_kmeans", features, present)
    codes = model.assign(features, present)
    assert [level.size for level in model.levels] == [9, 8] and model.notes
    assert np.array_equal((codes == [9, 8]).all(1), np.arange(10) == 3)


def test_kmeans_looks_at_training_items_only():
    features, present, _ = planted(200, categories=8, width=12)
    train = np.arange(200) < 150
    changed = {m: np.where(train[:, None], v, 9 * v) for m, v in features.items()}
    first, second = (fit("residual_kmeans", f, present, train) for f in (features, changed))
    assert all(np.array_equal(a, b) for a, b in zip(first.centres, second.centres, strict=True))


def test_random_codes_of_old_items_stay_when_items_are_appended():
    features, present, _ = planted(100, width=4)
    model = fit("random", features, present)
    some = {m: v[:60] for m, v in features.items()}, {m: v[:60] for m, v in present.items()}
    assert np.array_equal(model.assign(*some), model.assign(features, present)[:60])


def test_an_unknown_or_broken_tokenizer_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="residual_kmeans"):
        registry.entry("rkmeans")
    with pytest.raises(UserError, match="no tokenizer"):
        registry.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"format_version": 1, "name": "dst"}')
    with pytest.raises(UserError, match="not a tokenizer"):
        registry.load_tokenizer(tmp_path)
