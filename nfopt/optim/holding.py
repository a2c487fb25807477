"""Holding: what one process has of every tensor, and how statistics and directions come of it.

`Whole` is the usual case: all of every tensor is here. `nfopt.optim.sharded` has the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim import directions, observations
from nfopt.optim.moments import StepNumbers
from nfopt.optim.observations import Pools, pool
from nfopt.weightspace.incidence import MatrixLayout

Tensors = Sequence[Float[Tensor, "..."]]
MOST_ELEMENTS = 1 << 22  # in a batch of matrices: more would cost memory and bring nothing


class Measurement(Protocol):
    """The statistics of one step; the momenta's follow once it is known how the gradients enter them."""

    @property
    def squares(self) -> Float[Tensor, "*batch tensors"]:
        """Mean squares of the gradients."""
        ...

    def pools(self, numbers: StepNumbers) -> Pools:
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

    def groups(self, matrices: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the tensors' positions in groups that are worked on together: matrices, or others."""
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
        """Return what measures the momenta only when it is known how the step's gradients enter them."""
        tensors = tuple(zip(weights, grads, slow, fast, strict=True))
        return WholeMeasurement(self.layouts, tensors, self.squares(grads))

    def groups(self, matrices: Sequence[int]) -> list[tuple[int, ...]]:
        """Return matrices of one shape, as many as are worth a batch, and every other tensor on its own."""
        groups: list[tuple[int, ...]] = []
        orthogonal = set(matrices)
        for members in directions.equal_shapes([self.layouts[i] for i in matrices]):
            layout = self.layouts[matrices[members[0]]]
            most = max(1, MOST_ELEMENTS // (layout.out_size * layout.in_size * layout.rest_size))
            chosen = [matrices[i] for i in members]
            groups += [tuple(chosen[k : k + most]) for k in range(0, len(chosen), most)]
        return groups + [(i,) for i in range(len(self.layouts)) if i not in orthogonal]

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
    tensors: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]
    squares: Float[Tensor, "*batch tensors"]

    def pools(self, numbers: StepNumbers) -> Pools:
        """Measure the weights and the new momenta, tensor by tensor: they are not kept."""
        weight, slow, fast, products = [], [], [], []
        for i, (tensors, layout) in enumerate(zip(self.tensors, self.layouts, strict=True)):
            w, g, s, f = (tensor.to(self.squares.dtype) for tensor in tensors)
            dims, one, rates = len(layout.shape), (layout,), numbers.rates
            g = numbers.clean(g, i, dims)
            s, f = numbers.fold(s, g, rates.slow, dims), numbers.fold(f, g, rates.fast, dims)
            for found, tensor in ((weight, w), (slow, s), (fast, f)):
                found.append(pool([tensor], one))
            products.append(observations.mean_products([f], [s], one))
        weight, slow, fast = (observations.joined(pooled) for pooled in (weight, slow, fast))
        product = torch.cat(products, dim=-1)
        return Pools(weight, slow, fast, observations.cosines(product, fast.totals, slow.totals))
