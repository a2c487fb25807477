"""A spec as rows for people: its groups, and what is fixed for which reason."""

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from nfopt.symmetry.axes import atoms_of
from nfopt.symmetry.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of interchangeable indices.

    Attributes:
        name: name of the group.
        size: number of indices.
        tensors: number of distinct tensors that carry it.
        occurrences: number of axes that carry it, repetitions in one axis included.
        places: the first few of them as "tensor[dimension]".
    """

    name: str
    size: int
    tensors: int
    occurrences: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FixedRow:
    """One reason for which axes are fixed.

    Attributes:
        reason: the reason, without the place.
        axes: number of tensor axes in which something is fixed for it.
        parameters: elements of the tensors that this leaves without any permutable axis.
        places: the first few axes as "tensor[dimension]".
    """

    reason: str
    axes: int
    parameters: int
    places: tuple[str, ...]


def group_rows(spec: PermutationSpec, *, examples: int = 3) -> list[GroupRow]:
    """Return a row for every group, in the spec's order, with up to `examples` places each."""
    rows = []
    for name, atom in spec.groups.items():
        places = spec.occurrences[name]
        rows.append(
            GroupRow(
                name=name,
                size=atom.size,
                tensors=len({tensor for tensor, _ in places}),
                occurrences=len(places),
                places=tuple(f"{tensor}[{dim}]" for tensor, dim in list(dict.fromkeys(places))[:examples]),
            )
        )
    return rows


def fixed_rows(spec: PermutationSpec, *, examples: int = 3) -> list[FixedRow]:
    """Return a row for every reason for which axes are fixed, the most frequent first."""
    axes: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for name, entry in spec.tensors.items():
        reasons_here: set[str] = set()
        for dim, axis in enumerate(entry.axes):
            reasons = {_general(spec.fixed[atom.name]) for atom in atoms_of(axis) if atom.name in spec.fixed}
            for reason in reasons:
                axes[reason] += 1
                places.setdefault(reason, []).append(f"{name}[{dim}]")
            reasons_here |= reasons
        covered = any(atom.name in spec.groups for axis in entry.axes for atom in atoms_of(axis))
        if entry.role != "statistic" and not covered:
            for reason in reasons_here:
                parameters[reason] += prod(entry.shape)
    return [
        FixedRow(reason, count, parameters[reason], tuple(places[reason][:examples]))
        for reason, count in sorted(axes.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _general(reason: str) -> str:
    """Return a reason without its place, save for operations without a rule, whose place is the news."""
    if reason.startswith("no rule"):
        return reason
    return re.sub(r" \([^()]*\)$", "", reason)
