"""Sharded: the holding of a process that has a slice of every tensor, or shares work with its copies.

Per step: one all-reduce of all statistics, two small ones for Adam's scales, one all-to-all that brings
matrices together on the ranks that orthogonalise them, and one that takes the directions back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from nfopt.optim import directions
from nfopt.optim.directions import NOISE, TINY, MomentumRates
from nfopt.optim.holding import Group, Measurement, Tensors, Whole
from nfopt.optim.sharded_exchange import Exchange, orthogonalisation_cost, share_out
from nfopt.optim.sharded_statistics import Shard, measure
from nfopt.weightspace.incidence import MatrixLayout


@dataclass(frozen=True, eq=False)
class Sharded:
    """Slices of tensors; every rank of the group comes to the same decisions.

    Attributes:
        layouts: layouts of the whole tensors.
        shards: how each tensor is cut; None: every rank has all of it, and only the work is shared.
        group: the ranks among which they are cut.
        rates: the momenta's decay rates.
        matrices: positions of the tensors that are orthogonalised.
        products: dtype of the matrix products that orthogonalise; None: that of the arithmetic.
    """

    layouts: tuple[MatrixLayout, ...]
    shards: tuple[Shard | None, ...]
    group: dist.ProcessGroup
    rates: MomentumRates
    matrices: tuple[int, ...]
    products: torch.dtype | None = None

    def squares(self, grads: Tensors, work: torch.dtype) -> Float[Tensor, " tensors"]:
        """Return the mean squares of the gradients, with one all-reduce; with none where nothing is cut."""
        return torch.stack(self._means((grad.to(work).square() for grad in grads), range(len(grads))))

    def measure(
        self, weights: Tensors, grads: Tensors, slow: Tensors, fast: Tensors, work: torch.dtype
    ) -> Measurement:
        """Measure a step with one all-reduce; with none where nothing is cut."""
        if all(shard is None for shard in self.shards):
            return Whole(self.layouts).measure(weights, grads, slow, fast, work)
        tensors = {"weight": weights, "grad": grads, "slow": slow, "fast": fast}
        cast: dict[str, Tensors] = {key: [t.to(work) for t in some] for key, some in tensors.items()}
        return measure(cast, self.layouts, self.shards, self.group, self.rates)

    def groups(self) -> tuple[Group, ...]:
        """Return all matrices, which are exchanged at once, and all other tensors."""
        orthogonal = set(self.matrices)
        others = tuple(i for i in range(len(self.layouts)) if i not in orthogonal)
        return tuple(Group(some) for some in (self.matrices, others) if some)

    def orthogonal(self, momenta: Tensors, chosen: Sequence[int]) -> list[Tensor]:
        """Orthogonalise each matrix on one rank, the work being balanced, and hand the slices back."""
        if not chosen:
            return []
        layouts = tuple(self.layouts[i] for i in chosen)
        owners = share_out([orthogonalisation_cost(x) for x in layouts], dist.get_world_size(self.group))
        exchange = Exchange(layouts, tuple(self.shards[i] for i in chosen), owners, self.group)
        return exchange.map(momenta, partial(directions.orthogonal, products=self.products))

    def adam(self, momenta: Tensors, second: Tensors, group: Group) -> list[Tensor]:
        """Normalise element by element; the two scales of each tensor are means over all ranks."""
        chosen = group.positions
        roots = [(v + TINY).sqrt() for v in second]
        mean_roots = self._means(roots, chosen)
        moves = [m / (r + (NOISE * s + TINY)) for m, r, s in zip(momenta, roots, mean_roots, strict=True)]
        squares = self._means((move.square() for move in moves), chosen)
        return [m * s.clamp(min=TINY).rsqrt() for m, s in zip(moves, squares, strict=True)]

    def cut(self, table: Float[Tensor, "..."], position: int) -> Float[Tensor, "..."]:
        """Return this rank's slice of a table, unless the table is the same along the cut."""
        shard = self.shards[position]
        if shard is None or table.shape[shard.dim] == 1:
            return table
        rank = dist.get_rank(self.group)
        return table.narrow(shard.dim, shard.starts[rank], shard.lengths[rank])

    def _means(self, tensors: Iterable[Tensor], chosen: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the mean over each whole tensor, with one all-reduce."""
        sums = torch.stack([tensor.sum() for tensor in tensors])
        cut = [self.shards[i] is not None for i in chosen]
        if any(cut):
            if dist.get_rank(self.group) != 0:
                sums = torch.where(torch.tensor(cut, device=sums.device), sums, torch.zeros_like(sums))
            dist.all_reduce(sums, group=self.group)
        sizes = [x.out_size * x.in_size * x.rest_size for x in (self.layouts[i] for i in chosen)]
        return (sums / sums.new_tensor(sizes)).unbind()
