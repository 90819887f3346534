"""A run from end to end on a tiny dataset: what the verbs leave, what they refuse, and that scores are the model's."""

import dataclasses
import json
import shutil

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.records import TEST, VALIDATION
from hisam_jax.errors import UserError
from hisam_jax.evaluation.run import evaluate
from hisam_jax.evaluation.targets import ranking_targets, retrieval_targets
from hisam_jax.inference import scoring
from hisam_jax.inference.recommend import _of_user, recommend
from hisam_jax.inference.run import load_run
from hisam_jax.inference.transitions import Transitions
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train
from tests.fixtures import tiny_dataset

HEADS = {"ranking": 1.0, "generation": 0.5, "retrieval": 1.0}


def _config(**model):
    small = {"width": 16, "heads": 2, "kv_heads": 2, "mlp": 32, "layers": 1, "actions": True, **HEADS, **model}
    return ml_collections.ConfigDict(
        {
            "seed": 3,
            "model": small,
            "data": {"items_per_row": 32, "rows": 4, "window": 16},
            "training": {
                "steps": 12,
                "log_every": 4,
                "save_every": 6,
                "evaluate_every": 6,
                "monitor": "validation/retrieval/recall@10",
            },
            "evaluation": {"resamples": 20, "rows": 16, "beams": 10},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    tiny_dataset(root / "dataset", users=40, items=50, seed=1)
    config = load_config("configs/tokenizer/random.py", {"random.sizes": "(8, 8)"})
    tokenize(root / "dataset", config, root / "ids")
    train(root / "dataset", root / "ids", _config(), root / "run")
    evaluate(root / "run")
    return root


def test_evaluation_holds_what_scripts_read(folder):
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    assert {"recall@5", "recall@10", "ndcg@5", "ndcg@10"} <= set(result["generation"]) & set(result["retrieval"])
    for head in ("generation", "retrieval"):
        metric = result[head]["recall@10"]
        assert 0 <= metric["ci95"][0] <= metric["value"] <= metric["ci95"][1] <= 1
    assert "logloss" in result["ranking"]  # leave-one-out holds out positives only: no AUC to speak of
    assert {"popularity", "item_mean", "item_knn"} <= set(result["baselines"])
    assert {"ranking", "generation", "retrieval"} == set(result["cold"])
    assert result["users"] > 0 and result["seed"] == 3 and result["split_checksum"] == "fixture-1"


def test_run_folder_holds_what_scripts_read(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6, 8, 12]
    for line in lines:
        assert {"loss", "items_per_second", "seconds", "loss/ranking", "loss/generation", "loss/retrieval"} <= set(line)
        assert all(np.isfinite(value) for value in line.values())
    assert json.loads((folder / "run" / "config.json").read_text())["model"]["width"] == 16
    assert list((folder / "run" / "tensorboard").glob("events*"))


def test_retrieval_ranks_are_those_of_the_scores(folder):
    run = load_run(folder / "run")
    targets = retrieval_targets(run.events, "test")
    ranks = scoring.retrieval_ranks(run.scorer, run.reader, targets)
    history = run.reader.before(targets.user_T[2], targets.position_T[2])
    sequence = run.assembly.dataset.sequence(int(targets.user_T[2]))
    assert sequence.split[targets.position_T[2]] == TEST
    np.testing.assert_array_equal(history.item, sequence.item[: targets.position_T[2]][-16:])
    scores = run.scorer.retrieval([history])[0]
    others = np.setdiff1d(np.arange(50), [*sequence.item[: targets.position_T[2]], targets.item_T[2]])
    assert ranks.masked_T[2] == 1 + (scores[others] >= scores[targets.item_T[2]]).sum()


def test_a_target_that_was_seen_before_stays_in_both_heads_lists(folder):
    run = load_run(folder / "run")
    targets = retrieval_targets(run.events, "test")
    repeated = np.array(
        [row for row in range(len(targets.user_T)) if targets.item_T[row] in targets.seen.rows(np.array([row]))[1]]
    )
    assert len(repeated), "the fixture draws items with replacement"
    targets = targets.take(repeated)
    ranks = scoring.generation_ranks(run.scorer, run.reader, targets, beams=50)
    unseen = 50 - np.diff(targets.seen.indptr)
    assert (ranks.unmasked_T <= 50).all() and (ranks.masked_T <= unseen + 1).all()
    assert (ranks.masked_T <= ranks.unmasked_T).all() and (ranks.masked_T < unseen).any()


def test_ranking_logits_are_those_of_the_whole_history_where_it_fits(folder):
    run = load_run(folder / "run")
    rated = ranking_targets(run.events, "test")
    logits = scoring.ranking_logits(run.scorer, run.reader, rated)
    for row in range(0, len(rated.user_E), 7):
        history = run.reader.before(rated.user_E[row], rated.position_E[row] + 1)
        assert logits[row] == pytest.approx(run.scorer.clicks_along([history])[0][-1], abs=1e-5)


def test_one_request_reads_nothing_of_what_is_judged_nor_of_what_follows(folder):
    run = load_run(folder / "run")
    held_out = run.events.position_E >= np.diff(run.events.start_U1)[run.events.user_E] - 4
    rated = ranking_targets(dataclasses.replace(run.events, split_E=np.where(held_out, TEST, 0)), "test")
    assert rated.several
    logits = scoring.request_logits(run.scorer, run.reader, rated)
    for user in np.unique(rated.user_E)[::5]:
        rows = np.flatnonzero(rated.user_E == user)
        first = int(rated.position_E[rows[0]])
        history, gap = run.reader.before(user, first), run.reader.features(user)["gap"][first]
        want = run.scorer.clicks_after([history], [rated.item_E[rows]], [gap])[0]
        np.testing.assert_allclose(logits[rows], want, atol=1e-5)

    class Scrambled(scoring.HistoryReader):
        def _read(self, user):
            found, first = super()._read(user), rated.position_E[rated.user_E == user].min(initial=10**6)
            later = np.arange(len(found["item"])) >= first
            return found | {"action": np.where(later, 11 - found["action"], found["action"]).astype(np.int32)}

    reader = Scrambled(run.assembly.dataset, run.reader._window)
    np.testing.assert_allclose(scoring.request_logits(run.scorer, reader, rated), logits, atol=1e-6)
    one_by_one = [scoring.ranking_logits(run.scorer, source, rated) for source in (run.reader, reader)]
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 1e-4


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(2, 40))
def test_windows_cover_every_scored_event_once_with_half_a_window_of_history(positions, window):
    position = np.array(sorted(positions))
    jobs = scoring.windows_of(np.arange(len(position)), position, window)
    covered = np.concatenate([events for events, _, _ in jobs])
    assert sorted(covered) == list(range(len(position)))
    for events, start, end in jobs:
        assert 0 < end - start <= window
        inside = position[events] - start
        assert (inside >= 0).all() and (position[events] < end).all()
        assert start == 0 or (inside >= window // 2).all()


def test_recommendations_are_new_to_the_user_and_best_first(folder):
    dataset = Dataset.load(folder / "dataset")
    user = dataset.users["user_id"][5]
    rows = recommend(folder / "run", user=user, k=7)
    assert [row["rank"] for row in rows] == list(range(1, 8))
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    seen = set(dataset.items["item_id"][dataset.sequence(5).item.tolist()])
    assert not seen & {row["item_id"] for row in rows}
    ids = dataset.items["item_id"].to_list()
    assert len(recommend(folder / "run", history=[ids[3], ids[9]], k=100)) == 48


def test_what_was_seen_before_the_window_is_not_recommended(folder):
    ids = Dataset.load(folder / "dataset").items["item_id"].to_list()
    window = load_run(folder / "run").scorer.window
    rows = recommend(folder / "run", history=ids[:30], k=100)
    assert window < 30 and {row["item_id"] for row in rows} == set(ids[30:])
    run = load_run(folder / "run")
    short = dataclasses.replace(run, reader=scoring.HistoryReader(run.assembly.dataset, 2))
    past, seen = _of_user(short, "u5")
    assert len(past) == 2 and set(seen) == set(run.assembly.dataset.sequence(5).item)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"user": "nobody"}, "nobody"),
        ({"history": ["i1", "i999"]}, "i999"),
        ({}, "both or neither"),
        ({"user": "u1", "history": ["i1"]}, "both or neither"),
        ({"user": "u1", "k": 0}, "value 0"),
    ],
)
def test_recommend_says_what_it_does_not_know(folder, arguments, word):
    with pytest.raises(UserError, match=word):
        recommend(folder / "run", **arguments)


