"""The basis of every linear map that follows a layout's permutations: readings and writings.

A map from block m to block l that follows the permutations is constant on the orbits of index pairs (Maron et
al. 2019, "Invariant and Equivariant Graph Networks"; for several groups Zhou et al. 2024, "Universal Neural
Functionals"). An orbit basis element is a partition of the positions of m and l together, each part within
one atom: a part shared by both is kept, one of m alone is averaged over, one of l alone is constant; a part
with two positions on one side is a diagonal there.

The basis factorises: each element reads m at some resolution (a list of kept atoms), in one of the ways to
read it there, and writes l from the same resolution. Over all blocks, all readings of one resolution times
all its writings are a basis of what passes through it: one dense matrix per resolution.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import prod
from typing import TypeAlias

from nfopt.nn.layout import WeightLayout

Group: TypeAlias = tuple[int, ...]
"""Positions among a layout block's kept dimensions, all of one atom: together a diagonal."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to reduce a block to a resolution.

    Attributes:
        block: position of the block in the layout.
        kept: the group of each dimension of the resolution.
        averaged: the groups that are averaged over.
    """

    block: int
    kept: tuple[Group, ...]
    averaged: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Writing:
    """One way to expand a resolution to a block.

    Attributes:
        block: position of the block in the layout.
        kept: the group that each dimension of the resolution is written to.
        constant: the groups along which the result is constant (on their diagonal; zero off it).
    """

    block: int
    kept: tuple[Group, ...]
    constant: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Resolution:
    """All basis elements that keep the same atoms.

    Attributes:
        atoms: the atoms of its dimensions, in the layout's order, a repeated one several times.
        readings: the ways to read it.
        writings: the ways to write from it.
        allowed: [readings][writings] whether the pair is a basis element of its own: an atom of n indices
            cannot hold more than n different parts, so small atoms have fewer.
    """

    atoms: tuple[str, ...]
    readings: tuple[Reading, ...]
    writings: tuple[Writing, ...]
    allowed: tuple[tuple[bool, ...], ...]


def set_partitions(items: Sequence[int]) -> Iterator[tuple[Group, ...]]:
    """Yield every partition of `items` into groups, ordered by their first items."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = [item for item in rest if item not in others]
            for groups in set_partitions(left):
                yield ((first, *others), *groups)


def groupings(atoms: Sequence[str]) -> list[tuple[Group, ...]]:
    """Return every partition of positions into groups of one atom each, ordered by their first positions."""
    by_atom = [[i for i, a in enumerate(atoms) if a == atom] for atom in dict.fromkeys(atoms)]
    choices = product(*(list(set_partitions(positions)) for positions in by_atom))
    return [tuple(sorted(group for groups in choice for group in groups)) for choice in choices]


def resolutions(layout: WeightLayout) -> tuple[Resolution, ...]:
    """Return the basis of the linear maps of a layout onto itself by resolution, coarsest first."""
    rank = {atom: i for i, atom in enumerate(layout.sizes)}
    readings: dict[tuple[str, ...], list[Reading]] = {(): []}
    writings: dict[tuple[str, ...], list[Writing]] = {(): []}
    for b, block in enumerate(layout.blocks):
        for groups in groupings(block.atoms):
            for count in range(len(groups) + 1):
                for chosen in combinations(groups, count):
                    rest = tuple(group for group in groups if group not in chosen)
                    slots = sorted(chosen, key=lambda g: (rank[block.atoms[g[0]]], g))
                    key = tuple(block.atoms[group[0]] for group in slots)
                    writings.setdefault(key, []).append(Writing(b, tuple(slots), rest))
                    for order in permutations(slots):
                        # Two dimensions of one atom can be matched with the output's in either order.
                        if tuple(block.atoms[group[0]] for group in order) == key:
                            readings.setdefault(key, []).append(Reading(b, order, rest))
    found = []
    for key in sorted(readings, key=lambda atoms: (len(atoms), [rank[a] for a in atoms])):
        allowed = tuple(
            tuple(_fits(layout, key, reading, writing) for writing in writings[key])
            for reading in readings[key]
        )
        found.append(Resolution(key, tuple(readings[key]), tuple(writings[key]), allowed))
    return tuple(found)


def parts_fit(layout: WeightLayout, atoms: Sequence[str]) -> bool:
    """Return whether parts of these atoms can all differ: no atom has fewer indices than parts."""
    return all(count <= layout.sizes[atom] for atom, count in Counter(atoms).items())


def _fits(layout: WeightLayout, key: tuple[str, ...], reading: Reading, writing: Writing) -> bool:
    inside, outside = layout.blocks[reading.block].atoms, layout.blocks[writing.block].atoms
    alone = [inside[g[0]] for g in reading.averaged] + [outside[g[0]] for g in writing.constant]
    return parts_fit(layout, [*key, *alone])


def orbit_count(layout: WeightLayout, *, affine: bool = True) -> int:
    """Return the dimension of the space of linear (or affine) maps that follow a layout's permutations.

    For one channel in and out: the sum over pairs of blocks of both multiplicities times, over atoms, the
    number of partitions of the atom's p positions into at most n parts, n its size (Bell(p) if n >= p).
    With `affine` the orbits of the outputs alone, the biases, are added.
    """
    blocks = layout.blocks
    pairs = sum(
        m.multiplicity * out.multiplicity * _partition_count(layout, m.atoms + out.atoms)
        for m in blocks
        for out in blocks
    )
    biases = sum(b.multiplicity * _partition_count(layout, b.atoms) for b in blocks)
    return pairs + biases if affine else pairs


def _partition_count(layout: WeightLayout, atoms: Sequence[str]) -> int:
    counts = Counter(atoms).items()
    return prod(sum(_stirling(p, k) for k in range(1, min(p, layout.sizes[a]) + 1)) for a, p in counts)


def _stirling(items: int, parts: int) -> int:
    """Return the number of partitions of `items` items into `parts` non-empty parts."""
    if items == parts:
        return 1
    if parts == 0 or parts > items:
        return 0
    return parts * _stirling(items - 1, parts) + _stirling(items - 1, parts - 1)
