"""The rule engine: applies one tracing rule per ATen operation, whichever tracer saw the operation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
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
    """

    name: str
    args: dict[str, Any]
    out_shapes: list[tuple[int, ...]]
    used: set[int] | None
    place: str
    engine: "Engine"

    @property
    def unifier(self) -> Unifier:
        """The unifier of the trace."""
        return self.engine.unifier

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
            usage = self.engine.usage[source]
            own = [self.unifier.resolve(axis) for axis in self.engine.parameters[source].axes]
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


@dataclass
class Engine:
    """State of one trace: the unifier, how parameters are used, and what had no rule."""

    unifier: Unifier = field(default_factory=Unifier)
    usage: dict[str, Usage] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    unruled: dict[str, None] = field(default_factory=dict)
    calls: int = 0
    wrote_in_place: bool = False

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """Return a new value for a parameter or statistic, free along every axis."""
        value = Value(tuple(self.unifier.fresh(size) for size in shape), sources=(name,), state=True)
        self.parameters[name] = value
        return value

    def boundary(self, shape: Sequence[int], reason: str, *, mask: bool = False) -> Value:
        """Return a new value that is fixed along every axis."""
        return Value(tuple(self.unifier.fresh(size, reason) for size in shape), mask=mask)

    def constant(self, tensor: Tensor, what: str) -> Value:
        """Return the value of a tensor with known contents: free along the axes where they do not vary."""
        axes = []
        for dim, size in enumerate(tensor.shape):
            varies = size > 1 and (tensor.is_meta or not _constant_along(tensor, dim))
            axes.append(
                self.unifier.fresh(size, f"values differ along the axis of {what}" if varies else None)
            )
        return Value(tuple(axes), state=True, mask=tensor.dtype in MASKS)

    def fix_output(self, tree: Any) -> None:
        """Fix everything that the module returns."""
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, Value):
                for axis in leaf.axes:
                    self.unifier.fix(axis, "model output")

    def apply(
        self,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out_shapes: list[tuple[int, ...]],
        *,
        place: str,
        used: set[int] | None = None,
    ) -> list[Value]:
        """Return the values of the tensors that `op` returns, having tied the axes that it relates."""
        name, bound = _bind(op, args, kwargs)
        call = Call(name, bound, out_shapes, used, place, self)
        inputs = call.values()
        self.calls += 1
        pure = all(value.sources or value.state or value.constant for value in inputs)
        self._note_use(inputs, met=not pure)
        if not out_shapes:
            return []
        all_axes = self._outputs(call, op)
        sources = tuple(dict.fromkeys(s for value in inputs for s in value.sources)) if pure else ()
        outputs = [Value(axes, sources=sources) for axes in all_axes]
        for value in outputs:
            value.constant = name in CONSTANT_FACTORIES
        self._write(op, bound, outputs)
        return outputs

    def opaque(self, name: str, inputs: Any, out_shapes: list[tuple[int, ...]], place: str) -> list[Value]:
        """Treat an operation as unknown: fix every axis that it touches and report it."""
        self.calls += 1
        reason = f"no rule for {name} (at {place or 'the top level'})"
        self.unruled[f"{name} (at {place or 'the top level'})"] = None
        values = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Value)]
        self._note_use(values, met=True)
        for value in values:
            for axis in value.axes:
                self.unifier.fix(axis, reason)
        return [self.boundary(shape, reason) for shape in out_shapes]

    def _note_use(self, inputs: list[Value], *, met: bool) -> None:
        for value in inputs:
            for source in value.sources:
                usage = self.usage.setdefault(source, Usage(self.calls))
                if met and not usage.met:
                    usage.first_use, usage.met = self.calls, True

    def _outputs(self, call: Call, op: Any) -> list[Axes]:
        known = _lookup(call.name, op)
        if known is not None:
            try:
                axes = [tuple(self.unifier.resolve(term) for term in each) for each in known(call)]
            except UnruledError:
                axes = []
            shapes = [tuple(size_of(term) for term in each) for each in axes]
            if shapes == call.out_shapes:
                return axes
        values = self.opaque(call.name, call.args, call.out_shapes, call.place)
        return [value.axes for value in values]

    def _write(self, op: Any, bound: dict[str, Any], outputs: list[Value]) -> None:
        """Tie in-place results to the tensors that they were written to."""
        schema = getattr(op, "_schema", None)
        if schema is None or not schema.is_mutable:
            return
        self.wrote_in_place = True
        written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        targets = [bound[name] for name in written if isinstance(bound.get(name), Value)]
        for target, output in zip(targets, outputs, strict=False):
            target.constant = False
            if target.shape != output.shape:
                target.axes = output.axes
                continue
            for before, after in zip(target.axes, output.axes, strict=True):
                self.unifier.unify(before, after)
                if target.state and not target.sources:
                    self.unifier.fix(before, "written to a buffer in the forward pass")


MASKS = (torch.bool, torch.uint8)
CONSTANT_FACTORIES = {
    f"aten.{name}"
    for name in (
        "zeros",
        "ones",
        "full",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
    )
}


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


def _constant_along(tensor: Tensor, dim: int) -> bool:
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())


def _lookup(name: str, op: Any) -> Rule | None:
    for candidate in (name, name.rstrip("_")):
        if candidate in RULES:
            return RULES[candidate]
    tags = getattr(op, "tags", ())
    if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return RULES["pointwise"]
    return None


def _bind(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(op, torch._ops.OpOverload):
        return str(op), {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    bound: dict[str, Any] = {}
    for position, argument in enumerate(op._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return str(op._overloadpacket), bound
