"""Layout of the learned weights theta: named tensors as one vector and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nfopt.errors import NfoptError


@dataclass(frozen=True, slots=True)
class ThetaLayout:
    """Names and shapes of the tensors that a theta vector concatenates.

    Attributes:
        shapes: (name, shape) in the order of the vector.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, theta: Mapping[str, Tensor]) -> "ThetaLayout":
        """Return the layout of named tensors, in their order."""
        return cls(tuple((name, tuple(value.shape)) for name, value in theta.items()))

    @property
    def length(self) -> int:
        """Number of meta-parameters."""
        return sum(prod(shape) for _, shape in self.shapes)

    def flatten(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return named tensors as one vector (length,).

        Raises:
            NfoptError: names or shapes are not the layout's.
        """
        if {name: tuple(value.shape) for name, value in theta.items()} != dict(self.shapes):
            raise NfoptError(
                f"theta holds { ({n: tuple(v.shape) for n, v in theta.items()}) }, but this rule has "
                f"{dict(self.shapes)}. Use the checkpoint of the same rule config."
            )
        return torch.cat([theta[name].flatten() for name, _ in self.shapes])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector (..., length) as named tensors, each with the leading dimensions in front."""
        parts = vector.split([prod(shape) for _, shape in self.shapes], dim=-1)
        lead = vector.shape[:-1]
        return {
            name: part.reshape((*lead, *shape))
            for (name, shape), part in zip(self.shapes, parts, strict=True)
        }

    def zero_tensors(self, vector: Tensor) -> Tensor:
        """Return (length,) booleans: True in the tensors that are zero throughout in `vector` (length,)."""
        named = self.unflatten(vector)
        return self.flatten(
            {name: torch.full_like(value, not value.any()) for name, value in named.items()}
        ).bool()
