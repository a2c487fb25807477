"""Weight space: a model's tensors as blocks of atoms, and scale-free features of weights and gradients."""

from nfopt.weightspace.blocks import Block, BlockDim, BlockPlan, block_plan
from nfopt.weightspace.features import FeatureBlocks, FeatureError, WeightSpaceFeatures
from nfopt.weightspace.pooling import Keep, broadcast_back, pool, pooled_moments, scatter_to_atom
from nfopt.weightspace.structure import BLOCK_STRUCTURE, describe_blocks, describe_tokens

__all__ = [
    "BLOCK_STRUCTURE",
    "Block",
    "BlockDim",
    "BlockPlan",
    "FeatureBlocks",
    "FeatureError",
    "Keep",
    "WeightSpaceFeatures",
    "block_plan",
    "broadcast_back",
    "describe_blocks",
    "describe_tokens",
    "pool",
    "pooled_moments",
    "scatter_to_atom",
]
