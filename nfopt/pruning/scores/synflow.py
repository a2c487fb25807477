"""SynFlow: the flow of a signal of ones through the absolute weights; no data, no empty layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nfopt.pruning.scores.score import ScoreContext, forward, score


@score("synflow", rounds=100, needs_example=True)
def synflow(context: ScoreContext) -> Mapping[str, Tensor]:
    """dR/dw w, where R is the sum of the outputs on an input of ones, of the model with |w| for w.

    In float64, in evaluation mode, all parameters taken absolutely and running means at zero, so that
    normalisation only scales. Meant to be iterated: in one round it empties layers as other scores do.
    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow"
    (arXiv:2006.05467), equation 2 and algorithm 1.
    """
    model = made_absolute(context.model)
    return synaptic_flow(model, context.parameters, context.example_inputs)


def made_absolute(model: nn.Module) -> nn.Module:
    """Turn `model`, in place, into what the flow runs through: float64, evaluation mode, |w|, no means."""
    model = model.eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
    return model


def synaptic_flow(
    model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any
) -> dict[str, Tensor]:
    """Return dR/dw w for `parameters` of a model in float64 whose parameters are none of them negative.

    R is the sum of the outputs on ones in the place of `example_inputs`.
    """
    ones = pytree.tree_map_only(Tensor, _ones, example_inputs)
    outputs = [leaf for leaf in pytree.tree_leaves(forward(model, ones)) if isinstance(leaf, Tensor)]
    flow = torch.stack([output.double().sum() for output in outputs]).sum()
    found = torch.autograd.grad(flow, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else (gradient * parameter.detach())
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def _ones(leaf: Tensor) -> Tensor:
    """Return ones of the shape of one input; inputs that are no real numbers stay what they are."""
    return torch.ones_like(leaf[:1], dtype=torch.float64) if leaf.is_floating_point() else leaf[:1]
