"""Layers whose weights are chosen by role: what a tensor is for, and what a dimension of it indexes."""

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.symmetry.spec import DimRole, Role

ROLES: tuple[Role, ...] = get_args(Role)
DIM_ROLES: tuple[DimRole, ...] = get_args(DimRole)


def role_index(role: Role) -> int:
    """Return the position of a tensor's role in `ROLES`."""
    return ROLES.index(role)


def dim_index(role: Role, dim: DimRole) -> int:
    """Return the position of a dimension's role within a tensor's role, one of 9 x 4."""
    return ROLES.index(role) * len(DIM_ROLES) + DIM_ROLES.index(dim)


class RoleLinear(nn.Module):
    """A linear map for each of several kinds: y = x W_kind, drawn with variance 1 / inputs.

    Args:
        kinds: number of kinds.
        inputs: channels read.
        outputs: channels written.
        generator: source of the initial weights.
        scale: factor on the initial weights.
    """

    def __init__(
        self,
        kinds: int,
        inputs: int,
        outputs: int,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        weight = torch.randn(kinds, inputs, outputs, generator=generator) * scale / max(1, inputs) ** 0.5
        self.weight = nn.Parameter(weight)

    def forward(self, x: Float[Tensor, "... inputs"], kind: int = 0) -> Float[Tensor, "... outputs"]:
        """Apply the map of `kind`."""
        return x @ self.weight[kind]


class GatedMLP(nn.Module):
    """A gated multilayer perceptron: y = (silu(x A) * (x B)) C (Shazeer 2020, "GLU Variants", eq. 6, SwiGLU).

    Args:
        inputs: channels read.
        hidden: width of the gate.
        outputs: channels written.
        generator: source of the initial weights.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.enter = RoleLinear(1, inputs, 2 * hidden, generator)
        self.bias = nn.Parameter(torch.zeros(2 * hidden))
        self.leave = RoleLinear(1, hidden, outputs, generator)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Apply the perceptron to the last dimension."""
        return self.leave(gate(self.enter(x) + self.bias))


def gate(x: Float[Tensor, "... twice"]) -> Float[Tensor, "... once"]:
    """Return silu(a) * b of the two halves a, b of the channels."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


def normalise(x: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
    """Divide each channel vector by its root mean square; vectors near zero stay near zero."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)
