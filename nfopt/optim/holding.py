"""Holding: what one process has of every tensor, and how statistics and directions come of it.

`Whole` is the usual case: all of every tensor is here. `nfopt.optim.sharded` has the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim import directions, observations
from nfopt.optim.moments import FAST, SLOW, StepNumbers
from nfopt.optim.observations import Pools, pool
from nfopt.optim.strips import Strip
from nfopt.weightspace.incidence import MatrixLayout

Tensors = Sequence[Float[Tensor, "..."]]
# In a batch of matrices: more would cost memory and, on the CPU, not fit into its cache.
MOST_ELEMENTS, MOST_ELEMENTS_ON_CPU = 1 << 22, 1 << 15
CPU = torch.device("cpu")


class Measurement(Protocol):
    """The statistics of one step; the momenta's follow once it is known how the gradients enter them."""

    @property
    def squares(self) -> Float[Tensor, "*batch tensors"]:
        """Mean squares of the gradients."""
        ...

    def pools(self, numbers: StepNumbers) -> Pools:
        """Return the statistics of the weights and of the new momenta."""
        ...


@dataclass(frozen=True)
class Group:
    """Tensors that are worked on together: matrices, or others.

    Attributes:
        positions: of the tensors.
        strip: how the tensors are laid end to end; None: each is worked on in its own shape.
    """

    positions: tuple[int, ...]
    strip: Strip | None = None


class Holding(Protocol):
    """What one process has of every tensor. All lists have one entry per tensor, of what is here of it."""

    def squares(self, grads: Tensors, work: torch.dtype) -> Float[Tensor, "*batch tensors"]:
        """Return the mean squares of the gradients in `work`: all that a step needs that decides nothing."""
        ...

    def measure(
        self, weights: Tensors, grads: Tensors, slow: Tensors, fast: Tensors, work: torch.dtype
    ) -> Measurement:
        """Measure a step in `work`: weights, gradients, and the momenta before the step."""
        ...

    def groups(self) -> Sequence[Group]:
        """Return the tensors in groups, none of which has both matrices and others."""
        ...

    def orthogonal(self, momenta: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Return the orthogonalised momenta of the tensors at the positions `chosen`, at RMS 1."""
        ...

    def adam(self, momenta: Tensors, second: Tensors, group: Group) -> list[Tensor]:
        """Return Adam's directions of the tensors of a group, at RMS 1; of a strip, as one tensor."""
        ...

    def cut(self, table: Float[Tensor, "..."], position: int) -> Float[Tensor, "..."]:
        """Return the part that is here of a table that multiplies the tensor at `position`."""
        ...


@dataclass(frozen=True)
class Whole:
    """All of every tensor is here; leading dimensions hold copies side by side.

    Attributes:
        layouts: the tensors' layouts.
        matrices: positions of those that are orthogonalised.
        strips: which small ones of the others are laid end to end.
        products: dtype of the matrix products that orthogonalise; None: that of the arithmetic.
        device: where the tensors are.
    """

    layouts: tuple[MatrixLayout, ...]
    matrices: tuple[int, ...] = ()
    strips: tuple[Strip, ...] = ()
    products: torch.dtype | None = None
    device: torch.device = CPU

    def squares(self, grads: Tensors, work: torch.dtype) -> Float[Tensor, "*batch tensors"]:
        """Return the mean squares of the gradients."""
        return observations.mean_squares(grads, self.layouts, work)

    def measure(
        self, weights: Tensors, grads: Tensors, slow: Tensors, fast: Tensors, work: torch.dtype
    ) -> "WholeMeasurement":
        """Return what measures the momenta only when it is known how the step's gradients enter them."""
        tensors = tuple(zip(weights, grads, slow, fast, strict=True))
        return WholeMeasurement(self.layouts, tensors, self.squares(grads, work))

    def to(self, device: torch.device) -> "Whole":
        """Return the same with its index tensors on `device`."""
        return replace(self, strips=tuple(strip.to(device) for strip in self.strips), device=device)

    def groups(self) -> tuple[Group, ...]:
        """Return matrices of one shape, as many as are worth a batch; the strips; and what is left."""
        return self._groups

    @cached_property
    def _groups(self) -> tuple[Group, ...]:
        groups: list[tuple[int, ...]] = []
        elements = MOST_ELEMENTS_ON_CPU if self.device.type == "cpu" else MOST_ELEMENTS
        for members in directions.equal_shapes([self.layouts[i] for i in self.matrices]):
            chosen = [self.matrices[i] for i in members]
            layout = self.layouts[chosen[0]]
            most = max(1, elements // (layout.out_size * layout.in_size * layout.rest_size))
            groups += [tuple(chosen[k : k + most]) for k in range(0, len(chosen), most)]
        done = {*self.matrices, *(i for strip in self.strips for i in strip.positions)}
        groups += [(i,) for i in range(len(self.layouts)) if i not in done]
        return (*map(Group, groups), *(Group(strip.positions, strip) for strip in self.strips))

    def orthogonal(self, momenta: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Orthogonalise tensors of one shape in one batch."""
        layouts = [self.layouts[i] for i in chosen]
        return directions.orthogonal_of_one_shape(list(momenta), layouts, self.products)

    def adam(self, momenta: Tensors, second: Tensors, group: Group) -> list[Tensor]:
        """Normalise element by element."""
        if group.strip is not None:
            return [directions.adam_along(momenta[0], second[0], group.strip)]
        return [
            directions.adam(m, v, len(self.layouts[i].shape))
            for m, v, i in zip(momenta, second, group.positions, strict=True)
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
            dims, one = len(layout.shape), (layout,)
            g = numbers.clean(g, i, dims)
            s, f = numbers.fold(s, g, SLOW, dims), numbers.fold(f, g, FAST, dims)
            for found, tensor in ((weight, w), (slow, s), (fast, f)):
                found.append(pool([tensor], one))
            products.append(observations.mean_products([f], [s], one))
        weight, slow, fast = (observations.joined(pooled) for pooled in (weight, slow, fast))
        product = torch.cat(products, dim=-1)
        return Pools(weight, slow, fast, observations.cosines(product, fast.totals, slow.totals))
