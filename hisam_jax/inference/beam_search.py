"""Deterministic beam search over semantic IDs, constrained to existing and allowed items by the trie."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hisam_jax.inference.top_items import NONE
from hisam_jax.models.blocks import Cache
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Places, Trie


def beam_search(
    model: HMAT,
    state_BD: jax.Array,
    cache: Cache,
    length_B: jax.Array,
    trie: Trie,
    *,
    beams: int | Sequence[int],
    allowed: Places | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The most probable existing IDs of each user's next item; called inside `apply`.

    Beams are unique, as no two share a prefix. A prefix without an allowed item below it is never followed, so filters
    cost no beams. Ties go to the beam that led before, then to the lower code.

    Args:
        state_BD: the last history item's read-out state.
        cache: the history's keys and values.
        length_B: items in each history, the index of the next one.
        trie: existing IDs.
        beams: prefixes kept at each level, one number for all or one a level; may exceed a codebook's size.
        allowed: of each user's items, `trie.allowed`; None allows all. An ID is allowed where one of its items is.

    Returns:
        `(leaf, logp)` `[B, beams of the last level]`, best first; `logp` below -1e29 is no beam.
    """
    widths = _widths(beams, len(trie.sizes))
    batch = state_BD.shape[0]
    node, logp = jnp.zeros((batch, 1), jnp.int32), jnp.zeros((batch, 1))
    codes = jnp.zeros((batch, 1, 0), jnp.int32)
    for level, width in enumerate(widths):
        state = states_before(model, level, state_BD, codes, cache, length_B)
        step = jax.nn.log_softmax(model.code_logits(state, level), axis=-1)
        child, code, exists = trie.branches(node, level, allowed)
        total = jnp.where(exists, logp[..., None] + jnp.take_along_axis(step, code, axis=-1), NONE)
        logp, kept = _top(total, width)
        node, code = (jnp.take_along_axis(x.reshape(batch, -1), kept, axis=1) for x in (child, code))
        if level < len(model.vocab):
            parents = jnp.take_along_axis(codes, (kept // child.shape[-1])[..., None], axis=1)
            codes = jnp.concatenate([parents, code[..., None]], axis=-1)
    return node, logp


def _widths(beams: int | Sequence[int], levels: int) -> tuple[int, ...]:
    widths = (beams,) * levels if isinstance(beams, int) else tuple(beams)
    if len(widths) != levels or min(widths) < 1:
        raise ValueError(f"beams {beams}: expected one number of at least 1, or one for each of {levels} levels")
    return widths


def states_before(model: HMAT, level: int, state_BD, codes_BWl, cache: Cache, length_B) -> jax.Array:
    """States `[B, W or 1, D]` that predict `level`, every beam an item of its own over the cached history."""
    tokens = model.reading_slot(level) + 1
    if tokens == 0:
        return state_BD[:, None]
    padded = jnp.pad(codes_BWl, [(0, 0), (0, 0), (0, len(model.vocab) - codes_BWl.shape[-1])])
    x = model.item_encoder.code_embeddings(padded)[:, :, :tokens]
    item = jnp.broadcast_to(length_B[:, None], codes_BWl.shape[:2])
    state, _ = model.run(x, item, jnp.ones(codes_BWl.shape[:2], jnp.int32), cache)
    return state[:, :, -1]


def _top(total_BWF: jax.Array, beams: int) -> tuple[jax.Array, jax.Array]:
    flat = total_BWF.reshape(total_BWF.shape[0], -1)
    return jax.lax.top_k(flat, min(beams, flat.shape[1]))
