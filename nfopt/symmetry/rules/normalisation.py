"""Normalisation layers: scales, shifts and statistics are indexed like what they normalise."""

from nfopt.symmetry.calls import Axes, Call, Value, rule
from nfopt.symmetry.spec import DimRole, Role


def _tie_channels(call: Call, value: Value, dim: int) -> None:
    names: tuple[tuple[str, Role], ...] = (
        ("weight", "norm_scale"),
        ("bias", "norm_shift"),
        ("running_mean", "statistic"),
        ("running_var", "statistic"),
    )
    for name, role in names:
        vector = call.optional(name)
        if vector is not None:
            call.unifier.unify(value.axes[dim], vector.axes[0])
            call.note(vector, role, "out")


@rule(
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "instance_norm", "cudnn_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update",
    "_batch_norm_impl_index", "native_batch_norm_legit",
)  # fmt: skip
def batch_norm(call: Call) -> list[Axes]:
    """Per-channel affine normalisation; batch and positions are only averaged over."""
    value = call.tensor("input")
    _tie_channels(call, value, 1)
    outs: list[Axes] = [value.axes]
    for shape in call.out_shapes[1:]:
        same = len(shape) == 1 and shape[0] == value.shape[1]
        outs.append(
            (value.axes[1],) if same else tuple(call.fixed(size, "saved statistics") for size in shape)
        )
    return outs


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> list[Axes]:
    """Normalisation over the last axes together: the statistics are symmetric in them."""
    value = call.tensor("input")
    count = len(call.args["normalized_shape"])
    roles: tuple[tuple[str, Role], ...] = (("weight", "norm_scale"), ("bias", "norm_shift"))
    for name, role in roles:
        affine = call.optional(name)
        if affine is not None:
            for mine, its in zip(value.axes[-count:], affine.axes, strict=True):
                call.unifier.unify(mine, its)
            dims: list[DimRole] = ["out"] * count
            call.note(affine, role, *dims)
    outs: list[Axes] = [value.axes]
    for shape in call.out_shapes[1:]:
        outs.append(tuple(axis if size > 1 else () for axis, size in zip(value.axes, shape, strict=False)))
    return outs


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> list[Axes]:
    """Channels are groups x channels within a group; each group is normalised over all of its own."""
    value = call.tensor("input")
    groups = call.args["num_groups" if call.name == "aten.group_norm" else "group"]
    factors = [value.axes[1]]
    if groups > 1:
        factors = call.unifier.factor(value.axes[1], [groups, value.shape[1] // groups])
    _tie_channels(call, value, 1)
    outs: list[Axes] = [value.axes]
    for _ in call.out_shapes[1:]:
        outs.append((value.axes[0], factors[0] if groups > 1 else ()))
    return outs


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> list[Axes]:
    """The weight w = g v / |v|, the norm taken over all axes but one."""
    direction, gain = call.tensor("v"), call.tensor("g")
    for mine, its in zip(direction.axes, gain.axes, strict=True):
        if its != ():
            call.unifier.unify(mine, its)
    return [direction.axes, gain.axes][: len(call.out_shapes)]


@rule("norm_except_dim")
def norm_except_dim(call: Call) -> list[Axes]:
    """The norm over all axes but one."""
    value = call.tensor("v")
    return [tuple(axis if size > 1 else () for axis, size in zip(value.axes, call.out_shape, strict=True))]


@rule("local_response_norm")
def local_response_norm(call: Call) -> list[Axes]:
    """Neighbouring channels normalise each other, so that their order matters."""
    value = call.tensor()
    call.fix_dim(value, 1, "neighbouring channels are normalised together")
    return [value.axes]
