"""A mask put into a model through torch.nn.utils.prune, such that deepcopy and saving go on working.

torch's own hook recomputes `weight = weight_orig * weight_mask` before a module's forward and leaves the
product there, which no deepcopy can copy; and it is not called where a parent reads the weight itself
(attention's output projection). Two more hooks mend both: the products of the whole model are made before
its forward, and after each forward they are replaced by copies without a history.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from nfopt.errors import PruningError
from nfopt.pruning.mask import PruningMask
from nfopt.symmetry import unwrap


def apply_mask(model: nn.Module, mask: PruningMask) -> None:
    """Mask a model's weights in place: each becomes `weight_orig * weight_mask` until `remove_mask`.

    What optimizers train is then called `weight_orig`: make the optimizer afterwards. The state_dict holds
    `weight_orig` and `weight_mask`; to load it into a fresh model, apply the mask there first.

    Args:
        model: the model; its forward pass and its gradients are those of the masked weights from now on.
        mask: a mask of this model.

    Raises:
        PruningError: the mask is another model's; nothing was changed.
    """
    model = unwrap(model)
    mask.check_fits(model)
    owners = [(_owner(model, name), name.rpartition(".")[2], kept) for name, kept in mask.kept.items()]
    for name, (owner, leaf, _) in zip(mask.kept, owners, strict=True):
        if f"{leaf}_orig" in owner._parameters:
            raise PruningError(
                f"{name} is masked already. Call remove_mask(model) first; intersection() joins two masks."
            )
    for owner, leaf, kept in owners:
        weight = owner._parameters[leaf]
        assert weight is not None
        torch_prune.custom_from_mask(owner, leaf, kept.to(weight.device))
        owner.register_forward_hook(_settle_own, always_call=True)
    model.register_forward_pre_hook(_refresh, prepend=True)
    model.register_forward_hook(_settle, always_call=True)
    _settle(model)


def remove_mask(model: nn.Module) -> None:
    """Undo `apply_mask` and leave the masked weights, zeros included, as plain parameters.

    Raises:
        PruningError: nothing of the model is masked.
    """
    model = unwrap(model)
    masked = [(part, name) for part in model.modules() for name in _masked(part)]
    if not masked:
        raise PruningError(f"no weight of {type(model).__name__} is masked; there is nothing to remove.")
    for part, name in masked:
        torch_prune.remove(part, name)
        _drop_own_hooks(part)
    _drop_own_hooks(model)


def applied_mask(model: nn.Module) -> PruningMask:
    """Return the mask that torch.nn.utils.prune holds in a model, whoever put it there.

    Raises:
        PruningError: nothing of the model is masked.
    """
    model = unwrap(model)
    kept = {
        f"{prefix}.{name}" if prefix else name: getattr(part, f"{name}_mask") != 0
        for prefix, part in model.named_modules()
        for name in _masked(part)
    }
    if not kept:
        raise PruningError(f"no weight of {type(model).__name__} is masked.")
    return PruningMask.for_model(model, kept)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _masked(part: nn.Module) -> dict[str, torch_prune.BasePruningMethod]:
    """Return the pruning methods of one module by the name of the weight."""
    hooks = part._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, torch_prune.BasePruningMethod)}


def _refresh(model: nn.Module, _: Any) -> None:
    """Make every masked weight of the model anew, with a history."""
    for part in model.modules():
        for name, method in _masked(part).items():
            setattr(part, name, method.apply_mask(part))


def _settle_own(part: nn.Module, *_: Any) -> None:
    """Replace one module's masked weights by copies without a history, which deepcopy can copy."""
    for name in _masked(part):
        weight = getattr(part, name)
        if isinstance(weight, Tensor):
            setattr(part, name, weight.detach())


def _settle(model: nn.Module, *_: Any) -> None:
    for part in model.modules():
        _settle_own(part)


def _drop_own_hooks(part: nn.Module) -> None:
    for hooks in (part._forward_pre_hooks, part._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_refresh, _settle, _settle_own)]:
            del hooks[key]
            part._forward_hooks_always_called.pop(key, None)
