"""Joining tensors: a concatenation is a sum of axes, constant padding adds free blocks."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.rules.pointwise import broadcast
from nfopt.symmetry.unify import Term, concat_terms


@rule("cat", "concat", "concatenate", "hstack", "vstack", "dstack", "_cat")
def cat(call: Call) -> list[Axes]:
    """Blocks one after the other along one axis; the other axes are tied."""
    if call.name.endswith("stack") and len(call.out_shape) < 2:
        raise UnruledError("a stack of vectors")
    values = [value for value in call.values() if value.shape != (0,)]
    short = call.name.removeprefix("aten.")
    named = {"hstack": 1, "vstack": 0, "dstack": 2}
    dim = named[short] if short in named else call.get("dim", 0)
    rank = len(call.out_shape)
    if any(len(value.axes) != rank for value in values):
        raise UnruledError("tensors of different ranks")
    dim %= rank
    others = broadcast(
        call.unifier, [Value(tuple(() if d == dim else a for d, a in enumerate(v.axes))) for v in values]
    )
    joined = concat_terms([value.axes[dim] for value in values])
    return [tuple(joined if d == dim else axis for d, axis in enumerate(others))]


@rule("stack")
def stack(call: Call) -> list[Axes]:
    """A new axis along which the tensors are told apart."""
    values = call.values()
    axes = list(broadcast(call.unifier, values))
    dim = call.get("dim", 0) % (len(axes) + 1)
    axes.insert(dim, call.fixed(len(values), "stacked tensors"))
    return [tuple(axes)]


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> list[Axes]:
    """Constant padding puts free blocks around an axis; any other padding mixes positions."""
    value, amounts = call.tensor(), list(call.args["pad"])
    constant = call.get("mode", "constant") == "constant"
    axes: list[Term] = list(value.axes)
    for i in range(len(amounts) // 2):
        dim = len(axes) - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if before == after == 0:
            continue
        if constant and before >= 0 and after >= 0:
            fresh = call.unifier.fresh
            axes[dim] = concat_terms([fresh(before), axes[dim], fresh(after)])
        else:
            call.fix_dim(value, dim, "padded or cropped positions")
            axes[dim] = call.fixed(call.out_shape[dim], "padded or cropped positions")
    return [tuple(axes)]


@rule("meshgrid")
def meshgrid(call: Call) -> list[Axes]:
    """Each vector along its own axis, constant along the others."""
    vectors = call.values()
    if call.get("indexing", "ij") != "ij" or any(len(vector.axes) != 1 for vector in vectors):
        raise UnruledError("a grid in xy order")
    outs: list[Axes] = []
    for i, vector in enumerate(vectors):
        outs.append(
            tuple(
                vector.axes[0] if i == j else call.unifier.fresh(other.shape[0])
                for j, other in enumerate(vectors)
            )
        )
    return outs
