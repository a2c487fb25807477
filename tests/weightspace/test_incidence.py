"""Entries, tokens and matrix layouts of a spec."""

import pytest
import torch

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import Atom, PermutationSpec, Prod, Sum, TensorAxes
from nfopt.symmetry.axes import Axis
from nfopt.weightspace.incidence import MatrixLayout, build_incidence

A, B, C = Atom("a", 3), Atom("b", 5), Atom("c", 7)


def spec_of(*axes: Axis) -> PermutationSpec:
    return PermutationSpec({"w": TensorAxes(axes, "linear", ("out", "in"))})


def token_sets(spec: PermutationSpec) -> list[set[int]]:
    incidence = build_incidence(spec)
    found: list[set[int]] = [set() for _ in range(incidence.entry_count)]
    for entry, token in zip(incidence.edge_entry.tolist(), incidence.edge_token.tolist(), strict=True):
        found[entry].add(token)
    return found


def test_an_entry_of_a_product_holds_one_token_of_each_factor() -> None:
    found = token_sets(spec_of(A, Prod((B, C))))
    assert found[:3] == [{0}, {1}, {2}]
    for position in range(35):
        assert found[3 + position] == {3 + position // 7, 8 + position % 7}


def test_an_entry_of_a_sum_holds_the_tokens_of_its_block_alone() -> None:
    found = token_sets(spec_of(A, Prod((B, Sum((A, C))))))
    for position in range(50):
        b, rest = divmod(position, 10)
        assert found[3 + position] == {3 + b, rest if rest < 3 else 8 + rest - 3}


def test_a_shared_atom_is_one_token_in_both_tensors() -> None:
    spec = PermutationSpec(
        {
            "first": TensorAxes((A, B), "linear", ("out", "in")),
            "second": TensorAxes((C, A), "linear", ("out", "in")),
        }
    )
    incidence = build_incidence(spec)
    assert incidence.token_count == 15
    assert incidence.token_degree.flatten().tolist() == [2] * 3 + [1] * 12


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((3, 5, 2, 2), ("out", "in", "kernel", "kernel")),
        ((5, 3, 2), ("in", "out", "kernel")),
        ((7,), ("out",)),
        ((1, 1, 7), ("other", "other", "other")),
        ((), ()),
        ((3, 1, 2, 2), ("out", "in", "kernel", "kernel")),
    ],
)
def test_reading_a_tensor_as_matrices_can_be_undone(shape: tuple[int, ...], dims: tuple) -> None:
    axes = tuple(Atom(f"x{d}", n) if n > 1 else Prod(()) for d, n in enumerate(shape))
    layout = MatrixLayout.of(TensorAxes(axes, dims=dims))
    tensor = torch.randn(shape)
    matrix = layout.to_matrix(tensor)
    assert matrix.shape == (layout.out_size, layout.in_size, layout.rest_size)
    assert torch.equal(layout.from_matrix(matrix), tensor)
    for d, role in enumerate(dims):
        if role == "out" and shape[d] > 1:
            assert layout.out_size == shape[d]


def test_a_name_that_the_spec_does_not_hold_is_an_error() -> None:
    with pytest.raises(PermutationSpecError, match="no tensor 'v'"):
        build_incidence(spec_of(A, B), ("v",))
