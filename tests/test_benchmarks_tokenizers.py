"""The tokenizers' benchmark: what it counts, what it keeps, what it says."""

from __future__ import annotations

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import tiny_dataset

from benchmarks import parts
from benchmarks.tokenizers import collapse, mi, mining, planted, real, training
from benchmarks.tokenizers.__main__ import PAGE
from hisam_jax.config import build
from hisam_jax.tokenizer.registry import entry


def count(function, *arguments) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    found = training.products(jax.make_jaxpr(function)(*arguments).jaxpr)
    return sorted((product.left, product.right, times) for product, times in found)


def test_products_are_counted_through_loops_and_calls():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    def loop(x, w):
        once = jax.jit(lambda x: x @ w)(x)
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), once, length=5)[0].sum()

    assert count(loop, x, w) == [((3, 4), (4, 4), 1), ((3, 4), (4, 4), 5)]
    # the backward pass has two more for every one whose operands both need a gradient
    times = [times for *_, times in count(jax.grad(loop, argnums=(0, 1)), x, w)]
    assert sum(times) == 3 * 6


def test_flops_are_two_a_multiplication():
    product = next(training.products(jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((3, 4)), jnp.ones((4, 5))).jaxpr))[0]
    assert training._flops(product) == 2 * 3 * 4 * 5


def test_the_products_alone_run_as_often_as_they_are_counted():
    product = next(training.products(jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((3, 4)), jnp.ones((4, 5))).jaxpr))[0]
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
    total = training._products_alone({product: 3})()
    assert float(total) == pytest.approx(3 * training.STEPS * float((left @ right)[0, 0]), rel=1e-4)


def test_parts_that_are_not_asked_for_keep_their_figures(tmp_path):
    level = {"utilisation": 0.95, "perplexity": 200.0, "size": 256}
    worse = {**level, "utilisation": 0.5}
    seeds = {"0": {"seconds": 1.0, "levels": {"shared/0": level}}, "1": {"seconds": 1.0, "levels": {"shared/0": worse}}}
    about = {"command": "c", "date": "d", "device": "e", "versions": {"jax": "1"}, "minutes": 1.0}
    made = {**about, "result": {"seeds": [0, 1], "cells": {"ml-1m|dst": seeds}}}
    PAGE.write(tmp_path, "collapse", made)
    row = {"batch": 8, "products": 2, "gigaflops": 1.0, "step_seconds": 0.5, "product_seconds": 0.25}
    row |= {"items_per_second": {"fit": 1000.0, "step": 16.0, "products": 32.0}}
    PAGE.write(tmp_path, "training", {**about, "result": {"seeds": [0], "rows": [row]}})
    kept, page = json.loads((tmp_path / "tokenizers.json").read_text()), (tmp_path / "tokenizers.md").read_text()
    assert list(kept) == ["collapse", "training"] and kept["collapse"] == made
    assert "| dst | shared/0 | 50.0% | 95.0% | 200 | 200 | 1 of 2 |" in page and "| 50% | 1,000 |" in page
    assert page.index("No collapse") < page.index("Training DST") and "seeds 0, 1;" in page


def test_a_finished_seed_is_not_fitted_again_unless_its_settings_changed(tmp_path):
    calls = []

    def fit(seed):
        calls.append(seed)
        return {"seconds": 1.0, "levels": {}}

    for settings, expected in (("a", [0, 1]), ("a", [0, 1]), ("b", [0, 1, 0, 1])):
        assert list(collapse._over_seeds([0, 1], fit, settings, tmp_path / "cell")) == ["0", "1"]
        assert calls == expected


def test_cells_of_other_settings_are_removed_and_finished_ones_are_kept(tmp_path):
    cell = tmp_path / "cell"
    spec = real.cell.Spec("dataset", {"name": "random"}, steps=1, window=2, users=3, seed=0)
    real.claim(cell, spec)
    (cell / "result.json").write_text("{}")
    real.claim(cell, spec)
    assert (cell / "result.json").exists()
    real.claim(cell, real.dataclasses.replace(spec, steps=2))
    assert not (cell / "result.json").exists() and (cell / "spec.json").exists()


@pytest.mark.parametrize("name", real.VARIANTS)
def test_every_tokenizer_of_the_table_has_as_many_codes(name):
    variant = real.VARIANTS[name]
    config = real.cell.tokenizer_config(variant.config, dict(variant.overrides), seed=3)
    section = real.cell._tuples(config)[variant.config]
    settings = build(entry(variant.config).config, section, variant.config)
    sizes = settings.shared + sum(settings.specific.values(), ()) if variant.config == "dst" else settings.sizes
    assert sizes == (256,) * (6 if name == "qarm" else 4)
    assert config["seed"] == 3 and config["collisions"] == "next_nearest"
    if variant.config == "dst":
        assert (settings.mi_weight == 0) == (name == "dst without MI")
        assert (settings.alignment == "none") == (name == "dst without alignment")


