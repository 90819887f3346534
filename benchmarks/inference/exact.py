"""The most probable items of a whole catalogue, without beams: every prefix that could lead to one is followed."""

from __future__ import annotations

import functools

import jax
import numpy as np

from hisam_jax.inference.beam_search import states_before
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Trie

BLOCK, SLACK = 1024, 1e-3  # prefixes of a block; nats that rounding may cost a prefix


def exact_top(
    model: HMAT, params, trie: Trie, cache, read_BD, items_B, k: int, least: float = -np.inf
) -> tuple[np.ndarray, np.ndarray, int]:
    """`(leaf, logp)` of the k most probable leaves of one user, best first, and how many prefixes were read.

    A log-probability only falls as codes are added. So where `least` is not above the k-th best leaf's, a prefix that
    falls below it leads to none of the k, and dropping it loses nothing; with the default nothing is dropped.

    Args:
        trie: on the host.
        cache, read_BD, items_B: of one user.
        least: log-probability of the k-th best leaf of any list, e.g. of beams.
    """
    node_P, logp_P, codes_Pl, followed = np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int32), 0
    for level in range(len(trie.sizes)):
        step_PK = _steps(model, params, level, trie.sizes[level], read_BD, codes_Pl, cache, items_B)
        followed += len(node_P)
        first_P, count_P = trie.starts[level][node_P], np.diff(trie.starts[level])[node_P]
        parent_C = np.repeat(np.arange(len(node_P)), count_P)
        child_C = np.arange(len(parent_C)) + np.repeat(first_P - np.append(0, np.cumsum(count_P)[:-1]), count_P)
        code_C = trie.codes[level][child_C]
        logp_C = logp_P[parent_C] + step_PK[parent_C, code_C]
        kept = np.flatnonzero(logp_C >= least - SLACK)
        node_P, logp_P = child_C[kept], logp_C[kept]
        codes_Pl = np.concatenate([codes_Pl[parent_C[kept]], code_C[kept, None]], axis=1)
    best = np.lexsort((node_P, -logp_P))[:k]
    return node_P[best], logp_P[best], followed


def _steps(model: HMAT, params, level: int, size: int, read_BD, codes_Pl, cache, items_B) -> np.ndarray:
    """float32 `[P, K]` log-probabilities of the next code behind each prefix, in blocks."""
    out = np.empty((len(codes_Pl), size), np.float32)
    for start in range(0, len(codes_Pl), BLOCK):
        part = codes_Pl[start : start + BLOCK]
        padded = np.pad(part, ((0, (BLOCK if level else 1) - len(part)), (0, 0)))
        out[start : start + BLOCK] = _block(model, params, level, read_BD, padded[None], cache, items_B)[0, : len(part)]
    return out


@functools.partial(jax.jit, static_argnums=(0, 2))
def _block(model: HMAT, params, level: int, read_BD, codes_BWl, cache, items_B) -> jax.Array:
    def run(module):
        state = states_before(module, level, read_BD, codes_BWl, cache, items_B)
        return jax.nn.log_softmax(module.code_logits(state, level), axis=-1)

    return model.apply({"params": params}, method=run)
