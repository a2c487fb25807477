"""Which indices of every tensor remain when some indices of a spec's groups are removed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.symmetry import Atom, Axis, PermutationSpec, Prod, Sum, TensorAxes
from nfopt.symmetry.axes import atoms_of
from nfopt.symmetry.spec import permuted_order

Kept = Mapping[str, Tensor]


def kept_positions(axis: Axis, kept: Kept) -> Tensor | None:
    """Return the positions of an axis that remain, in order; None where all of them do.

    Args:
        axis: an axis of a spec.
        kept: for some groups the sorted indices that remain.
    """
    # A permutation's index tensor that is too short selects: the same reading of products and sums.
    return permuted_order(axis, kept)


def remaining(tensor: Tensor, axes: tuple[Axis, ...], kept: Kept) -> Tensor:
    """Return a copy of `tensor` with the remaining positions along each of its axes."""
    for dim, axis in enumerate(axes):
        positions = kept_positions(axis, kept)
        if positions is not None:
            tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor.clone()


def zeroed(tensor: Tensor, axes: tuple[Axis, ...], kept: Kept) -> Tensor:
    """Return a copy of `tensor` with zeros at every position that does not remain."""
    tensor = tensor.clone()
    for dim, axis in enumerate(axes):
        positions = kept_positions(axis, kept)
        if positions is not None:
            gone = torch.ones(axis.size, dtype=torch.bool)
            gone[positions] = False
            tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    return tensor


def smaller_axis(axis: Axis, kept: Kept) -> Axis:
    """Return the axis with its groups at their new sizes."""
    if isinstance(axis, Atom):
        return Atom(axis.name, len(kept[axis.name])) if axis.name in kept else axis
    if isinstance(axis, Prod):
        return Prod(tuple(smaller_axis(factor, kept) for factor in axis.factors))
    return Sum(tuple(smaller_axis(block, kept) for block in axis.blocks))


def smaller_spec(spec: PermutationSpec, kept: Kept) -> PermutationSpec:
    """Return the spec of the model that remains."""
    tensors = {
        name: TensorAxes(
            tuple(smaller_axis(axis, kept) for axis in entry.axes),
            entry.role,
            entry.dims,
            entry.depth,
            entry.used,
        )
        for name, entry in spec.tensors.items()
    }
    return PermutationSpec(tensors, spec.fixed, spec.aliases, spec.unruled)


def group_index(axis: Axis, group: str) -> Tensor | None:
    """Return for each position of an axis which index of `group` it belongs to, -1 for none.

    None where the axis does not hold the group.
    """
    if all(atom.name != group for atom in atoms_of(axis)):
        return None
    return _group_index(axis, group)


def _group_index(axis: Axis, group: str) -> Tensor:
    if isinstance(axis, Atom):
        return torch.arange(axis.size) if axis.name == group else torch.full((axis.size,), -1)
    if isinstance(axis, Sum):
        return torch.cat([_group_index(block, group) for block in axis.blocks])
    index = torch.full((1,), -1)
    for factor in axis.factors:
        inner = _group_index(factor, group)
        index = torch.where(inner[None, :] >= 0, inner[None, :], index[:, None]).flatten()
    return index
