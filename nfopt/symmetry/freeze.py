"""From a finished trace to the PermutationSpec value: readable names, fixed runs merged, uses noted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from nfopt.symmetry.axes import UNIT, Atom, Axis, concat, product
from nfopt.symmetry.calls import Value
from nfopt.symmetry.engine import Engine
from nfopt.symmetry.spec import DimRole, PermutationSpec, Role, TensorAxes
from nfopt.symmetry.unify import Cat, Factor, Term, Var, size_of, vars_of

NEVER_READ = "the traced forward pass never reads this tensor"
TOLD_APART = "its indices are told apart"


def freeze(
    engine: Engine,
    values: Mapping[str, Value],
    statistics: frozenset[str],
    aliases: Mapping[str, str],
) -> PermutationSpec:
    """Return the spec of the tensors in `values`, in their order.

    A tensor that the trace never read is fixed: nothing is known about what it may be used for.
    """
    for name, value in values.items():
        if name not in engine.ledger.usage:
            for axis in value.axes:
                engine.unifier.fix(axis, NEVER_READ)
    terms = {
        name: [_normal(engine.unifier.resolve(axis)) for axis in value.axes] for name, value in values.items()
    }
    uses = {name: _use(engine, name, value.shape, name in statistics) for name, value in values.items()}
    namer = _Namer()
    order = sorted(
        values,
        key=lambda name: engine.ledger.usage[name].first_use if name in engine.ledger.usage else 1 << 60,
    )
    for wanted in ("out", None):
        for name in order:
            for dim, term in enumerate(terms[name]):
                if wanted is None or uses[name][1][dim] == wanted:
                    namer.visit(name, dim, term, outputs=wanted == "out")
    depths = _depths(engine, list(values))
    tensors = {
        name: TensorAxes(
            axes=tuple(namer.axis(term) for term in terms[name]),
            role=uses[name][0],
            dims=uses[name][1],
            depth=depths[name],
            used=name in engine.ledger.usage,
        )
        for name in values
    }
    spec = PermutationSpec(tensors, {}, dict(aliases), tuple(engine.unruled))
    fixed = {name: namer.fixed[name] for name in spec.atoms if name in namer.fixed}
    return PermutationSpec(tensors, fixed, dict(aliases), tuple(engine.unruled))


def _use(
    engine: Engine, name: str, shape: tuple[int, ...], statistic: bool
) -> tuple[Role, tuple[DimRole, ...]]:
    usage = engine.ledger.usage.get(name)
    role = usage.role if usage is not None else None
    dims = usage.dims if usage is not None else None
    if role is None or dims is None:
        # No telling use was seen: the shape and the customary name are the best guess.
        leaf = name.rsplit(".", 1)[-1]
        role = "bias" if len(shape) == 1 and "bias" in leaf else "other"
        dims = ("out",) if len(shape) == 1 else ("other",) * len(shape)
    return ("statistic" if statistic else role), dims


def _depths(engine: Engine, names: list[str]) -> dict[str, float]:
    """Return each tensor's rank among the distinct first uses, scaled to 0..1; 0 for the unused."""
    moments = sorted({engine.ledger.usage[name].first_use for name in names if name in engine.ledger.usage})
    rank = {moment: i / max(len(moments) - 1, 1) for i, moment in enumerate(moments)}
    return {
        name: rank[engine.ledger.usage[name].first_use] if name in engine.ledger.usage else 0.0
        for name in names
    }


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A run of adjacent fixed indices, merged into one index set; `key` is the term that it was."""

    size: int
    reason: str
    key: Term


# A product of free variables, fixed runs, and sums of such products.
_Normal: TypeAlias = "list[Var | _Fixed | tuple[_Normal, ...]]"


def _normal(term: Term) -> _Normal:
    """Return `term` with sums of leading factors distributed and adjacent fixed parts merged."""
    whole = _fixed_reason(term)
    if size_of(term) > 1 and whole is not None:
        return [_Fixed(size_of(term), whole, term)]
    factors = list(term)
    if len(factors) > 1 and isinstance(factors[0], Cat) and _fixed_reason((factors[0],)) is None:
        factors = [Cat(tuple(block + tuple(factors[1:]) for block in factors[0].blocks))]
    merged: _Normal = []
    run: list[Factor] = []
    for factor in [*factors, None]:
        if factor is not None and _fixed_reason((factor,)) is not None:
            run.append(factor)
            continue
        if run:
            merged.append(_Fixed(size_of(tuple(run)), _fixed_reason(tuple(run)) or "", tuple(run)))
            run = []
        if isinstance(factor, Cat):
            merged.append(_normal_sum(factor))
        elif factor is not None:
            merged.append(factor)
    return merged


def _normal_sum(cat: Cat) -> tuple[_Normal, ...]:
    blocks: list[_Normal] = []
    run: list[Term] = []
    for block in [*cat.blocks, None]:
        if block is not None and _fixed_reason(block) is not None:
            run.append(block)
            continue
        if run:
            key = run[0] if len(run) == 1 else (Cat(tuple(run)),)
            blocks.append([_Fixed(size_of(key), _fixed_reason(key) or "", key)] if size_of(key) > 1 else [])
            run = []
        if block is not None:
            blocks.append(_normal(block))
    return tuple(blocks)


def _fixed_reason(term: Term) -> str | None:
    """Return the reason when no index of `term` can be permuted; a sum of single indices counts as fixed."""
    reasons = [var.reason for var in vars_of(term)]
    if not all(reasons):
        return None
    return next((reason for reason in reasons if reason), TOLD_APART)


class _Namer:
    """Gives every index set the name of the tensor axis that first carries it."""

    def __init__(self) -> None:
        self.atoms: dict[Var | Term, Atom] = {}
        self.fixed: dict[str, str] = {}
        self._taken: set[str] = set()

    def visit(self, tensor: str, dim: int, term: _Normal, *, outputs: bool) -> None:
        """Name the index sets of one axis that have no name yet; of an output axis the free ones only."""
        stem = tensor.removesuffix(".weight") if outputs else f"{tensor}[{dim}]"
        leaves = list(_leaves(term))
        free = {leaf for leaf in leaves if isinstance(leaf, Var)}
        for leaf in leaves:
            if _key(leaf) in self.atoms or (outputs and isinstance(leaf, _Fixed)):
                continue
            name = self._unique(stem, several=len(free if isinstance(leaf, Var) else leaves) > 1)
            self.atoms[_key(leaf)] = Atom(name, leaf.size)
            if isinstance(leaf, _Fixed):
                self.fixed[name] = leaf.reason

    def axis(self, term: _Normal) -> Axis:
        """Return the axis that a normal term stands for."""
        parts: list[Axis] = []
        for factor in term:
            if isinstance(factor, tuple):
                parts.append(concat(*(self.axis(block) for block in factor)))
            else:
                parts.append(self.atoms[_key(factor)])
        return product(*parts) if parts else UNIT

    def _unique(self, stem: str, *, several: bool) -> str:
        name, count = stem, 0
        while name in self._taken or (several and count == 0):
            count += 1
            name = f"{stem}#{count}"
        self._taken.add(name)
        return name


def _key(leaf: Var | _Fixed) -> Var | Term:
    return leaf if isinstance(leaf, Var) else leaf.key


def _leaves(term: _Normal) -> Iterator[Var | _Fixed]:
    for factor in term:
        if isinstance(factor, tuple):
            for block in factor:
                yield from _leaves(block)
        else:
            yield factor
