"""Shape changes: a view factors and multiplies axes row by row, a permutation reorders them."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, rule
from nfopt.symmetry.rules.reduction import dims_of, one_dim
from nfopt.symmetry.unify import Term


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "ravel", "view_copy",
    "_reshape_copy", "reshape_as", "view_as",
)  # fmt: skip
def view(call: Call) -> list[Axes]:
    """All axes as one row-major product, factored anew."""
    value = call.tensor()
    if "dtype" in call.args:
        raise UnruledError("a view as another data type")
    if value.shape == call.out_shape:
        return [value.axes]
    if 0 in value.shape:
        return [tuple(call.unifier.fresh(size) for size in call.out_shape)]
    front, back = _common_ends(value.shape, call.out_shape)
    inner = value.axes[front : len(value.axes) - back]
    sizes = call.out_shape[front : len(call.out_shape) - back]
    middle = call.unifier.factor(tuple(f for axis in inner for f in axis), sizes)
    return [(*value.axes[:front], *middle, *value.axes[len(value.axes) - back :])]


def _common_ends(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
    """Return how many leading and trailing dimensions two shapes share."""
    shorter = min(len(a), len(b))
    front = 0
    while front < shorter and a[front] == b[front]:
        front += 1
    back = 0
    while back < shorter - front and a[-1 - back] == b[-1 - back]:
        back += 1
    return front, back


@rule("permute", "permute_copy")
def permute(call: Call) -> list[Axes]:
    """Axes in a given order."""
    value = call.tensor()
    return [tuple(value.axes[dim] for dim in call.args["dims"])]


@rule(
    "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "mH", "adjoint", "transpose_copy",
    "t_copy",
)  # fmt: skip
def transpose(call: Call) -> list[Axes]:
    """Two axes exchanged."""
    axes = list(call.tensor().axes)
    if len(axes) < 2:
        return [tuple(axes)]
    short = call.name.removeprefix("aten.").rstrip("_")
    if short == "numpy_T":
        return [tuple(reversed(axes))]
    first, second = -2, -1
    if short not in ("t", "mT", "mH", "adjoint", "t_copy"):
        given = [call.args[name] for name in ("dim0", "dim1", "axis0", "axis1") if name in call.args]
        first, second = given
    axes[first], axes[second] = axes[second], axes[first]
    return [tuple(axes)]


@rule("movedim", "moveaxis")
def movedim(call: Call) -> list[Axes]:
    """Some axes moved, the others in their old order."""
    axes = call.tensor().axes
    given = [call.args["source"], call.args["destination"]]
    source, target = ([d % len(axes) for d in (x if isinstance(x, list | tuple) else [x])] for x in given)
    rest = iter([dim for dim in range(len(axes)) if dim not in source])
    placed = dict(zip(target, source, strict=True))
    return [tuple(axes[placed[dim] if dim in placed else next(rest)] for dim in range(len(axes)))]


@rule("squeeze", "squeeze_copy")
def squeeze(call: Call) -> list[Axes]:
    """Axes of size 1 dropped."""
    value = call.tensor()
    dims = dims_of(call, value)
    return [tuple(axis for d, axis in enumerate(value.axes) if not (d in dims and value.shape[d] == 1))]


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(call: Call) -> list[Axes]:
    """A new axis of size 1."""
    axes = list(call.tensor().axes)
    axes.insert(call.args["dim"] % (len(axes) + 1), ())
    return [tuple(axes)]


@rule("expand", "broadcast_to", "expand_copy", "expand_as")
def expand(call: Call) -> list[Axes]:
    """Values repeated along new axes, which are therefore free."""
    axes, shape = call.tensor().axes, call.out_shape
    own: list[Term] = []
    for back in range(len(shape), 0, -1):
        axis = axes[-back] if back <= len(axes) else ()
        own.append(call.unifier.fresh(shape[-back]) if axis == () else axis)
    return [tuple(own)]


@rule("repeat", "tile")
def repeat(call: Call) -> list[Axes]:
    """Whole copies one after the other: copies x axis."""
    value = call.tensor()
    counts = list(call.args["repeats" if "repeats" in call.args else "dims"])
    rank = max(len(counts), len(value.axes))
    axes = [()] * (rank - len(value.axes)) + list(value.axes)
    counts = [1] * (rank - len(counts)) + counts
    return [tuple(call.unifier.fresh(count) + axis for count, axis in zip(counts, axes, strict=True))]


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> list[Axes]:
    """Each index repeated in place: axis x copies."""
    value, count = call.tensor(), call.get("repeats")
    if not isinstance(count, int) or call.get("dim") is None:
        raise UnruledError("a number of repeats that varies, or a flattened tensor")
    axes = list(value.axes)
    dim = one_dim(value, call.args["dim"])
    axes[dim] = axes[dim] + call.unifier.fresh(count)
    return [tuple(axes)]


@rule("atleast_1d", "atleast_2d", "atleast_3d")
def atleast(call: Call) -> list[Axes]:
    """Leading axes of size 1 where the rank is too low."""
    value = call.tensor()
    if value.shape == call.out_shape:
        return [value.axes]
    raise UnruledError("a change of rank")


@rule("view_as_real")
def view_as_real(call: Call) -> list[Axes]:
    """A new last axis of real and imaginary parts."""
    return [(*call.tensor().axes, call.fixed(2, "real and imaginary parts"))]


@rule("view_as_complex")
def view_as_complex(call: Call) -> list[Axes]:
    """The last axis, of real and imaginary parts, made one number."""
    value = call.tensor()
    call.fix_dim(value, -1, "real and imaginary parts")
    return [value.axes[:-1]]


@rule("diagonal")
def diagonal(call: Call) -> list[Axes]:
    """The main diagonal: both axes are one index set."""
    value = call.tensor()
    first, second = one_dim(value, call.get("dim1", 0)), one_dim(value, call.get("dim2", 1))
    if call.get("offset", 0) or value.shape[first] != value.shape[second]:
        raise UnruledError("a diagonal that is not the main one")
    call.unifier.unify(value.axes[first], value.axes[second])
    rest = [axis for dim, axis in enumerate(value.axes) if dim not in (first, second)]
    return [(*rest, value.axes[first])]
