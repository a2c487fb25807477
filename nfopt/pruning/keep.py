"""Pruned weights kept at exactly zero through any optimizer, with their momentum: hooks around its step."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from nfopt.errors import PruningError
from nfopt.pruning.mask import PruningMask, prunable_parameters


class KeptMask:
    """A mask that an optimizer keeps; made by `keep_masked`, ended by `remove`.

    Gradients are masked as they arrive (so that clipping, and closures that an optimizer calls inside its
    step, see them masked) and once more before the step; after it, the weights and every element-wise state
    of the optimizer (momenta, second moments) are set to zero where the mask prunes.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, Tensor], mask: PruningMask) -> None:
        self._optimizer = optimizer
        self._parameters = dict(parameters)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._arrivals: list[RemovableHandle] = []
        self.set_mask(mask)
        self._steps = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def set_mask(self, mask: PruningMask) -> None:
        """Take another mask of the same model; what it prunes becomes zero now, momentum included.

        Raises:
            PruningError: it is the mask of another model; nothing was changed.
        """
        for name, kept in mask.kept.items():
            if name not in self._parameters:
                raise PruningError(
                    f"the mask prunes {name!r}, which the optimizer's model does not have. It is the mask of "
                    "another model."
                )
            if self._parameters[name].shape != kept.shape:
                raise PruningError(
                    f"the mask of {name} has shape {tuple(kept.shape)}, the tensor "
                    f"{tuple(self._parameters[name].shape)}. It is the mask of another model."
                )
        self.mask = mask
        self._pairs = [
            (self._parameters[name], ~kept.to(self._parameters[name].device))
            for name, kept in mask.kept.items()
        ]
        for handle in self._arrivals:
            handle.remove()
        self._arrivals = [
            parameter.register_post_accumulate_grad_hook(partial(_mask_gradient, pruned))
            for parameter, pruned in self._pairs
            if parameter.requires_grad
        ]
        self._before()
        self._after()

    def remove(self) -> None:
        """Stop masking; the weights stay as they are."""
        for handle in (*self._arrivals, *self._steps):
            handle.remove()

    def _before(self, *_: Any) -> None:
        for parameter, pruned in self._pairs:
            _mask_gradient(pruned, parameter)

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for parameter, pruned in self._pairs:
            parameter.masked_fill_(pruned, 0)
            # Reading the state of a parameter that has none yet would make an empty one.
            if parameter in self._optimizer.state:
                for value in elementwise_state(self._optimizer.state[parameter], parameter):
                    value.masked_fill_(pruned, 0)


def _mask_gradient(pruned: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.detach().masked_fill_(pruned, 0)


def keep_masked(optimizer: Optimizer, model: nn.Module, mask: PruningMask) -> KeptMask:
    """Keep what a mask prunes at exactly zero from now on, whatever the optimizer does.

    Works with every torch.optim.Optimizer, NFOptimizer included, on plain models and on models that
    torch.nn.utils.prune masks. Nothing of it is in the optimizer's state_dict: call it again after loading.

    Args:
        optimizer: over (among others) the masked parameters.
        model: the model that it trains.
        mask: a mask of the model.

    Returns:
        A handle: `remove()` ends it, `set_mask` changes the mask.

    Raises:
        PruningError: the mask is another model's, or the optimizer does not train a masked parameter.
    """
    mask.check_fits(model)
    parameters = prunable_parameters(model)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name in mask.kept:
        if id(parameters[name]) not in trained:
            raise PruningError(
                f"the optimizer does not train {name}, which the mask prunes. Hand it all parameters of this "
                "very model (apply_mask first, then make the optimizer), or exclude the parameter."
            )
    return KeptMask(optimizer, parameters, mask)


def elementwise_state(state: Mapping[str, Any], parameter: Tensor) -> list[Tensor]:
    """Return the entries of an optimizer's state that hold one number for each element of the parameter.

    An optimizer that turns the coordinates (SOAP, Shampoo) keeps lists of matrices as well; of its state only
    first moments, which by custom have the word without "sq" in their names, belong to single elements.
    """
    whole = [
        (key, value)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
    ]
    turned = any(
        isinstance(value, list | tuple | dict)
        and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
        for value in state.values()
    )
    return [value for key, value in whole if not turned or _is_first_moment(str(key))]


def _is_first_moment(key: str) -> bool:
    return key in ("exp_avg", "momentum", "momentum_buffer", "m", "ema")
