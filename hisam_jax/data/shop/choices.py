"""How a user of the shop chooses and rates: the model whose probabilities are the oracle's.

A choice is a leaf, then an item of that leaf, so its probability is exact and costs nothing that grows with
users x items:  P(item) = P(leaf) P(item | leaf), both over what is on sale and the user does not have yet,
    P(leaf) = explore * popularity + s * follow(last leaves) + (1 - explore - s) * taste,
    s = sequence * exp(-gap / sequence_days), taste = softmax(likes + 0.5 * log popularity);
    P(item | leaf) = softmax(log popularity + taste for style, colour and pattern + echo of the last item's style
    and colour).
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import ndtr

from hisam_jax.data.shop import vocabulary as words
from hisam_jax.data.shop.catalogue import Catalogue
from hisam_jax.data.shop.config import DAY, ShopConfig
from hisam_jax.data.shop.draws import BEGIN, DRIFTING, Draws, times

RANKED_ITEMS = 20_000  # the largest shop in which last items are ranked: that alone costs users x items of work
# Standard deviations of the tastes, in nats, and what repeating the last item's style or colour gains.
DEPARTMENT, KIND, LEAF, STYLE, COLOUR, PATTERN, ECHO = 0.8, 1.6, 0.5, 1.1, 1.1, 0.7, 0.8
NOISE = 0.4  # standard deviation of a rating's own, stars
SECOND = 0.25  # share of the following that looks at the last but one purchase
_SCALE = np.repeat((DEPARTMENT, KIND, STYLE, COLOUR, PATTERN), DRIFTING)
_SPLITS = np.cumsum(DRIFTING)[:-1]
_STREAM = 3  # of the seed


@functools.lru_cache(maxsize=2)
def following(seed: int) -> np.ndarray:
    """Probability [L, L] of the leaf bought after a leaf: three complementary kinds, and mostly the same emblem."""
    rng = np.random.default_rng([seed, _STREAM])
    kinds, emblems = np.zeros((words.NUM_KINDS,) * 2), np.zeros((words.NUM_EMBLEMS,) * 2)
    cycle = rng.permutation(words.NUM_KINDS)
    for steps, weight in ((1, 0.6), (5, 0.25), (11, 0.15)):  # along one random cycle: never symmetric
        kinds[cycle, np.roll(cycle, -steps)] += weight
    ring = rng.permutation(words.NUM_EMBLEMS)
    emblems[ring, ring] = 0.75
    emblems[ring, np.roll(ring, -1)] = 0.25
    return np.kron(kinds, emblems)


class Choices:
    """Where B users are: tastes, what they have, the last items; `advance` takes one event of each row given."""

    def __init__(self, config: ShopConfig, catalogue: Catalogue, draws: Draws):
        self.config, self.catalogue, self.draws = config, catalogue, draws
        self.time_BN = times(config, draws)
        B, N = self.time_BN.shape
        self.following_LL = following(config.seed)
        self.popular_L = np.exp(catalogue.leaf_log_popularity_L)
        self.popular_L /= self.popular_L.sum()
        members_LM = catalogue.members_LM
        inside_LM = np.arange(members_LM.shape[1]) < catalogue.leaf_size_L[:, None]
        self.popular_LM = np.exp(catalogue.log_popularity_I[members_LM]) * inside_LM
        self.release_LM = catalogue.release_day_I[members_LM]
        self.style_LM = catalogue.style_I[members_LM].astype(np.intp)
        look_I = catalogue.colour_I * words.NUM_PATTERNS + catalogue.pattern_I
        self.look_LM = look_I[members_LM].astype(np.intp)
        self.taste_BD = draws.taste_BD.copy()
        self.had_BL = np.zeros((B, words.NUM_LEAVES), np.int32)
        self.item_BN = np.zeros((B, N), np.int32)
        self.place_BN = np.zeros((B, N), np.int32)  # of the item among its leaf's members
        self.leaf_BN = np.zeros((B, N), np.int32)
        self.rating_BN, self.stars_BN, self.nll_BN = (np.zeros((B, N), np.float32) for _ in range(3))
        self.favourite_BN = np.zeros((B, N), np.int16)
        self.last_rank_B = np.zeros(B, np.int64)

    def active(self, step: int) -> np.ndarray:
        """Users who have an event `step`."""
        return np.flatnonzero(self.draws.events_B > step)

    def advance(self, rows: np.ndarray, step: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Event `step` of users `rows`: tastes drift, a leaf and an item are drawn, the rating is given.

        Returns the weights of the leaves, the tastes for style, colour and pattern, and those for leaves.
        """
        gap_R = self._gap_days(rows, step)
        tastes = self._drift(rows, step, gap_R)
        self.favourite_BN[rows, step] = np.argmax(tastes[1], axis=1)
        logits_RL = self._leaf_taste(rows, *tastes[:2])
        share_RL = self._leaf_share(rows, step, gap_R, logits_RL)
        leaf_R, p_leaf_R = _draw_index(share_RL, self.draws.choice_BN2[rows, step, 0])
        weight_RM = self._items(rows, step, leaf_R, tastes[2:])
        place_R, p_item_R = _draw_index(weight_RM, self.draws.choice_BN2[rows, step, 1])
        item_R = self.catalogue.members_LM[leaf_R, place_R]
        self.item_BN[rows, step], self.place_BN[rows, step], self.leaf_BN[rows, step] = item_R, place_R, leaf_R
        self.had_BL[rows, leaf_R] += 1
        self.nll_BN[rows, step] = -np.log(p_leaf_R * p_item_R)
        liked_R = logits_RL[np.arange(len(rows)), leaf_R]
        self.rating_BN[rows, step] = self._rate(rows, step, item_R, liked_R, self._match(item_R, tastes[2:]))
        self._rank_last(rows, step, share_RL, tastes[2:], p_leaf_R * p_item_R)
        return share_RL, tastes[2:], logits_RL

    def distribution(self, rows, step: int, share_RL: np.ndarray, tastes: list[np.ndarray]) -> np.ndarray:
        """P(item) [R, L, M] of event `step`, from what was known before it; zero in the padding."""
        R, L = share_RL.shape
        leaf, per_leaf = np.tile(np.arange(L), R), [np.repeat(taste, L, axis=0) for taste in tastes]
        weight_XM = self._items(np.repeat(rows, L), step, leaf, per_leaf)
        inside_XM = weight_XM / np.maximum(weight_XM.sum(1, keepdims=True), 1e-300)
        return inside_XM.reshape(R, L, -1) * (share_RL / share_RL.sum(1, keepdims=True))[:, :, None]

    def liked(self, rows, tastes: list[np.ndarray], logits_RL: np.ndarray, above: float) -> np.ndarray:
        """P(rated above `above` | item) [R, L, M], from what was known before the event; anything in the padding."""
        c, (style_RS, colour_RC, pattern_RP) = self.catalogue, tastes
        members = c.members_LM
        match_RLM = style_RS[:, c.style_I[members]] + colour_RC[:, c.colour_I[members]]
        match_RLM += pattern_RP[:, c.pattern_I[members]]
        stars_RLM = self._stars(rows[:, None, None], members, logits_RL[:, :, None], match_RLM)
        return ndtr((stars_RLM - (above + 0.25)) / NOISE)  # stars are rounded to halves

    def _rank_last(self, rows, step: int, share_RL, tastes: list[np.ndarray], p_R: np.ndarray) -> None:
        last = np.flatnonzero(self.draws.events_B[rows] == step + 1)
        if len(last) and self.config.items <= RANKED_ITEMS:
            p_RLM = self.distribution(rows[last], step, share_RL[last], [taste[last] for taste in tastes])
            better_R = (p_RLM > p_R[last, None, None] * (1 + 1e-9)).sum((1, 2))
            self.last_rank_B[rows[last]] = 1 + better_R

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

    def _items(self, rows, step: int, leaf_R: np.ndarray, tastes: list[np.ndarray]) -> np.ndarray:
        """Unnormalised P(item | leaf) [R, M] of the leaf's members; zero for what cannot be had and for padding.

        Exponentials are taken of the few values of style and look, not of each member: leaves may be huge.
        """
        c, (style_RS, colour_RC, pattern_RP) = self.catalogue, map(np.exp, tastes)
        if step > 0:
            last_R, at = self.item_BN[rows, step - 1], np.arange(len(rows))
            style_RS[at, c.style_I[last_R]] *= np.exp(ECHO)
            colour_RC[at, c.colour_I[last_R]] *= np.exp(ECHO)
        look_RV = (colour_RC[:, :, None] * pattern_RP[:, None, :]).reshape(len(rows), -1)
        weight_RM = np.take_along_axis(style_RS, self.style_LM[leaf_R], axis=1)
        weight_RM *= np.take_along_axis(look_RV, self.look_LM[leaf_R], axis=1)
        weight_RM *= self.popular_LM[leaf_R]
        weight_RM *= self.release_LM[leaf_R] <= self._day(rows, step)[:, None]
        row, earlier = np.nonzero(self.leaf_BN[rows, :step] == leaf_R[:, None])
        weight_RM[row, self.place_BN[rows[row], earlier]] = 0
        return weight_RM

    def _match(self, item_R: np.ndarray, tastes: list[np.ndarray]) -> np.ndarray:
        c, at = self.catalogue, np.arange(len(item_R))
        values = (c.style_I[item_R], c.colour_I[item_R], c.pattern_I[item_R])
        return sum(taste_RV[at, value_R] for taste_RV, value_R in zip(tastes, values, strict=True))

    def _rate(self, rows, step: int, item_R: np.ndarray, leaf_logit_R: np.ndarray, match_R: np.ndarray) -> np.ndarray:
        """Half stars from 1 to 5: how well leaf and look match the tastes of that day, user, item and noise."""
        stars_R = self._stars(rows, item_R, leaf_logit_R, match_R)
        self.stars_BN[rows, step] = stars_R
        return np.clip(np.round(2 * (stars_R + NOISE * self.draws.noise_BN[rows, step])) / 2, 1.0, 5.0)

    def _stars(self, rows, item_x: np.ndarray, leaf_logit_x: np.ndarray, match_x: np.ndarray) -> np.ndarray:
        """Stars before the noise."""
        leaf_x = leaf_logit_x / np.sqrt(DEPARTMENT**2 + KIND**2 + LEAF**2)
        look_x = match_x / np.sqrt(STYLE**2 + COLOUR**2 + PATTERN**2)
        return 3.3 + 0.45 * leaf_x + 0.45 * look_x + self.draws.bias_B[rows] + self.catalogue.quality_I[item_x]

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
