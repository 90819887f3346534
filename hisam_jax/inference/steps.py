"""The steps of serving as pure functions of arrays: read a history, append to it, rank, retrieve, generate.

`engine` runs them jitted in few shapes and `export` writes them as StableHLO. Every shape is an argument's; nothing is
decided on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hisam_jax.inference.beam_search import beam_search
from hisam_jax.inference.top_items import NO_SCORE, NONE, top_items
from hisam_jax.models.blocks import Cache
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Trie


def item_vectors(model: HMAT, params, catalog: Catalog) -> jax.Array:
    """`[I, D]`: what retrieval scores with."""
    return model.apply({"params": params}, catalog, method="item_vectors")


def read_histories(model: HMAT, params, catalog: Catalog, batch) -> tuple[jax.Array, Cache]:
    """`(read_BD, cache)` of whole histories: the last items' read-out states, and all keys and values."""
    state_BNTD, cache = model.apply({"params": params}, batch, catalog)
    last_B = jnp.maximum((batch["segment"] > 0).sum(1) - 1, 0)
    read_B1D = jnp.take_along_axis(state_BNTD[:, :, -1], last_B[:, None, None], axis=1)
    return read_B1D[:, 0].astype(jnp.float32), cache


def append(model: HMAT, params, catalog: Catalog, cache: Cache, items_B, event) -> tuple[jax.Array, Cache]:
    """The same of one more item each: `(read_BD, its own keys and values)`; costs `T (N + T)` scores.

    Args:
        cache: of the history before.
        items_B: how many items that had.
        event: `item`, `action` int32 `[B]`, `gap` float32 `[B]`.
    """
    group = {name: values[:, None] for name, values in event.items()}
    group["codes"] = jnp.asarray(catalog.codes_IL)[group["item"]]

    def run(module):
        x_B1TD = module.embed(group, catalog)
        return module.run(x_B1TD, items_B[:, None], jnp.ones_like(group["item"]), cache)

    state_B1TD, own = model.apply({"params": params}, method=run)
    return state_B1TD[:, 0, -1].astype(jnp.float32), own


def click_logits(model: HMAT, params, catalog: Catalog, cache: Cache, items_B, item_BC, gap_B) -> jax.Array:
    """`[B, C]`: click logits of candidates over the cached history; candidates never see each other.

    Tokens behind the one that is read, such as an action that nobody took, are left out.
    """
    group = {"item": item_BC, "codes": jnp.asarray(catalog.codes_IL)[item_BC], "action": jnp.zeros_like(item_BC)}
    group["gap"] = jnp.broadcast_to(gap_B[:, None], item_BC.shape)

    def run(module):
        x_BCTD = module.embed(group, catalog)
        if model.config.actions:
            x_BCTD = x_BCTD[:, :, : len(model.vocab) + 1]
        position_BC = jnp.broadcast_to(items_B[:, None], item_BC.shape)
        return module.click_logits(module.run(x_BCTD, position_BC, jnp.ones_like(item_BC), cache)[0], item_BC)

    return model.apply({"params": params}, method=run)


def user_vectors(model: HMAT, params, read_BD) -> jax.Array:
    """`[B, D]`: queries over item vectors."""
    return model.apply({"params": params}, read_BD[:, None, None], method="user_vectors")[:, 0]


