"""Equivariant networks over weight spaces."""

from nfopt.nn.metanet import MetanetError, RoleTiedConfig, RoleTiedNetwork, RoleTiedOutput
from nfopt.nn.role_layer import RoleTiedLayer
from nfopt.nn.roles import GatedMLP, RoleLinear

__all__ = [
    "GatedMLP",
    "MetanetError",
    "RoleLinear",
    "RoleTiedConfig",
    "RoleTiedLayer",
    "RoleTiedNetwork",
    "RoleTiedOutput",
]
