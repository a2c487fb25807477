"""Stacking the weights of many nets of one architecture, with every net that does not belong named."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.nn.layout import LayoutError
from nfopt.symmetry.spec import PermutationSpec
from nfopt.weightspace import block_plan

_SHOWN = 5


def stack_nets(
    spec: PermutationSpec,
    nets: Sequence[Mapping[str, Float[Tensor, "..."]]],
    names: Iterable[str] | None = None,
    *,
    check_numbers: bool = True,
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return the tensors of all nets by name, one leading dimension over the nets.

    Args:
        spec: the permutation spec that all nets share.
        nets: for each net its tensors by name; tensors that the spec does not name are left out
            (`num_batches_tracked`).
        names: tensors to stack (default: all of the spec).
        check_numbers: whether NaN and infinity are refused. One pass over all numbers.

    Raises:
        LayoutError: there are no nets; a net lacks a tensor, has one of another shape, or one that is not
            finite. The message names the first nets concerned.
    """
    if not nets:
        raise LayoutError("there are no nets to stack.")
    plan = block_plan(spec, names)
    shapes = {name: tuple(axis.size for axis in axes) for name, axes in plan.axes.items()}
    found: list[dict[str, Tensor]] = []
    faults: list[str] = []
    for i, net in enumerate(nets):
        known = {name: t for name, t in net.items() if name in shapes or plan.aliases.get(name) in shapes}
        tensors = plan.canonical(known, partial=True)
        found.append(tensors)
        for name, shape in shapes.items():
            if name not in tensors:
                faults.append(f"net {i} has no {name}")
            elif tuple(tensors[name].shape) != shape:
                faults.append(f"net {i} has {name} of shape {tuple(tensors[name].shape)}, not {shape}")
    if faults:
        raise LayoutError(
            f"these {len(nets)} nets are not all of the architecture of the spec: {_listed(faults)}. Sort "
            "them by architecture, or use a RoleTiedNetwork, which reads any."
        )
    stacked = {name: torch.stack([tensors[name] for tensors in found]) for name in shapes}
    if check_numbers:
        bad = [
            f"{name} of net {i}"
            for name, tensor in stacked.items()
            for i in torch.isfinite(tensor.flatten(1)).all(1).logical_not().nonzero().flatten().tolist()
        ]
        if bad:
            raise LayoutError(
                f"{_listed(bad)} holds NaN or infinity. Leave such nets out: nothing is replaced."
            )
    return stacked


def _listed(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