def retrieve(
    model: HMAT, params, vectors_ID, popularity_I, read_BD, items_B, allowed_BI, *, k: int, approximate: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`(item_Bk, score_Bk)` by the retrieval head; a user without history is served the most popular items."""
    user_BD = user_vectors(model, params, read_BD)
    item, score = top_items(user_BD, vectors_ID, allowed_BI, k, approximate=approximate)
    return _unless_new(items_B, item, score, popularity_I, allowed_BI, k)


def generate(
    model: HMAT, params, trie: Trie, cache: Cache, read_BD, items_B, allowed_BI, *, beams: int | Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """`(leaf, logp)` `[B, beams]`: the most probable IDs with an allowed item, see `beam_search`."""

    allowed = None if allowed_BI is None else trie.allowed(jnp.asarray(allowed_BI))

    def run(module):
        return beam_search(module, read_BD, cache, items_B, trie, beams=beams, allowed=allowed)

    return model.apply({"params": params}, method=run)


def items_of_leaves(trie: Trie, leaf_BW, logp_BW, allowed_BI, *, sharing: int) -> tuple[jax.Array, jax.Array]:
    """`(item, logp)` `[B, W * sharing]`: the allowed items of each leaf, at most `sharing` of them, in their order.

    A place that no item takes holds item 0 and a log-probability below -1e29.
    """
    batch = leaf_BW.shape[0]
    place_BWS = trie.leaf_start[leaf_BW][..., None] + jnp.arange(sharing, dtype=jnp.int32)
    there = (place_BWS < trie.leaf_start[leaf_BW + 1][..., None]) & (logp_BW > NO_SCORE)[..., None]
    item_BC = trie.item_order[jnp.where(there, place_BWS, 0)].reshape(batch, -1)
    there_BC = there.reshape(batch, -1) & jnp.take_along_axis(allowed_BI, item_BC, axis=1)
    logp_BC = jnp.broadcast_to(logp_BW[..., None], place_BWS.shape).reshape(batch, -1)
    return jnp.where(there_BC, item_BC, 0), jnp.where(there_BC, logp_BC, NONE)


def generate_items(
    model: HMAT, params, trie: Trie, popularity_I, cache: Cache, read_BD, items_B, allowed_BI,
    *, beams: int | Sequence[int], k: int, sharing: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`(item_Bk, logp_Bk)`: items of the generated IDs, best first; all that share an ID up to `sharing`."""
    leaf, logp = generate(model, params, trie, cache, read_BD, items_B, allowed_BI, beams=beams)
    item_BC, logp_BC = items_of_leaves(trie, leaf, logp, allowed_BI, sharing=sharing)
    score, place = jax.lax.top_k(logp_BC, min(k, logp_BC.shape[1]))
    item = jnp.take_along_axis(item_BC, place, axis=1)
    return _unless_new(items_B, item, score, popularity_I, allowed_BI, score.shape[1])


def hybrid(
    model: HMAT, params, catalog: Catalog, trie: Trie, vectors_ID, popularity_I, cold_I, cache: Cache, read_BD,
    items_B, gap_B, allowed_BI, *, beams: int | Sequence[int], k: int, sharing: int, cold: int, cold_every: int,
    by: str,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Generate, widen with the nearest cold items by vector, re-rank: `(item_Bk, score_Bk)` [ours].

    Args:
        cold_I: bool, items that generation has seldom or never seen.
        cold: how many of them join.
        cold_every: of as many places from the first, one may be a cold item's that was not generated: no training
            pushed such items down, so they would crowd the others out. One that has to stand back takes the score of
            the item before it. 1: any place.
        by: the head that ranks them all, `retrieval` or `ranking`.
    """
    leaf, logp = generate(model, params, trie, cache, read_BD, items_B, allowed_BI, beams=beams)
    item_BC, logp_BC = items_of_leaves(trie, leaf, logp, allowed_BI, sharing=sharing)
    there_BC, user_BD = logp_BC > NO_SCORE, user_vectors(model, params, read_BD)
    if cold:
        new_item, new_score = top_items(user_BD, vectors_ID, allowed_BI & cold_I, cold)
        again = ((new_item[:, :, None] == item_BC[:, None]) & there_BC[:, None]).any(-1)
        item_BC = jnp.concatenate([item_BC, new_item], axis=1)
        there_BC = jnp.concatenate([there_BC, (new_score > NO_SCORE) & ~again], axis=1)
    if by == "ranking":
        score_BC = click_logits(model, params, catalog, cache, items_B, item_BC, gap_B)
    else:
        score_BC = jnp.einsum("bd,bcd->bc", user_BD, vectors_ID[item_BC])
    score_BC = jnp.where(there_BC, score_BC, NONE)
    if cold and cold_every > 1:
        score_BC = _held_back(score_BC, score_BC.shape[1] - new_item.shape[1], cold_every)
    score, place = jax.lax.top_k(score_BC, min(k, item_BC.shape[1], popularity_I.shape[0]))
    item = jnp.take_along_axis(item_BC, place, axis=1)
    return _unless_new(items_B, item, score, popularity_I, allowed_BI, score.shape[1])


def rank_items(
    model: HMAT, params, catalog: Catalog, popularity_I, cache: Cache, items_B, gap_B, allowed_BI,
    *, k: int, most: int, block: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`(item_Bk, logit_Bk)`: the best by click logit of the `most` most popular allowed items, which may be all.

    Args:
        block: candidates that are scored at a time, which bounds memory.
    """
    popular_BC, item_BC = jax.lax.top_k(jnp.where(allowed_BI, popularity_I, NONE), min(most, popularity_I.shape[0]))
    batch, count = item_BC.shape
    block = min(block, count)
    parts = jnp.pad(item_BC, ((0, 0), (0, -count % block))).reshape(batch, -1, block).swapaxes(0, 1)
    logits = jax.lax.map(lambda part: click_logits(model, params, catalog, cache, items_B, part, gap_B), parts)
    logit_BC = logits.swapaxes(0, 1).reshape(batch, -1)[:, :count]
    score, place = jax.lax.top_k(jnp.where(popular_BC > NO_SCORE, logit_BC, NONE), min(k, count))
    item = jnp.take_along_axis(item_BC, place, axis=1)
    return _unless_new(items_B, item, score, popularity_I, allowed_BI, score.shape[1])


def _held_back(score_BC: jax.Array, generated: int, every: int) -> jax.Array:
    """Lowers scores of what joined the first `generated` so that it has one of any first `every` places, two of 2 x."""
    first_BC, joined_BC = score_BC[:, :generated], score_BC[:, generated:]
    order_BC = jnp.argsort(-joined_BC, axis=1)
    turn_BC = jnp.argsort(order_BC, axis=1)  # how many of the joined score higher
    there_B1 = (first_BC > NO_SCORE).sum(1, keepdims=True)
    ahead_BC = jnp.minimum((turn_BC + 1) * (every - 1), there_B1) - 1  # -1: nothing was generated
    limit_BC = jnp.take_along_axis(jax.lax.top_k(first_BC, generated)[0], jnp.maximum(ahead_BC, 0), axis=1)
    held_BC = jnp.where(ahead_BC < 0, joined_BC, jnp.minimum(joined_BC, limit_BC))
    return jnp.concatenate([first_BC, held_BC], axis=1)


def _unless_new(items_B, item_Bk, score_Bk, popularity_I, allowed_BI, k: int) -> tuple[jax.Array, jax.Array]:
    """The most popular allowed items in place of those of users without history; nothing is sorted where none is."""

    def popular(item_Bk, score_Bk):
        score, item = jax.lax.top_k(jnp.where(allowed_BI, popularity_I, NONE), min(k, popularity_I.shape[0]))
        new_B1 = (items_B == 0)[:, None]
        return jnp.where(new_B1, item, item_Bk), jnp.where(new_B1, score, score_Bk)

    return jax.lax.cond((items_B == 0).any(), popular, lambda *same: same, item_Bk, score_Bk)
