"""The shop's users, simulated in blocks: tastes that drift, purchases that follow one another, ratings.

A choice is a leaf, then an item of that leaf, so its probability is exact and costs nothing that grows with
users x items:  P(item) = P(leaf) P(item | leaf), both over what is on sale and the user does not have yet,
    P(leaf) = explore * popularity + s * follow(last leaves) + (1 - explore - s) * softmax(taste),
    s = sequence * exp(-gap / sequence_days);
    P(item | leaf) = softmax(log popularity + taste for style, colour and pattern + echo of the last item's style
    and colour).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from hisam_jax.data.shop import vocabulary as words
from hisam_jax.data.shop.catalogue import Catalogue, make_catalogue
from hisam_jax.data.shop.config import DAY, ShopConfig

BEGIN = 1_609_459_200  # seconds since 1970: 2021-01-01
BLOCK = 512  # users simulated together, fewer where leaves are huge
FEWEST_EVENTS = 3
RANKED_ITEMS = 20_000  # the largest shop in which last items are ranked: that alone costs users x items of work
COLD = 10  # users with fewer events are cold
# Standard deviations of the tastes, in nats, and what repeating the last item's style or colour gains.
DEPARTMENT, KIND, LEAF, STYLE, COLOUR, PATTERN, ECHO = 0.8, 1.6, 0.5, 1.1, 1.1, 0.7, 0.8
SECOND = 0.25  # share of the following that looks at the last but one purchase
_DRIFTING = (words.NUM_DEPARTMENTS, words.NUM_KINDS, words.NUM_STYLES, words.NUM_COLOURS, words.NUM_PATTERNS)
_SCALE = np.repeat((DEPARTMENT, KIND, STYLE, COLOUR, PATTERN), _DRIFTING)
_SPLITS = np.cumsum(_DRIFTING)[:-1]
_FOLLOWING = 3  # stream of the seed
_SECONDS_BETWEEN = (30.0, 400 * DAY)


@dataclasses.dataclass(frozen=True)
class UserEvents:
    """One user's n events, oldest first, and the truth behind them.

    Attributes:
        user: index of the user.
        item: int32 [n], catalogue index.
        timestamp: int64 [n], seconds since 1970, strictly rising.
        rating: float32 [n], half stars from 1 to 5.
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
    nll: np.ndarray
    favourite_kind: np.ndarray
    bias: float
    last_rank: int


@dataclasses.dataclass(frozen=True)
class _Draws:
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


