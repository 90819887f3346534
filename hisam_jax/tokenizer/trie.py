"""The prefix tree of existing semantic IDs, flat: children side by side per level, usable inside `jit`."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.tokenizer.collisions import order_of

WORD = 32  # bits, 2^5


@flax.struct.dataclass
class Places:
    """A set of places for each of B users, counted in two look-ups of tables that a core's cache holds.

    Attributes:
        bits_BW: uint32, 32 places a word, and an empty word behind them.
        before_BW: int32, how many are set before each word.
    """

    bits_BW: jax.Array
    before_BW: jax.Array

    @classmethod
    def of(cls, set_BI: jax.Array) -> Places:
        """Of bool flags."""
        padded_BI = jnp.pad(set_BI, ((0, 0), (0, WORD + -set_BI.shape[1] % WORD)))
        split_BW32 = padded_BI.reshape(padded_BI.shape[0], -1, WORD).astype(jnp.uint32)
        bits_BW = (split_BW32 << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
        counts_BW = jax.lax.population_count(bits_BW).astype(jnp.int32)
        return cls(bits_BW, jnp.cumsum(counts_BW, axis=1) - counts_BW)

    def before(self, place_Bx: jax.Array) -> jax.Array:
        """int32: how many of a user's places stand before each of `place_Bx`, 0 to I."""
        flat = place_Bx.reshape(place_Bx.shape[0], -1)
        word, lower = flat >> 5, (jnp.uint32(1) << (flat & 31).astype(jnp.uint32)) - jnp.uint32(1)
        bits, before = (jnp.take_along_axis(x, word, axis=1, mode="clip") for x in (self.bits_BW, self.before_BW))
        return (before + jax.lax.population_count(bits & lower).astype(jnp.int32)).reshape(place_Bx.shape)