def test_differences_are_paired_by_user_and_averaged_over_seeds(tmp_path):
    ranks = {"dst": ([1, 50, 50, 50], [1, 50, 50, 50]), "random": ([1, 1, 50, 50], [1, 50, 50, 50])}
    plan = {}
    for name, seeds in ranks.items():
        for seed, rank in enumerate(seeds):
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text("{}")
            arrays = {f"{head}_{kind}": np.array(rank) for head in real.HEADS for kind in ("masked", "unmasked")}
            np.savez(folder / "predictions.npz", user=np.arange(4), **arrays)
            plan.setdefault(name, []).append(folder)
    found = real.gather(plan)
    assert found["dst"]["metrics"]["generation"]["recall@10"]["value"] == 0.25 and "minus_base" not in found["dst"]
    assert found["random"]["minus_base"]["retrieval"]["recall@10"]["value"] == pytest.approx(0.125)
    other = {"user": np.arange(1, 5)} | {k: v for k, v in arrays.items()}
    np.savez(plan["random"][0] / "predictions.npz", **other)
    with pytest.raises(ValueError, match="same users"):
        real.gather(plan)


def test_a_part_gets_only_the_options_that_it_takes(tmp_path, monkeypatch):
    given = {}
    module = types.SimpleNamespace(run=lambda work: given.update(work=work) or {"x": 1})
    monkeypatch.setattr(parts.importlib, "import_module", lambda name: module)
    made = PAGE.record("planted", {"work": tmp_path / "w", "data": None, "quick": True})
    assert made["command"] == "python -m benchmarks.tokenizers --only planted"
    assert given == {"work": tmp_path / "w"} and made["result"] == {"x": 1} and (tmp_path / "w").is_dir()


def test_the_recorded_command_makes_the_part_anew(tmp_path, monkeypatch):
    module = types.SimpleNamespace(run=lambda data, seeds: {})
    monkeypatch.setattr(parts.importlib, "import_module", lambda name: module)
    made = [PAGE.record("real", {"work": tmp_path, "data": tmp_path, "seeds": seeds})["command"] for seeds in (1, 3)]
    assert made == [f"python -m benchmarks.tokenizers --data DIR --only real{more}" for more in ("", " --seeds 3")]
    module.run = lambda data: {}
    made = PAGE.record("collapse", {"work": tmp_path, "data": tmp_path, "seeds": 3})
    assert made["command"] == "python -m benchmarks.tokenizers --data DIR --only collapse", "it takes no seeds"


def test_weights_of_mutual_information_are_compared_seed_by_seed():
    def entry(seeds, told):
        metrics = {
            head: {m: {"value": 0.1, "ci95": [0.0, 0.2]} for m in ("recall@10", "ndcg@10")} for head in real.HEADS
        }
        by_seed = [{head: {m: value for m in ("recall@10", "ndcg@10")} for head in real.HEADS} for value in seeds]
        two = {"genre_in_text": [told] * len(seeds), "lowest_perplexity": [9.0] * len(seeds)}
        return {"metrics": metrics, "minus_base": metrics, "by_seed": by_seed} | two

    seeds = {str(seed): {f"{g}/0": dict.fromkeys(planted.FACTORS, 0.5) for g in planted.WANTED} for seed in range(2)}
    of = {"0.0": entry([0.3, 0.1], 0.7), "0.5": entry([0.2, 0.1], 0.2)}
    page = mi.markdown({"planted": {"0.0": seeds}, "downstream": {"1": of}, "base": "0.5"})
    half = 12.706 * np.std([0.1, 0.0], ddof=1) / 2**0.5
    assert f"over seeds ± {half:.4f}" in page and "| 0.0 - 0.5 |" in page and "| 0.5 - 0.5 |" not in page
    assert "| 0.5 | 2 | 0.200 | 9 |" in page and "0.500 ± 0.000" in page


def test_mining_times_each_step_and_counts_what_was_found(tmp_path):
    tiny_dataset(tmp_path / "tiny", users=30, items=40)
    row = mining.mine("tiny", tmp_path / "tiny")
    assert set(row["seconds"]) == set(mining.STEPS) and min(row["seconds"].values()) >= 0
    assert row["counts"]["items"] == 40 and 0 < row["counts"]["user2item"] <= row["counts"]["events"]
    row["seconds"] = {"read": 0.5, "id_space": 1.0, "user2item": 2.0, "item2item": 3.0}
    row["counts"] = {"events": 1000, "items": 40, "user2item": 900, "item2item": 80}
    assert "| tiny | 1,000 | 40 | 900 | 80 | 0.5 | 1.0 | 2.0 | 3.0 | 6.5 |" in mining.markdown({"rows": [row]})