@pytest.mark.slow
def test_every_single_head_trains_evaluates_and_recommends(folder, tmp_path):
    for head in HEADS:
        config = _config(**{other: float(other == head) for other in HEADS})
        config.training.monitor = None
        train(folder / "dataset", folder / "ids", config, tmp_path / head)
        result = evaluate(tmp_path / head)
        assert head in result and not ({*HEADS} - {head}) & set(result)
        assert recommend(tmp_path / head, history=["i1", "i2"], k=3)


def test_a_table_of_another_catalogue_is_refused_before_anything_is_written(folder, tmp_path):
    tiny_dataset(tmp_path / "other", users=40, items=51, seed=1)
    with pytest.raises(UserError, match="i50"):
        train(tmp_path / "other", folder / "ids", _config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run_is_not_touched(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match="another model"):
        train(folder / "dataset", folder / "ids", _config(width=32), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(("field", "value"), [("data.window", 8), ("training.steps", 20)])
def test_a_run_of_other_data_or_training_settings_is_refused_and_not_touched(folder, tmp_path, field, value):
    shutil.copytree(folder / "run", tmp_path / "run")
    before = [(tmp_path / "run" / name).read_text() for name in ("config.json", "run.json", "metrics.jsonl")]
    config = _config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"{field} was"):
        train(folder / "dataset", folder / "ids", config, tmp_path / "run")
    assert before == [(tmp_path / "run" / name).read_text() for name in ("config.json", "run.json", "metrics.jsonl")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"training.monitor": "validation/retrieval/recall@5"}, "validation/retrieval/recall@10 or"),
        ({"model.retrieval": 0.0}, "expected validation/logloss or validation/generation/recall@10"),
        ({"training.monitor": "validation/gauc"}, "expected validation/logloss"),  # held-out events of one class only
    ],
)
def test_a_metric_that_will_never_come_is_refused_before_the_first_step(folder, tmp_path, fields, expected):
    config = _config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=f"training.monitor.*{expected}"):
        train(folder / "dataset", folder / "ids", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_trained_on_validation_too_is_judged_by_the_test_split_alone(folder, tmp_path):
    config = _config()
    config.data.validation_too = True
    with pytest.raises(UserError, match="None with data.validation_too"):
        train(folder / "dataset", folder / "ids", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.training.monitor = None
    train(folder / "dataset", folder / "ids", config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not [name for line in lines for name in line if name.startswith("validation")]
    with pytest.raises(UserError, match="trained on it"):
        evaluate(tmp_path / "run", "validation")
    result = evaluate(tmp_path / "run", baselines_too=False)
    assert result["retrieval"] and result["validation_too"]
    run, strict = load_run(tmp_path / "run"), Dataset.load(folder / "dataset")
    held = np.concatenate([one.item[one.split == VALIDATION] for one in strict.sequences()])
    assert run.assembly.catalog.trained_I[held].all()
    counts_I = np.bincount(held, minlength=strict.num_items) + strict.items["train_count"].to_numpy()
    np.testing.assert_allclose(run.assembly.catalog.frequency_I, counts_I / counts_I.sum(), rtol=1e-6)
    with pytest.raises(UserError, match="validation_too"):
        train(folder / "dataset", folder / "ids", _config(), tmp_path / "run")
    record = tmp_path / "run" / "config.json"
    config = json.loads(record.read_text())
    config["data"]["validation_too"] = False
    record.write_text(json.dumps(config))
    with pytest.raises(UserError, match="another validation_too: True, now None"):
        load_run(tmp_path / "run", again=True)


def test_a_blend_is_one_more_list_and_what_is_recommended(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["evaluation"]["blend"] = 0.7
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    result = evaluate(tmp_path / "run", baselines_too=False)
    assert not result["validation_too"]
    assert {"retrieval", "generation", "blend"} == set(result) & {*scoring.LISTS, "blend"}
    assert "blend" in result["cold"]
    run = load_run(tmp_path / "run")
    history, seen = _of_user(run, "u0")
    transitions = Transitions.of(run.events)
    want = run.scorer.retrieval([history])[0] + 0.7 * transitions.log_scores([history])[0]
    want[seen] = -np.inf
    found = recommend(tmp_path / "run", user="u0", k=5)
    items = run.assembly.dataset.item_index([one["item_id"] for one in found])
    np.testing.assert_array_equal(items, np.argsort(-want, kind="stable")[:5])
    targets = retrieval_targets(run.events, "test")
    with np.load(tmp_path / "run" / "predictions.npz") as kept:
        assert (kept["blend_masked"] <= kept["blend_unmasked"]).all()
        scores = run.blended.retrieval(run.reader.of_targets(targets, np.arange(3)))
        own = np.take_along_axis(scores, targets.item_T[:3, None], 1)
        np.testing.assert_array_equal(kept["blend_unmasked"][:3], (scores >= own).sum(1))


def test_a_blend_of_nothing_is_refused(folder, tmp_path):
    config = _config(retrieval=0.0)
    config.training.monitor, config.evaluation.blend = None, 1.0
    with pytest.raises(UserError, match="model.retrieval above 0") as caught:
        train(folder / "dataset", folder / "ids", config, tmp_path / "run")
    assert caught.value.field == "evaluation.blend" and not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_no_workdir(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UserError, match="cat.jpg"):
        train(folder / "dataset", folder / "ids", _config(), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_ranking_needs_ratings(folder, tmp_path):
    tiny_dataset(tmp_path / "implicit", users=40, items=50, seed=1, ratings=False)
    with pytest.raises(UserError, match="without ratings"):
        train(tmp_path / "implicit", folder / "ids", _config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "field", "near"),
    [("model", "widht", "width"), ("training", "stepz", "steps"), (None, "modell", "model")],
)
def test_an_unknown_config_field_names_the_nearest(folder, tmp_path, section, field, near):
    config = _config()
    with config.unlocked():
        (config[section] if section else config)[field] = 1
    with pytest.raises(UserError, match=f"{field}.*{near}"):
        train(folder / "dataset", folder / "ids", config, tmp_path / "run")


def test_a_missing_run_is_one_clear_line(tmp_path):
    for verb in (evaluate, lambda path: recommend(path, user="1")):
        with pytest.raises(UserError, match="config.json"):
            verb(tmp_path / "nowhere")
