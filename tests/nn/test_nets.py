"""Stacking a zoo: each net in its place, and every net that does not belong named."""

import pytest
import torch
from torch import nn

from nfopt.errors import PermutationSpecError
from nfopt.nn import LayoutError, stack_nets
from tests.hand_specs import SPECS, random_tensors
from tests.nn.spec_bound import NETS, traced

SPEC = SPECS["mlp"]


def zoo(count=3):
    return [random_tensors(SPEC, seed) for seed in range(count)]


def test_each_net_is_in_its_place():
    nets = zoo()
    stacked = stack_nets(SPEC, nets)
    assert all(torch.equal(stacked[n][i], net[n]) for i, net in enumerate(nets) for n in net)


def test_state_dicts_of_real_nets_stack_whatever_else_they_hold():
    factory, _ = NETS["convnet"]
    nets = [factory().state_dict() for _ in range(2)]
    stacked = stack_nets(traced("convnet"), nets)
    assert set(stacked) == set(traced("convnet").tensors) < set(nets[0])


def test_tied_nets_stack_under_the_name_of_the_spec():
    factory, _ = NETS["tied"]
    assert set(stack_nets(traced("tied"), [factory().state_dict()])) == set(traced("tied").tensors)


def test_a_net_of_another_architecture_is_named():
    nets = zoo()
    nets[1] = {**nets[1], "2.weight": torch.zeros(5, 5)}
    nets[2] = {n: t for n, t in nets[2].items() if n != "0.bias"}
    with pytest.raises(
        LayoutError, match=r"net 1 has 2\.weight of shape \(5, 5\), not \(7, 5\); net 2 has no 0\.bias"
    ):
        stack_nets(SPEC, nets)


def test_a_zoo_of_mixed_architectures_is_refused_without_listing_all_of_it():
    other = nn.Sequential(nn.Linear(3, 3)).state_dict()
    with pytest.raises(LayoutError, match=r"and \d+ more"):
        stack_nets(SPEC, [*zoo(), other, other])


def test_a_net_that_is_not_finite_is_named_unless_it_is_wanted():
    nets = zoo()
    nets[2]["4.bias"][0] = float("nan")
    with pytest.raises(LayoutError, match=r"4\.bias of net 2"):
        stack_nets(SPEC, nets)
    assert stack_nets(SPEC, nets, check_numbers=False)["4.bias"].isnan().sum() == 1


def test_an_empty_zoo_and_an_unknown_name_are_refused():
    with pytest.raises(LayoutError, match="no nets"):
        stack_nets(SPEC, [])
    with pytest.raises(PermutationSpecError, match=r"5\.weight"):
        stack_nets(SPEC, zoo(), ["5.weight"])
