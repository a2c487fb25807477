"""Testers of equivariance: how far a function of a model's tensors is from following its permutations."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.spec import Permutation, permuted_order

Tensors: TypeAlias = Mapping[str, Float[Tensor, "..."]]
WeightSpaceFunction: TypeAlias = Callable[..., Tensors | Tensor]


def equivariance_error(
    fn: WeightSpaceFunction,
    spec: PermutationSpec,
    tensors: Tensors | Sequence[Tensors],
    generator: torch.Generator | None = None,
    *,
    batch_dims: int = 0,
) -> float:
    """Return how far `fn` is from following a random permutation p of every group.

        error = max | fn(p x) - p fn(x) |  /  root mean square of fn(x) (1 where that is zero)

    It is the largest over all outputs, and NaN if one is not finite. A function that returns one tensor
    is held to be invariant: p leaves it as it is.

    Args:
        fn: from tensors by name to tensors by name, each [*batch, *shape, *channels]; or to one tensor.
        spec: the permutation spec.
        tensors: its argument [*batch, *shape] by name, or several such arguments (weights, gradients).
        generator: source of the permutation.
        batch_dims: number of leading batch dimensions of arguments and outputs.

    Raises:
        PermutationSpecError: an argument or an output does not fit the spec.
    """
    permutation = spec.sample(generator)
    return _error(fn, spec, _arguments(tensors), dict.fromkeys(spec.tensors, permutation), batch_dims)


def wrong_coupling_error(
    fn: WeightSpaceFunction,
    spec: PermutationSpec,
    tensors: Tensors | Sequence[Tensors],
    generator: torch.Generator | None = None,
    *,
    batch_dims: int = 0,
) -> float:
    """Return the `equivariance_error` when every tensor is permuted by a permutation of its own.

    That is no symmetry of a model whose tensors share groups. A function that follows even this one does
    not see which neurons belong together.
    """
    own = {name: spec.sample(generator) for name in spec.tensors}
    return _error(fn, spec, _arguments(tensors), own, batch_dims)


def assert_equivariant(
    fn: WeightSpaceFunction,
    spec: PermutationSpec,
    tensors: Tensors | Sequence[Tensors],
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1e-9,
    samples: int = 2,
    batch_dims: int = 0,
) -> None:
    """Check that `fn` follows random permutations of every group, as `equivariance_error` measures it.

    Args:
        fn: the function.
        spec: the permutation spec.
        tensors: its argument, or arguments.
        generator: source of the permutations.
        tolerance: largest error allowed; the default suits float64.
        samples: number of permutations tried.
        batch_dims: number of leading batch dimensions.

    Raises:
        AssertionError: an error is above `tolerance` or not a number, or the spec has no group to permute.
    """
    if not spec.groups:
        raise AssertionError("the spec has no group that can be permuted: every function would pass.")
    for _ in range(samples):
        error = equivariance_error(fn, spec, tensors, generator, batch_dims=batch_dims)
        if not error <= tolerance:
            raise AssertionError(
                f"not equivariant: the output differs from the permuted one by {error:.3g} of its root mean "
                f"square (allowed: {tolerance:.3g}). Look for what depends on the order of neurons."
            )


def _arguments(tensors: Tensors | Sequence[Tensors]) -> list[Tensors]:
    return [tensors] if isinstance(tensors, Mapping) else list(tensors)


def _error(
    fn: WeightSpaceFunction,
    spec: PermutationSpec,
    arguments: Sequence[Tensors],
    permutations: Mapping[str, Permutation],
    batch_dims: int,
) -> float:
    """Return the error when each tensor is permuted by its own entry of `permutations`."""
    with torch.no_grad():
        before = fn(*arguments)
        after = fn(*(_act(spec, permutations, argument, batch_dims) for argument in arguments))
    expected = {"": before} if isinstance(before, Tensor) else _act(spec, permutations, before, batch_dims)
    got = {"": after} if isinstance(after, Tensor) else after
    if set(got) != set(expected):
        raise PermutationSpecError("the function returned other tensors once its argument was permuted.")
    worst = 0.0
    for name, tensor in expected.items():
        if not tensor.numel():
            continue
        scale = tensor.double().square().mean().sqrt().item() or 1.0
        error = (got[name].double() - tensor.double()).abs().max().item() / scale
        # max() would drop a NaN that does not come first.
        worst = error if error != error else max(worst, error)
        if worst != worst:
            return worst
    return worst


def _act(
    spec: PermutationSpec, permutations: Mapping[str, Permutation], tensors: Tensors, batch_dims: int
) -> dict[str, Tensor]:
    """Permute tensors [*batch, *shape, *channels]."""
    acted = {}
    for name, tensor in tensors.items():
        axes = spec.axes_of(name)
        expected = tuple(axis.size for axis in axes)
        if tuple(tensor.shape[batch_dims : batch_dims + len(axes)]) != expected:
            raise PermutationSpecError(
                f"{name} has shape {tuple(tensor.shape)}; expected {batch_dims} batch dimensions, then "
                f"{expected}, then any channels."
            )
        for dim, axis in enumerate(axes):
            order = permuted_order(axis, permutations[spec.aliases.get(name, name)])
            if order is not None:
                tensor = tensor.index_select(batch_dims + dim, order.to(tensor.device))
        acted[name] = tensor
    return acted