@flax.struct.dataclass
class Trie:
    """A pytree; nodes of a level are numbered in the order of their prefixes, the root is node 0 above level 0.

    Node numbers and codes never exceed the number of items or a level's size, so int32 holds them however large
    `nodes * size` is.

    Attributes:
        codes: per level int32 `[nodes]`, the code that leads to each node; ascending within a parent.
        starts: per level int32 `[parents + 1]`, where each parent's children begin in `codes`.
        sizes: vocabulary size of each level.
        fanouts: the most children of one parent, per level, or more where there is room for new items.
        item_order: int32 `[I]`, items sorted by leaf.
        reach: per level int32 `[nodes + 1]`, where the items below each node begin in `item_order`.
    """

    codes: tuple[jax.Array, ...]
    starts: tuple[jax.Array, ...]
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)
    fanouts: tuple[int, ...] = flax.struct.field(pytree_node=False)
    item_order: jax.Array
    reach: tuple[jax.Array, ...]

    @property
    def leaf_start(self) -> jax.Array:
        """int32 `[leaves + 1]`, where each leaf's items begin in `item_order`."""
        return self.reach[-1]

    @property
    def leaves(self) -> int:
        return self.codes[-1].shape[0]

    @property
    def nodes(self) -> tuple[int, ...]:
        """How many different prefixes of 1, 2, ... codes there are."""
        return tuple(codes.shape[0] for codes in self.codes)

    def children(self, node_x: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
        """`(child_xK, exists_xK)`: the node that each code of `level` leads to, and whether it is there.

        Where `exists` is false the node is some valid one. A binary search among the node's own children.
        """
        size, steps = self.sizes[level], self.fanouts[level].bit_length()
        return _children(self.codes[level], self.starts[level], node_x, size=size, steps=steps)

    def branches(
        self, node_x: jax.Array, level: int, allowed: Places | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`(child_xF, code_xF, exists_xF)`: each node's own children side by side, in the order of their codes.

        F is the level's fanout: far fewer than its codes where the tree is sparse. Where `exists` is false, child and
        code are some valid ones.

        Args:
            node_x: nodes above `level`, `[B, W]` with `allowed`.
            level: of the children.
            allowed: of each of B users; a child without an allowed item below it does not exist then.
        """
        codes_N, starts_P = self.codes[level], self.starts[level]
        first_x1, place_F = starts_P[node_x][..., None], jnp.arange(self.fanouts[level], dtype=jnp.int32)
        exists_xF = first_x1 + place_F < starts_P[node_x + 1][..., None]
        child_xF = jnp.where(exists_xF, first_x1 + place_F, 0)
        if allowed is not None:
            start_xF, end_xF = (self.reach[level].at[child_xF + i].get(mode="clip") for i in (0, 1))
            exists_xF &= allowed.before(end_xF) > allowed.before(start_xF)  # a node's items are one run
        return child_xF, codes_N[child_xF], exists_xF

    def allowed(self, allowed_BI: jax.Array) -> Places:
        """Where the allowed items stand in `item_order`, for `branches`."""
        return Places.of(allowed_BI[:, self.item_order])

    def leaf_of_item(self) -> np.ndarray:
        """int32 `[I]`: each item's leaf."""
        counts = np.diff(np.asarray(self.leaf_start))
        order = np.asarray(self.item_order)[: counts.sum()]
        leaf = np.empty(len(order), np.int32)
        leaf[order] = np.repeat(np.arange(self.leaves, dtype=np.int32), counts)
        return leaf

    def items_of_leaf(self, leaf: int) -> np.ndarray:
        """The items that share a leaf's whole ID, ascending."""
        start, end = np.asarray(self.leaf_start[leaf]), np.asarray(self.leaf_start[leaf + 1])
        return np.asarray(self.item_order[int(start) : int(end)])


@functools.partial(jax.jit, static_argnames=("size", "steps"))
def _children(
    codes_N: jax.Array, start_P: jax.Array, node_x: jax.Array, *, size: int, steps: int
) -> tuple[jax.Array, jax.Array]:
    wanted_K = jnp.arange(size, dtype=jnp.int32)
    low_xK = jnp.broadcast_to(start_P[node_x][..., None], (*node_x.shape, size))
    end_xK = jnp.broadcast_to(start_P[node_x + 1][..., None], low_xK.shape)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        right = (low < high) & (codes_N.at[middle].get(mode="clip") < wanted_K)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    child_xK, _ = jax.lax.fori_loop(0, steps, halve, (low_xK, end_xK))
    exists_xK = (child_xK < end_xK) & (codes_N.at[child_xK].get(mode="clip") == wanted_K)
    return jnp.minimum(child_xK, codes_N.shape[0] - 1), exists_xK


def build_trie(codes_IL: np.ndarray, sizes: tuple[int, ...], capacity: int = 0, like: Trie | None = None) -> Trie:
    """Trie over the rows of `codes_IL`; vectorised, O(L I log I).

    Args:
        codes_IL: one ID an item.
        sizes: vocabulary size of each level.
        capacity: arrays have room for as many items, so that a tree with more of them has the same shapes; its fanouts
            are rounded up to powers of two with as many again. 0: no more than what is there.
        like: a tree whose shapes and fanouts are kept where they still hold what is there, so that a program that was
            compiled for it takes the new one.

    Raises:
        UserError: no item, a code outside its level's vocabulary, or more items than int32 counts.
    """
    codes_IL = np.asarray(codes_IL)
    if not 0 < len(codes_IL) < 2**31:
        raise UserError(f"{len(codes_IL)} items", field="semantic IDs", expected="at least 1 and fewer than 2^31")
    _check_range(codes_IL, sizes)
    order = _sorted_rows(codes_IL, sizes)
    new_I, starts, codes, reach, parents = np.arange(len(order)) == 0, [], [], [], np.zeros(1, np.int64)
    for level in range(len(sizes)):
        column_I = codes_IL[order, level]
        new_I[1:] |= column_I[1:] != column_I[:-1]
        first_N = np.flatnonzero(new_I)
        codes.append(column_I[first_N].astype(np.int32))
        starts.append(np.append(np.searchsorted(first_N, parents), len(first_N)).astype(np.int32))
        reach.append(np.append(first_N, len(order)).astype(np.int32))
        parents = first_N
    fanouts = [int(np.diff(start).max()) for start in starts]
    order = order.astype(np.int32)
    capacity = len(like.item_order) if like is not None else capacity
    if capacity:
        codes, order = [_padded(x, capacity, 0) for x in codes], _padded(order, capacity, 0)
        starts = [starts[0], *(_padded(x, capacity + 1, x[-1]) for x in starts[1:])]
        reach = [_padded(x, capacity + 1, x[-1]) for x in reach]
        roomy = [min(size, 1 << (2 * most - 1).bit_length()) for most, size in zip(fanouts, sizes, strict=True)]
        kept = roomy if like is None else like.fanouts
        fanouts = [new if most > old else old for most, old, new in zip(fanouts, kept, roomy, strict=True)]
    codes, starts, reach = (tuple(map(jnp.asarray, arrays)) for arrays in (codes, starts, reach))
    return Trie(codes, starts, tuple(sizes), tuple(fanouts), jnp.asarray(order), reach)


def _padded(values: np.ndarray, length: int, value: int) -> np.ndarray:
    if len(values) > length:
        raise UserError(f"{len(values)} of a level", field="capacity", expected=f"no more than {length}")
    return np.pad(values, (0, length - len(values)), constant_values=value)


def _check_range(codes_IL: np.ndarray, sizes: tuple[int, ...]) -> None:
    for level, size in enumerate(sizes):
        column_I = codes_IL[:, level]
        bad = np.flatnonzero((column_I < 0) | (column_I >= size))
        if len(bad):
            raise UserError(
                f"code {column_I[bad[0]]} of item {bad[0]}", field=f"level {level}", expected=f"0 to {size - 1}"
            )


def _sorted_rows(codes_IL: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Stable lexicographic order of rows: from the last column to the first, as many columns to a key as fit."""
    order = np.arange(len(codes_IL))
    limit, key_I, span = 2**62 // len(codes_IL), np.zeros(len(codes_IL), np.int64), 1
    for level in reversed(range(len(sizes))):
        if span * sizes[level] > limit:
            order = order[order_of(key_I[order])]
            key_I, span = np.zeros(len(codes_IL), np.int64), 1
        key_I += codes_IL[:, level].astype(np.int64) * span
        span *= sizes[level]
    return order[order_of(key_I[order])]
