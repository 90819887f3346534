"""The service in process, over a tiny run: what requests do, what is refused, and that scores are the engine's."""

import asyncio
import base64
import dataclasses
import shutil
import time

import numpy as np
import pytest

from hisam_jax.errors import UserError
from hisam_jax.inference.histories import History
from hisam_jax.serving.store import Event
from tests.fixtures import jpeg
from tests.serving_fixtures import LIMITS, Warm, load, serving_each, tiny_run, train_tiny

PICTURE = base64.b64encode(jpeg(1)).decode()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("serving")
    tiny_run(root)
    return root


@pytest.fixture(scope="module")
def warm():
    return Warm()


@pytest.fixture
def served(root, warm, tmp_path):
    return serving_each(root / "run", warm, tmp_path / "store")


async def recommended(client, **body):
    answer = await client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(answer):
    return [one["item"] for one in answer["items"]]


async def send(client, user, *items, **more):
    events = [{"item": item, "time": 10**9 + 3600 * place, **more} for place, item in enumerate(items)]
    answer = await client.post(f"/users/{user}/events", json={"events": events})
    assert answer.status_code == 201, answer.text
    return answer.json()["events"]


def test_events_change_recommendations_and_seen_items_are_left_out(served):
    async def check(client, service):
        new = await recommended(client, user="new", k=10)
        assert not new["known"] and len(new["items"]) == 10
        assert await send(client, "new", "i1", "i5") == 2
        after = await recommended(client, user="new", k=10)
        assert after["known"] and not {"i1", "i5"} & set(names(after))
        assert [one["score"] for one in after["items"]] != [one["score"] for one in new["items"]]
        assert await send(client, "new", names(after)[0]) == 3
        last = await recommended(client, user="new", k=10)
        assert names(after)[0] not in names(last) and names(last) != names(after)
        again = await recommended(client, user="new", k=10, repeat=True)
        assert set(names(again)) & {"i1", "i5", names(after)[0]} or names(again) != names(last)

    served(check)


def test_a_history_in_the_request_is_as_good_as_events(served):
    async def check(client, service):
        await send(client, "a", "i1", "i5", "i9", rating=4.5)
        events = [{"item": name, "rating": 4.5, "time": 10**9 + 3600 * n} for n, name in enumerate(("i1", "i5", "i9"))]
        for way in ("retrieval", "generation", "hybrid"):
            kept = await recommended(client, user="a", way=way, time=10**9 + 9000)
            given = await recommended(client, history=events, way=way, time=10**9 + 9000)
            assert names(kept) == names(given) and kept["how"] == way
            np.testing.assert_allclose(
                [one["score"] for one in kept["items"]], [one["score"] for one in given["items"]], atol=1e-4
            )

    served(check)


def test_users_of_the_dataset_bring_their_history(served):
    async def check(client, service):
        run = service.now.release._run
        seen = {f"i{item}" for item in run.reader.features(5)["item"]}
        answer = await recommended(client, user="u5", k=10)
        assert answer["known"] and not seen & set(names(answer))
        scores = run.scorer.retrieval([run.reader.before(5)])[0] if len(run.reader.features(5)["item"]) <= 8 else None
        if scores is not None:
            best = [f"i{item}" for item in np.argsort(-scores, kind="stable") if f"i{item}" not in seen][:10]
            assert names(answer) == best

    served(check)


def test_rank_is_the_engines(served):
    async def check(client, service):
        release, candidates = service.now.release, ["i3", "i4", "i20", "i3"]
        await send(client, "a", "i1", "i5", rating=2)
        rows = np.array([3, 4, 20, 3], np.int32)
        gap = np.array([0, np.log1p(1.0)], np.float32)
        state = release.engine.read(
            release.items, [History(np.array([1, 5], np.int32), np.array([4, 4], np.int32), gap)]
        )
        for by in ("ranking", "retrieval"):
            body = {"user": "a", "candidates": candidates, "by": by, "time": 10**9 + 3600 + 7200}
            answer = (await client.post("/rank", json=body)).json()
            wanted = release.engine.rank(release.items, state, [rows], by, np.array([np.log1p(2.0)], np.float32))[0]
            assert names(answer) == candidates
            np.testing.assert_allclose([one["score"] for one in answer["items"]], wanted, atol=1e-5)

    served(check)


