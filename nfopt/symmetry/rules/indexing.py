"""Look-ups: an axis into which data point is fixed; the pointers' own axes go to the result."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.rules.pointwise import broadcast
from nfopt.symmetry.rules.reduction import one_dim
from nfopt.symmetry.unify import Term

DATA = "indices along this axis are data"


@rule("embedding")
def embedding(call: Call) -> list[Axes]:
    """Rows of a table."""
    table, indices = call.tensor("weight"), call.tensor("indices")
    call.fix_dim(table, 0, DATA)
    call.note(table, "embedding", "in", "out")
    return [(*indices.axes, table.axes[1])]


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Axes]:
    """Sums, means or maxima of rows of a table."""
    table = call.tensor("weight")
    call.fix_dim(table, 0, DATA)
    call.note(table, "embedding", "in", "out")
    for pointer in call.values()[1:]:
        for dim in range(len(pointer.axes)):
            call.fix_dim(pointer, dim, DATA)
    rest = [tuple(call.fixed(size, "bookkeeping of bags") for size in shape) for shape in call.out_shapes[1:]]
    return [(call.fixed(call.out_shape[0], "bags"), table.axes[1]), *rest]


@rule("index", "_unsafe_index")
def index(call: Call) -> list[Axes]:
    """Advanced indexing: adjacent index tensors put their axes in place, separated ones in front."""
    return [_indexed(call, call.tensor())]


def _indexed(call: Call, value: Value) -> Axes:
    given = list(call.args["indices"])
    given += [None] * (len(value.axes) - len(given))
    dims = [dim for dim, pointer in enumerate(given) if isinstance(pointer, Value)]
    if len(given) != len(value.axes) or not dims or any(given[dim].mask for dim in dims):
        raise UnruledError("a mask")
    pointed = broadcast(call.unifier, [given[dim] for dim in dims])
    for dim in dims:
        call.fix_dim(value, dim, DATA)
    kept = [(dim, axis) for dim, axis in enumerate(value.axes) if dim not in dims]
    if dims != list(range(dims[0], dims[-1] + 1)):
        return (*pointed, *(axis for _, axis in kept))
    before = [axis for dim, axis in kept if dim < dims[0]]
    after = [axis for dim, axis in kept if dim > dims[-1]]
    return (*before, *pointed, *after)


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(call: Call) -> list[Axes]:
    """Elements written at positions that are data."""
    value, source = call.tensor(), call.tensor("values")
    part = _indexed(call, value)
    broadcast(call.unifier, [Value(part), source])
    return [value.axes]


@rule("index_select")
def index_select(call: Call) -> list[Axes]:
    """Slices at positions that are data."""
    value = call.tensor()
    dim = one_dim(value, call.args["dim"])
    call.fix_dim(value, dim, DATA)
    axes: list[Term] = list(value.axes)
    axes[dim] = call.tensor("index").axes[0] if call.tensor("index").axes else ()
    return [tuple(axes)]


@rule("gather", "take_along_dim")
def gather(call: Call) -> list[Axes]:
    """Elements at positions along one axis that are data; the other axes run together."""
    value, pointer = call.tensor(), call.tensor("index" if "index" in call.args else "indices")
    if call.get("dim") is None or len(value.axes) != len(pointer.axes):
        raise UnruledError("a flattened tensor")
    dim = one_dim(value, call.args["dim"])
    call.fix_dim(value, dim, DATA)
    for other in range(len(value.axes)):
        if other == dim or pointer.axes[other] == ():
            continue
        if value.shape[other] == pointer.shape[other]:
            call.unifier.unify(value.axes[other], pointer.axes[other])
        else:
            call.fix_dim(value, other, DATA)
            call.fix_dim(pointer, other, DATA)
    return [pointer.axes]


@rule("index_fill", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> list[Axes]:
    """Positions along one axis are data; the other axes run together when all sizes agree."""
    value = call.tensor()
    dim = one_dim(value, call.args["dim"])
    call.fix_dim(value, dim, DATA)
    for other in call.values()[1:]:
        for d, axis in enumerate(other.axes):
            alike = len(other.axes) == len(value.axes) and other.shape[d] == value.shape[d] and d != dim
            if alike:
                call.unifier.unify(value.axes[d], axis)
            else:
                call.unifier.fix(axis, f"{DATA} {call.where}")
                if len(other.axes) == len(value.axes):
                    call.fix_dim(value, d, DATA)
    return [value.axes]


@rule("one_hot")
def one_hot(call: Call) -> list[Axes]:
    """A new axis into which data point."""
    return [(*call.tensor().axes, call.fixed(call.out_shape[-1], DATA))]
