"""Statistics of tensors of which each process has a slice, from one all-reduce per step.

The new momentum is m' = (1 - w) m + w k g, with a factor k on the gradient g that follows from the mean
squares of all gradients. So the squares of m' over rows and columns follow from those of m and g and from
their products, which are reduced together with the mean squares of g: once, before k is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from nfopt.optim import observations
from nfopt.optim.directions import MomentumRates
from nfopt.optim.moments import StepNumbers
from nfopt.optim.observations import Pooled, Pools
from nfopt.weightspace.incidence import MatrixLayout

QUANTITIES = ("weight", "grad", "slow", "fast", "slow x grad", "fast x grad")
SCALARS = (*QUANTITIES, "slow x fast")


@dataclass(frozen=True)
class Shard:
    """Which slice of a tensor a process has.

    Attributes:
        dim: the dimension that is cut.
        starts: where each rank's slice begins.
        lengths: how long it is; 0 for ranks that have nothing of the tensor.
    """

    dim: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def even(cls, dim: int, size: int, ranks: int) -> "Shard":
        """Return the slices of `torch.chunk`, which are those of DTensor: the last ones may be shorter."""
        step = -(-size // ranks)
        starts = tuple(min(rank * step, size) for rank in range(ranks))
        return cls(dim, starts, tuple(min(step, size - start) for start in starts))


@dataclass(frozen=True)
class ShardedMeasurement:
    """Statistics of one step, the same on every rank.

    Attributes:
        pooled: mean squares and mean products before the step, by QUANTITIES.
        squares: mean squares of the gradients.
        product: mean products of the slow and the fast momentum before the step.
        entry_tensor: position of the tensor that an entry belongs to.
        rates: the momenta's decay rates.
    """

    pooled: dict[str, Pooled]
    squares: Float[Tensor, " tensors"]
    product: Float[Tensor, " tensors"]
    entry_tensor: Tensor
    rates: MomentumRates

    def pools(self, numbers: StepNumbers) -> Pools:
        """Return the statistics of the new momenta, from those before the step."""
        done = numbers.finite.to(self.squares.dtype)
        clean = {key: _where(numbers.finite, pooled) for key, pooled in self.pooled.items()}
        totals = numbers.factor
        entries = totals.index_select(-1, self.entry_tensor)

        def after(key: str, rate: float) -> Pooled:
            weight = (1 - rate) * done
            old, cross, new = self.pooled[key], clean[f"{key} x grad"], clean["grad"]
            return Pooled(
                _squared(old.entries, cross.entries, new.entries, weight, entries),
                _squared(old.totals, cross.totals, new.totals, weight, totals),
            )

        slow, fast = after("slow", self.rates.slow), after("fast", self.rates.fast)
        w_slow, w_fast = (1 - self.rates.slow) * done, (1 - self.rates.fast) * done
        product = (1 - w_slow) * (1 - w_fast) * self.product
        product = product + totals * (
            (1 - w_slow) * w_fast * clean["slow x grad"].totals
            + w_slow * (1 - w_fast) * clean["fast x grad"].totals
        )
        product = product + totals.square() * w_slow * w_fast * clean["grad"].totals
        agreement = observations.cosines(product, fast.totals, slow.totals)
        return Pools(self.pooled["weight"], slow, fast, agreement)


def measure(
    tensors: dict[str, Sequence[Tensor]],
    layouts: Sequence[MatrixLayout],
    shards: Sequence[Shard | None],
    group: dist.ProcessGroup,
    rates: MomentumRates,
) -> ShardedMeasurement:
    """Measure a step with one all-reduce.

    Args:
        tensors: this rank's slices of "weight", "grad", "slow" and "fast", one per layout.
        layouts: layouts of the whole tensors.
        shards: their slices; None: every rank has all of the tensor.
        group: the ranks among which they are sliced.
        rates: the momenta's decay rates.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    entries: list[Tensor] = []
    totals: list[Tensor] = []
    for i, (layout, shard) in enumerate(zip(layouts, shards, strict=True)):
        here = shard is not None or rank == 0
        for key in QUANTITIES:
            first, second = (tensors[name][i] for name in (key.split(" x ") * 2)[:2])
            rows, columns, total = _sums(first * second, layout, shard, rank)
            entries += [rows, columns] if here else [torch.zeros_like(t) for t in (rows, columns)]
            totals.append(total if here else torch.zeros_like(total))
        both = torch.dot(tensors["slow"][i].flatten(), tensors["fast"][i].flatten())
        totals.append(both if here else torch.zeros_like(both))
    packed = torch.cat([*entries, torch.stack(totals)])
    if ranks > 1:
        dist.all_reduce(packed, group=group)
    return _unpack(packed, layouts, rates)


