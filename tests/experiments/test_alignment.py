import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.experiments.alignment import align
from nfopt.weightspace import block_plan
from tests.experiments.toys import SIREN, permuted, random_nets, siren_zoo, values
from tests.hand_specs import SPECS
from tests.nn.spec_bound import SMALL

ALL = {**SPECS, **SMALL}


def likeness(spec, nets, reference):
    """The sum that alignment maximises, written out."""
    plan = block_plan(spec)
    goal = plan.to_blocks(reference)
    return sum(
        (mine * goal / goal.square().mean()).flatten(1).sum(1)
        for mine, goal in zip(plan.to_blocks(nets), goal, strict=True)
    )


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_aligned_nets_compute_what_they_did(seed):
    zoo = siren_zoo(7, seed=seed, dtype=torch.float64)
    aligned = align(zoo.spec, zoo.tensors, zoo.net(0)).tensors
    torch.testing.assert_close(values(aligned), values(zoo.tensors), rtol=1e-9, atol=1e-9)


def test_a_renumbered_reference_is_brought_back_to_the_reference():
    # Two hidden layers at once can end in a local maximum; a small change of one layer at a time cannot.
    zoo = siren_zoo(1, dtype=torch.float64)
    order = {"0": torch.tensor([3, 0, 4, 1, 2])}
    group = next(iter(zoo.spec.groups))
    moved = {n: t[None] for n, t in zoo.spec.act({group: order["0"]}, zoo.net(0)).items()}
    found = align(zoo.spec, moved, zoo.net(0))
    assert all(torch.equal(found.tensors[name], zoo.tensors[name]) for name in moved)
    assert torch.equal(found.orders[group][0], order["0"].argsort())


@pytest.mark.parametrize("name", sorted(ALL))
def test_on_any_spec_nets_are_renumbered_by_its_permutations_and_never_less_alike(name):
    spec = ALL[name]
    nets, reference = random_nets(spec, 5, 1), random_nets(spec, 1, 2)
    reference = {n: t[0] for n, t in reference.items()}
    found = align(spec, nets, reference)
    for i in range(5):
        order = {group: rows[i] for group, rows in found.orders.items()}
        acted = spec.act(order, {n: t[i] for n, t in nets.items()})
        assert all(torch.equal(found.tensors[n][i], acted[n]) for n in nets)
    assert (likeness(spec, found.tensors, reference) >= likeness(spec, nets, reference) - 1e-9).all()


def test_alignment_brings_nets_nearer_to_each_other():
    zoo = siren_zoo(20, dtype=torch.float64)
    nets = permuted(zoo.spec, {n: t[:1].expand(20, *t.shape[1:]) for n, t in zoo.tensors.items()})
    noise = torch.Generator().manual_seed(0)
    nets = {n: t + 0.05 * torch.randn(t.shape, generator=noise) * t.std() for n, t in nets.items()}
    found = align(zoo.spec, nets, zoo.net(0)).tensors
    spread = [sum(t.var(0).sum() for t in each.values()) for each in (nets, found)]
    assert spread[1] < 0.1 * spread[0]


def test_what_a_net_becomes_does_not_depend_on_the_nets_beside_it():
    zoo = siren_zoo(9)
    together = align(zoo.spec, zoo.tensors, zoo.net(0)).tensors
    alone = align(zoo.spec, {n: t[5:6] for n, t in zoo.tensors.items()}, zoo.net(0)).tensors
    assert all(torch.equal(together[n][5:6], alone[n]) for n in alone)


def test_one_sweep_can_be_worse_than_many_but_is_a_renumbering_too():
    zoo = siren_zoo(9, config=SIREN)
    one = align(zoo.spec, zoo.tensors, zoo.net(0), sweeps=1).tensors
    many = align(zoo.spec, zoo.tensors, zoo.net(0)).tensors
    mine, best = (likeness(zoo.spec, each, zoo.net(0)) for each in (one, many))
    assert (best >= mine - 1e-4).all()
