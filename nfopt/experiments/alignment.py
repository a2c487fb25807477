"""Alignment: renumber every net's neurons so that its weights come near to those of a reference net."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import Block, block_plan

SWEEPS = 20
_NETS = 512


@dataclass(frozen=True)
class Aligned:
    """Nets that were renumbered, and how.

    Attributes:
        tensors: by name, [nets, *shape]; each net computes what it did.
        orders: for each group [nets, size]: neuron `orders[g][n, i]` of net n is at position i now.
    """

    tensors: dict[str, Float[Tensor, "nets ..."]]
    orders: dict[str, Int[Tensor, "nets size"]]


def align(
    spec: PermutationSpec,
    tensors: Mapping[str, Float[Tensor, "nets ..."]],
    reference: Mapping[str, Float[Tensor, "..."]],
    *,
    sweeps: int = SWEEPS,
    progress: ProgressCallback = silent,
) -> Aligned:
    """Renumber the neurons of each net to maximise its inner product with a reference net.

    With blocks V_b of the reference and W_b of a net, each divided by the root mean square of V_b, so that
    no layer outweighs another, the sum over blocks of <V_b, P W_b> is maximised over the permutations P of
    the spec's groups: group after group by a linear assignment with the others held, until nothing changes
    (weight matching, Ainsworth et al. 2022, arXiv 2209.04836, algorithm 1; there layers are not rescaled). A
    local maximum. Where a group indexes one tensor twice the assignment is a linearisation, and is kept only
    if the sum grows.

    Args:
        spec: the permutation spec; every kind of axis term is known.
        tensors: the nets by name, [nets, *shape].
        reference: the reference net by name, [*shape].
        sweeps: the most times that each group is gone through.
        progress: hears of every few hundred nets.

    Raises:
        PermutationSpecError: the tensors, or those of the reference, are not the spec's.
    """
    plan = block_plan(spec)
    goal = [values[..., 0] for values in plan.to_blocks(reference)]
    goal = [values / values.square().mean().clamp(min=1e-30) for values in goal]
    blocks = [values[..., 0] for values in plan.to_blocks(tensors)]
    count = len(blocks[0])
    groups = {name: atom.size for name, atom in spec.groups.items() if name in plan.atoms}
    pieces: list[list[Tensor]] = []
    orders: dict[str, list[Tensor]] = {name: [] for name in groups}
    for start in range(0, count, _NETS):
        matching = _Matching(plan.blocks, goal, [b[start : start + _NETS] for b in blocks], groups)
        matching.run(sweeps)
        pieces.append(matching.blocks)
        for name in groups:
            orders[name].append(matching.orders[name])
        progress(Progress("align nets", min(start + _NETS, count), count))
    joined = [torch.cat(parts)[..., None] for parts in zip(*pieces, strict=True)]
    return Aligned(plan.from_blocks(joined), {name: torch.cat(parts) for name, parts in orders.items()})


class _Matching:
    """Coordinate ascent over the groups, for some nets at once."""

    def __init__(
        self,
        places: tuple[Block, ...],
        goal: list[Tensor],
        blocks: list[Tensor],
        groups: Mapping[str, int],
    ) -> None:
        self.places, self.goal, self.blocks, self.groups = places, goal, list(blocks), groups
        nets, device = len(blocks[0]), blocks[0].device
        self.orders = {n: torch.arange(size, device=device).repeat(nets, 1) for n, size in groups.items()}

    def run(self, sweeps: int) -> None:
        active = torch.arange(len(self.blocks[0]), device=self.blocks[0].device)
        for _ in range(sweeps):
            changed = torch.zeros(len(active), dtype=torch.bool, device=active.device)
            for group in self.groups:
                changed |= self._match(group, active)
            active = active[changed]
            if not len(active):
                return

    def _match(self, group: str, nets: Tensor) -> Tensor:
        """Renumber one group of the given nets; return which of them changed."""
        gain = self._gain(group, nets)
        solved = [linear_sum_assignment(each, maximize=True)[1] for each in gain.double().cpu().numpy()]
        order = torch.stack([torch.from_numpy(columns) for columns in solved]).to(nets.device)
        # Rounding must not make equal assignments alternate for ever.
        before = gain.diagonal(dim1=1, dim2=2).sum(1)
        after = gain.gather(2, order[..., None]).sum((1, 2))
        better = after > before + 1e-6 * gain.abs().amax((1, 2))
        if self._occurs_twice(group):
            better &= self._value(nets, group, order) > self._value(nets, group, None)
        chosen = nets[better]
        for b in range(len(self.blocks)):
            self.blocks[b] = self.blocks[b].clone()
            self.blocks[b][chosen] = self._renumbered(b, group, chosen, order[better])
        self.orders[group][chosen] = self.orders[group][chosen].gather(1, order[better])
        return better

    def _gain(self, group: str, nets: Tensor) -> Tensor:
        """Return for each net [i, j]: what neuron j adds to the inner product at the place of neuron i."""
        size = self.groups[group]
        gain = self.blocks[0].new_zeros(len(nets), size, size)
        for place, goal, values in zip(self.places, self.goal, self.blocks, strict=True):
            for d, dim in enumerate(place.dims):
                if dim.atom == group:
                    rows = (
                        values[nets].movedim(d + 1, 1).flatten(2)
                        if values.ndim > 2
                        else values[nets][..., None]
                    )
                    gain += goal.movedim(d, 0).reshape(size, -1) @ rows.mT
        return gain

    def _occurs_twice(self, group: str) -> bool:
        return any(sum(dim.atom == group for dim in place.dims) > 1 for place in self.places)

    def _value(self, nets: Tensor, group: str, order: Tensor | None) -> Tensor:
        total = self.blocks[0].new_zeros(len(nets))
        for b, goal in enumerate(self.goal):
            values = self.blocks[b][nets]
            if order is not None:
                values = self._renumbered(b, group, nets, order)
            total = total + (values * goal).reshape(len(nets), -1).sum(1)
        return total

    def _renumbered(self, b: int, group: str, nets: Tensor, order: Tensor) -> Tensor:
        values = self.blocks[b][nets]
        for d, dim in enumerate(self.places[b].dims):
            if dim.atom == group:
                shape = [len(nets), *[1] * (values.ndim - 1)]
                shape[d + 1] = dim.size
                values = torch.take_along_dim(values, order.view(shape), d + 1)
        return values
