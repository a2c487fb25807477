"""What happens to each neuron of each net, carried along the axes of the nets' tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.symmetry import Atom, Axis, PermutationSpec, Prod
from nfopt.zoo.zoo import ZooError

_SCALABLE = {"linear", "conv", "bias"}


def _atom_order(atom: Atom, orders: Mapping[str, Tensor], count: int, device: torch.device) -> Tensor:
    order = orders.get(atom.name)
    return torch.arange(atom.size, device=device).expand(count, -1) if order is None else order


def order_along(axis: Axis, orders: Mapping[str, Tensor]) -> Tensor | None:
    """Return in which order each net reads an axis, [nets, size]; None where all leave it as it is."""
    if not orders:
        return None
    one = next(iter(orders.values()))
    found = _composed_order(axis, orders, len(one), one.device)
    return None if torch.equal(found, torch.arange(axis.size, device=one.device).expand_as(found)) else found


def _composed_order(axis: Axis, orders: Mapping[str, Tensor], count: int, device: torch.device) -> Tensor:
    if isinstance(axis, Atom):
        return _atom_order(axis, orders, count, device)
    if isinstance(axis, Prod):
        order = torch.zeros(count, 1, dtype=torch.long, device=device)
        for factor in axis.factors:
            inner = _composed_order(factor, orders, count, device)
            order = (order[:, :, None] * factor.size + inner[:, None, :]).flatten(1)
        return order
    parts, start = [], 0
    for block in axis.blocks:
        parts.append(_composed_order(block, orders, count, device) + start)
        start += block.size
    return torch.cat(parts, 1)


def _factor(axis: Axis, factors: Mapping[str, Tensor]) -> Tensor:
    """Return the factor of each net at each index of an axis, [nets, size]."""
    one = next(iter(factors.values()))
    if isinstance(axis, Atom):
        return factors.get(axis.name, one.new_ones(len(one), axis.size))
    if isinstance(axis, Prod):
        product = one.new_ones(len(one), 1)
        for factor in axis.factors:
            product = (product[:, :, None] * _factor(factor, factors)[:, None, :]).flatten(1)
        return product
    return torch.cat([_factor(block, factors) for block in axis.blocks], 1)


def scaled(
    spec: PermutationSpec,
    nets: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    dims: tuple[str, ...] = ("out", "in"),
) -> dict[str, Tensor]:
    """Multiply what makes a neuron by its factor, and divide what reads it by the same."""
    if not factors:
        return dict(nets)
    result = {}
    for name, tensor in nets.items():
        entry = spec.tensors[spec.aliases.get(name, name)]
        for dim, (axis, role) in enumerate(zip(entry.axes, entry.dims, strict=True), start=1):
            if role in dims:
                factor = _factor(axis, factors)
                shape = [len(tensor)] + [1] * (tensor.ndim - 1)
                shape[dim] = axis.size
                tensor = tensor * (factor if role == "out" else 1 / factor).view(shape)
        result[name] = tensor
    return result


def check_scalable(spec: PermutationSpec) -> None:
    """Raise ZooError unless all neurons are made and read by linear layers and convolutions."""
    for name, places in spec.occurrences.items():
        if name not in spec.groups:
            continue
        for tensor, dim in places:
            entry = spec.tensors[tensor]
            if entry.role not in _SCALABLE or entry.dims[dim] not in ("out", "in") or tensor in spec.aliases:
                raise ZooError(
                    f"the neurons {name!r} cannot be scaled: {tensor} (axis {dim}) is a {entry.role}. Nets "
                    "of linear layers, convolutions and biases can; others only permuted."
                )
