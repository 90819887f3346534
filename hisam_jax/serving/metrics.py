"""What a service counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one service, in a registry of its own.

    Attributes:
        requests: by route, method and status.
        seconds: of requests, by route.
        batch: requests that the model answered together.
        model: seconds of a batch.
        states: where a user's state came from: memory, store, events; broken ones are counted too.
        evictions: states dropped from memory for room.
        events: stored.
        refused: requests that were answered 503.
    """

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("hisam_requests", "Requests.", ("route", "method", "status"), registry=registry)
        self.seconds = Histogram(
            "hisam_request_seconds", "Time of a request.", ("route",), buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "hisam_batch_size", "Requests of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.model = Histogram("hisam_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=registry)
        self.states = Counter("hisam_states", "Where user states came from.", ("source",), registry=registry)
        self.evictions = Counter("hisam_evictions", "User states dropped for room.", registry=registry)
        self.events = Counter("hisam_events", "Events stored.", registry=registry)
        self.refused = Counter("hisam_refused", "Requests answered 503.", registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"hisam_{name}", text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
