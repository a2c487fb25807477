"""Holding: what one process has of every tensor, and how statistics and directions come of it.

`Whole` is the usual case: all of every tensor is here. `nfopt.optim.sharded` has the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from nfopt.optim import directions, observations
from nfopt.optim.moments import Moments
from nfopt.optim.observations import Pools, pool
from nfopt.weightspace.incidence import MatrixLayout

Tensors = Sequence[Float[Tensor, "..."]]


class Measurement(Protocol):
    """The statistics of one step; the momenta's can be asked for once the gradients are folded in."""

    @property
    def squares(self) -> Float[Tensor, "*batch tensors"]:
        """Mean squares of the gradients."""
        ...

    def pools(self, moments: Moments) -> Pools:
        """Return the statistics of the weights and of the new momenta."""
        ...


class Holding(Protocol):
    """What one process has of every tensor. All lists have one entry per tensor, of what is here of it."""

    def squares(self, grads: Tensors) -> Float[Tensor, "*batch tensors"]:
        """Return the mean squares of the gradients: all that a step needs that decides nothing."""
        ...

    def measure(self, weights: Tensors, grads: Tensors, slow: Tensors, fast: Tensors) -> Measurement:
        """Measure a step: weights, gradients, and the momenta before the step."""
        ...

    def orthogonal(self, momenta: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Return the orthogonalised momenta of the tensors at the positions `chosen`, at RMS 1."""
        ...

    def adam(self, momenta: Tensors, second: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Return Adam's directions of the tensors at the positions `chosen`, at RMS 1."""
        ...

    def cut(self, table: Float[Tensor, "..."], position: int) -> Float[Tensor, "..."]:
        """Return the part that is here of a table that multiplies the tensor at `position`."""
        ...


@dataclass(frozen=True)
class Whole:
    """All of every tensor is here; leading dimensions hold copies side by side.

    Attributes:
        layouts: the tensors' layouts.
    """

    layouts: tuple[MatrixLayout, ...]

    def squares(self, grads: Tensors) -> Float[Tensor, "*batch tensors"]:
        """Return the mean squares of the gradients."""
        return observations.mean_products(grads, grads, self.layouts)

    def measure(self, weights: Tensors, grads: Tensors, slow: Tensors, fast: Tensors) -> "WholeMeasurement":
        """Return what measures the momenta only when the step's gradients are in them."""
        return WholeMeasurement(self.layouts, tuple(weights), self.squares(grads))

    def orthogonal(self, momenta: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Orthogonalise tensors of one shape in one batch."""
        return directions.orthogonal(list(momenta), [self.layouts[i] for i in chosen])

    def adam(self, momenta: Tensors, second: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Normalise element by element."""
        return [
            directions.adam(m, v, len(self.layouts[i].shape))
            for m, v, i in zip(momenta, second, chosen, strict=True)
        ]

    def cut(self, table: Float[Tensor, "..."], position: int) -> Float[Tensor, "..."]:
        """Return all of the table."""
        return table


@dataclass(frozen=True)
class WholeMeasurement:
    """The statistics of one step of tensors that are all here."""

    layouts: tuple[MatrixLayout, ...]
    weights: tuple[Tensor, ...]
    squares: Float[Tensor, "*batch tensors"]

    def pools(self, moments: Moments) -> Pools:
        """Measure the weights and the new momenta."""
        weight, slow, fast = (
            pool([t.square() for t in tensors], self.layouts)
            for tensors in (self.weights, moments.slow, moments.fast)
        )
        product = observations.mean_products(moments.fast, moments.slow, self.layouts)
        return Pools(weight, slow, fast, observations.cosines(product, fast.totals, slow.totals))
