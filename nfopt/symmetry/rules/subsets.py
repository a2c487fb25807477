"""Consecutive parts of an axis: slices, splits and single indices cut it into a sum of blocks."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.rules.reduction import one_dim
from nfopt.symmetry.unify import Term, size_of


def _replace(value: Value, dim: int, term: Term) -> Axes:
    return tuple(term if d == dim else axis for d, axis in enumerate(value.axes))


def _range(call: Call, size: int) -> tuple[int, int]:
    """Return the clamped half-open range that `start` and `end` mean."""
    start, end = call.get("start", 0), call.get("end", size)
    if isinstance(start, Value) or isinstance(end, Value):
        raise UnruledError("a slice with ends that are data")
    start = min(max(start + size if start < 0 else start, 0), size)
    end = min(max(end + size if end < 0 else end, start), size)
    return start, end


def _part(call: Call, value: Value, dim: int, start: int, end: int) -> Term:
    size = value.shape[dim]
    if (start, end) == (0, size):
        return value.axes[dim]
    return call.unifier.split(value.axes[dim], [start, end - start, size - end])[1]


@rule("slice", "slice_copy")
def slice_rule(call: Call) -> list[Axes]:
    """A range of indices; with a step that divides the axis, one position in each of its runs."""
    value = call.tensor()
    dim = one_dim(value, call.get("dim", 0))
    start, end = _range(call, value.shape[dim])
    step = call.get("step", 1)
    if step == 1:
        return [_replace(value, dim, _part(call, value, dim, start, end))]
    if value.shape[dim] % step == 0 and end > value.shape[dim] - step and start < step:
        runs, position = call.unifier.factor(value.axes[dim], [value.shape[dim] // step, step])
        call.unifier.fix(position, f"every {step}th index is taken {call.where}")
        return [_replace(value, dim, runs)]
    call.fix_dim(value, dim, "indices are taken in steps")
    return [_replace(value, dim, call.fixed(call.out_shape[dim], "indices are taken in steps"))]


@rule("narrow", "narrow_copy")
def narrow(call: Call) -> list[Axes]:
    """A range of indices by start and length."""
    value = call.tensor()
    dim, start = one_dim(value, call.args["dim"]), call.args["start"]
    if isinstance(start, Value):
        raise UnruledError("a start that is data")
    start %= max(value.shape[dim], 1)
    return [_replace(value, dim, _part(call, value, dim, start, start + call.args["length"]))]


@rule(
    "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk",
    "unsafe_split_with_sizes", "hsplit", "vsplit", "split_copy", "split_with_sizes_copy",
)  # fmt: skip
def split(call: Call) -> list[Axes]:
    """Consecutive blocks, their sizes read off the results."""
    value = call.tensor()
    short = call.name.removeprefix("aten.")
    default = {"hsplit": min(1, len(value.axes) - 1), "vsplit": 0}
    dim = one_dim(value, default[short] if short in default else call.get("dim", 0))
    blocks = call.unifier.split(value.axes[dim], [shape[dim] for shape in call.out_shapes])
    return [_replace(value, dim, block) for block in blocks]


@rule("select", "select_copy")
def select(call: Call) -> list[Axes]:
    """One index of an axis."""
    value = call.tensor()
    dim, index = one_dim(value, call.args["dim"]), call.args["index"]
    if isinstance(index, Value):
        raise UnruledError("an index that is data")
    index %= value.shape[dim]
    _single_out(call, value, dim, index)
    return [tuple(axis for d, axis in enumerate(value.axes) if d != dim)]


def _single_out(call: Call, value: Value, dim: int, index: int) -> None:
    if value.shape[dim] > 1:
        call.unifier.split(value.axes[dim], [index, 1, value.shape[dim] - index - 1])


@rule("unbind", "unbind_copy", "unsafe_unbind")
def unbind(call: Call) -> list[Axes]:
    """Every index of an axis as a tensor of its own."""
    value = call.tensor()
    dim = one_dim(value, call.get("dim", 0))
    call.fix_dim(value, dim, "its indices are taken apart")
    rest = tuple(axis for d, axis in enumerate(value.axes) if d != dim)
    return [rest for _ in call.out_shapes]


@rule("glu")
def glu(call: Call) -> list[Axes]:
    """Gated linear unit: two halves that are one index set."""
    value = call.tensor()
    dim = one_dim(value, call.get("dim", -1))
    half = value.shape[dim] // 2
    first, second = call.unifier.split(value.axes[dim], [half, half])
    call.unifier.unify(first, second)
    return [_replace(value, dim, first)]


@rule("slice_scatter", "select_scatter")
def scatter_part(call: Call) -> list[Axes]:
    """A copy with a part overwritten: the part is tied to what is written there."""
    value, source = call.tensor(), call.tensor("src")
    dim = one_dim(value, call.get("dim", 0))
    if call.name == "aten.select_scatter":
        index = call.args["index"] % value.shape[dim]
        _single_out(call, value, dim, index)
        part: Axes = tuple(axis for d, axis in enumerate(value.axes) if d != dim)
    else:
        start, end = _range(call, value.shape[dim])
        if call.get("step", 1) != 1:
            raise UnruledError("a slice in steps")
        part = _replace(value, dim, _part(call, value, dim, start, end))
    for mine, its in zip(part, source.axes, strict=True):
        if size_of(mine) != size_of(its):
            raise UnruledError("a source that broadcasts")
        call.unifier.unify(mine, its)
    return [value.axes]
