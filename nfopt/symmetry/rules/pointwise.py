"""Operations on corresponding elements: broadcast axes are tied, nothing else happens."""

from nfopt.symmetry.calls import RULES, Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.spec import DimRole, Role
from nfopt.symmetry.unify import Term, Unifier


def broadcast(unifier: Unifier, values: list[Value]) -> Axes:
    """Tie the axes of `values` as broadcasting aligns them and return the axes of the result."""
    rank = max((len(value.axes) for value in values), default=0)
    axes: list[Term] = []
    for back in range(rank, 0, -1):
        aligned = [value.axes[-back] for value in values if len(value.axes) >= back]
        wide = [axis for axis in aligned if axis != ()]
        for axis in wide[1:]:
            unifier.unify(wide[0], axis)
        axes.append(wide[0] if wide else ())
    return tuple(axes)


@rule(
    "hardswish", "hardsigmoid", "hardtanh", "relu6", "selu", "celu", "softplus", "mish",
    "logsigmoid", "threshold", "hardshrink", "softshrink", "elu", "silu", "gelu", "leaky_relu",
    "log_sigmoid", "nan_to_num", "where", "masked_fill", "lerp", "fill", "zero", "copy", "to", "_to_copy",
    "clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "positive", "clamp",
    "clip", "float_power", "true_divide", "rsub", "bitwise_not", "logical_not", "logical_and",
    "logical_or", "isnan", "isinf", "isfinite", "real", "imag", "polar", "complex", "conj",
    "resolve_conj", "resolve_neg", "_conj", "square", "__and__", "__or__", "__xor__", "floor_divide",
    "fake_quantize_per_tensor_affine",
)  # fmt: skip
def pointwise(call: Call) -> list[Axes]:
    """Tie broadcast axes; every output has the broadcast shape."""
    values = call.values()
    if call.name == "aten.where" and len(values) < 2 and not isinstance(call.args.get("self"), Value):
        raise UnruledError("a search for the true elements")
    _note_roles(call, values)
    axes = broadcast(call.unifier, values)
    return [axes for _ in call.out_shapes]


RULES.register("pointwise")(pointwise)


@rule(
    "type_as",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "native_dropout",
    "feature_alpha_dropout",
    "rrelu",
)
def alone(call: Call) -> list[Axes]:
    """One tensor element by element, whatever the other arguments; dropout only where it is switched off."""
    value = call.tensor("input" if "input" in call.args else "self")
    if call.get("training", call.get("train", "dropout" in call.name)) and call.get("p", 0.5) > 0:
        raise UnruledError("random numbers")
    return [value.axes for _ in call.out_shapes]


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> list[Axes]:
    """One slope per channel (dimension 1) or one for all."""
    value, weight = call.tensor("self"), call.tensor("weight")
    call.note(weight, "other", *_output_dims(weight))
    if len(weight.axes) != 1:
        return [broadcast(call.unifier, [value, weight])]
    if weight.axes[0] != ():
        call.unifier.unify(value.axes[min(1, len(value.axes) - 1)], weight.axes[0])
    return [value.axes]


def _output_dims(value: Value) -> list[DimRole]:
    return ["out" if size > 1 else "other" for size in value.shape]


def _note_roles(call: Call, values: list[Value]) -> None:
    """Read off what a parameter is for when it meets an activation: a shift, a scale or a table."""
    kind = call.name.removeprefix("aten.").rstrip("_")
    if len(values) != 2 or kind not in ("add", "sub", "mul") or all(value.sources for value in values):
        return
    for value in values:
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        dims: list[DimRole] = ["other"] * len(value.axes)
        if wide:
            dims[wide[-1] if len(value.axes) != 4 else wide[0]] = "out"
        role: Role = (
            "norm_scale"
            if kind == "mul"
            else "bias"
            if len(value.axes) in (1, 4) or len(wide) == 0
            else "embedding"
        )
        call.note(value, role, *dims)
