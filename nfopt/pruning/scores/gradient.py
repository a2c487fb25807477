"""Scores from gradients of the loss: SNIP, Taylor and GraSP."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.pruning.scores.score import ScoreContext, score

TEMPERATURE = 200.0


@score("snip", needs=("batches",))
def snip(context: ScoreContext) -> Mapping[str, Tensor]:
    """|g w| with the gradient g of the mean loss over all batches: how much the loss feels each connection.

    Source: Lee et al., "SNIP" (arXiv:1810.02340), equations 3 and 4; the normalisation there changes no rank.
    """
    total = _zeros(context)
    for batch in context.batches:
        for name, gradient in context.gradients(batch).items():
            total[name] += gradient / len(context.batches)
    return {name: (total[name] * context.parameters[name].detach()).abs() for name in total}


@score("taylor", needs=("batches",))
def taylor(context: ScoreContext) -> Mapping[str, Tensor]:
    """(g w)^2 batch by batch, then averaged, so that gradients of opposite sign do not cancel.

    Source: Molchanov et al. 2019 (arXiv:1906.10771), equation 8, one weight at a time.
    """
    total = _zeros(context)
    for batch in context.batches:
        for name, gradient in context.gradients(batch).items():
            total[name] += (gradient * context.parameters[name].detach()).square() / len(context.batches)
    return total


@score("grasp", needs=("batches",))
def grasp(context: ScoreContext) -> Mapping[str, Tensor]:
    """The weight times H g: what the gradient's squared norm would lose without it, to first order.

    The Hessian-vector product is exact, by double backpropagation, of the mean loss over all batches; outputs
    are divided by the paper's temperature of 200. Rare weights of very negative worth are the first to go.
    Source: Wang et al., "GraSP" (arXiv:2002.07376), equation 8 and algorithm 2 (there the negative is pruned
    from the top).
    """
    plain = context.loss

    def softened(outputs: Tensor, targets: Tensor) -> Tensor:
        return plain(outputs / TEMPERATURE, targets)

    soft = ScoreContext(**{**vars(context), "loss": softened})
    names = list(context.parameters)
    mean = _zeros(context)
    for batch in context.batches:
        for name, gradient in soft.gradients(batch).items():
            mean[name] += gradient / len(context.batches)
    worth = _zeros(context)
    for batch in context.batches:
        gradients = soft.gradients(batch, create_graph=True)
        product = torch.stack([(gradients[name] * mean[name]).sum() for name in names]).sum()
        curved = torch.autograd.grad(product, [context.parameters[name] for name in names], allow_unused=True)
        for name, part in zip(names, curved, strict=True):
            if part is not None:
                worth[name] += context.parameters[name].detach() * part / len(context.batches)
    return worth


def _zeros(context: ScoreContext) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter) for name, parameter in context.parameters.items()}
