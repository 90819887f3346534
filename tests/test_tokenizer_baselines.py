"""The baselines: the same protocol as DST, from the same kind of features, sound on bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import base, fitting, joined, registry
from hisam_jax.tokenizer.base import CrossModal, FittedTokenizer
from hisam_jax.tokenizer.opq import OPQConfig
from hisam_jax.tokenizer.qarm_codes import QarmConfig
from hisam_jax.tokenizer.random_codes import RandomConfig
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig
from hisam_jax.tokenizer.rqvae import RQVAEConfig

CONFIGS = {
    "residual_kmeans": ResidualKMeansConfig((16, 8), iterations=5),
    "qarm": QarmConfig(sizes=(16, 8), neighbours=3, iterations=5),
    "opq": OPQConfig((16, 8), iterations=5, rotations=3),
    "rqvae": RQVAEConfig((16, 8), width=8, hidden=(32,), steps=160, batch_size=64, settle_iterations=2),
    "random": RandomConfig((16, 8)),
}
READING = [name for name in CONFIGS if name != "random"]


def fit(name, features, present, train=None, seed=0):
    train = np.ones(len(features["text"]), bool) if train is None else train
    return registry.entry(name).fit(CONFIGS[name], features, present, train, seed)


@pytest.fixture(scope="module")
def fitted():
    """Name -> (model, codes) on 200 items, 10 of them without a picture, the first without anything."""
    features, present, _ = planted(200, categories=8, width=12)
    present["text"][0] = present["image"][0] = False
    found = {}

    def of(name):
        if name not in found:
            model = fit(name, features, present)
            found[name] = model, model.assign(features, present)
        return *found[name], features, present

    return of


@pytest.mark.parametrize("name", CONFIGS)
def test_protocol_determinism_and_a_round_trip_through_disk(name, fitted, tmp_path):
    model, codes, features, present = fitted(name)
    assert isinstance(model, FittedTokenizer) and not isinstance(model, CrossModal)
    assert codes.shape == (200, 2) and codes.dtype == np.int32
    assert np.all((codes >= 0) & (codes <= [level.size for level in model.levels]))
    assert np.array_equal(codes, fit(name, features, present).assign(features, present))
    assert not np.array_equal(codes, fit(name, features, present, seed=1).assign(features, present))
    registry.save_tokenizer(model, tmp_path)
    again = registry.load_tokenizer(tmp_path)
    assert np.array_equal(again.assign(features, present), codes)
    assert (again.levels, again.config, again.notes) == (model.levels, model.config, model.notes)
    for m, told in model.reconstruct(codes, "full").items():
        np.testing.assert_array_equal(again.reconstruct(codes, "full")[m], told)


@pytest.mark.parametrize("name", READING)
def test_codes_are_the_cheapest_and_reserved_where_there_is_nothing(name, fitted):
    model, codes, features, present = fitted(name)
    has = present["text"] | present["image"]
    assert np.array_equal((codes == [level.size for level in model.levels]).all(1), ~has)
    assert np.array_equal((codes == [level.size for level in model.levels]).any(1), ~has)
    for index, level in enumerate(model.levels):
        costs = model.costs(features, present, index)
        assert costs.shape == (200, level.size) and costs.dtype == np.float32
        assert np.array_equal(costs.argmin(1)[has], codes[has, index])


@pytest.mark.parametrize("name", READING)
def test_codes_tell_more_than_the_mean_item_and_reserved_ones_nothing(name, fitted):
    model, codes, features, present = fitted(name)
    targets, told, shared = model.targets(features), *(model.reconstruct(codes, b) for b in ("full", "shared_only"))
    for m, guess in told.items():
        rows = present[m]
        assert np.square(guess - targets[m])[rows].mean() < 0.9 * np.square(targets[m])[rows].mean()
        assert np.array_equal(shared[m], guess) and not model.reconstruct(codes, "specific_only")[m].any()


@pytest.mark.parametrize("name", READING)
def test_what_is_absent_is_not_read(name, fitted):
    model, codes, features, present = fitted(name)
    noisy = {m: np.where(present[m][:, None], v, np.nan).astype(np.float32) for m, v in features.items()}
    assert np.array_equal(model.assign(noisy, present), codes)
    assert np.array_equal(fit(name, noisy, present).assign(features, present), codes)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(name, value, fitted):
    model, _, features, present = fitted(name)
    broken = {m: v.copy() for m, v in features.items()}
    broken["text"][5, 3] = value
    for attempt in (lambda: fit(name, broken, present), lambda: model.assign(broken, present)):
        with pytest.raises(UserError, match=r"features\.text.*row 5"):
            attempt()


@pytest.mark.parametrize("name", READING)
def test_other_widths_and_missing_features_are_refused(name, fitted):
    model, _, features, present = fitted(name)
    with pytest.raises(UserError, match="11 columns"):
        model.assign({**features, "text": features["text"][:, :11]}, present)
    with pytest.raises(UserError, match="features.image.*no such"):
        model.assign({"text": features["text"]}, {"text": present["text"]})
    nobody = {m: np.zeros(200, bool) for m in present}
    with pytest.raises(UserError, match="no training item"):
        fit(name, features, nobody)


@pytest.mark.parametrize("name", READING)
def test_few_equal_constant_and_zero_items_give_sound_codes(name):
    """9 items for 16 codes, all of them the same but one that is zero; a column that never changes; no picture."""
    text = np.tile(np.linspace(1, 2, 6, dtype=np.float32), (9, 1))
    text[:, 2], text[4] = 3.0, 0.0
    features = {"text": text, "image": np.ones((9, 4), np.float32)}
    present = {"text": np.ones(9, bool), "image": np.zeros(9, bool)}
    model = fit(name, features, present)
    codes = model.assign(features, present)
    assert [level.size for level in model.levels] == [9, 8] and "shrunk" in " ".join(model.notes)
    assert len(np.unique(codes, axis=0)) == 2 and len(np.unique(np.delete(codes, 4, 0), axis=0)) == 1
    assert set(model.targets(features)) == {"text"}, "a modality that no item has is no part of it"
    assert all(np.isfinite(v).all() for v in model.reconstruct(codes, "full").values())


def test_kmeans_codes_tell_the_category_and_the_second_level_adds_to_the_first():
    features, present, truth = planted(400, categories=8, styles=2, colours=2, width=12)
    model = fit("residual_kmeans", features, present)
    codes = model.assign(features, present)
    assert adjusted_mutual_info_score(truth["category"], codes[:, 0], average_method="min") > 0.7
    errors = [level_error(model, features, present, codes[:, :depth]) for depth in (1, 2)]
    assert errors[1] < errors[0] < 0.7


def level_error(model, features, present, codes):
    sizes = [level.size for level in model.levels]
    codes = np.concatenate([codes, np.tile(sizes[codes.shape[1] :], (len(codes), 1)).astype(np.int32)], 1)
    guess, target = model.reconstruct(codes, "full"), model.targets(features)
    return np.mean([np.square(guess[m] - target[m])[present[m]].mean() for m in guess])


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
    about = {"format_version": registry.FORMAT_VERSION, "name": "dst"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="not a tokenizer"):
        registry.load_tokenizer(tmp_path)


def test_a_tokenizer_of_the_first_version_is_refused_by_that_name(tmp_path):
    """Its DST has no `shared_context`: loaded, its networks would not fit their parameters."""
    registry.save_tokenizer(registry.entry("random").fit(RandomConfig(), {}, {}, np.ones(0, bool), 0), tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 1}))
    with pytest.raises(UserError, match=r"version 1; expected version 2 .*hisam tokenize.* again"):
        registry.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", READING)
def test_a_modality_without_columns_is_named(name):
    features, present, _ = planted(20, width=4)
    features["image"] = np.zeros((20, 0), np.float32)
    with pytest.raises(UserError, match=r"features\.image.*no columns"):
        fit(name, features, present)


def test_random_codes_of_no_modality_are_a_user_error():
    features, present, _ = planted(20, width=4)
    model = fit("random", features, present)
    for attempt in (lambda: model.assign({}, {}), lambda: model.costs({}, {}, 0)):
        with pytest.raises(UserError, match="no features"):
            attempt()


def resident(file: Path) -> int:
    """Bytes of a mapped file that count as this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc/self/smaps")
