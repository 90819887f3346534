"""The trie against sets of prefixes: round trip, prefix closure, exactly the codes of existing items, any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.tokenizer.trie import Places, build_trie


@st.composite
def tables(draw):
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 5, 300, 70_000]), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    items, few = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    codes = np.stack([rng.choice(rng.integers(0, size, few), items) for size in sizes], 1)
    return codes.astype(np.int32), sizes


def walk(trie, prefix):
    """The node of a prefix, or None; plainly, without `children`."""
    node = 0
    for level, code in enumerate(prefix):
        start, stop = np.asarray(trie.starts[level])[node : node + 2]
        found = np.flatnonzero(np.asarray(trie.codes[level])[start:stop] == code)
        if not len(found):
            return None
        node = int(start + found[0])
    return node


@given(tables())
def test_every_item_leads_to_its_leaf_and_back(table):
    codes, sizes = table
    trie = build_trie(codes, sizes)
    leaf = trie.leaf_of_item()
    for item, row in enumerate(codes.tolist()):
        assert walk(trie, row) == leaf[item]
        equals = np.flatnonzero((codes == codes[item]).all(1))
        assert np.array_equal(trie.items_of_leaf(leaf[item]), equals)
    assert trie.leaves == len(np.unique(codes, axis=0)) == trie.leaf_start.shape[0] - 1


@settings(max_examples=8)  # every table compiles anew
@given(tables())
def test_allowed_codes_are_exactly_those_of_existing_items(table):
    codes, sizes = table
    trie = build_trie(codes, sizes)
    prefixes = [np.unique(codes[:, :depth], axis=0) for depth in range(1, len(sizes) + 1)]
    assert trie.nodes == tuple(map(len, prefixes))
    reached = {(): 0}
    for level, size in enumerate(sizes):
        parents = np.array(list(reached.values()), np.int32)
        child, exists = map(np.asarray, trie.children(jnp.asarray(parents), level))
        assert child.shape == exists.shape == (len(parents), size)
        assert child.min() >= 0 and child.max() < trie.nodes[level]
        found = {
            (*prefix, int(code)): int(child[row, code])
            for row, prefix in enumerate(reached)
            for code in np.flatnonzero(exists[row])
        }
        assert set(found) == set(map(tuple, prefixes[level].tolist())), "prefix closure, nothing else"
        assert sorted(found.values()) == list(range(trie.nodes[level]))
        reached = found


def test_children_inside_jit_take_any_shape_of_nodes():
    codes = np.array([[0, 1], [0, 2], [2, 0]], np.int32)
    trie = build_trie(codes, (3, 3))
    nodes = jnp.array([[0, 1], [1, 0]])
    child, exists = jax.jit(lambda trie, nodes: trie.children(nodes, 1))(trie, nodes)
    assert exists.tolist() == [[[False, True, True], [True, False, False]], [[True, False, False], [False, True, True]]]
    assert child[0, 0, 2] == 1 and child[1, 0, 0] == 2


def test_nodes_times_codes_may_pass_int32():
    items = 40_000
    codes = np.stack([np.arange(items) % 200, np.arange(items) // 200, np.arange(items)], 1).astype(np.int32)
    trie = build_trie(codes, (200, 200, 100_000))
    assert trie.nodes[1] * 100_000 > 2**31
    assert walk(trie, codes[-1]) == trie.leaf_of_item()[-1] == items - 1
    child, exists = trie.children(jnp.int32(items - 1), 2)
    assert np.flatnonzero(exists).tolist() == [items - 1] and child[items - 1] == items - 1


@pytest.mark.parametrize(
    ("codes", "words"),
    [([[0, 3]], "code 3 of item 0.*0 to 2"), ([[0, 0], [-1, 0]], "code -1 of item 1"), (np.empty((0, 2)), "0 items")],
)
def test_what_cannot_be_a_trie_is_told(codes, words):
    with pytest.raises(UserError, match=words):
        build_trie(np.asarray(codes, np.int32), (3, 3))


@settings(max_examples=8)
@given(tables(), st.integers(0, 9), st.integers(0, 9999))
def test_branches_are_the_children_and_allowed_ones_lead_to_an_allowed_item(table, room, seed):
    codes, sizes = table
    trie = build_trie(codes, sizes, len(codes) + room)
    allowed = np.random.default_rng(seed).random((2, len(codes) + room)) < 0.3
    places, real = trie.allowed(jnp.asarray(allowed)), np.arange(len(codes))
    prefixes = {(): 0}
    for level in range(len(sizes)):
        parents = jnp.asarray([list(prefixes.values())] * 2, jnp.int32)
        child, code, exists = trie.branches(parents, level)
        fits = np.asarray(trie.branches(parents, level, places)[2])
        found = {}
        for place, prefix in enumerate(prefixes):
            mine = codes[(codes[:, :level] == prefix).all(1)]
            there = np.asarray(exists)[0, place]
            assert np.asarray(code)[0, place][there].tolist() == sorted(set(mine[:, level].tolist()))
            for at in np.flatnonzero(there):
                longer = (*prefix, int(code[0, place, at]))
                below = real[(codes[:, : level + 1] == longer).all(1)]
                assert fits[:, place, at].tolist() == allowed[:, below].any(1).tolist()
                found[longer] = int(child[0, place, at])
            assert not fits[:, place][:, ~there].any()
        prefixes = found


@given(st.integers(1, 100), st.integers(0, 9999))
def test_places_before_a_place_are_counted(items, seed):
    """Of 0 to I, whole words and parts of one, for each user its own."""
    flags = np.random.default_rng(seed).random((2, items)) < 0.5
    wanted = np.pad(np.cumsum(flags, axis=1), ((0, 0), (1, 0)))
    asked = np.tile(np.arange(items + 1), (2, 1))
    np.testing.assert_array_equal(Places.of(jnp.asarray(flags)).before(jnp.asarray(asked)), wanted)


@given(tables(), st.integers(1, 5))
def test_a_tree_with_room_keeps_its_shapes_as_items_come(table, more):
    codes, sizes = table
    grown = np.concatenate([codes, codes[np.random.default_rng(0).integers(0, len(codes), more)]])
    old = build_trie(codes, sizes, len(grown))
    new = build_trie(grown, sizes, like=old)
    assert jax.tree.structure(old) == jax.tree.structure(new)
    assert [x.shape for x in jax.tree.leaves(old)] == [x.shape for x in jax.tree.leaves(new)]
    np.testing.assert_array_equal(new.leaf_of_item(), build_trie(grown, sizes).leaf_of_item())
    with pytest.raises(UserError, match="capacity"):
        build_trie(grown, sizes, len(grown) - 1)
