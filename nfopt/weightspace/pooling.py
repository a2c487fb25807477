"""Maps between a block and some of its atoms: means over the others, the diagonal, and back.

These are the elements of every equivariant linear map: an index shared by input and output is kept, one of
the input alone is averaged over, one of the output alone is repeated, and an atom that occurs twice can
also be read, or written, along its diagonal.
"""

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.weightspace.blocks import Block, BlockPlan, check_values

Keep: TypeAlias = Sequence[int | tuple[int, ...]]
"""Positions of a block's dimensions; a tuple of positions of one atom stands for their common diagonal."""


def pool(values: Shaped[Tensor, "..."], block: Block, keep: Keep) -> Shaped[Tensor, "..."]:
    """Return the means of a block over all its dimensions but some.

    Args:
        values: [*batch, n_1, ..., n_d, channels].
        block: the block that they belong to.
        keep: the positions to keep, in the order of the result.

    Returns:
        [*batch, size of each kept position, channels].

    Raises:
        PermutationSpecError: a position is out of range or named twice, a diagonal is of different atoms,
            or `values` is not of the block.
    """
    groups = _groups(block, keep)
    letters = [chr(ord("a") + i) for i in range(len(block.dims))]
    for group in groups:
        for position in group:
            letters[position] = letters[group[0]]
    kept = "".join(letters[group[0]] for group in groups)
    check_values(values, block, block.shape)
    total = torch.einsum(f"...{''.join(letters)}Z->...{kept}Z", values)
    kept_positions = {position for group in groups for position in group}
    count = prod(dim.size for i, dim in enumerate(block.dims) if i not in kept_positions)
    return total / count if count > 1 else total


def pooled_moments(
    values: Shaped[Tensor, "..."], block: Block, keeps: Sequence[tuple[int, ...]]
) -> list[tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."]]]:
    """Return the means and root mean squares of a block at several resolutions, in few passes over it.

    Args:
        values: [*batch, n_1, ..., n_d, channels].
        block: the block that they belong to.
        keeps: for each resolution the positions to keep, ascending.

    Returns:
        For each resolution (mean, root mean square), each [*batch, size of each kept position, channels].

    Raises:
        PermutationSpecError: as in `pool`.
    """
    check_values(values, block, block.shape)
    whole = tuple(range(len(block.dims)))
    found = {whole: (values, values.square())}
    for keep in sorted(set(keeps), key=len, reverse=True):
        _groups(block, keep)
        if keep == whole:
            continue
        # The smallest table that still has the dimensions: rows and columns of a convolution come from
        # its kernel means, not from another pass over all weights.
        source = min(
            (known for known in found if set(keep) <= set(known)),
            key=lambda known: prod(block.dims[p].size for p in known),
        )
        dims = tuple(i - len(source) - 1 for i, position in enumerate(source) if position not in keep)
        count = max(1, prod(block.dims[position].size for position in source if position not in keep))
        mean, square = found[source]
        found[keep] = mean.sum(dims) / count, square.sum(dims) / count
    return [(mean, _root(square)) for mean, square in (found[keep] for keep in keeps)]


def broadcast_back(values: Shaped[Tensor, "..."], block: Block, keep: Keep) -> Shaped[Tensor, "..."]:
    """Return values of some of a block's dimensions in a form that broadcasts over the block.

    A diagonal is written into zeros; other dimensions come back with size 1, to be added without a copy.

    Args:
        values: [*batch, size of each position of `keep`, channels].
        block: the block.
        keep: positions as in `pool`.

    Returns:
        [*batch, n_i or 1 for each dimension, channels].

    Raises:
        PermutationSpecError: as in `pool`.
    """
    groups = _groups(block, keep)
    check_values(values, block, tuple(block.dims[group[0]].size for group in groups))
    ndim = len(block.dims)
    batch = values.ndim - 1 - len(groups)
    order = sorted(range(len(groups)), key=lambda i: groups[i][0])
    result = values.permute(*range(batch), *(batch + i for i in order), values.ndim - 1)
    first = {group[0] for group in groups}
    for position in range(ndim):
        if position not in first:
            result = result.unsqueeze(batch + position)
    for group in groups:
        for position in group[1:]:
            size = block.dims[position].size
            eye = torch.eye(size, dtype=torch.bool, device=values.device)
            shape = [1] * (ndim + 1)
            shape[group[0]] = shape[position] = size
            result = torch.where(eye.view(shape), result, result.new_zeros(()))
    return result


def scatter_to_atom(
    values: Sequence[Shaped[Tensor, "..."]], plan: BlockPlan, atom: str
) -> Shaped[Tensor, "*batch size channels"]:
    """Return one row per index of `atom`: the mean over all its occurrences of their pooled values.

    Args:
        values: one tensor [*batch, n_1, ..., n_d, channels] per block of the plan, of equally many channels.
        plan: the block plan.
        atom: name of an atom of the plan.

    Raises:
        PermutationSpecError: the plan has no such atom, or `values` do not fit it.
    """
    if atom not in plan.occurrences:
        raise PermutationSpecError(f"the plan has no atom {atom!r}; it has {list(plan.atoms)[:5]} and so on.")
    tables = [pool(values[b], plan.blocks[b], (d,)) for b, d in plan.occurrences[atom]]
    return torch.stack(tables).mean(0)


def _root(square: Tensor) -> Tensor:
    """Return the square root, with a gradient of zero at zero instead of infinity."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def _groups(block: Block, keep: Keep) -> list[tuple[int, ...]]:
    groups = [(entry,) if isinstance(entry, int) else tuple(entry) for entry in keep]
    named = [position for group in groups for position in group]
    if len(set(named)) != len(named) or any(not 0 <= p < len(block.dims) for p in named) or () in groups:
        raise PermutationSpecError(
            f"positions {list(keep)} do not fit block {block}: each of its dimensions "
            f"0 .. {len(block.dims) - 1} can be named once."
        )
    for group in groups:
        if len({block.dims[position].atom for position in group}) > 1:
            raise PermutationSpecError(
                f"positions {group} of block {block} hold different atoms: they have no diagonal."
            )
    return groups