@pytest.mark.parametrize("how", ["joined", "fitting"])
def test_scattered_rows_of_a_memory_map_leave_no_pages_behind(how, tmp_path, monkeypatch):
    rng, file = np.random.default_rng(0), tmp_path / "text.npy"
    values, every = rng.normal(size=(8000, 64)).astype(np.float32), {"text": np.ones(8000, bool)}
    np.save(file, values)
    features, picks = {"text": np.load(file, mmap_mode="r")}, rng.permutation(8000)[:600]
    scale = base.fit_standardiser(values, every["text"], per_column=False)
    held, read = [], base.Standardiser.__call__
    monkeypatch.setattr(base.Standardiser, "__call__", lambda s, v, p: (held.append(len(v)), read(s, v, p))[1])
    if how == "fitting":
        found = fitting.load({"text": scale}, features, every, picks.reshape(2, 300))[0]["text"].reshape(600, -1)
    else:
        found = joined.Joined({"text": scale}).read(features, every, picks)
    assert sum(held) == 600 and max(held) == base.SCATTERED and resident(file) == 0
    monkeypatch.undo()
    assert np.array_equal(found, scale(values[picks], every["text"][picks]))


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc/self/smaps")
def test_fitting_on_few_rows_of_a_memory_map_leaves_no_pages_behind(tmp_path):
    np.save(tmp_path / "text.npy", np.random.default_rng(0).normal(size=(8000, 64)).astype(np.float32))
    features, every = {"text": np.load(tmp_path / "text.npy", mmap_mode="r")}, {"text": np.ones(8000, bool)}
    features["text"][:].sum()
    assert resident(tmp_path / "text.npy") > 1_000_000, "or the test sees nothing"
    joined.fit_joined(features, every, every["text"], 0, 100)
    assert resident(tmp_path / "text.npy") == 0
