"""Cutting a tensor along its axis terms into pieces of one atom per dimension, and joining them again."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nfopt.symmetry.axes import Atom, Axis, Prod, Sum


def pieces(axis: Axis, start: float, extent: float) -> list[tuple[tuple[Atom, ...], float]]:
    """Return the atoms of each piece of a cut axis, and where along [start, start + extent] it begins."""
    if isinstance(axis, Atom):
        return [((axis,), start)]
    if isinstance(axis, Sum):
        found, done = [], 0
        for part in axis.blocks:
            share = extent / max(1, axis.size)
            found.extend(pieces(part, start + share * done, share * part.size))
            done += part.size
        return found
    if not axis.factors:
        return [((), start)]
    heads = pieces(axis.factors[0], start, extent)
    # Later cuts begin within the smallest earlier piece, so that no two choices of pieces begin alike.
    inner = extent / max(1, axis.factors[0].size) if len(heads) > 1 else extent
    tail = Prod(axis.factors[1:])
    return [(head + rest, at) for head, begin in heads for rest, at in pieces(tail, begin, inner)]


def cut(tensor: Tensor, at: int, axes: tuple[Axis, ...]) -> Iterator[Tensor]:
    """Yield the blocks of `tensor`, whose dimensions from `at` on are indexed by `axes`."""
    if not axes:
        yield tensor
        return
    axis, rest = axes[0], axes[1:]
    if isinstance(axis, Atom):
        yield from cut(tensor, at + 1, rest)
    elif isinstance(axis, Prod):
        sizes = [factor.size for factor in axis.factors]
        yield from cut(tensor.unflatten(at, sizes) if sizes else tensor.squeeze(at), at, axis.factors + rest)
    else:
        start = 0
        for part in axis.blocks:
            yield from cut(tensor.narrow(at, start, part.size), at, (part, *rest))
            start += part.size


def join(blocks: Iterator[Tensor], axes: tuple[Axis, ...], plain: int = 0) -> Tensor:
    """Take blocks in the order of `cut` and undo it; the first `plain` axes are atoms."""
    if plain == len(axes):
        return next(blocks)
    axis, head, rest = axes[plain], axes[:plain], axes[plain + 1 :]
    if isinstance(axis, Atom):
        return join(blocks, axes, plain + 1)
    at = plain - len(axes) - 1  # counted from the end, where the channels are
    if isinstance(axis, Prod):
        opened = join(blocks, head + axis.factors + rest, plain)
        count = len(axis.factors)
        return opened.flatten(at - count + 1, at) if count else opened.unsqueeze(at)
    return torch.cat([join(blocks, (*head, part, *rest), plain) for part in axis.blocks], dim=at)
