"""The prefix tree of existing semantic IDs, flat: sorted integer keys per level, usable inside `jit`."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.errors import UserError


@flax.struct.dataclass
class Trie:
    """A pytree of one sorted key array a level; node ids of a level are positions in it.

    Attributes:
        keys: per level int32 `[nodes]`, `parent * size + code`, ascending; the root is node 0.
        sizes: vocabulary size of each level.
        item_order: int32 `[I]`, items sorted by leaf.
        leaf_start: int32 `[leaves + 1]`, where each leaf's items begin in `item_order`.
    """

    keys: tuple[jax.Array, ...]
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)
    item_order: jax.Array
    leaf_start: jax.Array

    @property
    def leaves(self) -> int:
        return self.keys[-1].shape[0]

    def children(self, node_x: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
        """`(child_xK, exists_xK)`: the node that each code of `level` leads to, and whether it is there."""
        wanted = node_x[..., None] * self.sizes[level] + jnp.arange(self.sizes[level], dtype=jnp.int32)
        keys = self.keys[level]
        child = jnp.clip(jnp.searchsorted(keys, wanted), 0, keys.shape[0] - 1).astype(jnp.int32)
        return child, keys[child] == wanted

    def leaf_of_item(self) -> np.ndarray:
        """int32 `[I]`: each item's leaf."""
        counts = np.diff(np.asarray(self.leaf_start))
        leaf = np.empty(len(self.item_order), np.int32)
        leaf[np.asarray(self.item_order)] = np.repeat(np.arange(self.leaves, dtype=np.int32), counts)
        return leaf

    def items_of_leaf(self, leaf: int) -> np.ndarray:
        """The items that share a leaf's whole ID."""
        start, end = np.asarray(self.leaf_start[leaf]), np.asarray(self.leaf_start[leaf + 1])
        return np.asarray(self.item_order[int(start) : int(end)])


def build_trie(codes_IL: np.ndarray, sizes: tuple[int, ...]) -> Trie:
    """Trie over the rows of `codes_IL`; vectorised, O(L I log I).

    Raises:
        UserError: a code outside its level's vocabulary, or more nodes than int32 keys can tell apart.
    """
    codes_IL = np.asarray(codes_IL)
    node_I, keys = np.zeros(len(codes_IL), np.int64), []
    for level, size in enumerate(sizes):
        column_I = codes_IL[:, level].astype(np.int64)
        bad = np.flatnonzero((column_I < 0) | (column_I >= size))
        if len(bad):
            raise UserError(
                f"code {column_I[bad[0]]} of item {bad[0]}", field=f"level {level}", expected=f"0 to {size - 1}"
            )
        unique, node_I = np.unique(node_I * size + column_I, return_inverse=True)
        if len(unique) and unique[-1] >= 2**31:
            raise UserError(f"{len(unique)} prefixes of {size} codes", expected="keys below 2^31; use smaller levels")
        keys.append(jnp.asarray(unique, jnp.int32))
    order = np.argsort(node_I, kind="stable").astype(np.int32)
    start = np.searchsorted(node_I[order], np.arange(len(keys[-1]) + 1)).astype(np.int32)
    return Trie(tuple(keys), tuple(sizes), jnp.asarray(order), jnp.asarray(start))
