"""The removal itself: a copy of a module whose tensors and sizes are those of the channels that remain."""

import copy
from typing import Any

from torch import Tensor, nn

from nfopt.errors import PruningError
from nfopt.pruning.channels.attributes import update_attributes
from nfopt.pruning.channels.subset import Kept, remaining
from nfopt.symmetry import Axis, PermutationSpec, unwrap


def without_channels(model: nn.Module, spec: PermutationSpec, kept: Kept) -> nn.Module:
    """Return a copy of a model that has only the kept indices of some groups, and is smaller for it.

    Parameters, gradients excepted, and running statistics lose the removed slices wherever they occur;
    channel counts follow (`update_attributes`). The model itself is not changed. Nothing is said here about
    whether the copy runs: `check_removal` proves that.

    Args:
        model: the model that the spec is of.
        spec: its symmetry.
        kept: for some groups the sorted indices that remain, at least one each.

    Raises:
        PruningError: a group or a tensor is not the model's, nothing of a group would remain, or groups of a
            convolution would differ in size.
    """
    for group, indices in kept.items():
        if group not in spec.groups:
            raise PruningError(f"the spec has no group {group!r} of removable channels.")
        if len(indices) == 0:
            raise PruningError(f"nothing of the group {group!r} would remain; keep at least one channel.")
    model = unwrap(model)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # What is replaced below need not be copied first.
    shared = {id(tensor): tensor for name, tensor in own.items() if name in spec.tensors}
    smaller = copy.deepcopy(model, dict(shared))
    # The old tensors are held on to: a freed one's identity could be taken by a new one.
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for prefix, part in smaller.named_modules():
        slots: list[Any] = [part._parameters, part._buffers]
        for slot in slots:
            for leaf, tensor in slot.items():
                name = f"{prefix}.{leaf}" if prefix else leaf
                entry = spec.tensors.get(spec.aliases.get(name, name))
                if tensor is not None and entry is not None:
                    if id(tensor) not in done:
                        done[id(tensor)] = (tensor, _smaller(name, tensor, entry.axes, kept))
                    slot[leaf] = done[id(tensor)][1]
    update_attributes(smaller, spec, kept)
    return smaller


def _smaller(name: str, tensor: Tensor, axes: tuple[Axis, ...], kept: Kept) -> Tensor:
    if tuple(tensor.shape) != tuple(axis.size for axis in axes):
        raise PruningError(
            f"{name} has shape {tuple(tensor.shape)}, but the spec gives it "
            f"{tuple(axis.size for axis in axes)}. Trace this model again."
        )
    new = remaining(tensor.detach(), axes, kept)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