def test_filters_compose(served):
    async def check(client, service):
        some = await recommended(client, user="u1", categories=["group 2"])
        assert names(some) and all(int(name[1:]) % 4 == 2 for name in names(some))
        fewer = await recommended(client, user="u1", categories=["group 2"], hide=names(some)[:2])
        assert not set(names(some)[:2]) & set(names(fewer))

    served(check)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/users/a/events", {"events": [{"item": "nothing"}]}, 404, "nothing"),
        ("/users/a/events", {"events": []}, 422, "events"),
        ("/users/a/events", {"events": [{"item": "i1"}] * 31}, 422, "at most 30"),
        ("/users/a/events", {"events": [{"item": "i1", "stars": 3}]}, 422, "stars"),
        ("/recommend", {"user": "a", "k": 11}, 422, "at most 10"),
        ("/recommend", {"user": "a", "history": []}, 422, "one of user and history"),
        ("/recommend", {"history": [{"item": "nothing"}]}, 404, "nothing"),
        ("/recommend", {"user": "a", "hide": ["nothing"]}, 404, "nothing"),
        ("/recommend", {"user": "a", "categories": ["nothing"]}, 404, "nothing"),
        ("/recommend", {"user": "a", "way": "magic"}, 422, "way"),
        ("/rank", {"user": "a", "candidates": ["i1", "nothing"]}, 404, "nothing"),
        ("/rank", {"user": "a", "candidates": ["i1"] * 13}, 422, "at most 12"),
        ("/items", {"item": "i1", "like": "i2"}, 409, "i1"),
        ("/items", {"item": "new"}, 404, "like"),
        ("/items", {"item": "new", "like": "nothing"}, 404, "nothing"),
        ("/items", {"item": "new", "features": {"sound": [1.0]}}, 409, "sound"),
        ("/items", {"item": "new", "features": {"text": [1.0]}}, 409, "16"),
        ("/releases", {"workdir": "/etc"}, 409, "folder under"),
        ("/releases", {"workdir": "\0"}, 409, "folder under"),
        ("/items", {"item": "new", "like": "i1", "features": {"text": [1.0]}}, 422, "both"),
        ("/items", {"item": "new", "like": "i1", "text": "words"}, 422, "both text and like"),
        ("/items", {"item": "new", "title": "words"}, 422, "no fitted encoder of text"),
        ("/items", {"item": "new", "picture": PICTURE}, 422, "no fitted encoder of image"),
        ("/items", {"item": "new", "features": {"image": [0.5] * 12}, "text": "words"}, 422, "before they were kept"),
        ("/releases", {}, 422, "one of"),
        ("/releases", {"roll_back": True}, 409, "no release"),
    ],
)
def test_what_is_refused_and_how(served, path, body, status, word):
    async def check(client, service):
        answer = await client.post(path, json=body)
        assert answer.status_code == status and word in answer.json()["error"], answer.text
        assert "\n" not in answer.json()["error"]

    served(check)


