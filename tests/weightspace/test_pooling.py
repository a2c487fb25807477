"""Pooling a block and broadcasting back: the textbook sums, adjoint to each other, and equivariant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nfopt.errors import PermutationSpecError
from nfopt.weightspace import block_plan, broadcast_back, pool, pooled_moments, scatter_to_atom
from tests.hand_specs import SPECS, random_specs, random_tensors


def block_named(spec_name, tensor, index=0):
    plan = block_plan(SPECS[spec_name])
    block = next(b for b in plan.blocks if b.tensor == tensor and b.index == index)
    return block, torch.randn(
        *block.shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_pool_averages_over_what_is_not_kept_in_the_order_asked():
    block, x = block_named("resnet", "block.conv1.weight")
    assert_close(pool(x, block, (1, 0)), x.mean((2, 3)).transpose(0, 1))
    assert_close(pool(x, block, ()), x.mean((0, 1, 2, 3)))
    assert_close(pool(x.expand(3, *x.shape), block, (2,))[1], x.mean((0, 1, 3)))


def test_pool_reads_the_diagonal_of_a_repeated_atom():
    block, x = block_named("rnn", "hh.weight")
    assert_close(pool(x, block, ((0, 1),)), torch.stack([x[i, i] for i in range(5)]))
    block, x = block_named("rnn", "lstm.weight")
    assert_close(pool(x, block, ((1, 2),)), torch.stack([x[:, i, i].mean(0) for i in range(5)]))
    assert_close(pool(x, block, ((1, 2), 0)), torch.stack([x[:, i, i] for i in range(5)]))


def test_broadcast_back_repeats_along_what_was_averaged():
    block, x = block_named("resnet", "block.conv1.weight")
    table = pool(x, block, (1, 0))
    back = broadcast_back(table, block, (1, 0))
    assert back.shape == (7, 5, 1, 1, 2)
    assert_close(back.expand_as(x)[3, 2, 1, 1], table[2, 3])


def test_broadcast_back_writes_a_diagonal_into_zeros():
    block, _ = block_named("rnn", "hh.weight")
    values = torch.randn(3, 5, 2, dtype=torch.float64)
    back = broadcast_back(values, block, ((0, 1),))
    assert back.shape == (3, 5, 5, 2)
    assert_close(back, torch.diag_embed(values.movedim(1, -1)).movedim(1, -1))


@settings(deadline=None)
@given(random_specs(), st.integers(0, 99), st.data())
def test_pool_and_broadcast_back_are_adjoint_up_to_the_count(spec, seed, data):
    plan = block_plan(spec)
    if not plan.blocks:
        return
    block = data.draw(st.sampled_from(plan.blocks))
    singles = data.draw(st.lists(st.sampled_from(range(len(block.dims))), unique=True)) if block.dims else []
    keep = [*singles]
    if block.repeats and data.draw(st.booleans()):
        pair = data.draw(st.sampled_from(block.repeats))
        keep = [pair, *(p for p in singles if p not in pair)]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*block.shape, 2, dtype=torch.float64, generator=generator)
    pooled = pool(x, block, keep)
    y = torch.randn(pooled.shape, dtype=torch.float64, generator=generator)
    kept = {p for entry in keep for p in (entry if isinstance(entry, tuple) else (entry,))}
    count = torch.Size([dim.size for p, dim in enumerate(block.dims) if p not in kept]).numel()
    assert_close((pooled * y).sum() * count, (x * broadcast_back(y, block, keep)).sum())


@settings(deadline=None)
@given(random_specs(), st.integers(0, 99))
def test_moments_agree_with_pool(spec, seed):
    plan = block_plan(spec)
    for block, x in zip(plan.blocks, plan.to_blocks(random_tensors(spec, seed)), strict=True):
        keeps = [(d,) for d in range(len(block.dims))] + [(), tuple(range(len(block.dims)))]
        for keep, (mean, rms) in zip(keeps, pooled_moments(x, block, keeps), strict=True):
            assert_close(mean, pool(x, block, keep))
            assert_close(rms, pool(x.square(), block, keep).sqrt())


def test_moments_of_zeros_have_a_finite_gradient():
    block, x = block_named("resnet", "block.conv1.weight")
    zeros = torch.zeros_like(x).requires_grad_()
    moments = pooled_moments(zeros, block, [(0,), (0, 1), ()])
    sum(mean.sum() + rms.sum() for mean, rms in moments).backward()
    assert zeros.grad is not None
    assert torch.isfinite(zeros.grad).all()


def test_scatter_to_atom_averages_over_the_occurrences():
    spec = SPECS["mlp"]
    plan, t = block_plan(spec), random_tensors(spec, 0)
    expected = torch.stack([t["0.weight"].mean(1), t["0.bias"], t["2.weight"].mean(0)]).mean(0)
    assert_close(scatter_to_atom(plan.to_blocks(t), plan, "h").squeeze(-1), expected)


@pytest.mark.parametrize("name", SPECS)
def test_scatter_to_atom_is_equivariant(name):
    spec = SPECS[name]
    plan, tensors = block_plan(spec), random_tensors(spec, 0)
    permutation = spec.sample(torch.Generator().manual_seed(1))
    for atom, order in permutation.items():
        before = scatter_to_atom(plan.to_blocks(tensors), plan, atom)
        after = scatter_to_atom(plan.to_blocks(spec.act(permutation, tensors)), plan, atom)
        assert_close(after, before[order])


def test_what_does_not_fit_is_refused():
    block, x = block_named("resnet", "block.conv1.weight")
    with pytest.raises(PermutationSpecError, match="different atoms"):
        pool(x, block, ((0, 1),))
    for keep in ((4,), (0, 0), ((),), (-1,)):
        with pytest.raises(PermutationSpecError, match="can be named once"):
            pool(x, block, keep)
    with pytest.raises(PermutationSpecError, match="do not fit block"):
        pool(x.transpose(0, 1), block, (0,))
    with pytest.raises(PermutationSpecError, match="do not fit block"):
        broadcast_back(torch.ones(5, 1), block, (0,))
    plan = block_plan(SPECS["mlp"])
    with pytest.raises(PermutationSpecError, match="no atom 'nowhere'"):
        scatter_to_atom([], plan, "nowhere")
