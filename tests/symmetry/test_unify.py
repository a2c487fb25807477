"""Unification of axis terms: whatever is equated ends up with one and the same index order."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nfopt.symmetry.unify import Cat, Term, Unifier, Var, concat_terms, size_of, vars_of


def order(term: Term, permutation: dict[int, Tensor]) -> Tensor:
    """Index order of a resolved term, written out element by element."""
    indices = [0]
    for factor in term:
        if isinstance(factor, Var):
            inner = permutation[factor.number].tolist()
        else:
            inner, start = [], 0
            for block in factor.blocks:
                inner += [start + i for i in order(block, permutation).tolist()]
                start += size_of(block)
        indices = [i * factor.size + j for i in indices for j in inner]
    return torch.tensor(indices)


def sample(terms: list[Term], seed: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {var.number: var for term in terms for var in vars_of(term)}
    return {
        number: torch.arange(var.size) if var.reason else torch.randperm(var.size, generator=generator)
        for number, var in found.items()
    }


@st.composite
def terms_of_size(draw: st.DrawFn, unifier: Unifier, size: int, depth: int = 2) -> Term:
    """A term of the given size over fresh variables: one variable, a product, or a sum."""
    shapes = ["var"]
    factors = [k for k in range(2, size) if size % k == 0]
    if depth and factors:
        shapes.append("prod")
    if depth and size > 1:
        shapes.append("sum")
    shape = draw(st.sampled_from(shapes))
    if shape == "prod":
        k = draw(st.sampled_from(factors))
        left = draw(terms_of_size(unifier, k, depth - 1))
        return left + draw(terms_of_size(unifier, size // k, depth - 1))
    if shape == "sum":
        k = draw(st.integers(1, size - 1))
        left = draw(terms_of_size(unifier, k, depth - 1))
        return concat_terms([left, draw(terms_of_size(unifier, size - k, depth - 1))])
    return unifier.fresh(size, draw(st.sampled_from([None, None, None, "given"])))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_equated_terms_have_one_index_order_under_every_permutation(data: st.DataObject) -> None:
    unifier = Unifier()
    size = data.draw(st.sampled_from([4, 6, 8, 12, 24]))
    pool = [data.draw(terms_of_size(unifier, size)) for _ in range(data.draw(st.integers(2, 5)))]
    pairs = data.draw(
        st.lists(
            st.tuples(st.integers(0, len(pool) - 1), st.integers(0, len(pool) - 1)), min_size=1, max_size=5
        )
    )
    for a, b in pairs:
        unifier.unify(pool[a], pool[b])
    resolved = [unifier.resolve(term) for term in pool]
    permutation = sample(resolved, seed=len(pairs))
    for a, b in pairs:
        assert torch.equal(order(resolved[a], permutation), order(resolved[b], permutation))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_resolving_keeps_the_size_and_is_idempotent(data: st.DataObject) -> None:
    unifier = Unifier()
    one = data.draw(terms_of_size(unifier, 12))
    two = data.draw(terms_of_size(unifier, 12))
    unifier.unify(one, two)
    resolved = unifier.resolve(one)
    assert size_of(resolved) == 12
    assert unifier.resolve(resolved) == resolved


def test_a_variable_refines_to_the_product_that_it_is_viewed_as() -> None:
    unifier = Unifier()
    whole = unifier.fresh(15)
    first, second = unifier.factor(whole, [3, 5])
    assert unifier.resolve(whole) == first + second
    assert not unifier.fixed_reason(whole)


def test_products_with_interleaved_boundaries_meet_in_their_common_refinement() -> None:
    unifier = Unifier()
    two_six = unifier.fresh(2) + unifier.fresh(6)
    four_three = unifier.fresh(4) + unifier.fresh(3)
    unifier.unify(two_six, four_three)
    assert [f.size for f in unifier.resolve(two_six)] == [2, 2, 3]
    assert all(var.reason is None for var in vars_of(unifier.resolve(two_six)))


def test_a_sum_of_multiples_factors_out_the_common_axis() -> None:
    unifier = Unifier()
    blocks = concat_terms([unifier.fresh(6), unifier.fresh(9)])
    lead, rest = unifier.factor(blocks, [5, 3])
    assert isinstance(lead[0], Cat)
    assert [size_of(block) for block in lead[0].blocks] == [2, 3]
    assert size_of(rest) == 3
    assert all(var.reason is None for var in vars_of(unifier.resolve(blocks)))


def test_boundaries_that_do_not_align_fix_both_sides_with_a_reason() -> None:
    unifier = Unifier()
    three_four = unifier.fresh(3) + unifier.fresh(4)
    two_six = unifier.fresh(2) + unifier.fresh(6)
    unifier.unify(three_four, two_six)
    for term in (three_four, two_six):
        assert "reshape of 3 x 4 does not align with 2 x 6" in (unifier.fixed_reason(term) or "")


def test_what_is_equated_with_a_fixed_term_is_fixed_for_its_reason() -> None:
    unifier = Unifier()
    free = unifier.fresh(7)
    unifier.unify(unifier.fresh(7, "model input"), free)
    assert unifier.fixed_reason(free) == "model input"


def test_splitting_does_not_tie_the_blocks_to_one_another() -> None:
    unifier = Unifier()
    first, second = unifier.split(unifier.fresh(10), [5, 5])
    assert first != second
