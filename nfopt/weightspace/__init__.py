"""Weight space: a model's tensors as blocks of atoms, and scale-free features of weights and gradients."""

from nfopt.weightspace.blocks import Block, BlockDim, BlockPlan, block_plan
from nfopt.weightspace.pooling import Keep, broadcast_back, pool, pooled_moments, scatter_to_atom

__all__ = [
    "Block",
    "BlockDim",
    "BlockPlan",
    "Keep",
    "block_plan",
    "broadcast_back",
    "pool",
    "pooled_moments",
    "scatter_to_atom",
]
