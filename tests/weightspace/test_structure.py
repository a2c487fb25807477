"""What is told of blocks and neurons before any value: bounded, a position only where there is one."""

import torch
from hypothesis import given, settings

from nfopt.symmetry import Atom, PermutationSpec, TensorAxes
from nfopt.weightspace import BLOCK_STRUCTURE, block_plan, describe_blocks, describe_tokens
from tests.hand_specs import SPECS, random_specs


@settings(deadline=None)
@given(random_specs())
def test_every_block_and_token_is_described_within_bounds(spec):
    plan = block_plan(spec)
    blocks, tokens = describe_blocks(plan), describe_tokens(plan, 2)
    assert blocks.shape == (len(plan.blocks), BLOCK_STRUCTURE)
    assert tokens.shape == (plan.token_count, 6)
    assert (blocks.abs() <= 1).all()
    assert (tokens.abs() <= 1).all()


def test_only_fixed_atoms_have_positions():
    plan = block_plan(SPECS["resnet"])
    table = describe_tokens(plan, 3)
    for name, atom in plan.atoms.items():
        rows = table.narrow(0, plan.offsets[name], atom.size)
        distinct = len(rows.unique(dim=0))
        assert distinct == (atom.size if name in plan.fixed else 1), name


def test_one_wave_tells_any_number_of_fixed_indices_apart():
    spec = PermutationSpec({"w": TensorAxes((Atom("pixel", 784),))}, {"pixel": "an input"})
    assert len(describe_tokens(block_plan(spec), 1).unique(dim=0)) == 784


def test_blocks_of_one_tensor_are_described_apart():
    plan = block_plan(SPECS["vit"])
    rows = describe_blocks(plan)
    gated = [i for i, block in enumerate(plan.blocks) if block.tensor == "gated.weight"]
    assert len(gated) == 2
    assert not torch.equal(rows[gated[0]], rows[gated[1]])


def test_an_empty_plan_has_an_empty_description():
    plan = block_plan(PermutationSpec({}))
    assert describe_blocks(plan).shape == (0, BLOCK_STRUCTURE)
    assert describe_tokens(plan, 2).shape == (0, 6)
