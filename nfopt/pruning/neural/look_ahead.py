"""A look ahead: where a few optimizer steps on the batches at hand would take the weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.errors import PruningError
from nfopt.pruning.mask import prunable_parameters
from nfopt.pruning.scores.score import ScoreContext, score

STEPS, LR = 40, 3e-3


@score("ahead", needs=("batches",))
def ahead(context: ScoreContext) -> Mapping[str, Tensor]:
    """|w| after 40 steps of Adam on the batches: what the look ahead of `nf` is worth without its network."""
    found = look_ahead(context, STEPS, LR)
    return {name: found[name].abs() for name in context.parameters}


def look_ahead(context: ScoreContext, steps: int, lr: float) -> dict[str, Tensor]:
    """Return every real parameter after `steps` steps of Adam from where the model stands.

    The batches are gone through in order, again and again. What is pruned already stays zero. The model of
    the context is not changed. Each step costs what one gradient costs, as SNIP takes one for every batch.

    Args:
        context: the model with its batches.
        steps: steps of Adam, 0 or more.
        lr: its learning rate.

    Raises:
        PruningError: the steps lead to values that are no finite numbers.
    """
    model = copy.deepcopy(context.model)
    parameters = {n: p for n, p in prunable_parameters(model).items() if p.is_floating_point()}
    ahead = ScoreContext(**{**vars(context), "model": model, "parameters": parameters})
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    pruned = {name: ~mask.to(parameters[name].device) for name, mask in context.kept.items()}
    for step in range(steps):
        gradients = ahead.gradients(context.batches[step % len(context.batches)])
        for name, parameter in parameters.items():
            zero = pruned.get(name)
            parameter.grad = gradients[name] if zero is None else gradients[name].masked_fill(zero, 0.0)
        optimizer.step()
    found = {name: parameter.detach() for name, parameter in parameters.items()}
    _check_finite(found)
    return found


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, values in tensors.items():
        if not bool(values.isfinite().all()):
            raise PruningError(
                f"looking ahead left {name} with values that are no finite numbers: the loss of the given "
                "batches, or its gradient, overflows. Check the batches and the loss."
            )
