"""Axis terms: sizes, normal forms and their JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import Atom, Axis, Prod, Sum
from nfopt.symmetry.axes import UNIT, atoms_of, concat, from_json, product, to_json

ATOMS = [Atom("a", 2), Atom("b", 3), Atom("c", 5)]
SIZES = {atom.name: atom.size for atom in ATOMS}


def axes(depth: int = 3) -> st.SearchStrategy[Axis]:
    return st.recursive(
        st.sampled_from([*ATOMS, UNIT]),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda parts: product(*parts))
            | st.lists(inner, min_size=1, max_size=3).map(lambda parts: concat(*parts))
        ),
        max_leaves=depth + 2,
    )


@given(axes())
def test_an_axis_round_trips_through_json(axis: Axis) -> None:
    assert from_json(to_json(axis), SIZES) == axis


@given(axes(), axes())
def test_sizes_multiply_in_products_and_add_in_sums(a: Axis, b: Axis) -> None:
    assert product(a, b).size == a.size * b.size
    assert concat(a, b).size == a.size + b.size


@given(axes(), axes(), axes())
def test_products_and_sums_are_associative(a: Axis, b: Axis, c: Axis) -> None:
    assert product(product(a, b), c) == product(a, product(b, c))
    assert concat(concat(a, b), c) == concat(a, concat(b, c))


def test_atoms_come_from_left_to_right_with_repetitions() -> None:
    a, b, c = ATOMS
    axis = Sum((Prod((a, b)), c, a))
    assert list(atoms_of(axis)) == [a, b, c, a]
    assert str(axis) == "a:2 x b:3 + c:5 + a:2"


@pytest.mark.parametrize("data", ["z", {"prod": ["a"], "sum": ["b"]}, 3, {"sum": "a"}])
def test_what_is_no_axis_is_refused(data: object) -> None:
    with pytest.raises(PermutationSpecError, match=r"atom|axis"):
        from_json(data, SIZES)
