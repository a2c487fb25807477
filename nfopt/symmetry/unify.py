"""Unification of axis terms: tie, split and fix index sets while a forward pass is being read.

A term is a row-major product of factors, each a `Var` (an index set not yet known to be composite) or a
`Cat` (a concatenation of terms). Equating two terms ties or refines their variables, so that one
permutation of every remaining variable permutes both sides alike. Where the boundaries of two terms are
incompatible, both sides are fixed, which is always sound.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TypeAlias


@dataclass(eq=False, slots=True)
class Var:
    """An index set of `size` > 1; `target` is what it turned out to be, `reason` why it is fixed."""

    size: int
    number: int
    target: "Term | None" = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Cat:
    """A concatenation of at least two terms."""

    blocks: "tuple[Term, ...]"

    @property
    def size(self) -> int:
        """Number of indices."""
        return sum(size_of(block) for block in self.blocks)


Factor: TypeAlias = Var | Cat
Term: TypeAlias = tuple[Factor, ...]


def size_of(term: Term) -> int:
    """Return the number of indices of `term`."""
    return prod(factor.size for factor in term)


def vars_of(term: Term) -> Iterator[Var]:
    """Yield the variables of a resolved `term` from left to right."""
    for factor in term:
        if isinstance(factor, Var):
            yield factor
        else:
            for block in factor.blocks:
                yield from vars_of(block)


def concat_terms(terms: "list[Term] | tuple[Term, ...]") -> Term:
    """Return the concatenation of `terms`: flat, without empty blocks."""
    blocks: list[Term] = []
    for term in terms:
        if len(term) == 1 and isinstance(term[0], Cat):
            blocks.extend(term[0].blocks)
        elif size_of(term) > 0:
            blocks.append(term)
    if len(blocks) == 1:
        return blocks[0]
    return (Cat(tuple(blocks)),)


class Unifier:
    """The mutable state of one trace: makes variables and equates terms over them."""

    def __init__(self) -> None:
        self._count = 0

    def fresh(self, size: int, reason: str | None = None) -> Term:
        """Return a new index set; fixed from the start when a `reason` is given."""
        if size == 1:
            return ()
        self._count += 1
        return (Var(size, self._count, reason=reason),)

    def resolve(self, term: Term) -> Term:
        """Return `term` with every variable replaced by what it turned out to be."""
        factors: list[Factor] = []
        for factor in term:
            if isinstance(factor, Var):
                if factor.target is None:
                    factors.append(factor)
                else:
                    factor.target = self.resolve(factor.target)
                    factors.extend(factor.target)
            else:
                factors.extend(concat_terms([self.resolve(block) for block in factor.blocks]))
        return tuple(factors)

    def fix(self, term: Term, reason: str) -> None:
        """Mark every variable of `term` as one that must not be permuted; the first reason stays."""
        for var in vars_of(self.resolve(term)):
            var.reason = var.reason or reason

    def fixed_reason(self, term: Term) -> str | None:
        """Return a reason when all of `term` is fixed, else None; a term of size 1 counts as not fixed."""
        reasons = [var.reason for var in vars_of(self.resolve(term))]
        return reasons[0] if reasons and all(reasons) else None

    def split(self, term: Term, sizes: "list[int] | tuple[int, ...]") -> list[Term]:
        """Cut `term` into consecutive blocks of the given sizes."""
        if len(sizes) == 1:
            return [self.resolve(term)]
        blocks = [self.fresh(size) for size in sizes]
        self.unify(term, concat_terms(blocks))
        return [self.resolve(block) for block in blocks]

    def factor(self, term: Term, sizes: "list[int] | tuple[int, ...]") -> list[Term]:
        """Factor `term` into a row-major product of the given sizes."""
        factors = [self.fresh(size) for size in sizes]
        self.unify(term, tuple(f for factor in factors for f in factor))
        return [self.resolve(factor) for factor in factors]

    def unify(self, a: Term, b: Term) -> None:
        """Equate two terms of one size."""
        a, b = self.resolve(a), self.resolve(b)
        assert size_of(a) == size_of(b), f"terms of sizes {size_of(a)} and {size_of(b)} equated"
        if a == b or size_of(a) <= 1:
            return
        for one, other in ((a, b), (b, a)):
            reason = self.fixed_reason(one)
            if reason is not None:
                self.fix(other, reason)
                return
        match a, b:
            case ((Var() as var,), _):
                self._bind(var, b)
            case (_, (Var() as var,)):
                self._bind(var, a)
            case ((Cat() as left,), (Cat() as right,)):
                self._unify_sums(left, right)
            case ((Cat() as left,), _):
                self._unify_sum_with_product(left, b)
            case (_, (Cat() as right,)):
                self._unify_sum_with_product(right, a)
            case _:
                self._unify_products(a, b)

    def _bind(self, var: Var, term: Term) -> None:
        # The older variable survives, so that names and reasons do not depend on argument order.
        if len(term) == 1 and isinstance(term[0], Var) and term[0].number > var.number:
            var, term = term[0], (var,)
        var.target = term
        if var.reason is not None:
            self.fix(term, var.reason)

    def _unify_sums(self, a: Cat, b: Cat) -> None:
        bounds = sorted(set(_bounds(a)) | set(_bounds(b)))
        for left, right in zip(self._cut(a, bounds), self._cut(b, bounds), strict=True):
            self.unify(left, right)

    def _cut(self, cat: Cat, bounds: list[int]) -> list[Term]:
        pieces: list[Term] = []
        start = 0
        for block in cat.blocks:
            end = start + size_of(block)
            inner = [bound for bound in bounds if start < bound <= end]
            sizes = [high - low for low, high in zip([start, *inner], inner, strict=False)]
            pieces.extend(self.split(block, sizes))
            start = end
        return pieces

    def _unify_sum_with_product(self, cat: Cat, product: Term) -> None:
        """Solve `Sum(X_i) = A x B` as `X_i = M_i x B`, `A = Sum(M_i)`, for the longest B that divides all."""
        for lead in range(1, len(product)):
            rest = product[lead:]
            if all(size_of(block) % size_of(rest) == 0 for block in cat.blocks):
                parts = [self.fresh(size_of(block) // size_of(rest)) for block in cat.blocks]
                for block, part in zip(cat.blocks, parts, strict=True):
                    self.unify(block, part + rest)
                self.unify(product[:lead], concat_terms(parts))
                return
        self._fix_misaligned((cat,), product)

    def _unify_products(self, a: Term, b: Term) -> None:
        for left, right in _segments(a, b):
            if len(left) > 1 and len(right) > 1:
                self._refine(left, right)
            else:
                self.unify(left, right)

    def _refine(self, a: Term, b: Term) -> None:
        """Equate two products without a common boundary by their common refinement, if there is one."""
        bounds = sorted(set(_boundaries(a)) | set(_boundaries(b)))
        sizes = [bounds[0]]
        for low, high in pairwise(bounds):
            if high % low:
                self._fix_misaligned(a, b)
                return
            sizes.append(high // low)
        pieces: list[Term] = [self.fresh(size) for size in sizes]
        whole = tuple(factor for piece in pieces for factor in piece)
        for side in (a, b):
            for left, right in _segments(side, whole):
                self.unify(left, right)

    def _fix_misaligned(self, a: Term, b: Term) -> None:
        reason = f"reshape of {_shape_text(a)} does not align with {_shape_text(b)}"
        self.fix(a, reason)
        self.fix(b, reason)


def _bounds(cat: Cat) -> list[int]:
    bounds, end = [], 0
    for block in cat.blocks:
        end += size_of(block)
        bounds.append(end)
    return bounds


def _boundaries(term: Term) -> list[int]:
    bounds, end = [], 1
    for factor in term:
        end *= factor.size
        bounds.append(end)
    return bounds


def _segments(a: Term, b: Term) -> Iterator[tuple[Term, Term]]:
    """Cut two products of one size at all the boundaries that they share."""
    ends_a, ends_b = _boundaries(a), _boundaries(b)
    start_a = start_b = 0
    for i, end in enumerate(ends_a):
        if end in ends_b:
            j = ends_b.index(end)
            yield a[start_a : i + 1], b[start_b : j + 1]
            start_a, start_b = i + 1, j + 1


def _shape_text(term: Term) -> str:
    parts = []
    for factor in term:
        if isinstance(factor, Var):
            parts.append(str(factor.size))
        else:
            parts.append("(" + " + ".join(_shape_text(block) for block in factor.blocks) + ")")
    return " x ".join(parts) or "1"
