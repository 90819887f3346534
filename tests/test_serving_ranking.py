"""A release with a ranking head alone: it recommends by click logit."""

import dataclasses

import numpy as np
import pytest

from hisam_jax.inference.run import load_run
from hisam_jax.serving.release import Release, engine_config
from tests.serving_fixtures import ENGINE, LIMITS, run_async, serving, tiny_run, train_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranking")
    tiny_run(root)
    return train_tiny(root, root / "ranking", seed=5, heads=("ranking",))


def test_a_release_with_a_ranking_head_alone_recommends(run, tmp_path):
    def load(path):
        return Release(load_run(path, again=True), LIMITS, ENGINE)

    async def check():
        async with serving(load, run, tmp_path / "store") as (client, service):
            programs = service.now.release.engine.compiled()
            events = [{"item": f"i{n}"} for n in (3, 14, 15)]
            assert (await client.post("/users/new/events", json={"events": events})).status_code == 201
            answer = (await client.post("/recommend", json={"user": "new", "hide": ["i9"]})).json()
            found = [one["item"] for one in answer["items"]]
            assert answer["how"] == "ranking" and len(set(found)) == 10 and not {"i3", "i14", "i15", "i9"} & set(found)
            scores = {}
            for start in range(0, 50, 10):
                names = [f"i{n}" for n in range(start, start + 10)]
                ranked = await client.post("/rank", json={"user": "new", "candidates": names})
                scores |= {one["item"]: one["score"] for one in ranked.json()["items"]}
            best = sorted((scores[f"i{n}"] for n in range(50) if n not in (3, 14, 15, 9)), reverse=True)[:10]
            np.testing.assert_allclose([one["score"] for one in answer["items"]], best, atol=1e-5)
            new = (await client.post("/recommend", json={"user": "nobody"})).json()
            assert len(new["items"]) == 10 and not new["known"]
            assert (await client.post("/recommend", json={"user": "new", "way": "retrieval"})).status_code == 409
            assert (await client.post("/explain", json={"user": "new", "item": "i1"})).status_code == 409
            assert (await client.get("/releases")).json()["now"]["ways"] == ["ranking"]
            assert service.now.release.engine.compiled() == programs

    run_async(check())


def test_how_many_are_ranked_is_a_limit(run):
    limits = dataclasses.replace(LIMITS, ranked=7)
    assert engine_config(load_run(run), limits).ranked == 7