def test_what_is_not_there(served):
    async def check(client, service):
        answer = await client.put("/items/i1")
        assert answer.status_code == 405 and answer.headers["allow"] == "DELETE, GET"
        assert (await client.post("/recommend", content=b"\xff")).status_code == 422
        assert (await client.get("/nowhere")).json() == {"error": "Not Found"}
        for path in ("/users/nobody", "/items/nothing", "/items/nothing/picture", "/items/i0/picture"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
        assert (await client.delete("/items/nothing")).status_code == 404
        assert (await client.get("/users/u3")).json() == {"user": "u3", "events": 0, "latest": []}
        assert (await client.get("/items/i1/picture")).headers["content-type"] == "image/jpeg"

    served(check)


def test_a_body_past_its_limit_is_not_read(served):
    async def check(client, service):
        assert (await client.post("/recommend", content=b" " * 30_000)).status_code == 413

        async def parts():
            for _ in range(30):
                yield b" " * 1000

        assert (await client.post("/recommend", content=parts())).status_code == 413

    served(check)


def test_a_token_is_asked_for_everywhere_but_where_nothing_is_told(served):
    async def check(client, service):
        bearing = {"authorization": "Bearer s3cret"}
        for path in ("/items", "/metrics", "/releases", "/openapi.json"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"authorization": "Bearer other"})).status_code == 401
            assert (await client.get(path, headers=bearing)).status_code == 200
        for path in ("/", "/health", "/ready"):
            assert (await client.get(path)).status_code == 200

    served(check, token="s3cret")


def test_overload_is_answered_503_with_retry_after_and_nothing_else(served):
    async def check(client, service):
        answers = await asyncio.gather(
            *(client.post("/recommend", json={"user": f"u{n % 24}"}) for n in range(60))
        )  # fmt: skip
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused and all(answer.status_code == 503 and answer.headers["retry-after"] for answer in refused)
        assert any(answer.status_code == 200 for answer in answers)
        assert (await client.post("/recommend", json={"user": "u1"})).status_code == 200

    served(check, limits=dataclasses.replace(LIMITS, queue=5))


def test_more_requests_at_once_than_allowed_are_refused(served):
    async def check(client, service):
        asks = (client.post("/recommend", json={"user": f"u{n}"}) for n in range(20))
        status = [answer.status_code for answer in await asyncio.gather(*asks)]
        assert set(status) == {200, 503}

    served(check, limits=dataclasses.replace(LIMITS, concurrent=3))


def test_a_deadline_that_passes_is_answered_503(served):
    async def check(client, service):
        held = asyncio.create_task(service.batcher.run_alone(lambda: time.sleep(0.5)))
        answer = await client.post("/recommend", json={"user": "u1"}, headers={"x-deadline": "0.01"})
        await held
        assert answer.status_code == 503 and "seconds" in answer.json()["error"] and answer.headers["retry-after"]
        assert (await client.post("/recommend", json={"user": "u1"}, headers={"x-deadline": "20"})).status_code == 200

    served(check)


def test_a_new_item_is_recommended_at_once_and_moves_no_other(served):
    async def check(client, service):
        release = service.now.release
        before = [release.stock.codes(row) for row in range(50)]
        programs = release.engine.compiled()
        like = names(await recommended(client, user="u1"))[0]
        answer = await client.post("/items", json={"item": "new", "title": "A new one", "like": like})
        assert answer.status_code == 201 and answer.json()["codes"], answer.text
        assert [release.stock.codes(row) for row in range(50)] == before
        text = {"text": list(np.linspace(-1, 1, 16)), "image": [0.5] * 12}
        answer = await client.post("/items", json={"item": "other", "features": text, "categories": ["group 1"]})
        assert answer.status_code == 201, answer.text
        for way in ("retrieval", "generation", "hybrid"):
            hidden = [f"i{n}" for n in range(50)]
            found = await client.post("/recommend", json={"user": "u1", "way": way, "hide": hidden[:29]})
            assert found.status_code == 200
        only = await recommended(client, user="u1", added_since=1)
        every = {
            name for way in ("retrieval", "generation") for name in names(await recommended(client, user="u1", way=way))
        }
        assert "new" in every | set(names(only)) and await send(client, "u1", "new") == 1
        assert "new" not in names(await recommended(client, user="u1"))
        assert (await client.delete("/items/other")).status_code == 204
        assert (await client.get("/items/other")).status_code == 404
        assert (await client.delete("/items/other")).status_code == 404
        assert (await client.post("/items", json={"item": "other"})).status_code == 201
        assert release.engine.compiled() == programs

    served(check)


