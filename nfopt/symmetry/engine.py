"""The rule engine: applies one tracing rule per ATen operation, whichever tracer saw the operation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nfopt.symmetry.calls import RULES, Axes, Call, Ledger, Rule, UnruledError, Usage, Value
from nfopt.symmetry.unify import Unifier, size_of

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


@dataclass
class Engine:
    """One trace: what it has learnt, the operations without a rule, and how many operations it has seen."""

    ledger: Ledger = field(default_factory=Ledger)
    unruled: dict[str, None] = field(default_factory=dict)
    calls: int = 0

    @property
    def unifier(self) -> Unifier:
        """The axes and what ties them."""
        return self.ledger.unifier

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """Return a new value for a parameter or statistic, free along every axis."""
        value = Value(tuple(self.unifier.fresh(size) for size in shape), sources=(name,), state=True)
        self.ledger.parameters[name] = value
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
        call = Call(name, bound, out_shapes, used, place, self.ledger)
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
                usage = self.ledger.usage.setdefault(source, Usage(self.calls))
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
        self.ledger.wrote_in_place = True
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
