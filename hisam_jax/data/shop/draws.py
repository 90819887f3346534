"""All randomness of the shop's users, drawn by each user from a generator of their own."""

from __future__ import annotations

import dataclasses

import numpy as np

from hisam_jax.data.shop import vocabulary as words
from hisam_jax.data.shop.catalogue import Catalogue
from hisam_jax.data.shop.config import DAY, ShopConfig

BEGIN = 1_609_459_200  # seconds since 1970: 2021-01-01
FEWEST_EVENTS, FEWEST_WARM_EVENTS = 3, 10
# tastes that drift: for departments, kinds, styles, colours and patterns
DRIFTING = (words.NUM_DEPARTMENTS, words.NUM_KINDS, words.NUM_STYLES, words.NUM_COLOURS, words.NUM_PATTERNS)
_SECONDS_BETWEEN = (30.0, 400 * DAY)


@dataclasses.dataclass(frozen=True)
class Draws:
    """All randomness of B users with at most N events: sizes, first tastes, and what each event uses."""

    events_B: np.ndarray
    taste_BD: np.ndarray
    leaf_taste_BL: np.ndarray
    bias_B: np.ndarray
    start_B: np.ndarray
    step_BND: np.ndarray
    choice_BN2: np.ndarray
    noise_BN: np.ndarray
    gap_BN: np.ndarray


def draw(config: ShopConfig, catalogue: Catalogue, users: np.ndarray) -> Draws:
    """Each user draws from a generator of their own, in a fixed order; shorter users are padded."""
    rngs = [np.random.Generator(np.random.Philox(key=[config.seed, user])) for user in users]
    events = [_events_of_user(config, catalogue, rng) for rng in rngs]
    longest, D = max(events), sum(DRIFTING)
    padded = [np.zeros((len(rngs), longest, *tail)) for tail in ((D,), (2,), (), ())]
    sized = [
        [rng.normal(size=(n, D)), rng.random((n, 2)), rng.normal(size=n), _gaps(rng, n)]
        for rng, n in zip(rngs, events, strict=True)
    ]
    for b, (n, row) in enumerate(zip(events, sized, strict=True)):
        for target, values in zip(padded, row, strict=True):
            target[b, :n] = values
    once = [(rng.normal(size=D), rng.normal(size=words.NUM_LEAVES), rng.normal(), rng.random()) for rng in rngs]
    taste, leaf_taste, bias, start = (np.array(column) for column in zip(*once, strict=True))
    return Draws(np.array(events), taste, leaf_taste, 0.35 * bias, start, *padded)


def _events_of_user(config: ShopConfig, catalogue: Catalogue, rng: np.random.Generator) -> int:
    """3 to 9 events for cold users, 10 and an exponential number for the others; half the shop at the most."""
    cold_mean = (FEWEST_EVENTS + FEWEST_WARM_EVENTS - 1) / 2
    mean = (config.events_per_user - config.cold_users * cold_mean) / max(1e-9, 1 - config.cold_users)
    cold, few, more = (
        rng.random(),
        rng.integers(FEWEST_EVENTS, FEWEST_WARM_EVENTS),
        rng.exponential(max(0.0, mean - FEWEST_WARM_EVENTS + 0.5)),
    )
    most = min(np.count_nonzero(catalogue.release_day_I == 0) // 2, round(12 * config.events_per_user))
    return int(few) if cold < config.cold_users else int(min(FEWEST_WARM_EVENTS + int(more), most))


def _gaps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seconds since the previous event: a visit's next click in minutes, or the next visit in days."""
    visit = rng.random(n) < 0.55
    normal = rng.normal(size=n)
    seconds = np.where(visit, 300.0 * np.exp(0.9 * normal), 6 * DAY * np.exp(1.0 * normal))
    return np.clip(seconds, *_SECONDS_BETWEEN)


def times(config: ShopConfig, draws: Draws) -> np.ndarray:
    """Timestamps [B, N]: a start anywhere in the first nine tenths, gaps shortened where the log would end first."""
    span = config.horizon_days * DAY
    gap_BN = draws.gap_BN.copy()
    gap_BN[:, 0] = 0
    start_B = draws.start_B * 0.9 * span
    scale_B = np.minimum(1.0, (0.999 * span - start_B) / np.maximum(gap_BN.sum(1), 1.0))
    seconds_BN = np.maximum(np.floor(gap_BN * scale_B[:, None]), 1.0)
    return BEGIN + start_B[:, None].astype(np.int64) + np.cumsum(seconds_BN, axis=1).astype(np.int64)
