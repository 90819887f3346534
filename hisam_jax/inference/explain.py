"""Why an item is recommended: what is lost without each past item, and what each part of the item brings [ours].

Leave-one-out over the cached anchors. One past item's anchor is masked out of the cache, the last item is read again
over what is left, and the item is scored from there; the drop of its score is that past item's. Exact for the cache as
it is: what other anchors took from the masked one when they were made stays in them, so drops need not sum to the
score. Without the last item the one before is read instead, with the place of the next item moved up: exactly the
score of the shorter history. Where a history fills the window, the oldest anchor that the last item has read is no
longer kept: drops are counted from the score without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.inference.beam_search import states_before
from hisam_jax.inference.steps import append, user_vectors
from hisam_jax.models.blocks import Cache
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT

WAYS = ("retrieval", "generation")
AT_ONCE = 32  # scores that are computed side by side; more go in turns, which bounds memory


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What made a score.

    Attributes:
        score: of the item: dot product or log-probability.
        parts: name -> its share of the score; they sum to it.
        drops: float32 `[kept]`, what the score loses without each kept past item, oldest first.
    """

    score: float
    parts: dict[str, float]
    drops: np.ndarray


def part_names(model: HMAT, catalog: Catalog, way: str) -> list[str]:
    """Names of the parts of a score, in the order in which `explain` returns them."""
    c, levels = model.config, len(model.vocab)
    if way == "generation":
        return [f"code {level}" for level in range(levels + (model.digit > 0))]
    names = [f"code {level}" for level in range(levels)] if c.codes else []
    names += [f"features {name}" for name in sorted(catalog.features)] if c.features else []
    return names + (["id"] if c.item_id else [])


def explain(
    model: HMAT, params, catalog: Catalog, cache: Cache, count, read_BD, events: Mapping[str, jax.Array], item, codes_L,
    *, way: str,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`(part_P, drop_M)`: parts of an item's score, and what it loses without each of M cached items.

    Args:
        cache: of one user.
        count: int32, items of the history.
        read_BD: `[1, D]`, the last item's read-out state.
        events: `item`, `action`, `gap` `[2]`: the event before the last, and the last.
        item: int32, whose score it is.
        codes_L: int32, its ID, the digit last where there is one.
        way: `retrieval`: the score is a dot product, its parts those of the item vector; `generation`: the
            log-probability of the ID, its parts those of the codes.
    """
    index_M, tokens = cache.index_BM[0], 1 if model.config.anchors else model.slots

    def parts(read_BD, left: Cache, length):
        if way == "generation":
            return code_log_probabilities(model, params, left, length, read_BD, codes_L)
        return item_parts(model, params, catalog, item) @ user_vectors(model, params, read_BD)[0]

    def score_without(index):
        last = (index == count - 1) & (index >= 0)
        place = count - 1 - last
        left = _kept(cache, index_M != index)
        before = _kept(left, index_M < place)
        event = {name: values[1 - last.astype(jnp.int32)][None] for name, values in events.items()}
        read_BD, _ = append(model, params, catalog, before, place[None], event)
        return parts(jnp.where(place >= 0, read_BD, 0.0), left, place + 1).sum()

    indices = jnp.concatenate([jnp.full(1, -1, jnp.int32), index_M[::tokens]])
    scores = jax.lax.map(score_without, indices, batch_size=min(AT_ONCE, len(indices)))
    return parts(read_BD, cache, count), scores[0] - scores[1:]


def _kept(cache: Cache, kept_M) -> Cache:
    return cache.replace(index_BM=jnp.where(kept_M, cache.index_BM, -1))


def item_parts(model: HMAT, params, catalog: Catalog, item) -> jax.Array:
    """`[P, D]`: what an item vector is the sum of: each code's embedding, each modality's features, the id.

    Of unit length in all where scores are cosines.
    """
    codes_L = jnp.asarray(catalog.codes_IL)[item]

    def run(module):
        parts = module.item_encoder.parts(item[None], catalog)
        codes_LD = module.item_encoder.code_embeddings(codes_L[None])[0]
        split = {name: codes_LD if name == "codes" else part_1D for name, part_1D in parts.items()}
        parts_PD = jnp.concatenate(list(split.values()))
        total_D = parts_PD.sum(0)
        return parts_PD * jnp.sqrt((module.scored(total_D) ** 2).sum() / jnp.maximum((total_D**2).sum(), 1e-12))

    return model.apply({"params": params}, method=run)


def code_log_probabilities(model: HMAT, params, cache: Cache, length, read_BD, codes_L) -> jax.Array:
    """`[L]`: log-probability of each code of an ID after a history, given the codes before it."""

    def run(module):
        found = []
        for level in range(len(codes_L)):
            state = states_before(module, level, read_BD, codes_L[None, None, :level], cache, length[None])
            found.append(jax.nn.log_softmax(module.code_logits(state, level)[0, 0])[codes_L[level]])
        return jnp.stack(found)

    return model.apply({"params": params}, method=run)
