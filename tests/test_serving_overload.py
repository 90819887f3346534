"""More requests than a slow model answers: refused early, with the time to come again, and none answered too late."""

import asyncio
import dataclasses
import time

import pytest

from hisam_jax.serving.errors import Refusal
from hisam_jax.serving.pace import Pace
from tests.serving_fixtures import LIMITS, Warm, run_async, serving, tiny_run

BATCH, SECONDS, DEADLINE = 4, 0.1, 1.0  # of the slow model: 40 requests a second


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("overload")
    tiny_run(root)
    return root / "run"


@pytest.fixture(scope="module")
def warm():
    return Warm()


def slowed(service):
    """Makes the model slow; returns how many jobs it has run, batch by batch."""
    answered, sizes = service.batcher._run, []

    def slow(jobs):
        time.sleep(SECONDS)
        sizes.append(len(jobs))
        return answered(jobs)

    service.batcher._run = slow
    return sizes


@pytest.mark.slow
def test_past_its_capacity_a_service_answers_in_time_or_refuses_early(run, warm, tmp_path):
    async def ask(client, n):
        return await client.post("/recommend", json={"user": f"u{n % 24}", "k": 3})

    async def check():
        limits = dataclasses.replace(LIMITS, deadline=DEADLINE)
        async with serving(warm, run, tmp_path / "store", limits) as (client, service):
            await asyncio.gather(*(ask(client, n) for n in range(2 * BATCH)))
            sizes, waiting = slowed(service), []
            for _ in range(3):  # so that the pace is known, but for the first of the burst
                await asyncio.gather(*(ask(client, n) for n in range(2 * BATCH)))
            sizes.clear()
            tasks = []
            for wave in range(10):  # 100 requests a second and more, two and a half times what it can do
                tasks += [asyncio.create_task(ask(client, 30 * wave + n)) for n in range(30)]
                await asyncio.sleep(0.3)
                waiting.append(service.batcher.waiting)
            answers = await asyncio.gather(*tasks)
            fine = [answer for answer in answers if answer.status_code == 200]
            refused = [answer for answer in answers if answer.status_code == 503]
            assert len(fine) + len(refused) == len(answers) and min(len(fine), len(refused)) > 30
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert max(answer.json()["milliseconds"] for answer in fine) < 1000 * DEADLINE + 100
            assert max(waiting) <= 2 * BATCH * DEADLINE / SECONDS  # by the deadline, not by what is asked
            early = [answer for answer in refused if "would take" in answer.json()["error"]]
            assert len(early) > 0.8 * len(refused)
            assert sum(sizes) <= len(fine) + (len(refused) - len(early))  # no work for those refused early
            assert (await ask(client, 1)).status_code == 200

    run_async(check())


def test_retry_after_is_what_the_queue_takes_at_the_measured_pace(run, warm, tmp_path):
    async def check():
        async with serving(warm, run, tmp_path / "store") as (client, service):
            batcher, now = service.batcher, asyncio.get_running_loop().time()
            for size in (1, BATCH):
                batcher.pace.took(size, 2.0, now)
            with pytest.raises(Refusal) as refused:
                batcher.expect(39, 5.0)
            assert (refused.value.status, refused.value.retry) == (503, 20)
            batcher.expect(39, 30.0)
            batcher.expect(0, 0.01)  # nothing before it: how else would a slow moment end
            service.batcher.pace.took(BATCH, 1000.0, now)
            headers = {"x-deadline": "0.5"}
            answer = await client.post("/recommend", json={"user": "u1"})
            assert answer.status_code == 200
            held = asyncio.create_task(batcher.run_alone(lambda: time.sleep(0.5)))
            first = asyncio.create_task(client.post("/recommend", json={"user": "u1"}))
            await asyncio.sleep(0.1)
            second = await client.post("/recommend", json={"user": "u2"}, headers=headers)
            assert second.status_code == 503 and "would take" in second.json()["error"]
            assert (await client.get("/users/u2")).status_code == 200  # what needs no model goes on
            assert (await first).status_code == 200
            await held

    run_async(check())


def test_the_pace_follows_batches_of_each_size():
    pace = Pace(32)
    assert pace.wait(1000, 0.0) == 0
    pace.took(1, 0.002, 0.0)
    pace.took(20, 0.1, 0.0)
    assert pace.wait(0, 0.0) == pytest.approx(0.002)
    assert pace.wait(7, 0.0) == pytest.approx(0.1)  # of the next larger size that is known
    assert pace.wait(31, 0.0) == pytest.approx(0.1)
    assert pace.wait(32, 0.0) == pytest.approx(0.102) and pace.wait(95, 0.0) == pytest.approx(0.3)
    for _ in range(40):
        pace.took(32, 0.05, 0.0)
    assert pace.wait(31, 0.0) == pytest.approx(0.05, rel=1e-3)


def test_a_slow_moment_is_forgotten_and_a_slow_model_is_not():
    pace = Pace(32)
    pace.took(32, 5.0, 0.0)
    assert pace.wait(31, 0.0) == 5.0 and pace.wait(31, 10.0) == 5.0 and pace.wait(31, 31.0) == pytest.approx(2.5)
    assert pace.wait(31, 300.0) < 0.001
    for second in range(0, 100, 5):
        pace.took(32, 5.0, float(second))
    assert pace.wait(31, 96.0) == pytest.approx(5.0)
