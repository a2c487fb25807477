"""Invariant pooling: invariant on every spec, all linear invariants, and nothing twice."""

from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.errors import UnknownNameError
from nfopt.nn import InvariantPooling, LayoutError, weight_layout
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from tests.hand_specs import SPECS, random_specs, random_tensors
from tests.nn.spec_bound import LAWS, SMALL, law_spec, law_tensors, layouts, random_values, unit_nets

ALL = ("mean", "max", "rms")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def on_nets(pooling):
    return lambda tensors: pooling(pooling.layout.enter(tensors))


@pytest.mark.parametrize("name", LAWS)
def test_pooling_is_invariant_and_as_wide_as_it_says(name):
    spec = law_spec(name)
    for layout in layouts(spec):
        pooling = InvariantPooling(layout, 1, ALL)
        assert pooling(random_values(layout, batch=(2,))).shape == (2, pooling.features)
        if spec.groups:
            assert_equivariant(on_nets(pooling), spec, law_tensors(spec), seeded())


@settings(deadline=None, max_examples=30)
@given(random_specs(), st.integers(0, 99))
def test_pooling_is_invariant_on_random_specs(spec, seed):
    pooling = InvariantPooling(weight_layout(spec, permute_io=True), 1, ALL)
    tensors = random_tensors(spec, seed)
    assert equivariance_error(on_nets(pooling), spec, tensors, seeded(seed)) < 1e-9


def orbits_of_elements(block):
    """Two elements of a block are in one orbit when the same of their indices of one atom are equal."""
    pairs = [(p, q) for p, q in combinations(range(len(block.atoms)), 2) if block.atoms[p] == block.atoms[q]]
    indices = product(*map(range, block.shape))
    return block.multiplicity * len({tuple(i[p] == i[q] for p, q in pairs) for i in indices})


@pytest.mark.parametrize("name", SMALL)
def test_the_means_are_all_linear_invariants_and_independent(name):
    for layout in layouts(SMALL[name]):
        pooling = InvariantPooling(layout, 1)
        rank = torch.linalg.matrix_rank(pooling(unit_nets(layout))).item()
        assert pooling.features == rank == sum(map(orbits_of_elements, layout.blocks))


def test_inputs_and_outputs_are_kept_apart_or_pooled():
    folded, permuted = layouts(SPECS["mlp"])
    assert InvariantPooling(folded, 1).features == 2 + 1 + 1 + 1 + 3 + 3
    assert InvariantPooling(permuted, 1).features == 6
    assert InvariantPooling(permuted, 5, ALL).features == 6 * 5 * 3


def test_pooled_statistics_are_those_of_the_elements():
    layout = weight_layout(SPECS["mlp"], ["2.weight"])
    (values,) = random_values(layout, batch=(2,))
    got = InvariantPooling(layout, 1, ALL)([values])
    flat = values.flatten(1)
    expected = torch.stack([flat.mean(1), flat.amax(1), flat.square().mean(1).sqrt()], -1)
    torch.testing.assert_close(got, expected)


def test_pooling_does_not_follow_a_wrong_coupling_of_a_recurrent_diagonal():
    spec = SMALL["recurrent 5"]
    pooling = InvariantPooling(weight_layout(spec, ["hh"]), 1)
    tensors = {"hh": law_tensors(spec)["hh"]}
    assert equivariance_error(on_nets(pooling), spec, tensors, seeded()) < 1e-12
    moved = {"hh": tensors["hh"][torch.tensor([1, 2, 3, 4, 0])]}
    assert not torch.allclose(on_nets(pooling)(moved), on_nets(pooling)(tensors))
    assert wrong_coupling_error(on_nets(pooling), spec, tensors, seeded()) < 1e-12


def test_the_gradient_of_an_rms_of_zeros_is_zero():
    layout = weight_layout(SPECS["mlp"])
    values = [torch.zeros_like(v).requires_grad_() for v in random_values(layout)]
    InvariantPooling(layout, 1, ("rms",))(values).sum().backward()
    assert not any(v.grad.isnan().any() for v in values)


def test_wrong_options_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(UnknownNameError, match="mean"):
        InvariantPooling(layout, 1, ("means",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayoutError, match="statistic"):
        InvariantPooling(layout, 1, ())
    with pytest.raises(LayoutError, match="another spec"):
        InvariantPooling(layout, 1)(random_values(weight_layout(SPECS["rnn"])))
