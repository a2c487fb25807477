"""Equivariant networks over weight spaces."""

from nfopt.nn.dws import DWSLinear
from nfopt.nn.layout import LayoutBlock, LayoutError, WeightLayout, weight_layout
from nfopt.nn.metanet import MetanetError, RoleTiedConfig, RoleTiedNetwork, RoleTiedOutput
from nfopt.nn.nf_linear import HNPLinear, NPLinear, PointwiseLinear
from nfopt.nn.orbits import orbit_count
from nfopt.nn.role_layer import RoleTiedLayer
from nfopt.nn.roles import GatedMLP, RoleLinear
from nfopt.nn.unf import UNFLinear

__all__ = [
    "DWSLinear",
    "GatedMLP",
    "HNPLinear",
    "LayoutBlock",
    "LayoutError",
    "MetanetError",
    "NPLinear",
    "PointwiseLinear",
    "RoleLinear",
    "RoleTiedConfig",
    "RoleTiedLayer",
    "RoleTiedNetwork",
    "RoleTiedOutput",
    "UNFLinear",
    "WeightLayout",
    "orbit_count",
    "weight_layout",
]
