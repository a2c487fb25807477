"""Tensors made from nothing: constants are free along every axis, everything else is fixed."""

from nfopt.symmetry.calls import Axes, Call, rule


@rule(
    "zeros", "ones", "full", "empty", "scalar_tensor", "zeros_like", "ones_like", "full_like",
    "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided",
    "empty_permuted",
)  # fmt: skip
def constant(call: Call) -> list[Axes]:
    """All elements are equal."""
    return [tuple(call.unifier.fresh(size) for size in call.out_shape)]


@rule(
    "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "rand_like",
    "randn_like", "randint_like", "tril_indices", "triu_indices", "hann_window", "hamming_window",
    "range",
)  # fmt: skip
def varied(call: Call) -> list[Axes]:
    """Elements differ along the axes."""
    return [tuple(call.fixed(size, "generated values differ") for size in call.out_shape)]
