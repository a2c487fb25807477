"""Equivariant networks over weight spaces."""

from nfopt.nn.attention import NPAttention
from nfopt.nn.attention_pooling import AttentionPooling
from nfopt.nn.dws import SECTORS, DWSLinear, Sector
from nfopt.nn.encoding import GaussianFourierFeatures, PositionEncoding
from nfopt.nn.layout import LayoutBlock, LayoutError, WeightLayout, weight_layout
from nfopt.nn.metanet import MetanetError, RoleTiedConfig, RoleTiedNetwork, RoleTiedOutput
from nfopt.nn.nets import stack_nets
from nfopt.nn.neural_functional import NeuralFunctional, NeuralFunctionalConfig
from nfopt.nn.nf_linear import HNPLinear, NPLinear, PointwiseLinear
from nfopt.nn.normalisation import ChannelDropout, WeightSpaceNorm, WeightStandardiser
from nfopt.nn.orbits import orbit_count
from nfopt.nn.pooling import InvariantPooling
from nfopt.nn.role_layer import RoleTiedLayer
from nfopt.nn.roles import GatedMLP, RoleLinear
from nfopt.nn.unf import UNFLinear

__all__ = [
    "SECTORS",
    "AttentionPooling",
    "ChannelDropout",
    "DWSLinear",
    "GatedMLP",
    "GaussianFourierFeatures",
    "HNPLinear",
    "InvariantPooling",
    "LayoutBlock",
    "LayoutError",
    "MetanetError",
    "NPAttention",
    "NPLinear",
    "NeuralFunctional",
    "NeuralFunctionalConfig",
    "PointwiseLinear",
    "PositionEncoding",
    "RoleLinear",
    "RoleTiedConfig",
    "RoleTiedLayer",
    "RoleTiedNetwork",
    "RoleTiedOutput",
    "Sector",
    "UNFLinear",
    "WeightLayout",
    "WeightSpaceNorm",
    "WeightStandardiser",
    "orbit_count",
    "stack_nets",
    "weight_layout",
]
