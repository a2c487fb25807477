"""Exchange: each matrix is made whole on one rank, orthogonalised there, and handed back in slices.

Two collectives per step, whatever the number of matrices: slices to the owners, and directions back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapreplace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.sharded_statistics import Shard
from nfopt.weightspace.incidence import MatrixLayout


def share_out(costs: Sequence[float], ranks: int) -> tuple[int, ...]:
    """Return a rank for every piece of work, so that the largest load is small (Graham 1969, LPT).

    The largest load is at most 4/3 of the least possible. Every rank comes to the same answer.

    Args:
        costs: of the pieces of work.
        ranks: number of ranks.
    """
    loads = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, owners[i] = loads[0]
        heapreplace(loads, (load + costs[i], owners[i]))
    return tuple(owners)


def orthogonalisation_cost(layout: MatrixLayout) -> float:
    """Return what orthogonalising a tensor costs, up to a constant: high x low^2 multiplications."""
    low, high = sorted((layout.out_size, layout.in_size * layout.rest_size))
    return float(low) ** 2 * high


@dataclass(frozen=True, eq=False)
class Exchange:
    """Who works on which matrix, and who has which slice of it.

    Attributes:
        layouts: layouts of the matrices.
        shards: their slices; None: every rank has all of the matrix.
        owners: the rank that works on each.
        group: the ranks.
    """

    layouts: tuple[MatrixLayout, ...]
    shards: tuple[Shard | None, ...]
    owners: tuple[int, ...]
    group: dist.ProcessGroup

    def map(
        self,
        slices: Sequence[Float[Tensor, "..."]],
        work: Callable[[list[Tensor], list[MatrixLayout]], list[Tensor]],
    ) -> list[Float[Tensor, "..."]]:
        """Return this rank's slices of what `work` makes of the whole tensors.

        Args:
            slices: what this rank has of each matrix.
            work: from whole tensors and their layouts to tensors of the same shapes.
        """
        mine = self._owned[dist.get_rank(self.group)]
        whole = self._gather(slices, mine)
        done = dict(zip(mine, work(whole, [self.layouts[i] for i in mine]), strict=True)) if mine else {}
        return self._scatter(slices, done)

    @cached_property
    def _owned(self) -> list[list[int]]:
        """For each rank the matrices that it works on."""
        owned: list[list[int]] = [[] for _ in range(dist.get_world_size(self.group))]
        for i, owner in enumerate(self.owners):
            owned[owner].append(i)
        return owned

    def _gather(self, slices: Sequence[Tensor], mine: list[int]) -> list[Tensor]:
        """Send slices to the owners, and return the whole tensors of those that are mine."""
        if all(shard is None for shard in self.shards):
            return [slices[i] for i in mine]
        cut = [[i for i in owned if self.shards[i] is not None] for owned in self._owned]
        wanted = cut[dist.get_rank(self.group)]
        sizes = [[self._numel(i, source) for i in wanted] for source in range(len(cut))]
        out = [[slices[i].flatten() for i in owned] for owned in cut]
        received = self._all_to_all(out, sizes, slices[0])
        whole = {i: slices[i] for i in mine}
        for place, i in enumerate(wanted):
            parts = [pieces[place].view(self._shape(i, r)) for r, pieces in enumerate(received)]
            shard = self.shards[i]
            assert shard is not None
            whole[i] = torch.cat(parts, dim=shard.dim)
        return list(whole.values())

    def _scatter(self, slices: Sequence[Tensor], done: dict[int, Tensor]) -> list[Tensor]:
        """Send the slices of what is done, and return the slices that came."""
        rank, ranks = dist.get_rank(self.group), range(dist.get_world_size(self.group))
        out = [[self._cut(i, whole, target).reshape(-1) for i, whole in done.items()] for target in ranks]
        sizes = [[self._numel(i, rank) for i in owned] for owned in self._owned]
        received = self._all_to_all(out, sizes, slices[0])
        found: dict[int, Tensor] = {}
        for owned, pieces in zip(self._owned, received, strict=True):
            found |= {i: t.view(self._shape(i, rank)) for i, t in zip(owned, pieces, strict=True)}
        return [found[i] for i in range(len(self.owners))]

    def _all_to_all(
        self, out: list[list[Tensor]], sizes: list[list[int]], like: Tensor
    ) -> list[list[Tensor]]:
        """Send a list of flat tensors to each rank, and return those that came, of the given sizes."""
        packed = torch.cat([piece for pieces in out for piece in pieces] or [like.new_zeros(0)])
        sent = [sum(piece.numel() for piece in pieces) for pieces in out]
        coming = [sum(counts) for counts in sizes]
        received = like.new_empty(sum(coming))
        dist.all_to_all_single(received, packed, coming, sent, group=self.group)
        return [
            list(part.split(counts)) if counts else []
            for part, counts in zip(received.split(coming), sizes, strict=True)
        ]

    def _shape(self, i: int, rank: int) -> tuple[int, ...]:
        shard, shape = self.shards[i], self.layouts[i].shape
        if shard is None:
            return shape
        return (*shape[: shard.dim], shard.lengths[rank], *shape[shard.dim + 1 :])

    def _numel(self, i: int, rank: int) -> int:
        return torch.Size(self._shape(i, rank)).numel()

    def _cut(self, i: int, whole: Tensor, rank: int) -> Tensor:
        shard = self.shards[i]
        return whole if shard is None else whole.narrow(shard.dim, shard.starts[rank], shard.lengths[rank])
