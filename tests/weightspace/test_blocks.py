"""The block normal form: exact round trips, dimensions that are single atoms, and clear refusals."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import Atom, PermutationSpec, Prod, Sum, TensorAxes
from nfopt.weightspace import block_plan
from tests.hand_specs import SPECS, act_on_each, random_specs, random_tensors


@settings(deadline=None)
@given(random_specs(), st.integers(0, 99))
def test_blocks_round_trip_exactly_on_every_spec(spec, seed):
    plan, tensors = block_plan(spec), random_tensors(spec, seed)
    back = plan.from_blocks(plan.to_blocks(tensors))
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", SPECS)
def test_batched_blocks_with_channels_round_trip_exactly(name):
    spec = SPECS[name]
    plan = block_plan(spec)
    tensors = {n: t.movedim(1, -1) for n, t in random_tensors(spec, 0, batch=(2, 3)).items()}
    blocks = plan.to_blocks(tensors, channels=True)
    assert all(b.shape == (2, *block.shape, 3) for block, b in zip(plan.blocks, blocks, strict=True))
    back = plan.from_blocks(blocks, channels=True)
    assert all(torch.equal(back[n], tensors[n]) for n in tensors)


@settings(deadline=None)
@given(random_specs(), st.integers(0, 99))
def test_a_permutation_acts_on_blocks_one_dimension_at_a_time(spec, seed):
    plan, tensors = block_plan(spec), random_tensors(spec, seed)
    permutation = spec.sample(torch.Generator().manual_seed(seed))
    acted = plan.to_blocks(spec.act(permutation, tensors))
    for block, before, after in zip(plan.blocks, plan.to_blocks(tensors), acted, strict=True):
        for d, dim in enumerate(block.dims):
            if dim.atom in permutation:
                before = before.index_select(d, permutation[dim.atom])
        assert torch.equal(before, after)


@settings(deadline=None)
@given(random_specs())
def test_the_blocks_hold_every_element_once(spec):
    plan = block_plan(spec)
    ids, start = {}, 0
    for name, entry in spec.tensors.items():
        count = torch.Size(entry.shape).numel()
        ids[name] = torch.arange(start, start + count).view(entry.shape)
        start += count
    assert plan.element_count == start
    assert torch.equal(
        torch.cat([b.flatten() for b in plan.to_blocks(ids)] or [torch.arange(0)]).sort().values,
        torch.arange(start),
    )


def test_blocks_are_views_of_the_tensors():
    spec = SPECS["densenet"]
    tensors = random_tensors(spec, 0)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert all(b.untyped_storage().data_ptr() in storages for b in block_plan(spec).to_blocks(tensors))


def test_a_sum_inside_a_product_is_cut():
    a, b, c = Atom("a", 2), Atom("b", 3), Atom("c", 5)
    spec = PermutationSpec({"w": TensorAxes((Prod((a, Sum((b, c)))),), "linear", ("in",))})
    plan = block_plan(spec)
    assert [block.shape for block in plan.blocks] == [(2, 3), (2, 5)]
    first, second = plan.to_blocks({"w": torch.arange(16)})
    assert first.squeeze(-1).tolist() == [[0, 1, 2], [8, 9, 10]]
    assert second.squeeze(-1).tolist() == [[3, 4, 5, 6, 7], [11, 12, 13, 14, 15]]


@settings(deadline=None)
@given(random_specs())
def test_no_two_blocks_of_a_tensor_begin_alike(spec):
    blocks = block_plan(spec).blocks
    assert len({(block.tensor, block.starts) for block in blocks}) == len(blocks)


def test_blocks_know_where_their_dimensions_come_from():
    plan = block_plan(SPECS["rnn"])
    lstm = next(block for block in plan.blocks if block.tensor == "lstm.weight")
    assert [(d.atom, d.tensor_dim, d.role, d.ordinal, d.fixed) for d in lstm.dims] == [
        ("gates", 0, "out", 0, True),
        ("h", 0, "out", 1, False),
        ("h", 1, "in", 0, False),
    ]
    assert lstm.repeats == ((1, 2),)
    assert (lstm.fan_in, lstm.fan_out) == (5, 20)


def test_fan_in_counts_kernel_positions_and_all_concatenated_inputs():
    plan = block_plan(SPECS["densenet"])
    assert {b.fan_in for b in plan.blocks if b.tensor == "conv2.weight"} == {(5 + 7) * 3 * 2}


def test_a_plan_for_some_tensors_holds_only_their_atoms():
    spec = SPECS["mlp"]
    plan = block_plan(spec, ["2.weight", "2.bias"])
    assert list(plan.axes) == ["2.weight", "2.bias"]
    assert set(plan.atoms) == {"h", "k"}
    assert plan.fixed == frozenset()


def test_plans_are_cached_as_long_as_their_spec_lives():
    text = SPECS["mlp"].to_json()
    spec = PermutationSpec.from_json(text)
    assert block_plan(spec) is block_plan(spec)
    assert block_plan(spec, ["0.bias"]) is not block_plan(spec)
    twin = PermutationSpec.from_json(text)
    assert block_plan(twin) is not block_plan(spec)
    assert block_plan(twin) == block_plan(spec)
    smaller = PermutationSpec({"w": TensorAxes((Atom("a", 2),))})
    del spec, twin
    gc.collect()
    for _ in range(20):  # ids are used again: no spec may get another's plan
        fresh = PermutationSpec(dict(smaller.tensors))
        assert list(block_plan(fresh).axes) == ["w"]
        del fresh


def test_tied_names_stand_for_the_tensor_that_they_share():
    spec = PermutationSpec(SPECS["mlp"].tensors, SPECS["mlp"].fixed, {"tied.weight": "0.weight"})
    plan, tensors = block_plan(spec), random_tensors(spec, 0)
    both = {**tensors, "tied.weight": tensors["0.weight"]}
    renamed = {("tied.weight" if n == "0.weight" else n): t for n, t in tensors.items()}
    for given_tensors in (both, renamed):
        back = plan.from_blocks(plan.to_blocks(given_tensors))
        assert all(torch.equal(back[n], tensors[n]) for n in tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("2.bias"), r"1 of the plan's 6 tensors are missing.*2\.bias"),
        (lambda t: t.update(extra=torch.ones(3)), "'extra' is not among the 6 tensors"),
        (lambda t: t.update({"2.bias": torch.ones(5)}), r"2\.bias has shape \(5,\).*\[\*batch, 7\]"),
        (lambda t: t.update({"0.weight": torch.ones(2, 5)}), r"0\.weight has shape \(2, 5\)"),
        (lambda t: t.update({"2.bias": torch.ones(4, 7)}), r"2\.bias has the batch dimensions \(4,\)"),
        (lambda t: t.update({"2.bias": torch.tensor(1.0)}), r"2\.bias has shape \(\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    spec = SPECS["mlp"]
    tensors = random_tensors(spec, 0)
    change(tensors)
    with pytest.raises(PermutationSpecError, match=message):
        block_plan(spec).to_blocks(tensors)


def test_blocks_that_do_not_fit_are_refused():
    spec = SPECS["mlp"]
    plan = block_plan(spec)
    blocks = plan.to_blocks(random_tensors(spec, 0))
    with pytest.raises(PermutationSpecError, match="6 blocks, but 5"):
        plan.from_blocks(blocks[1:])
    with pytest.raises(PermutationSpecError, match=r"do not fit block 0\.weight"):
        plan.from_blocks([blocks[0].transpose(0, 1), *blocks[1:]])
    with pytest.raises(PermutationSpecError, match="2 channels"):
        plan.from_blocks([b.repeat_interleave(2, -1) for b in blocks])


def test_a_plan_for_an_unknown_name_is_refused():
    with pytest.raises(PermutationSpecError, match="no tensor 'other'"):
        block_plan(SPECS["mlp"], ["other"])


def test_batched_nets_are_permuted_net_by_net():
    spec = SPECS["vit"]
    plan, tensors = block_plan(spec), random_tensors(spec, 0, batch=(2,))
    permutation = spec.sample(torch.Generator().manual_seed(0))
    both = plan.to_blocks(act_on_each(spec, permutation, tensors))
    one = plan.to_blocks(spec.act(permutation, {n: t[1] for n, t in tensors.items()}))
    assert all(torch.equal(b[1], o) for b, o in zip(both, one, strict=True))
