"""Convolutions: channels are tied as in a linear map, per group; positions are fixed where they mix."""

from typing import Any

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.spec import DimRole
from nfopt.symmetry.unify import Term


@rule(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "convolution", "_convolution", "thnn_conv2d", "_conv_depthwise2d", "mkldnn_convolution",
)  # fmt: skip
def convolution(call: Call) -> list[Axes]:
    """Grouped convolution: input channels G x I, output channels G x O, weight (G x O, I, kernel).

    A transposed one has the weight (G x I, O, kernel).
    """
    value = call.tensor("self" if "self" in call.args else "input")
    weight, bias = call.tensor("weight"), call.optional("bias")
    spatial = len(weight.axes) - 2
    batched = len(value.axes) - 1 - spatial
    if batched not in (0, 1):
        raise UnruledError("input and weight have ranks that do not fit")
    transposed = "transpose" in call.name or bool(call.get("transposed", False))
    groups = value.shape[batched] if call.name == "aten._conv_depthwise2d" else call.get("groups", 1)
    channels, out = _tie_channels(call, value.axes[batched], weight, groups, transposed)
    call.unifier.unify(value.axes[batched], channels)
    kernel: list[DimRole] = ["kernel"] * spatial
    call.note(weight, "conv", *(("in", "out") if transposed else ("out", "in")), *kernel)
    if bias is not None:
        call.unifier.unify(out, bias.axes[0])
        call.note(bias, "bias", "out")
    for dim in range(2, len(weight.axes)):
        call.fix_dim(weight, dim, "kernel positions")
    positions = [
        _positions(call, value, batched + 1 + i, weight.shape[2 + i], i, call.out_shape[batched + 1 + i])
        for i in range(spatial)
    ]
    return [(*value.axes[:batched], out, *positions)]


def _tie_channels(
    call: Call, channels: Term, weight: Value, groups: int, transposed: bool
) -> tuple[Term, Term]:
    """Return the input and the output channels as the weight's axes give them."""
    first, second = weight.axes[0], weight.axes[1]
    if groups == 1:
        return (first, second) if transposed else (second, first)
    group, _ = call.unifier.factor(first, [groups, weight.shape[0] // groups])
    # A depthwise convolution with one output per channel keeps whatever structure the channels have.
    inner = group + second
    return (first, inner) if transposed else (inner, first)


def _positions(call: Call, value: Value, dim: int, kernel: int, index: int, out_size: int) -> Term:
    padding = _each(call.get("padding", 0), index)
    stride = _each(call.get("stride", 1), index)
    if kernel == 1 and stride == 1 and padding in (0, "same", "valid"):
        return value.axes[dim]
    call.fix_dim(value, dim, "convolved positions")
    return call.fixed(out_size, "convolved positions")


def _each(option: Any, index: int) -> Any:
    """Return the option for one spatial dimension: a single entry stands for all."""
    if isinstance(option, list | tuple):
        return option[index if len(option) > 1 else 0] if option else 1
    return option