def test_no_request_compiles(served):
    async def check(client, service):
        programs = service.now.release.engine.compiled()
        for n in range(20):
            await send(client, "long", f"i{n}")
            await recommended(client, user="long", way=("retrieval", "generation", "hybrid")[n % 3])
        await recommended(client, history=[{"item": f"i{n}"} for n in range(30)])
        await asyncio.gather(*(client.post("/rank", json={"user": f"u{n}", "candidates": ["i1"]}) for n in range(9)))
        assert service.now.release.engine.compiled() == programs

    served(check)


def test_health_metrics_page_and_description(served):
    async def check(client, service):
        assert (await client.get("/health")).json()["status"] == "ok"
        await recommended(client, user="u1")
        text = (await client.get("/metrics")).text
        assert 'hisam_requests_total{method="POST",route="/recommend",status="200"} 1.0' in text
        assert "hisam_batch_size_count 1.0" in text
        page = (await client.get("/")).text
        assert "<title>hisam" in page
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/recommend", "/rank", "/items", "/users/{user}/events", "/releases"} <= set(paths)
        found = (await client.get("/items", params={"text": "item 12 "})).json()
        assert found["total"] == 1 and found["items"][0]["item"] == "i12"

    served(check)


@pytest.mark.slow
def test_releases_change_under_load_and_a_torn_one_is_refused(served, root, tmp_path):
    train_tiny(root, root / "second", seed=4)
    shutil.copytree(root / "run", root / "torn")
    (step,) = (root / "torn" / "checkpoints").glob("[0-9]*")
    shutil.rmtree(step / "params")
    shutil.copytree(root / "second", root / "mixed")
    record = (root / "mixed" / "run.json").read_text()
    checksum = load(root / "run").checksums["ids"]
    (root / "mixed" / "run.json").write_text(record.replace(checksum, "0" * 64))

    async def check(client, service):
        first = service.now.release.id
        done = asyncio.Event()

        async def ask():
            answers = []
            while not done.is_set():
                answers.append(await client.post("/recommend", json={"user": "u1"}))
            return answers

        asking = asyncio.create_task(ask())
        for name in ("torn", "mixed", "nothing"):
            answer = await client.post("/releases", json={"workdir": str(root / name)})
            assert answer.status_code == 409 and service.now.release.id == first, answer.text
        answer = await client.post("/releases", json={"workdir": str(root / "second"), "expect": "another"})
        assert answer.status_code == 409 and service.now.release.id == first
        second = (await client.post("/releases", json={"workdir": str(root / "second")})).json()["release"]
        assert second != first
        assert (await client.post("/recommend", json={"user": "u2"})).json()["release"] == second
        assert (await client.post("/releases", json={"roll_back": True})).json()["release"] == first
        done.set()
        answers = await asking
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["release"] for answer in answers} <= {first, second}

    served(check)


def test_checkpoints_of_another_table_are_refused(root, tmp_path):
    from hisam_jax.training import checkpoints

    run = root / "run"
    release = load(run)
    (step,) = checkpoints.saved_steps(run / "checkpoints")
    saved = checkpoints.describe(run / "checkpoints", step)
    assert release.checksums["ids"] == saved.identity["ids_checksum"]
    other = dataclasses.replace(saved, identity={**saved.identity, "ids_checksum": "0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hisam_jax.serving.binding.describe", lambda *_: other)
        with pytest.raises(UserError, match="another run.*ids_checksum"):
            load(run)


def test_events_know_ratings_and_times(served):
    async def check(client, service):
        await client.post(
            "/users/a/events", json={"events": [{"item": "i1", "rating": 3.5, "time": 0}, {"item": "i2"}]}
        )
        (first, second) = service.store.events({"a": 0})["a"]
        assert first == Event("i1", 7, 0) and second.action == 0 and second.time > 1_700_000_000

    served(check)
