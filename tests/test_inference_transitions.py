"""Item-to-item transitions against a loop over every pair, and what may never be counted."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION, UserSequence
from hisam_jax.evaluation.targets import Events, events_from_sequences
from hisam_jax.inference.histories import History
from hisam_jax.inference.transitions import TransitionConfig, Transitions

ITEMS = 9


def _events(seed: int, users: int = 6) -> Events:
    rng, sequences = np.random.default_rng(seed), []
    for user in range(users):
        n = int(rng.integers(0, 12))
        split = np.sort(rng.choice([TRAIN, VALIDATION, TEST], n, p=(0.7, 0.2, 0.1))).astype(np.uint8)
        split[(split == TEST) & (rng.random(n) < 0.3)] = HISTORY
        item = rng.integers(0, ITEMS, n).astype(np.int32)
        positive = (rng.random(n) < 0.7).astype(np.uint8)
        sequences.append(UserSequence(user, item, np.arange(n), np.full(n, np.nan, np.float32), positive, split))
    return events_from_sequences(sequences, users, ITEMS)


def _by_hand(events: Events, last: int, config: TransitionConfig) -> np.ndarray:
    out, count = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for user in range(len(events.start_U1) - 1):
        liked = [
            events.item_E[event]
            for event in range(events.start_U1[user], events.start_U1[user + 1])
            if events.positive_E[event] and events.split_E[event] <= last
        ]
        for at, item in enumerate(liked):
            count[item] += 1
            for lag, other in enumerate(liked[at + 1 : at + 1 + config.lags]):
                out[item, other] += config.decay**lag
    scale = (count + config.shrinkage) ** -0.5
    return out * scale[:, None] * scale


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), lags=st.integers(1, 14), decay=st.floats(0.2, 1.0), too=st.booleans())
def test_transitions_are_those_of_a_loop_over_all_pairs(seed, lags, decay, too):
    config, events = TransitionConfig(lags=lags, decay=decay), _events(seed)
    found = Transitions.of(events, too, config).next_II.toarray()
    np.testing.assert_allclose(found, _by_hand(events, VALIDATION if too else TRAIN, config), rtol=1e-5, atol=1e-7)


def test_events_that_are_held_out_change_nothing():
    events = _events(5, users=40)
    for too, last in ((False, TRAIN), (True, VALIDATION)):
        other = np.where(events.split_E > last, (events.item_E + 4) % ITEMS, events.item_E)
        changed = dataclasses.replace(events, item_E=other)
        pair = [Transitions.of(one, too).next_II.toarray() for one in (events, changed)]
        np.testing.assert_array_equal(*pair)
        assert pair[0].any()


def test_votes_fade_with_age_and_disliked_items_have_none():
    transitions = Transitions.of(_events(2, users=30))
    config, dense = transitions.config, transitions.next_II.toarray()
    item = np.array([3, 1, 4, 3], np.int32)
    action = np.array([0, 10, 6, 7], np.int32)  # unknown, 5 stars, 3 stars, 3.5 stars
    histories = [History(item, action, np.zeros(4, np.float32)), History(*(x[:0] for x in (item, action, item)))]
    found = transitions.log_scores(histories)
    want = config.recency**2 * dense[3] + config.recency * dense[1] + dense[3]
    np.testing.assert_allclose(found[0], np.log(want + config.floor), rtol=1e-5)
    np.testing.assert_allclose(found[1], np.log(config.floor), rtol=1e-6)
