import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.pruning.channels.subset import (
    group_index,
    kept_positions,
    remaining,
    smaller_axis,
    zeroed,
)
from nfopt.symmetry import Atom, Prod, Sum

ATOMS = {"a": Atom("a", 3), "b": Atom("b", 5), "c": Atom("c", 2)}
axes = st.recursive(
    st.sampled_from(list(ATOMS.values())),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: Prod(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=2).map(lambda parts: Sum(tuple(parts)))
    ),
    max_leaves=3,
)
indices = st.fixed_dictionaries(
    {},
    optional={
        name: st.sets(st.integers(0, atom.size - 1), min_size=1).map(lambda s: torch.tensor(sorted(s)))
        for name, atom in ATOMS.items()
    },
)


def survivors(axis, kept):
    """The obviously right one: a position stays if every group index in it does."""
    if isinstance(axis, Atom):
        alive = kept.get(axis.name)
        return [alive is None or i in alive.tolist() for i in range(axis.size)]
    if isinstance(axis, Sum):
        return [each for block in axis.blocks for each in survivors(block, kept)]
    alive = [True]
    for factor in axis.factors:
        alive = [one and other for one in alive for other in survivors(factor, kept)]
    return alive


@given(axes, indices)
def test_what_remains_of_an_axis_is_what_the_oracle_lets_live(axis, kept):
    found = kept_positions(axis, kept)
    expected = [i for i, alive in enumerate(survivors(axis, kept)) if alive]
    assert (list(range(axis.size)) if found is None else found.tolist()) == expected
    assert smaller_axis(axis, kept).size == len(expected)


@given(axes, axes, indices)
def test_what_remains_and_what_is_zeroed_complete_each_other(first, second, kept):
    tensor = torch.rand(first.size, second.size) + 1
    left, zeros = remaining(tensor, (first, second), kept), zeroed(tensor, (first, second), kept)
    assert int((zeros != 0).sum()) == left.numel()
    assert torch.equal(zeros[zeros != 0].reshape(left.shape), left)


@given(axes, st.sampled_from(sorted(ATOMS)), st.data())
def test_the_index_of_a_group_says_which_positions_go_with_it(axis, group, data):
    """Where a group occurs once along every path, removing one index takes the positions of that index."""
    index = group_index(axis, group)
    gone = data.draw(st.integers(0, ATOMS[group].size - 1))
    kept = {group: torch.tensor([i for i in range(ATOMS[group].size) if i != gone])}
    dead = [not alive for alive in survivors(axis, kept)]
    if index is None:
        assert not any(dead)
    elif not _repeats(axis):
        assert (index == gone).tolist() == dead


def _repeats(axis):
    """Whether a product holds a group twice, so that a position has two indices of it."""
    if isinstance(axis, Atom):
        return False
    if isinstance(axis, Sum):
        return any(_repeats(block) for block in axis.blocks)
    names = [_names(factor) for factor in axis.factors]
    return any(_repeats(f) for f in axis.factors) or len(set().union(*names)) < sum(map(len, names))


def _names(axis):
    if isinstance(axis, Atom):
        return {axis.name}
    return set().union(*map(_names, axis.factors if isinstance(axis, Prod) else axis.blocks))
