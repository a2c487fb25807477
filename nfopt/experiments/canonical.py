"""Canonical nets: of all that differ in signs, phases or scales of neurons, always the same one."""

from collections.abc import Mapping
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.experiments.question import ExperimentError
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import block_plan
from nfopt.zoo.neuron_axes import check_scalable, scaled


def canonical_siren(
    spec: PermutationSpec, tensors: Mapping[str, Float[Tensor, "nets ..."]], omega: float
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return nets of sine units that compute the same as those given, with signs and phases chosen by rule.

    A unit sin(omega (w x + b)) read by outgoing weights a computes the same as (-w, -b, -a), since the sine
    is odd, and as (w, b + k pi / omega, (-1)^k a). The bias is brought to omega b in [-pi/2, pi/2), then the
    unit to the sign that makes the sum of its incoming weights positive, in the order of the
    layers. Neurons are not renumbered: the map commutes with permutations, and readers stay equivariant.

    Near the boundaries of the rule a small change of a net flips a unit; no continuous choice exists.

    Args:
        spec: of a plain chain of linear layers with sines between them; each group has one weight that
            writes it, one bias, and weights that read it.
        tensors: the nets, each [nets, *shape].
        omega: the factor inside every sine.

    Raises:
        ExperimentError: a group is not of that form.
    """
    plan = block_plan(spec)
    result = {name: tensor.clone() for name, tensor in plan.canonical(tensors).items()}
    for group in spec.groups:
        incoming: list[str] = []
        biases: list[str] = []
        outgoing: list[str] = []
        for name, dim in spec.occurrences[group]:
            entry = spec.tensors[name]
            kind = incoming if entry.dims[dim : dim + 1] == ("out",) else outgoing
            (biases if entry.role == "bias" else kind).append(name)
        if len(incoming) != 1 or len(biases) != 1 or not outgoing or _is_no_siren(spec, group):
            raise ExperimentError(
                f"the group {group} is written by {incoming}, shifted by {biases} and read by {outgoing}; a "
                "layer of sine units has one weight, one bias and a reader. This is the form of SIRENs alone."
            )
        weight, bias = result[incoming[0]], result[biases[0]]
        turns = torch.floor(omega * bias / pi + 0.5)
        bias = bias - turns * pi / omega
        parity = 1 - 2 * (turns % 2)
        sign = torch.where(weight.sum(-1) < 0, -1.0, 1.0).to(weight)
        result[incoming[0]] = weight * sign[..., None]
        result[biases[0]] = bias * sign
        for name in outgoing:
            result[name] = result[name] * (parity * sign)[..., None, :]
    return result


def canonical_relu(
    spec: PermutationSpec, tensors: Mapping[str, Float[Tensor, "nets ..."]]
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return nets of ReLU units that compute the same as those given, every neuron's weights of length 1.

    A unit relu(w x + b) read by a computes the same as (c w, c b, a / c) with c > 0, as for any activation
    with f(c x) = c f(x). The incoming weights w, without the bias, are brought to norm 1, in the order of the
    layers; a neuron without any stays as it is. Commutes with permutations.

    Args:
        spec: of nets of linear layers, convolutions and biases.
        tensors: the nets, each [nets, *shape].

    Raises:
        ZooError: the nets have other parameters, such as those of a normalisation.
    """
    check_scalable(spec)
    result = {name: tensor.clone() for name, tensor in block_plan(spec).canonical(tensors).items()}
    for group, atom in spec.groups.items():
        square = next(iter(result.values())).new_zeros(len(next(iter(result.values()))), atom.size)
        for name, dim in spec.occurrences[group]:
            entry = spec.tensors[name]
            if entry.role != "bias" and entry.dims[dim] == "out":
                square = square + result[name].movedim(dim + 1, 1).flatten(2).square().sum(2)
        factor = torch.where(square > 0, square, 1).rsqrt()
        result = scaled(spec, result, {group: factor})
    return result


def _is_no_siren(spec: PermutationSpec, group: str) -> bool:
    """Return whether some tensor of a group is neither a bias nor a matrix of plain axes."""
    return any(
        len(spec.tensors[name].axes) != (1 if spec.tensors[name].role == "bias" else 2)
        or spec.tensors[name].role not in ("bias", "linear")
        for name, _ in spec.occurrences[group]
    )
