"""The service against requests made of its OpenAPI description: nothing breaks, and answers are as described."""

import base64
import random
import threading
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import uvicorn

from hisam_jax.data.dataset import Dataset, write_manifest
from hisam_jax.data.encoders.saved import save_encoder
from hisam_jax.data.encoders.text import TfidfSvd
from hisam_jax.serving.app import create_app
from hisam_jax.serving.service import Service
from hisam_jax.serving.store import open_store
from tests.fixtures import jpeg
from tests.serving_fixtures import LIMITS, load, tiny_run

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow
EXAMPLES = 40  # of each operation
ITEMS = 50  # items of the tiny run
NAMES = {"item": "i{}", "like": "i{}", "candidates": "i{}", "hide": "i{}", "user": "u{}", "prefix": "{}"}
NEW = {"like": "i{}", "picture": base64.b64encode(jpeg(1)).decode()}
FINE = {"POST /releases": {409}}  # no other release is there
OPERATIONS = (
    "POST /users/{user}/events",
    "GET /users/{user}",
    "POST /recommend",
    "POST /rank",
    "POST /explain",
    "GET /ids",
    "GET /items",
    "POST /items",
    "GET /items/{item}",
    "GET /items/{item}/picture",
    "GET /releases",
    "POST /releases",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "DELETE /items/{item}",  # last, as it takes away what the others ask for
)


def keep_encoder(path):
    """Gives a dataset an encoder of titles, as wide as its features, so that words make items too."""
    dataset = Dataset.load(path)
    fitted = TfidfSvd(dim=dataset.features["text"].shape[1]).encode(dataset.items, dataset.train_items).fitted
    save_encoder(path, "text", "tfidf_svd", fitted)
    write_manifest(path, {key: value for key, value in dataset.manifest.items() if key != "files"})


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a service on a loop of its own, which its batches belong to."""
    root = tmp_path_factory.mktemp("fuzz")
    tiny_run(root)
    keep_encoder(root / "dataset")
    service = Service(load, root / "run", open_store(str(root / "store")), LIMITS)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 240
    while (not server.started or service.now is None) and time.monotonic() < until:
        time.sleep(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def operations(address):
    found = schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations()
    return {operation.label: operation for operation in (result.ok() for result in found)}


def known(value, kinds, pick):
    """What a description cannot say: names that are there, in place of texts that are not."""
    if isinstance(value, list):
        return [known(one, kinds, pick) for one in value]
    if not isinstance(value, dict):
        return value
    out = {name: known(one, kinds, pick) for name, one in value.items()}
    for name in kinds.keys() & out.keys():
        given, named = out[name], lambda name=name: kinds[name].format(pick.randrange(ITEMS))
        if isinstance(given, str):
            out[name] = named()
        elif isinstance(given, list):
            out[name] = [named() for _ in given]
    return out


def test_every_operation_is_asked(operations):
    assert sorted(operations) == sorted(OPERATIONS)


def statuses(strategy, kinds):
    """Asks, checks each answer against the description, and says which statuses there were."""
    checks, found = schemathesis.checks, set()
    conforms = [checks.response_schema_conformance, checks.status_code_conformance, checks.content_type_conformance]
    everything = list(hypothesis.HealthCheck)

    @hypothesis.settings(max_examples=EXAMPLES, suppress_health_check=everything, derandomize=True, database=None)
    @hypothesis.given(strategy, st.booleans(), st.integers(0, 2**32))
    def ask(case, there, seed):
        if there:
            for part in ("body", "path_parameters", "query"):
                setattr(case, part, known(getattr(case, part), kinds, random.Random(seed)))
        response = case.call()
        assert response.status_code < 500 or response.status_code == 503, response.text
        assert response.status_code != 503 or response.headers["retry-after"]
        case.validate_response(response, checks=conforms)
        found.add(response.status_code)

    ask()
    return found


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_described_and_nothing_breaks(operations, label):
    kinds = NEW if label == "POST /items" else NAMES
    found = statuses(operations[label].as_strategy(), kinds)
    assert found & FINE.get(label, {200, 201, 204}), found


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
def test_what_is_not_as_described_is_refused_as_described(operations, label):
    negative = operations[label].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    assert 422 in statuses(negative, {})
