"""What is known of blocks and neurons before any value is read: depth, fans, sizes, fixed positions."""

from math import log1p

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.symmetry.spec import DimRole
from nfopt.weightspace.blocks import Block, BlockPlan

BLOCK_STRUCTURE = 8
"""Number of channels of `describe_blocks`."""


def describe_blocks(plan: BlockPlan) -> Float[Tensor, "blocks channels"]:
    """Return the `BLOCK_STRUCTURE` channels of each block, all of the order of 1.

    Depth, log fan-in, log fan-out, log number of elements, where in its tensor's outputs and inputs the block
    begins (the blocks of a concatenation are not interchangeable), whether the model reads the tensor, and
    whether the block has a diagonal.
    """
    rows = [
        (
            2 * block.depth - 1,
            _size(block.fan_in),
            _size(block.fan_out),
            _size(block.numel) / 2,
            _start(block, "out"),
            _start(block, "in"),
            float(block.used),
            float(bool(block.repeats)),
        )
        for block in plan.blocks
    ]
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), BLOCK_STRUCTURE)


def describe_tokens(plan: BlockPlan, frequencies: int) -> Float[Tensor, "tokens channels"]:
    """Return 2 + 2 `frequencies` channels for each index of each atom of the plan, atom after atom.

    Whether the atom is fixed (1 or -1), its log size, and for the indices of a fixed atom (kernel positions,
    pixels, classes) sines and cosines of pi k p at their position p in (-1, 1), k = 1 .. frequencies.
    Indices of an atom that can be permuted have no position: theirs are zero.
    """
    tables = []
    waves = torch.arange(1, frequencies + 1, dtype=torch.float64) * torch.pi
    for name, atom in plan.atoms.items():
        fixed = name in plan.fixed
        table = torch.zeros(atom.size, 2 + 2 * frequencies, dtype=torch.float64)
        table[:, 0] = 1.0 if fixed else -1.0
        table[:, 1] = _size(atom.size)
        if fixed:
            position = (2 * torch.arange(atom.size, dtype=torch.float64) + 1) / max(1, atom.size) - 1
            phase = position[:, None] * waves
            table[:, 2:] = torch.cat([phase.sin(), phase.cos()], dim=-1)
        tables.append(table)
    return torch.cat(tables) if tables else torch.zeros(0, 2 + 2 * frequencies, dtype=torch.float64)


def _size(count: int) -> float:
    """Return a slow function of a size, 0 at 32 and below 1 up to a hundred million.

    Slow, because a network must not mistake a width that it never saw for another kind of layer.
    """
    return (log1p(count) - log1p(32)) / 16


def _start(block: Block, role: DimRole) -> float:
    dims = {dim.tensor_dim for dim in block.dims if dim.role == role}
    return max((block.starts[d] for d in dims), default=0.0)