def _sums(
    product: Float[Tensor, "..."], layout: MatrixLayout, shard: Shard | None, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of a slice over rows and columns of the whole tensor, and over everything."""
    dims = len(layout.shape)
    tables = []
    for kept, size in ((layout.out_dims, layout.out_size), (layout.in_dims, layout.in_size)):
        if kept or not tables:
            part = _sum_but(product, kept, dims)
            if shard is not None and shard.dim in kept:
                whole = part.new_zeros([n if d in kept else 1 for d, n in enumerate(layout.shape)])
                whole.narrow(shard.dim, shard.starts[rank], shard.lengths[rank]).copy_(part)
                part = whole
            tables.append(part.reshape(size))
        else:
            tables.append(product.new_zeros(0))
    return tables[0], tables[1], product.sum()


def _sum_but(tensor: Float[Tensor, "..."], kept: tuple[int, ...], dims: int) -> Float[Tensor, "..."]:
    before = [d for d in range(dims) if d < min(kept, default=0)]
    after = [d for d in range(dims) if d not in kept and d not in before]
    for group in (before, after):
        tensor = tensor.sum(dim=group, keepdim=True) if group else tensor
    return tensor


def _unpack(packed: Tensor, layouts: Sequence[MatrixLayout], rates: MomentumRates) -> ShardedMeasurement:
    """Turn the sums over all ranks into means."""
    sides = [(layout.out_size, layout.in_size if layout.in_dims else 0) for layout in layouts]
    sizes = [size for pair in sides for _ in QUANTITIES for size in pair]
    pieces = list(packed[: sum(sizes)].split(sizes))
    numbers = packed.new_tensor([layout.out_size * layout.in_size * layout.rest_size for layout in layouts])
    per_tensor = packed[sum(sizes) :].view(len(layouts), len(SCALARS)) / numbers[:, None]
    lengths = torch.tensor([size for pair in sides for size in pair], device=packed.device)
    entry_tensor = torch.arange(len(layouts), device=packed.device).repeat_interleave(2)
    entry_tensor = entry_tensor.repeat_interleave(lengths)
    # An entry is averaged over all elements of its tensor but for the entries of its side.
    averaged = numbers.repeat_interleave(2) / lengths.clamp(min=1)
    averaged = averaged.repeat_interleave(lengths)
    stride = 2 * len(QUANTITIES)
    pooled = {}
    for q, key in enumerate(QUANTITIES):
        chosen = [pieces[i * stride + 2 * q + side] for i in range(len(layouts)) for side in (0, 1)]
        pooled[key] = Pooled(torch.cat(chosen) / averaged, per_tensor[:, q])
    return ShardedMeasurement(pooled, pooled["grad"].totals, per_tensor[:, -1], entry_tensor, rates)


def _where(finite: Tensor, pooled: Pooled) -> Pooled:
    entries, totals = (torch.where(finite, t, torch.zeros_like(t)) for t in (pooled.entries, pooled.totals))
    return Pooled(entries, totals)


def _squared(old: Tensor, cross: Tensor, new: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Return the mean square of (1 - weight) m + weight * factor * g."""
    gain = weight * factor
    return ((1 - weight).square() * old + 2 * (1 - weight) * gain * cross + gain.square() * new).clamp(min=0)
