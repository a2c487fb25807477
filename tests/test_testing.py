"""The testers of equivariance: they pass what is equivariant, and reject what is broken in each way."""

import pytest
import torch

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import PermutationSpec
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from tests.hand_specs import SPECS, random_tensors

MLP = SPECS["mlp"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double_each(tensors):
    return {name: 2 * tensor for name, tensor in tensors.items()}


def cumulated(tensors):
    return {name: tensor.cumsum(0) for name, tensor in tensors.items()}


def add_incoming_to_bias(tensors):
    """Couples each neuron's bias with its incoming weights."""
    return {**tensors, "0.bias": tensors["0.bias"] + tensors["0.weight"].sum(1)}


@pytest.mark.parametrize("name", SPECS)
def test_an_elementwise_function_is_equivariant(name):
    assert_equivariant(double_each, SPECS[name], random_tensors(SPECS[name], 0), seeded())


def test_a_function_that_reads_the_order_is_rejected():
    assert equivariance_error(cumulated, MLP, random_tensors(MLP, 0), seeded()) > 0.1
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(cumulated, MLP, random_tensors(MLP, 0), seeded())


def test_a_small_fault_in_one_tensor_is_rejected():
    def nearly(tensors):
        ramp = 1e-7 * torch.arange(7, dtype=torch.float64)
        return {**tensors, "2.bias": tensors["2.bias"] + ramp}

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(nearly, MLP, random_tensors(MLP, 0), seeded())
    assert_equivariant(nearly, MLP, random_tensors(MLP, 0), seeded(), tolerance=1e-5)


def test_an_output_that_is_not_finite_is_rejected():
    def spoiled(tensors):
        return {**tensors, "2.bias": tensors["2.bias"] * float("nan")}

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(spoiled, MLP, random_tensors(MLP, 0), seeded())


def test_a_single_output_must_be_invariant():
    tensors = random_tensors(MLP, 0)
    assert_equivariant(lambda t: sum(x.square().sum() for x in t.values()), MLP, tensors, seeded())
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda t: t["0.bias"], MLP, tensors, seeded())


def test_several_arguments_are_permuted_together():
    w, g = random_tensors(MLP, 0), random_tensors(MLP, 1)
    product = lambda w, g: {name: w[name] * g[name] for name in w}  # noqa: E731
    assert_equivariant(product, MLP, (w, g), seeded())
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda w: product(w, g), MLP, w, seeded())


def test_batches_and_channels_are_left_where_they_are():
    batch = random_tensors(MLP, 0, batch=(3,))
    widen = lambda t: {name: torch.stack([x, -x], dim=-1) for name, x in t.items()}  # noqa: E731
    assert_equivariant(widen, MLP, batch, seeded(), batch_dims=1)


def test_a_wrong_coupling_is_followed_only_by_functions_that_do_not_couple():
    tensors = random_tensors(MLP, 0)
    assert wrong_coupling_error(double_each, MLP, tensors, seeded()) == 0
    assert_equivariant(add_incoming_to_bias, MLP, tensors, seeded())
    assert wrong_coupling_error(add_incoming_to_bias, MLP, tensors, seeded()) > 0.1


def test_a_spec_without_groups_proves_nothing():
    spec = PermutationSpec(MLP.tensors, dict.fromkeys(MLP.atoms, "fixed here"))
    with pytest.raises(AssertionError, match="no group"):
        assert_equivariant(double_each, spec, random_tensors(spec, 0), seeded())


def test_outputs_that_do_not_fit_are_refused():
    tensors = random_tensors(MLP, 0)
    with pytest.raises(PermutationSpecError, match=r"0\.weight has shape"):
        equivariance_error(lambda t: {**t, "0.weight": t["0.weight"].T}, MLP, tensors, seeded())
    with pytest.raises(PermutationSpecError, match="no tensor 'other'"):
        equivariance_error(lambda t: {"other": t["0.bias"]}, MLP, tensors, seeded())
    answers = iter([{"0.bias": tensors["0.bias"]}, {}])
    with pytest.raises(PermutationSpecError, match="returned other tensors"):
        equivariance_error(lambda t: next(answers), MLP, tensors, seeded())
