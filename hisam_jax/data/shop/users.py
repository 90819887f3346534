"""The shop's users, simulated in blocks; each depends on the seed and their own number alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from hisam_jax.data.shop.catalogue import Catalogue, make_catalogue
from hisam_jax.data.shop.choices import Choices
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.draws import FEWEST_WARM_EVENTS, draw

ORACLE_ROWS = 64  # whose whole distributions are held at once
BLOCK = 512  # users simulated together, fewer where leaves are huge
COLD = FEWEST_WARM_EVENTS  # users with fewer events are cold


@dataclasses.dataclass(frozen=True)
class UserEvents:
    """One user's n events, oldest first, and the truth behind them.

    Attributes:
        user: index of the user.
        item: int32 [n], catalogue index.
        timestamp: int64 [n], seconds since 1970, strictly rising.
        rating: float32 [n], half stars from 1 to 5.
        stars: float32 [n], the rating before its own noise: what the tastes of that day, user and item make of it.
        nll: float32 [n], -log of the probability with which each item was drawn, nats.
        favourite_kind: int16 [n], the kind liked most at that time.
        bias: what this user's ratings gain, stars.
        last_rank: rank of the last item among all by their true probability, 1 for the best; 0 in shops of more
            than 20,000 items. The share of ranks up to k is the best Recall@k that there is.
    """

    user: int
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray
    stars: np.ndarray
    nll: np.ndarray
    favourite_kind: np.ndarray
    bias: float
    last_rank: int


def block_size(catalogue: Catalogue) -> int:
    """Users simulated together; a function of the catalogue only, so that blocks never shift."""
    return int(np.clip(2**20 // catalogue.members_LM.shape[1], 16, BLOCK))


def simulate_block(config: ShopConfig, block: int) -> list[UserEvents]:
    """Users `block * size .. (block + 1) * size - 1` of the endless row of users, `size = block_size(...)`."""
    state, users = _start(config, block)
    for step in range(state.time_BN.shape[1]):
        state.advance(state.active(step), step)
    return [_events(state, b, int(user)) for b, user in enumerate(users)]


def oracle_probabilities(config: ShopConfig, user: int) -> np.ndarray:
    """The true probabilities [n, I] from which a user's n items were drawn; what a perfect model would say."""
    block, b = divmod(user, block_size(make_catalogue(config)))
    state, _ = _start(config, block)
    out = np.zeros((state.draws.events_B[b], config.items))
    for step in range(len(out)):
        rows = state.active(step)
        share_RL, tastes, _ = state.advance(rows, step)
        mine = np.flatnonzero(rows == b)
        p_LM = state.distribution(rows[mine], step, share_RL[mine], [taste[mine] for taste in tastes])[0]
        np.add.at(out[step], state.catalogue.members_LM, p_LM)
    return out


def oracle_nats(config: ShopConfig, users: np.ndarray, above: float) -> list[np.ndarray]:
    """-log of the true probability of each item [n] among what such a user would like, nats, of each of `users`.

    Liked are ratings greater than `above`, and P(item | history, liked) = P(item | history) P(liked | item) / P(liked)
    with the tastes that no model can see: it bounds the loss of every model that predicts liked items from a history.
    Events that were not liked hold nan.
    """
    size = block_size(make_catalogue(config))
    found: dict[int, np.ndarray] = {}
    for block in np.unique(np.asarray(users) // size).tolist():
        state, numbers = _start(config, block)
        wanted_B = np.isin(numbers, users)
        nats_BN = np.full(state.time_BN.shape, np.nan)
        for step in range(state.time_BN.shape[1]):
            rows = state.active(step)
            shares, tastes, logits_RL = state.advance(rows, step)
            scored = np.flatnonzero(wanted_B[rows] & (state.rating_BN[rows, step] > above))
            for start in range(0, len(scored), ORACLE_ROWS):
                part = scored[start : start + ORACLE_ROWS]
                known = shares[part], [taste[part] for taste in tastes], logits_RL[part]
                nats_BN[rows[part], step] = _liked_nats(state, rows[part], step, known, above)
        found |= {int(user): nats_BN[b, : state.draws.events_B[b]] for b, user in enumerate(numbers) if wanted_B[b]}
    return [found[int(user)] for user in users]


def _liked_nats(state: Choices, rows: np.ndarray, step: int, known: tuple, above: float) -> np.ndarray:
    share_RL, tastes, logits_RL = known
    p_RLM = state.distribution(rows, step, share_RL, tastes)
    p_RLM *= state.liked(rows, tastes, logits_RL, above)
    own_R = p_RLM[np.arange(len(rows)), state.leaf_BN[rows, step], state.place_BN[rows, step]]
    return np.log(p_RLM.sum((1, 2))) - np.log(own_R)


def _start(config: ShopConfig, block: int) -> tuple[Choices, np.ndarray]:
    catalogue = make_catalogue(config)
    users = np.arange(block_size(catalogue)) + block * block_size(catalogue)
    return Choices(config, catalogue, draw(config, catalogue, users)), users


def _events(state: Choices, b: int, user: int) -> UserEvents:
    n = state.draws.events_B[b]
    columns = (state.item_BN, state.time_BN, state.rating_BN, state.stars_BN, state.nll_BN, state.favourite_BN)
    own = (column[b, :n].copy() for column in columns)
    return UserEvents(user, *own, bias=float(state.draws.bias_B[b]), last_rank=int(state.last_rank_B[b]))
