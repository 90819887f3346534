"""Why an item is recommended, over HTTP; the tree of IDs."""

import asyncio
import dataclasses

import pytest

from tests.serving_fixtures import LIMITS, Warm, serving_each, tiny_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    tiny_run(root)
    return root


@pytest.fixture(scope="module")
def warm():
    return Warm()


@pytest.fixture
def served(root, warm, tmp_path):
    return serving_each(root / "run", warm, tmp_path / "store")


def test_a_user_and_a_history_are_told_why(served):
    async def check(client, service):
        events = [{"item": f"i{n}", "rating": 4.5, "time": 10**9 + 3600 * n} for n in (1, 5, 9)]
        assert (await client.post("/users/a/events", json={"events": events})).status_code == 201
        programs = service.now.release.engine.compiled()
        for way in ("retrieval", "generation"):
            best = (await client.post("/recommend", json={"user": "a", "way": way})).json()["items"][0]
            answers = []
            for asked in ({"user": "a"}, {"history": events}):
                answer = await client.post("/explain", json={**asked, "item": best["item"], "way": way})
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())
            one, other = answers
            assert one["score"] == pytest.approx(best["score"], abs=1e-4) and one["how"] == way and one["known"]
            assert [past["item"] for past in one["past"]] == ["i1", "i5", "i9"]
            assert sum(abs(past["share"]) for past in one["past"]) == pytest.approx(1)
            assert sum(part["value"] for part in one["parts"]) == pytest.approx(one["score"], abs=1e-5)
            assert [part["code"] for part in one["parts"] if part["code"] is not None][: len(one["item"]["codes"])]
            for a, b in zip(one["past"], other["past"], strict=True):
                assert a["item"] == b["item"] and a["drop"] == pytest.approx(b["drop"], abs=1e-4)
        assert service.now.release.engine.compiled() == programs

    served(check)


def test_users_of_the_dataset_and_long_ones_keep_to_the_window(served):
    async def check(client, service):
        run, window = service.now.release._run, service.now.release.engine.window
        past = [f"i{item}" for item in run.reader.features(5)["item"]]
        for more in ([], ["i2", "i4"], [f"i{n}" for n in range(20)]):
            past += more
            if more:
                events = [{"item": name, "time": 2 * 10**9} for name in more]
                await client.post("/users/u5/events", json={"events": events})
            answer = (await client.post("/explain", json={"user": "u5", "item": "i7"})).json()
            assert [one["item"] for one in answer["past"]] == past[-window:]

    served(check)


def test_a_user_of_whom_nothing_is_known_is_served_what_is_popular(served):
    async def check(client, service):
        best = (await client.post("/recommend", json={"user": "nobody"})).json()["items"][0]
        answer = (await client.post("/explain", json={"user": "nobody", "item": best["item"]})).json()
        assert not answer["known"] and not answer["past"] and answer["score"] == pytest.approx(best["score"], abs=1e-6)
        assert [part["name"] for part in answer["parts"]] == ["popularity"]

    served(check)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"user": "a", "item": "nothing"}, 404, "nothing"),
        ({"user": "a", "item": "i1", "way": "hybrid"}, 422, "way"),
        ({"item": "i1"}, 422, "one of user and history"),
        ({"history": [{"item": "i1"}] * 31, "item": "i1"}, 422, "at most 30"),
        ({"history": [{"item": "nothing"}], "item": "i1"}, 404, "nothing"),
    ],
)
def test_what_cannot_be_explained(served, body, status, word):
    async def check(client, service):
        answer = await client.post("/explain", json=body)
        assert answer.status_code == status and word in answer.json()["error"], answer.text

    served(check)


def test_a_name_that_is_no_text_is_refused(served):
    async def check(client, service):
        for path, body in (("/explain", rb'{"user": "a", "item": "\ud800"}'), ("/recommend", rb'{"user": "\ud800"}')):
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 422, answer.text

    served(check)


def test_more_explanations_at_once_than_allowed_are_refused(served):
    async def check(client, service):
        asks = [client.post("/explain", json={"user": f"u{n}", "item": "i1"}) for n in range(6)]
        answers = await asyncio.gather(*asks, client.post("/recommend", json={"user": "u1"}))
        assert {answer.status_code for answer in answers[:-1]} == {200, 503} and answers[-1].status_code == 200
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)

    served(check, limits=dataclasses.replace(LIMITS, explained=2))


def test_the_tree_is_browsed_to_its_leaves_and_counts_what_is_served(served):
    async def check(client, service):
        async def tree(prefix=(), **more):
            answer = await client.get("/ids", params={"prefix": ",".join(map(str, prefix)), "limit": 100, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()

        async def leaves(prefix=()):
            found = await tree(prefix)
            assert found["items"] == sum(child["items"] for child in found["children"]) or not found["children"]
            if not found["children"]:
                assert len(prefix) == found["levels"] and found["items"] == len(found["examples"])
                return [(one["item"], one["codes"]) for one in found["examples"]]
            for child in found["children"]:
                assert all(one["codes"][: len(prefix) + 1] == [*prefix, child["code"]] for one in child["examples"])
            return [leaf for child in found["children"] for leaf in await leaves((*prefix, child["code"]))]

        stock = service.now.release.stock
        assert dict(await leaves()) == {f"i{n}": stock.codes(n) for n in range(50)}
        page = await tree(limit=1, offset=1)
        assert page["total"] > 1 and [one["code"] for one in page["children"]] == [
            (await tree())["children"][1]["code"]
        ]
        codes = stock.codes(7)
        before = (await tree(codes))["items"]
        await client.delete("/items/i7")
        assert (await tree())["items"] == 49
        after = await client.get("/ids", params={"prefix": ",".join(map(str, codes))})
        assert after.status_code == 404 if before == 1 else after.json()["items"] == before - 1
        await client.post("/items", json={"item": "i7"})
        await client.post("/items", json={"item": "new", "like": "i3"})
        assert (await tree())["items"] == 51

    served(check)


@pytest.mark.parametrize(("prefix", "status"), [("99", 404), ("0,0,0,0,0,0,0", 404), ("x", 422), ("1,", 422)])
def test_prefixes_that_are_not_there(served, prefix, status):
    async def check(client, service):
        assert (await client.get("/ids", params={"prefix": prefix})).status_code == status

    served(check)
