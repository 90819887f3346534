"""Deterministic beam search over semantic IDs, constrained to existing items by the trie."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hisam_jax.models.blocks import Cache
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Trie

NONE = -1e30


def beam_search(
    model: HMAT, state_BD: jax.Array, cache: Cache, length_B: jax.Array, trie: Trie, *, beams: int, blocked_BF=None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The most probable existing IDs of each user's next item; called inside `apply`.

    Beams are unique, as no two share a prefix. At the last level the same candidates are cut twice, with and without
    the blocked leaves, so that masked and unmasked lists come from one search.

    Args:
        state_BD: the last history item's read-out state.
        cache: the history's keys and values.
        length_B: items in each history, the index of the next one.
        trie: existing IDs.
        beams: prefixes kept at each level.
        blocked_BF: bool over leaves, e.g. those whose items the user has seen; None blocks nothing.

    Returns:
        `((leaf, logp), (leaf, logp))`, each `[B, beams]`, best first: unmasked, then masked; below -1e29 is no beam.
    """
    batch = state_BD.shape[0]
    node = jnp.zeros((batch, 1), jnp.int32)
    logp = jnp.zeros((batch, 1))
    codes = jnp.zeros((batch, 1, 0), jnp.int32)
    for level in range(len(trie.sizes)):
        state = _states_before(model, level, state_BD, codes, cache, length_B)
        step = jax.nn.log_softmax(model.code_logits(state, level), axis=-1)
        child, exists = trie.children(node, level)
        total = jnp.where(exists, logp[:, :, None] + step, NONE)
        if level == len(trie.sizes) - 1:
            break
        logp, kept = _top(total, beams)
        node, codes = _extend(child, codes, kept, trie.sizes[level], level < len(model.vocab))
    free = _cut(total, child, beams)
    if blocked_BF is None:
        return free, free
    blocked = jnp.take_along_axis(blocked_BF, child.reshape(batch, -1), axis=1).reshape(child.shape)
    return free, _cut(jnp.where(blocked, NONE, total), child, beams)


def _states_before(model: HMAT, level: int, state_BD, codes_BWl, cache: Cache, length_B) -> jax.Array:
    """States `[B, W or 1, D]` that predict `level`, every beam an item of its own over the cached history."""
    tokens = model.reading_slot(level) + 1
    if tokens == 0:
        return state_BD[:, None]
    padded = jnp.pad(codes_BWl, [(0, 0), (0, 0), (0, len(model.vocab) - codes_BWl.shape[-1])])
    x = model.item_encoder.code_embeddings(padded)[:, :, :tokens]
    item = jnp.broadcast_to(length_B[:, None], codes_BWl.shape[:2])
    state, _ = model.run(x, item, jnp.ones(codes_BWl.shape[:2], jnp.int32), cache)
    return state[:, :, -1]


def _top(total_BWK: jax.Array, beams: int) -> tuple[jax.Array, jax.Array]:
    flat = total_BWK.reshape(total_BWK.shape[0], -1)
    return jax.lax.top_k(flat, min(beams, flat.shape[1]))


def _extend(child_BWK, codes_BWl, kept_BV, size: int, is_token: bool):
    node = jnp.take_along_axis(child_BWK.reshape(child_BWK.shape[0], -1), kept_BV, axis=1)
    parent, code = jnp.divmod(kept_BV, size)
    codes = jnp.take_along_axis(codes_BWl, parent[..., None], axis=1)
    return node, jnp.concatenate([codes, code[..., None].astype(jnp.int32)], axis=-1) if is_token else codes


def _cut(total, child, beams: int):
    logp, kept = _top(total, beams)
    return jnp.take_along_axis(child.reshape(child.shape[0], -1), kept, axis=1), logp
