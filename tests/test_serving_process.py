"""`hisam serve` as a process: its command line, killed and started again, stopped, and a release that is torn."""

import dataclasses
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import httpx
import pytest

from hisam_jax.cli import build_parser, main
from hisam_jax.serving.limits import Limits
from tests.serving_fixtures import process, tiny_run, until_ready


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("serving")
    tiny_run(root)
    return root


@pytest.mark.slow
def test_killed_under_load_it_has_every_event_that_it_acknowledged(root, tmp_path):
    kept = {f"user{n}": [] for n in range(4)}
    with process(root / "run", tmp_path / "store") as (started, address):
        until_ready(address)

        def send(user):
            with httpx.Client(base_url=address) as client:
                for n in range(100_000):
                    try:
                        body = {"events": [{"item": f"i{n % 50}"}]}
                        answer = client.post(f"/users/{user}/events", json=body)
                        client.post("/recommend", json={"user": user, "k": 3})
                    except httpx.TransportError:
                        return
                    if answer.status_code == 201:
                        kept[user].append(f"i{n % 50}")

        threads = [threading.Thread(target=send, args=(user,)) for user in kept]
        for thread in threads:
            thread.start()
        while min(map(len, kept.values())) < 10:
            time.sleep(0.01)
        started.kill()
        for thread in threads:
            thread.join()
    with process(root / "run", tmp_path / "store") as (started, address):
        until_ready(address)
        for user, items in kept.items():
            found = httpx.get(f"{address}/users/{user}").json()
            assert found["events"] in (len(items), len(items) + 1)  # one may have been kept and not acknowledged
            rows = sqlite3.connect(tmp_path / "store").execute(
                "SELECT item FROM events WHERE user = ? ORDER BY position", (user,)
            )
            assert [item for (item,) in rows][: len(items)] == items
            answer = httpx.post(f"{address}/recommend", json={"user": user, "k": 5}, timeout=60).json()
            assert answer["known"] and not set(items) & {one["item"] for one in answer["items"]}
        started.send_signal(signal.SIGTERM)
        started.wait(30)
    states = sqlite3.connect(tmp_path / "store").execute("SELECT user FROM states").fetchall()
    assert {user for (user,) in states} == set(kept)


@pytest.mark.slow
def test_a_run_whose_checkpoint_is_torn_ends_with_one_line(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    shutil.rmtree(step / "params")
    command = [sys.executable, "-m", "hisam_jax", "serve", "--workdir", str(tmp_path / "run"), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("hisam: error: ")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--port", "70000"], "port from 0 to 65535"),
        (["--port", "0", "--deadline", "soon"], "seconds, such as"),
        (["--port", "0", "--deadline", "0"], "more than 0"),
        (["--port", "0", "--rows", "8,1"], "ascending"),
        (["--port", "0", "--max-k", "0"], "at least 1"),
        (["--port", "0", "--token-file", "nowhere"], "token-file"),
        (["--port", "0", "--store", "ftp://x"], "redis://"),
        (["--port", "0", "--host", "999.1.1.1"], "address"),
    ],
)
def test_mistakes_are_one_line(root, tmp_path, monkeypatch, capsys, flags, word):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--workdir", str(root / "run"), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("hisam: error: ") and word in said[-1]


def test_a_missing_run_is_one_line(tmp_path, capsys):
    assert main(["serve", "--workdir", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_flags_have_the_defaults_of_the_limits():
    arguments = build_parser().parse_args(["serve", "--workdir", "x", "--port", "0"])
    for field in dataclasses.fields(Limits):
        assert getattr(arguments, field.name) == field.default, field.name
