"""Views of nets: renumbered neurons, noise and masks, drawn anew for every net."""

from collections.abc import Callable

import torch
from torch import Tensor

from nfopt.experiments.question import Tensors
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import block_plan

View = Callable[[Tensors, torch.Generator], Tensors]


def renumbered(spec: PermutationSpec) -> View:
    """Return the view of nets whose neurons are renumbered, each net's by a permutation of its own."""
    plan = block_plan(spec)

    def view(tensors: Tensors, draws: torch.Generator) -> Tensors:
        blocks = plan.to_blocks(tensors)
        nets, device = len(blocks[0]), blocks[0].device
        for name, atom in spec.groups.items():
            order = torch.rand(nets, atom.size, generator=draws).argsort(1).to(device)
            for b, block in enumerate(plan.blocks):
                for d, dim in enumerate(block.dims):
                    if dim.atom == name:
                        shape = [nets, *[1] * (blocks[b].ndim - 1)]
                        shape[d + 1] = atom.size
                        blocks[b] = torch.take_along_dim(blocks[b], order.view(shape), d + 1)
        return plan.from_blocks(blocks)

    return view


def noisy_and_masked(noise: float, mask: float) -> View:
    """Return the view of nets with normal noise of a share of each tensor's spread, and a share of zeros."""

    def view(tensors: Tensors, draws: torch.Generator) -> Tensors:
        return {name: _blurred(tensor, noise, mask, draws) for name, tensor in tensors.items()}

    return view


def _blurred(tensor: Tensor, noise: float, mask: float, draws: torch.Generator) -> Tensor:
    scale = noise * tensor.std()
    drawn = torch.randn(tensor.shape, generator=draws).to(tensor)
    kept = (torch.rand(tensor.shape, generator=draws) >= mask).to(tensor)
    return (tensor + scale * drawn) * kept
