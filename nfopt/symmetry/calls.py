"""Values, operations and the registry of tracing rules: what a rule sees and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch.utils import _pytree as pytree

from nfopt.registry import Registry
from nfopt.symmetry.spec import DimRole, Role
from nfopt.symmetry.unify import Term, Unifier, size_of

Axes: TypeAlias = tuple[Term, ...]


@dataclass(eq=False)
class Value:
    """One tensor of the traced computation.

    Attributes:
        axes: one term per dimension; replaced when an in-place operation changes the shape.
        constant: all elements are known to be equal.
        sources: parameters and statistics, when the value depends on nothing else.
        state: whether the value is the module's own tensor, which outlives the forward pass.
        mask: its elements are booleans, so that indexing with it selects.
    """

    axes: Axes
    constant: bool = False
    sources: tuple[str, ...] = ()
    state: bool = False
    mask: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(size_of(axis) for axis in self.axes)


@dataclass
class Usage:
    """How the forward pass uses one parameter or statistic; the first use decides.

    Attributes:
        first_use: number of the operation where it, or what was made of it alone, first meets anything else.
        met: whether that has happened; until then `first_use` is the first operation of any kind.
        role: what it is used for, once an operation tells.
        dims: what each of its dimensions is used for, likewise.
    """

    first_use: int
    met: bool = False
    role: Role | None = None
    dims: tuple[DimRole, ...] | None = None


@dataclass
class Ledger:
    """What one trace has learnt so far.

    Attributes:
        unifier: the axes and what ties them.
        parameters: the values of the parameters and statistics read so far, by name.
        usage: how each of them is used.
        wrote_in_place: whether any operation has written in place.
    """

    unifier: Unifier = field(default_factory=Unifier)
    parameters: dict[str, Value] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    wrote_in_place: bool = False


class UnruledError(Exception):
    """Raised by a rule that does not cover this way of calling its operation; never leaves the engine."""


@dataclass
class Call:
    """One operation with its arguments bound to the names in its schema.

    Attributes:
        name: "aten.view".
        args: argument values by schema name, with a `Value` for every tensor.
        out_shapes: shapes of the tensors that it returns, flattened.
        used: positions of the outputs that something reads, or None when that is not known.
        place: qualified name of the module that calls it.
        ledger: what the trace has learnt so far.
    """

    name: str
    args: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    used: set[int] | None
    place: str
    ledger: Ledger

    @property
    def unifier(self) -> Unifier:
        """The unifier of the trace."""
        return self.ledger.unifier

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the only or first tensor returned."""
        return self.out_shapes[0]

    def tensor(self, name: str = "self") -> Value:
        """Return the tensor argument `name`."""
        value = self.args.get(name)
        if not isinstance(value, Value):
            raise UnruledError(f"argument {name} is not a tensor")
        return value

    def optional(self, name: str) -> Value | None:
        """Return the tensor argument `name`, or None when it was not given."""
        value = self.args.get(name)
        return value if isinstance(value, Value) else None

    def values(self) -> list[Value]:
        """Return all tensor arguments, those inside lists included."""
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Value)]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument `name`, or `default` when it is absent or None."""
        value = self.args.get(name)
        return default if value is None else value

    def fix_dim(self, value: Value, dim: int, reason: str) -> Term:
        """Fix the axis `dim` of `value` and return it; the reason is completed with the place."""
        term = value.axes[dim]
        self.unifier.fix(term, f"{reason} {self.where}")
        return term

    def fixed(self, size: int, reason: str) -> Term:
        """Return a new fixed axis of `size`."""
        return self.unifier.fresh(size, f"{reason} {self.where}")

    @property
    def where(self) -> str:
        """The operation and its place, for people: "(view at layer1.attn)"."""
        return f"({self.name.removeprefix('aten.')} at {self.place or 'the top level'})"

    def note(self, value: Value | None, role: Role, *dims: DimRole) -> None:
        """Record the role of the parameters that `value` was made from, at their first telling use."""
        if value is None or len(dims) != len(value.axes):
            return
        axes = [self.unifier.resolve(axis) for axis in value.axes]
        for source in value.sources:
            usage = self.ledger.usage[source]
            own = [self.unifier.resolve(axis) for axis in self.ledger.parameters[source].axes]
            order = _same_axes(own, axes)
            if usage.role is None and order is not None:
                usage.role, usage.dims = role, tuple(dims[i] for i in order)


Rule: TypeAlias = Callable[[Call], Sequence[Axes]]
RULES: Registry[Rule] = Registry("tracing rule")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that enters a rule for the ATen operations `names` (without the "aten.")."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES.register(f"aten.{name}")(function)
        return function

    return enter


def _same_axes(own: list[Term], axes: list[Term]) -> list[int] | None:
    """Return where each of a parameter's own axes went in a value made from it, or None if some are gone."""
    if own == axes:
        return list(range(len(own)))
    spare = list(range(len(axes)))
    order = []
    for term in own:
        match = next((i for i in spare if axes[i] == term), None)
        if match is None:
            return None
        spare.remove(match)
        order.append(match)
    return order