def block_size(catalogue: Catalogue) -> int:
    """Users simulated together; a function of the catalogue only, so that blocks never shift."""
    return int(np.clip(2**20 // catalogue.members_LM.shape[1], 16, BLOCK))


@functools.lru_cache(maxsize=2)
def following(seed: int) -> np.ndarray:
    """Probability [L, L] of the leaf bought after a leaf: three complementary kinds, and mostly the same emblem."""
    rng = np.random.default_rng([seed, _FOLLOWING])
    kinds, emblems = np.zeros((words.NUM_KINDS,) * 2), np.zeros((words.NUM_EMBLEMS,) * 2)
    cycle = rng.permutation(words.NUM_KINDS)
    for steps, weight in ((1, 0.6), (5, 0.25), (11, 0.15)):  # along one random cycle: never symmetric
        kinds[cycle, np.roll(cycle, -steps)] += weight
    ring = rng.permutation(words.NUM_EMBLEMS)
    emblems[ring, ring] = 0.75
    emblems[ring, np.roll(ring, -1)] = 0.25
    return np.kron(kinds, emblems)


def simulate_block(config: ShopConfig, block: int) -> list[UserEvents]:
    """Users `block * size .. (block + 1) * size - 1` of the endless row of users, `size = block_size(...)`."""
    state, users = _start(config, block)
    for step in range(state.time_BN.shape[1]):
        state.advance(state.active(step), step)
    return [state.events(b, int(user)) for b, user in enumerate(users)]


def oracle_probabilities(config: ShopConfig, user: int) -> np.ndarray:
    """The true probabilities [n, I] from which a user's n items were drawn; what a perfect model would say."""
    block, b = divmod(user, block_size(make_catalogue(config)))
    state, _ = _start(config, block)
    out = np.zeros((state.draws.events_B[b], config.items))
    for step in range(len(out)):
        rows = state.active(step)
        share_RL, tastes = state.advance(rows, step)
        mine = np.flatnonzero(rows == b)
        p_LM = state.distribution(rows[mine], step, share_RL[mine], [taste[mine] for taste in tastes])[0]
        np.add.at(out[step], state.catalogue.members_LM, p_LM)
    return out


def _start(config: ShopConfig, block: int) -> tuple[_State, np.ndarray]:
    catalogue = make_catalogue(config)
    users = np.arange(block_size(catalogue)) + block * block_size(catalogue)
    return _State(config, catalogue, _draw(config, catalogue, users)), users


def _draw(config: ShopConfig, catalogue: Catalogue, users: np.ndarray) -> _Draws:
    """Each user draws from a generator of their own, in a fixed order; shorter users are padded."""
    rngs = [np.random.Generator(np.random.Philox(key=[config.seed, user])) for user in users]
    events = [_events_of_user(config, catalogue, rng) for rng in rngs]
    longest, D = max(events), sum(_DRIFTING)
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
    return _Draws(np.array(events), taste, leaf_taste, 0.35 * bias, start, *padded)


def _events_of_user(config: ShopConfig, catalogue: Catalogue, rng: np.random.Generator) -> int:
    """3 to 9 events for cold users, 10 and an exponential number for the others; half the shop at the most."""
    cold_mean = (FEWEST_EVENTS + COLD - 1) / 2
    mean = (config.events_per_user - config.cold_users * cold_mean) / max(1e-9, 1 - config.cold_users)
    cold, few, more = rng.random(), rng.integers(FEWEST_EVENTS, COLD), rng.exponential(max(0.0, mean - COLD + 0.5))
    most = min(np.count_nonzero(catalogue.release_day_I == 0) // 2, round(12 * config.events_per_user))
    return int(few) if cold < config.cold_users else int(min(COLD + int(more), most))


def _gaps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Seconds since the previous event: a visit's next click in minutes, or the next visit in days."""
    visit = rng.random(n) < 0.55
    normal = rng.normal(size=n)
    seconds = np.where(visit, 300.0 * np.exp(0.9 * normal), 6 * DAY * np.exp(1.0 * normal))
    return np.clip(seconds, *_SECONDS_BETWEEN)


def _times(config: ShopConfig, draws: _Draws) -> np.ndarray:
    """Timestamps [B, N]: a start anywhere in the first nine tenths, gaps shortened where the log would end first."""
    span = config.horizon_days * DAY
    gap_BN = draws.gap_BN.copy()
    gap_BN[:, 0] = 0
    start_B = draws.start_B * 0.9 * span
    scale_B = np.minimum(1.0, (0.999 * span - start_B) / np.maximum(gap_BN.sum(1), 1.0))
    seconds_BN = np.maximum(np.floor(gap_BN * scale_B[:, None]), 1.0)
    return BEGIN + start_B[:, None].astype(np.int64) + np.cumsum(seconds_BN, axis=1).astype(np.int64)


class _State:
    """Where B users are: tastes, what they have, the last items; `advance` takes one event of each row given."""

    def __init__(self, config: ShopConfig, catalogue: Catalogue, draws: _Draws):
        self.config, self.catalogue, self.draws = config, catalogue, draws
        self.time_BN = _times(config, draws)
        B, N = self.time_BN.shape
        self.following_LL = following(config.seed)
        self.popular_L = np.exp(catalogue.leaf_log_popularity_L)
        self.popular_L /= self.popular_L.sum()
        self.taste_BD = draws.taste_BD.copy()
        self.had_BL = np.zeros((B, words.NUM_LEAVES), np.int32)
        self.item_BN = np.zeros((B, N), np.int32)
        self.place_BN = np.zeros((B, N), np.int32)  # of the item among its leaf's members
        self.leaf_BN = np.zeros((B, N), np.int32)
        self.rating_BN, self.nll_BN = np.zeros((B, N), np.float32), np.zeros((B, N), np.float32)
        self.favourite_BN = np.zeros((B, N), np.int16)
        self.last_rank_B = np.zeros(B, np.int64)

    def active(self, step: int) -> np.ndarray:
        """Users who have an event `step`."""
        return np.flatnonzero(self.draws.events_B > step)

    def advance(self, rows: np.ndarray, step: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Event `step` of users `rows`: tastes drift, a leaf and an item are drawn, the rating is given.

        Returns the weights of the leaves and the tastes for style, colour and pattern.
        """
        gap_R = self._gap_days(rows, step)
        tastes = self._drift(rows, step, gap_R)
        self.favourite_BN[rows, step] = np.argmax(tastes[1], axis=1)
        logits_RL = self._leaf_taste(rows, *tastes[:2])
        share_RL = self._leaf_share(rows, step, gap_R, logits_RL)
        leaf_R, p_leaf_R = _draw_index(share_RL, self.draws.choice_BN2[rows, step, 0])
        match_RM, weight_RM = self._items(rows, step, leaf_R, tastes[2:])
        place_R, p_item_R = _draw_index(weight_RM, self.draws.choice_BN2[rows, step, 1])
        item_R = self.catalogue.members_LM[leaf_R, place_R]
        self.item_BN[rows, step], self.place_BN[rows, step], self.leaf_BN[rows, step] = item_R, place_R, leaf_R
        self.had_BL[rows, leaf_R] += 1
        self.nll_BN[rows, step] = -np.log(p_leaf_R * p_item_R)
        at = np.arange(len(rows))
        self.rating_BN[rows, step] = self._rate(rows, step, item_R, logits_RL[at, leaf_R], match_RM[at, place_R])
        self._rank_last(rows, step, share_RL, tastes[2:], p_leaf_R * p_item_R)
        return share_RL, tastes[2:]

    def distribution(self, rows, step: int, share_RL: np.ndarray, tastes: list[np.ndarray]) -> np.ndarray:
        """P(item) [R, L, M] of event `step`, from what was known before it; zero in the padding."""
        R, L = share_RL.shape
        leaf, per_leaf = np.tile(np.arange(L), R), [np.repeat(taste, L, axis=0) for taste in tastes]
        weight_XM = self._items(np.repeat(rows, L), step, leaf, per_leaf)[1]
        inside_XM = weight_XM / np.maximum(weight_XM.sum(1, keepdims=True), 1e-300)
        return inside_XM.reshape(R, L, -1) * (share_RL / share_RL.sum(1, keepdims=True))[:, :, None]

    def _rank_last(self, rows, step: int, share_RL, tastes: list[np.ndarray], p_R: np.ndarray) -> None:
        last = np.flatnonzero(self.draws.events_B[rows] == step + 1)
        if len(last) and self.config.items <= RANKED_ITEMS:
            p_RLM = self.distribution(rows[last], step, share_RL[last], [taste[last] for taste in tastes])
            better_R = (p_RLM > p_R[last, None, None] * (1 + 1e-9)).sum((1, 2))
            self.last_rank_B[rows[last]] = 1 + better_R

    def events(self, b: int, user: int) -> UserEvents:
        n = self.draws.events_B[b]
        columns = (self.item_BN, self.time_BN, self.rating_BN, self.nll_BN, self.favourite_BN)
        own = (column[b, :n].copy() for column in columns)
        return UserEvents(user, *own, bias=float(self.draws.bias_B[b]), last_rank=int(self.last_rank_B[b]))

    def _gap_days(self, rows: np.ndarray, step: int) -> np.ndarray:
        return (self.time_BN[rows, step] - self.time_BN[rows, max(0, step - 1)]) / DAY

    def _drift(self, rows: np.ndarray, step: int, gap_R: np.ndarray) -> list[np.ndarray]:
        """A stationary random walk (Ornstein-Uhlenbeck): tastes decay over `drift_days` and are renewed by noise."""
        keep_R1 = np.exp(-gap_R / self.config.drift_days)[:, None]
        noise_RD = np.sqrt(1 - keep_R1**2) * self.draws.step_BND[rows, step]
        self.taste_BD[rows] = keep_R1 * self.taste_BD[rows] + noise_RD
        return np.split(self.taste_BD[rows] * _SCALE, _SPLITS, axis=1)

    def _leaf_taste(self, rows: np.ndarray, department_RD: np.ndarray, kind_RK: np.ndarray) -> np.ndarray:
        kind_RK = kind_RK + np.repeat(department_RD, words.KINDS_PER_DEPARTMENT, axis=1)
        return np.repeat(kind_RK, words.NUM_EMBLEMS, axis=1) + LEAF * self.draws.leaf_taste_BL[rows]

    def _leaf_share(self, rows: np.ndarray, step: int, gap_R: np.ndarray, logits_RL: np.ndarray) -> np.ndarray:
        """Unnormalised P(leaf) [R, L], zero where nothing on sale is left."""
        weight_RL = np.exp(logits_RL - logits_RL.max(1, keepdims=True)) * np.sqrt(self.popular_L)
        taste_RL = weight_RL / weight_RL.sum(1, keepdims=True)
        sequence_R1 = self.config.sequence * np.exp(-gap_R / self.config.sequence_days)[:, None] * (step > 0)
        share_RL = (1 - self.config.explore - sequence_R1) * taste_RL + self.config.explore * self.popular_L
        if step > 0:
            share_RL += sequence_R1 * (1 - SECOND) * self.following_LL[self.leaf_BN[rows, step - 1]]
            share_RL += sequence_R1 * SECOND * self.following_LL[self.leaf_BN[rows, max(0, step - 2)]]
        return share_RL * (self.catalogue.on_sale_DL[self._day(rows, step)] > self.had_BL[rows])

    def _items(self, rows, step: int, leaf_R: np.ndarray, tastes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Taste match and unnormalised P(item | leaf) [R, M] of the leaf's members; zero for what cannot be had."""
        c = self.catalogue
        item_RM = c.members_LM[leaf_R]
        match_RM = np.zeros(item_RM.shape)
        for taste_RV, value_I in zip(tastes, (c.style_I, c.colour_I, c.pattern_I), strict=True):
            match_RM += np.take_along_axis(taste_RV, value_I[item_RM], axis=1)
        logits_RM = match_RM + c.log_popularity_I[item_RM]
        if step > 0:
            last_R1 = self.item_BN[rows, step - 1][:, None]
            for value_I in (c.style_I, c.colour_I):
                logits_RM += ECHO * (value_I[item_RM] == value_I[last_R1])
        for_sale_RM = c.release_day_I[item_RM] <= self._day(rows, step)[:, None]
        for_sale_RM &= np.arange(item_RM.shape[1]) < c.leaf_size_L[leaf_R][:, None]
        row, earlier = np.nonzero(self.leaf_BN[rows, :step] == leaf_R[:, None])
        for_sale_RM[row, self.place_BN[rows[row], earlier]] = False
        logits_RM = np.where(for_sale_RM, logits_RM, -np.inf)
        top_R1 = np.maximum(logits_RM.max(1, keepdims=True), -1e300)  # finite where nothing can be had
        return match_RM, np.exp(logits_RM - top_R1)

    def _rate(self, rows, step: int, item_R: np.ndarray, leaf_logit_R: np.ndarray, match_R: np.ndarray) -> np.ndarray:
        """Half stars from 1 to 5: how well leaf and look match the tastes of that day, user, item and noise."""
        leaf_R = leaf_logit_R / np.sqrt(DEPARTMENT**2 + KIND**2 + LEAF**2)
        look_R = match_R / np.sqrt(STYLE**2 + COLOUR**2 + PATTERN**2)
        stars_R = 3.3 + 0.45 * leaf_R + 0.45 * look_R + self.draws.bias_B[rows] + self.catalogue.quality_I[item_R]
        return np.clip(np.round(2 * (stars_R + 0.4 * self.draws.noise_BN[rows, step])) / 2, 1.0, 5.0)

    def _day(self, rows: np.ndarray, step: int) -> np.ndarray:
        return (self.time_BN[rows, step] - BEGIN) // DAY


def _draw_index(weight_RK: np.ndarray, uniform_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An index a row in proportion to the weights, by inversion, and its probability."""
    cumulative_RK = np.cumsum(weight_RK, axis=1)
    total_R = cumulative_RK[:, -1]
    target_R1 = (uniform_R * total_R)[:, None]
    index_R = np.minimum((cumulative_RK <= target_R1).sum(1), weight_RK.shape[1] - 1)
    # a draw on the very last step of the sum must not land on padding or on what cannot be had
    at = np.arange(len(weight_RK))
    zero_R = weight_RK[at, index_R] == 0
    index_R = np.where(zero_R, np.argmax(weight_RK, axis=1), index_R)
    return index_R, weight_RK[at, index_R] / total_R
