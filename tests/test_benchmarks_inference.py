"""What the inference benchmark holds beams against, and how it counts operations."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks.inference.exact import exact_top
from benchmarks.inference.flops import append_flops, rank_flops, read_flops
from hisam_jax.inference import steps
from hisam_jax.inference.histories import History, pad_histories
from hisam_jax.models.config import HMATConfig
from hisam_jax.scaling.flops import Vocabulary
from hisam_jax.tokenizer.trie import build_trie
from tests.model_fixtures import ITEMS, small_batch, small_catalog, small_model, small_params


def test_exact_scoring_equals_beams_that_are_as_many_as_items_and_a_bound_loses_nothing():
    catalog = small_catalog()
    model, batch = small_model(), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    full = np.concatenate([catalog.codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1)
    trie, past = build_trie(full, (*model.vocab, model.digit)), np.arange(5, dtype=np.int32)
    rows = pad_histories([History(past, past, past.astype(np.float32))], np.asarray(catalog.codes_IL), 8, 1)
    read_BD, cache = steps.read_histories(model, params, catalog, rows)
    arguments = (cache, read_BD, np.array([5], np.int32))
    leaf, logp = steps.generate(model, params, trie, *arguments, None, beams=ITEMS)
    tree = jax.tree.map(np.asarray, trie)
    exact, exact_logp, every = exact_top(model, params, tree, *arguments, 10)
    np.testing.assert_allclose(exact_logp, logp[0, :10], atol=1e-4)
    assert exact.tolist() == leaf[0, :10].tolist()
    bounded, _, followed = exact_top(model, params, tree, *arguments, 10, float(logp[0, 9]))
    assert bounded.tolist() == exact.tolist() and followed < every == 1 + sum(trie.nodes[:-1])


@pytest.mark.parametrize("switches", [{}, {"actions": True}, {"anchors": False, "actions": True}])
def test_a_history_read_whole_costs_what_its_items_cost_one_by_one(switches):
    config, vocabulary = HMATConfig(**switches), Vocabulary(100, (8, 8, 8))
    assert read_flops(config, vocabulary, 7) == sum(append_flops(config, vocabulary, n) for n in range(7))
    assert rank_flops(config, vocabulary, 7, 5) == 5 * rank_flops(config, vocabulary, 7, 1)
