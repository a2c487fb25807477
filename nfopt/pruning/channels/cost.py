"""What a model costs: parameters, multiply-adds, and the time of a forward pass beside another's."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nfopt.pruning.scores.score import forward

ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one model on one batch.

    Attributes:
        parameters: number of parameters, tied ones once.
        macs: multiply-adds of products and convolutions in one forward pass of the example inputs.
    """

    parameters: int
    macs: int


def cost_of(model: nn.Module, example_inputs: Any) -> Cost:
    """Return a model's cost; it is run once in evaluation mode, and its mode is left as it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    # In the counter's mode an expanded parameter asks for a gradient even under no_grad, and torch gives up.
    detached = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def run(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, detached, args, kwargs)

    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(run, example_inputs)
    finally:
        for part, mode in modes:
            part.training = mode
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def latencies(
    models: tuple[nn.Module, ...], example_inputs: Any, *, rounds: int = ROUNDS
) -> tuple[float, ...]:
    """Return each model's median seconds for one forward pass, the models taking turns.

    They are run in evaluation mode, and their modes are left as they were.
    """
    modes = [(part, part.training) for model in models for part in model.modules()]
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            for turn in range(rounds + 1):
                for model, spent in zip(models, seconds, strict=True):
                    start = time.perf_counter()
                    forward(model, example_inputs)
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    if turn > 0:
                        spent.append(time.perf_counter() - start)
    finally:
        for part, mode in modes:
            part.training = mode
    return tuple(median(spent) for spent in seconds)
