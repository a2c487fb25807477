"""Operations along whole axes: reductions forget an axis, softmax keeps it, scans and sorts fix it."""

from nfopt.symmetry.calls import Axes, Call, Value, rule
from nfopt.symmetry.rules.pointwise import broadcast
from nfopt.symmetry.unify import Term


def dims_of(call: Call, value: Value, name: str = "dim") -> list[int]:
    """Return the dimensions that the argument `name` means: one, several, or all when absent or empty."""
    rank = len(value.axes)
    given = call.get(name)
    if given is None or (isinstance(given, list | tuple) and not given):
        return list(range(rank))
    return [dim % rank if rank else 0 for dim in (given if isinstance(given, list | tuple) else [given])]


def one_dim(value: Value, dim: int) -> int:
    """Return `dim` counted from the front."""
    return dim % max(len(value.axes), 1)


def reduced(value: Value, dims: list[int], out_shape: tuple[int, ...]) -> Axes:
    """Return the axes of `value` without `dims`, which stay with size 1 when the output has as many dims."""
    if not value.axes:
        return ()
    if len(out_shape) == len(value.axes):
        return tuple(() if dim in dims else axis for dim, axis in enumerate(value.axes))
    return tuple(axis for dim, axis in enumerate(value.axes) if dim not in dims)


@rule(
    "sum", "mean", "nansum", "nanmean", "prod", "amax", "amin", "logsumexp", "std", "var", "std_mean",
    "var_mean", "norm", "linalg_vector_norm", "frobenius_norm", "any", "all", "count_nonzero", "median",
    "nanmedian", "aminmax",
)  # fmt: skip
def reduction(call: Call) -> list[Axes]:
    """A symmetric function of an axis does not see its order; with indices see `extremum`."""
    value = call.tensor()
    if call.name in ("aten.median", "aten.nanmedian") and call.args.get("dim") is not None:
        return list(extremum(call))
    dims = dims_of(call, value)
    return [reduced(value, dims, shape) for shape in call.out_shapes]


@rule("max", "min")
def extremum(call: Call) -> list[Axes]:
    """Values do not see the order of the reduced axis; the indices do, so that returning them fixes it."""
    if call.optional("other") is not None:
        return [broadcast(call.unifier, [call.tensor(), call.tensor("other")])]
    value = call.tensor()
    dims = dims_of(call, value)
    if len(call.out_shapes) > 1 and (call.used is None or 1 in call.used):
        for dim in dims:
            call.fix_dim(value, dim, "its position is returned as an index")
    return [reduced(value, dims, shape) for shape in call.out_shapes]


@rule("argmax", "argmin")
def arg_extremum(call: Call) -> list[Axes]:
    """An index along an axis depends on its order."""
    value = call.tensor()
    dims = dims_of(call, value)
    for dim in dims:
        call.fix_dim(value, dim, "its position is returned as an index")
    return [reduced(value, dims, call.out_shape)]


@rule(
    "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "special_softmax",
    "special_log_softmax",
)  # fmt: skip
def along_axis(call: Call) -> list[Axes]:
    """Normalising along an axis commutes with permuting it."""
    return [call.tensor().axes]


@rule(
    "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "topk", "kthvalue", "argsort",
    "flip", "roll", "tril", "triu", "msort", "diff", "rot90",
)  # fmt: skip
def ordered(call: Call) -> list[Axes]:
    """What depends on the order of an axis fixes it."""
    value = call.tensor()
    short = call.name.removeprefix("aten.").rstrip("_")
    if short in ("tril", "triu"):
        dims = [len(value.axes) - 2, len(value.axes) - 1]
    elif short == "msort":
        dims = [0]
    else:
        dims = dims_of(call, value, "dims" if short in ("flip", "roll", "rot90") else "dim")
    outs: list[Axes] = []
    for dim in dims:
        call.fix_dim(value, dim, "the order along this axis matters")
    for shape in call.out_shapes:
        axes: list[Term] = list(value.axes)
        for dim in dims:
            if len(shape) == len(axes) and shape[dim] != value.shape[dim]:
                axes[dim] = call.fixed(shape[dim], "positions in order")
        outs.append(tuple(axes) if len(shape) == len(axes) else reduced(value, dims, shape))
    return outs


FFT_PLANE = ("fft2", "ifft2", "rfft2", "irfft2")
FFT_ALL = ("fftn", "ifftn", "rfftn", "irfftn", "fftshift", "ifftshift")


@rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2",
    "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_fftshift", "fft_ifftshift", "_fft_r2c",
    "_fft_c2r", "_fft_c2c",
)  # fmt: skip
def fourier(call: Call) -> list[Axes]:
    """A Fourier transform depends on the order of the transformed axes and leaves the others alone."""
    value = call.tensor()
    short = call.name.removeprefix("aten.fft_")
    standard = (-2, -1) if short in FFT_PLANE else -1
    given = call.get("dim", None if short in FFT_ALL else standard)
    rank = len(value.axes)
    chosen = range(rank) if given is None else given if isinstance(given, list | tuple) else [given]
    dims = [dim % rank for dim in chosen]
    axes: list[Term] = list(value.axes)
    for dim in dims:
        call.fix_dim(value, dim, "transformed positions")
        axes[dim] = call.fixed(call.out_shape[dim], "transformed positions")
    return [tuple(axes)]
