"""Which items a request may be answered with: conditions that compose at run time and never recompile."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

WORD = 32


@flax.struct.dataclass
class ItemFacts:
    """What filters know of items, on the device.

    Attributes:
        servable_I: bool, exists and is in stock.
        added_I: int32, days since the epoch at which an item came; 0 unknown.
        attributes_IW: uint32, bit sets of attributes, `W = ceil(attributes / 32)` words.
    """

    servable_I: jax.Array
    added_I: jax.Array
    attributes_IW: jax.Array


@flax.struct.dataclass
class Filter:
    """The conditions of B requests.

    Attributes:
        hidden_BW: uint32 bit sets over the items, those to leave out, e.g. seen ones: one shape, however many.
        oldest_B: int32, items added on an earlier day are left out; unknown days never are.
        any_of_BW: uint32 bit sets: an item must have one of these attributes; no bit set asks for nothing.
    """

    hidden_BW: jax.Array
    oldest_B: jax.Array
    any_of_BW: jax.Array


def allowed(facts: ItemFacts, request: Filter) -> jax.Array:
    """bool `[B, I]`: the items that meet all conditions of each request."""
    items = facts.servable_I.shape[0]
    young_BI = (facts.added_I == 0) | (facts.added_I >= request.oldest_B[:, None])
    shared_BI = (facts.attributes_IW & request.any_of_BW[:, None]).any(-1) if facts.attributes_IW.shape[1] else True
    asks_B1 = request.any_of_BW.any(-1, keepdims=True)
    bit_BWw = request.hidden_BW[..., None] >> jnp.arange(WORD, dtype=jnp.uint32) & 1
    hidden_BI = bit_BWw.reshape(len(bit_BWw), -1)[:, :items] > 0
    return facts.servable_I & young_BI & (shared_BI | ~asks_B1) & ~hidden_BI


def set_bits(words_W: np.ndarray, members: np.ndarray) -> None:
    """Puts members into a bit set of uint32 words, in place."""
    bits = np.uint32(1) << (members % WORD).astype(np.uint32)
    np.bitwise_or.at(words_W, members // WORD, bits)


def bit_sets(members_IA: np.ndarray) -> np.ndarray:
    """uint32 `[I, ceil(A / 32)]` of bool `[I, A]`."""
    items, attributes = members_IA.shape
    words = -(-attributes // WORD)
    padded = np.zeros((items, words * WORD), np.uint32)
    padded[:, :attributes] = members_IA
    shifted = padded.reshape(items, words, WORD) << np.arange(WORD, dtype=np.uint32)
    return shifted.sum(-1, dtype=np.uint32)
