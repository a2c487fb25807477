"""Axis terms: how one tensor axis is composed of atoms, the indivisible sets of interchangeable indices."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from nfopt.errors import PermutationSpecError


@dataclass(frozen=True, slots=True)
class Atom:
    """One indivisible index set, such as the neurons of a hidden layer.

    Every axis that holds the atom is permuted together with every other.
    """

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name}:{self.size}"


@dataclass(frozen=True, slots=True)
class Prod:
    """A row-major product of axes: `Prod((C, H, W))` is a flattened C x H x W; the empty one has size 1."""

    factors: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of indices: the product of the factors' sizes."""
        return prod(factor.size for factor in self.factors)

    def __str__(self) -> str:
        return " x ".join(f"({f})" if isinstance(f, Sum) else str(f) for f in self.factors) or "1"


@dataclass(frozen=True, slots=True)
class Sum:
    """A concatenation of axes: `Sum((A, B))` is A's indices followed by B's."""

    blocks: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of indices: the sum of the blocks' sizes."""
        return sum(block.size for block in self.blocks)

    def __str__(self) -> str:
        return " + ".join(str(block) for block in self.blocks)


Axis: TypeAlias = Atom | Prod | Sum
UNIT = Prod(())


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """Yield the atoms of `axis` from left to right, repetitions included."""
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.factors if isinstance(axis, Prod) else axis.blocks:
        yield from atoms_of(part)


def product(*axes: Axis) -> Axis:
    """Return the row-major product in normal form: flat, without factors of size 1, never of one factor."""
    factors: list[Axis] = []
    for axis in axes:
        if isinstance(axis, Prod):
            factors.extend(axis.factors)
        elif axis.size != 1:
            factors.append(axis)
    return factors[0] if len(factors) == 1 else Prod(tuple(factors))


def concat(*axes: Axis) -> Axis:
    """Return the concatenation in normal form: flat, without empty blocks, never of one block."""
    blocks: list[Axis] = []
    for axis in axes:
        if isinstance(axis, Sum):
            blocks.extend(axis.blocks)
        elif axis.size != 0:
            blocks.append(axis)
    return blocks[0] if len(blocks) == 1 else Sum(tuple(blocks))


def to_json(axis: Axis) -> Any:
    """Return `axis` as JSON values: an atom is its name, a product {"prod": [...]}, a sum {"sum": [...]}."""
    if isinstance(axis, Atom):
        return axis.name
    if isinstance(axis, Prod):
        return {"prod": [to_json(factor) for factor in axis.factors]}
    return {"sum": [to_json(block) for block in axis.blocks]}


def from_json(data: Any, sizes: dict[str, int]) -> Axis:
    """Rebuild an axis from `to_json`, with the atoms' sizes by name.

    Raises:
        PermutationSpecError: the data names an unknown atom or has another form.
    """
    match data:
        case str() if data in sizes:
            return Atom(data, sizes[data])
        case str():
            raise PermutationSpecError(f"axis names the atom {data!r}, which the spec does not define.")
        case {"prod": list(parts), **rest} if not rest:
            return Prod(tuple(from_json(part, sizes) for part in parts))
        case {"sum": list(parts), **rest} if not rest:
            return Sum(tuple(from_json(part, sizes) for part in parts))
        case _:
            raise PermutationSpecError(
                f'an axis is an atom\'s name, {{"prod": [...]}} or {{"sum": [...]}}, not {data!r}.'
            )
