"""Diagnostics against independent references: information, probes, prefixes, nearest items, retrieval, the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from hisam_jax import cli
from hisam_jax.tokenizer import diagnostics, neighbours
from hisam_jax.tokenizer.adjusted_information import LEAST_HEADROOM, adjusted_information
from hisam_jax.tokenizer.attributes import attributes_of
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.diagnostics_table import diagnostics_table
from hisam_jax.tokenizer.probes import probe, probe_codes

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tokenizer"
LEVELS = (Level("shared/0", "shared", 4), Level("shared/1", "shared", 4), Level("text/0", "text", 4))


@dataclasses.dataclass
class Told:
    """A tokenizer whose codes decode to given vectors: `books[l]` [K, F] for level l; a reserved code adds nothing."""

    levels: tuple[Level, ...]
    books: list[np.ndarray]
    features: dict[str, np.ndarray]
    name: str = "told"
    notes: tuple = ()
    history: tuple = ()

    def targets(self, features):
        return dict(features)

    def reconstruct(self, codes_IL, branch):
        total = {"text": np.zeros((len(codes_IL), self.books[0].shape[1]), np.float32)}
        for index, (level, book_KF) in enumerate(zip(self.levels, self.books, strict=True)):
            if branch == "full" or (level.modality == "shared") == (branch == "shared_only"):
                code_I = codes_IL[:, index]
                known_I1 = (code_I < level.size)[:, None]
                total["text"] += np.where(known_I1, book_KF[np.minimum(code_I, level.size - 1)], 0)
        return total

    def views(self, features, present):
        vector = {"text": features["text"], "image": features["image"]}
        return {m: (v, np.sign(v)) for m, v in vector.items()}


def told(items=60, width=5, seed=0) -> tuple[Told, np.ndarray]:
    rng = np.random.default_rng(seed)
    books = [rng.normal(size=(level.size, width)).astype(np.float32) for level in LEVELS]
    codes = np.stack([rng.integers(0, level.size + (index == 2), items) for index, level in enumerate(LEVELS)], 1)
    model = Told(LEVELS, books, {})
    full = model.reconstruct(codes, "full")["text"]
    model.features = {"text": (full + 0.1 * rng.normal(size=full.shape)).astype(np.float32)}
    return model, codes.astype(np.int32)


@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.integers(1, 60), st.integers(1, 300))
def test_information_is_the_librarys(seed, items, few, many):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, few, items), rng.integers(0, many, items)
    b = np.where(rng.random(items) < 0.5, a, b)
    ours = adjusted_information(a, b, np.random.default_rng(0))
    if ours["headroom"] > 1e-6:
        np.testing.assert_allclose(
            ours["value"], adjusted_mutual_info_score(a, b, average_method="min"), rtol=1e-6, atol=1e-7
        )


def test_information_of_labels_that_must_overlap_is_the_librarys():
    a, b = np.repeat([0, 1], [9, 1]), np.array([0] * 6 + [1] * 3 + [0])
    ours = adjusted_information(a, b, np.random.default_rng(0))["value"]
    np.testing.assert_allclose(ours, adjusted_mutual_info_score(a, b, average_method="min"), rtol=1e-9)


def test_joint_codes_are_judged_soundly_until_they_are_too_fine():
    """Two levels of 256: 20,000 items tell independence from dependence, 1,500 do not, and the headroom says so."""
    rng = np.random.default_rng(0)
    for items, sound in ((20_000, True), (1_500, False)):
        label, nothing = rng.integers(0, 16, items), rng.integers(0, 65_536, items)
        knows = label * 4_096 + rng.integers(0, 4_096, items)
        for joint, truth in ((nothing, 0.0), (knows, 1.0)):
            figures = adjusted_information(joint, label, rng)
            assert (figures["headroom"] > LEAST_HEADROOM) == sound
            if sound:
                assert abs(figures["value"] - truth) < 0.02 and figures["spread"] < 0.02
            else:
                assert figures["spread"] > 0.005
    alone = adjusted_information(np.arange(50), np.arange(50) % 5, rng)
    assert alone["value"] == 0.0 and alone["headroom"] == 0.0  # every item is its own code: chance explains all


def test_a_joint_code_tells_what_two_levels_only_tell_together():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 3000))
    codes = np.stack([a, b, rng.integers(0, 5, 3000)], 1)
    found = diagnostics.information(codes, LEVELS, {"parity": (a + b) % 2}, rng)
    told = found["ami_attributes"]
    assert abs(told["shared/0|parity"]["value"]) < 0.01 and told["shared|parity"]["value"] > 0.99
    assert set(found["ami"]) == {"shared/0|shared/1", "shared/0|text/0", "shared/1|text/0"}
    assert set(found["ami_joint"]) == {"shared|text"} and abs(found["ami_joint"]["shared|text"]["value"]) < 0.02
    joint = diagnostics.joint_codes(np.array([[0, 1, 4], [0, 4, 2], [0, 1, 2]]), LEVELS)
    assert joint["shared"][1] == -1 and joint["shared"][0] == joint["shared"][2] != -1 and joint["text"][0] == -1


def test_a_probe_finds_a_planted_leak_and_none_in_independent_codes():
    rng = np.random.default_rng(0)
    style = rng.integers(0, 8, 4000)
    leak = np.where(rng.random(4000) < 0.5, style * 4 + rng.integers(0, 4, 4000), rng.integers(0, 32, 4000))
    levels = (Level("text/0", "text", 32), Level("image/0", "image", 32))
    codes = np.stack([leak, rng.integers(0, 33, 4000)], 1)
    found = probe_codes(codes, levels, {"style": style}, rng)
    assert found["text|style"]["accuracy"] == pytest.approx(0.5 + 0.5 / 8, abs=0.03)
    for figures in (found["image|style"], found["text|style"] | {"accuracy": found["text|style"]["permuted"]}):
        assert figures["accuracy"] == pytest.approx(figures["chance"], abs=0.03) and figures["chance"] == 1 / 8
    assert found["image|style"]["items"] == (codes[:, 1] < 32).sum()


def test_a_probe_is_not_fooled_by_unequal_labels_nor_by_codes_of_one_item():
    rng = np.random.default_rng(0)
    rare = (rng.random(2000) < 0.05).astype(np.int64)
    blind = probe(np.zeros((2000, 1), int), [2], rare, rng)
    assert blind["accuracy"] == pytest.approx(0.5, abs=0.01)  # plain accuracy would be .95
    hint = np.where(rng.random(2000) < np.where(rare, 0.8, 0.2), 1, 0)
    told = probe(hint[:, None], [2], rare, rng)
    assert told["accuracy"] == pytest.approx(0.8, abs=0.06)  # the commonest label is never the best bet
    own = probe(np.arange(2000)[:, None], [2001], rare, rng)
    assert own["accuracy"] == pytest.approx(0.5, abs=0.05)  # knows every fitted item by heart, nothing of the others
    assert probe(np.zeros((3, 1), int), [2], np.array([0, 1, -1]), rng) is None


def test_prefixes_are_those_of_a_set():
    codes = np.random.default_rng(0).integers(0, 5, (200, 4))
    expected = [len({tuple(row[:depth]) for row in codes}) for depth in range(1, 5)]
    assert diagnostics.prefix_counts(codes) == expected


@pytest.mark.parametrize("group", ["shared", "text"])
def test_nearest_items_are_those_of_a_search_through_all(group):
    model, codes = told()
    own = [index for index, level in enumerate(LEVELS) if level.modality == group]
    sizes = np.array([LEVELS[index].size for index in own])
    found = neighbours.neighbours(model, codes, {"text": np.ones(60, bool)}, np.arange(60.0), np.random.default_rng(0))
    assert len(found) == neighbours.QUERIES
    for entry in found:
        row = entry["item"]
        if (codes[row, own] == sizes).all():
            assert group not in entry["groups"]
            continue
        near = entry["groups"][group]
        vectors = sum(
            np.where((codes[:, [i]] < LEVELS[i].size), model.books[i][np.minimum(codes[:, i], LEVELS[i].size - 1)], 0)
            for i in own
        )
        others = [i for i in range(60) if i != row and (codes[i, own] < sizes).any()]
        distance = {i: float(np.square(vectors[i] - vectors[row]).sum()) for i in others}
        kth = sorted(distance.values())[neighbours.NEAREST - 1]
        assert len(set(near["items"])) == neighbours.NEAREST and row not in near["items"]
        assert all(distance[i] <= kth + 1e-5 for i in near["items"])
        shown = [distance[i] for i in near["items"]]
        assert shown == sorted(shown)
        assert near["same"] == sum((codes[i, own] == codes[row, own]).all() for i in others)


def test_queries_are_well_known_items_of_different_first_codes():
    codes = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [4, 4, 0], [2, 0, 0], [3, 0, 0]], np.int32)
    present = {"text": np.array([1, 1, 1, 1, 0, 1], bool), "image": np.array([1, 1, 1, 1, 1, 1], bool)}
    chosen = neighbours.choose(codes, LEVELS, present, np.array([5.0, 9.0, 7.0, 99.0, 50.0, 1.0]))
    assert chosen.tolist() == [1, 2, 5, 4, 0]  # no code: never; no text: after those that have both; repeats last


def test_lookalikes_are_the_greatest_cosines_and_places_are_counted():
    model, codes = told()
    present = {"text": codes[:, 2] < 4}
    queries = np.flatnonzero(present["text"])[:2].tolist()
    report = neighbours.lookalikes(model, model.features, present, codes, queries, np.random.default_rng(0))
    rows = np.flatnonzero(present["text"])
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosine = {
        b: unit(model.reconstruct(codes[rows], b)["text"]) @ unit(model.features["text"][rows]).T
        for b in ("full", "shared_only", "specific_only")
    }
    for entry in report["items"]:
        at = int(np.searchsorted(rows, entry["item"]))
        for branch, scores in cosine.items():
            best = rows[np.argsort(-scores[at])][: neighbours.LOOKALIKES]
            assert entry[branch] == best.tolist()
            assert entry["place"][branch] == 1 + (scores[at] > scores[at, at]).sum()
    bare = np.where(np.arange(3) < 2, codes, 4).astype(np.int32)
    without = neighbours.lookalikes(model, model.features, present, bare, queries, np.random.default_rng(0))
    assert "specific_only" not in without["items"][0] and "specific_only" not in without["rank"]["text"]
    assert report["rivals"]["text"] == len(rows)
    rank = report["rank"]["text"]
    assert rank["full"]["median"] < rank["specific_only"]["median"] and 0 <= rank["full"]["first"] <= 1


def test_retrieval_of_held_out_items_asks_only_for_them_among_as_many():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(120, 6)).astype(np.float32)
    image = text + 0.01 * rng.normal(size=text.shape).astype(np.float32)
    train = np.arange(120) < 100
    image[~train] = rng.normal(size=(20, 6))  # learnt for what was fitted on, nothing for the rest
    present = {"text": np.ones(120, bool), "image": np.ones(120, bool)}
    model = Told(LEVELS, [], {})
    found = diagnostics.cross_modal(model, {"text": text, "image": image}, present, rng, train)["text->image"]
    assert found["items"] == 100 and found["pool"] == 100 and found["latent_recall@1"] > 0.95
    held = found["held_out"]
    assert held["items"] == 20 and held["pool"] == 120 and held["latent_recall@1"] < 0.2
    alone = diagnostics.cross_modal(model, {"text": text, "image": image}, present, rng)["text->image"]
    assert alone["items"] == 120 and "held_out" not in alone


def items_of(lists) -> pl.DataFrame:
    return pl.DataFrame({"categories": lists}, schema={"categories": pl.List(pl.String)})


def test_attributes_are_planted_ones_else_a_path_else_tags():
    path = items_of([["All", "Skin" if i % 3 else "Hair", f"leaf {i}"] for i in range(90)])
    found = attributes_of(path)
    assert list(found) == ["category"] and np.array_equal(found["category"], np.arange(90) % 3 > 0)
    tags = items_of([sorted({("A", "B", "C")[i % 3], "D" if i % 2 else "A"}) for i in range(90)] + [[]])
    found = attributes_of(tags)
    assert {"category", "A", "B", "D"} <= set(found) and found["A"][-1] == -1
    assert np.array_equal(found["D"][:-1], np.arange(90) % 2)
    truth = pl.DataFrame({"item_id": ["a", "b"], "style": [0, 1], "popularity": [0.1, 0.2]})
    assert list(attributes_of(tags, truth)) == ["style"]
    assert attributes_of(items_of([["one"]] * 50)) == {} and attributes_of(items_of([[]] * 5)) == {}
    assert "category" not in attributes_of(items_of([[f"brand {i // 10}", "x"] for i in range(3000)]))


def test_the_table_says_what_the_report_holds():
    model, codes = told(400)
    style = np.random.default_rng(1).integers(0, 4, 400)
    report = diagnostics.diagnose(
        model, model.features, {"text": np.ones(400, bool)}, codes, codes, {"style": style}, 0
    )
    report["alarms"] = [{"subject": "text/0", "found": "perplexity 1 of 4", "cause": "likely cause: none"}]
    text = diagnostics_table(report, "ids")
    for level in report["levels"]:
        row = next(line for line in text.splitlines() if line.startswith(level["name"]))
        assert f"{level['utilisation']:.1%}" in row and f"{level['perplexity']:.1f}" in row
    for part in ("prefixes", "before resolution", "own item's place", "style", "alarm: text/0: perplexity 1 of 4"):
        assert part in text
    assert "-0.00" not in text and all(line == line.rstrip() for line in text.splitlines())
    bare = {key: report[key] for key in ("tokenizer", "levels", "collision")}
    assert "collisions" in diagnostics_table(bare, "ids")


def test_tokenize_prints_the_table_or_the_whole_as_json(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    line = ["tokenize", "--dataset", data.path, "--config", CONFIGS / "random.py", "--out", tmp_path / "ids"]
    line = [str(word) for word in line] + ["--config.random.sizes=(8, 8)"]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "ids" / "diagnostics.json").read_text())
    assert shown == diagnostics_table(report, str(tmp_path / "ids")) + "\n"
    assert cli.main([*line, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["levels"] == report["levels"] and again.keys() == report.keys()


def test_memory_does_not_grow_with_the_catalogue(monkeypatch):
    """What looks at features or pairs sees the sample only."""
    monkeypatch.setattr(diagnostics, "SAMPLE", 50)
    monkeypatch.setattr(neighbours, "CANDIDATES", 50)
    monkeypatch.setattr(neighbours, "RIVALS", 50)
    model, codes = told(2000)
    asked = []
    rebuild = model.reconstruct
    model.reconstruct = lambda codes_IL, branch: asked.append(len(codes_IL)) or rebuild(codes_IL, branch)
    report = diagnostics.diagnose(model, model.features, {"text": np.ones(2000, bool)}, codes, codes)
    assert max(asked) <= 50 + neighbours.QUERIES and report["levels"][0]["items"] == 2000
