"""Training loops of a few steps that the optimizer's tests share."""

from typing import Any

import torch
from torch import Tensor, nn

from nfopt.optim import NFOptimizer
from tests.optim.models import learned_checkpoint

INPUTS = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).argmax(dim=1)
RULE = learned_checkpoint()


def build(params: Any, **options: Any) -> NFOptimizer:
    return NFOptimizer(params, **{"total_steps": 20, "checkpoint": RULE, **options})


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor = INPUTS) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs).float(), TARGETS[: len(inputs)])
    loss.backward()
    return loss


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        dtype = next(model.parameters()).dtype
        losses.append(float(backward(model, optimizer, INPUTS.to(dtype)).detach()))
        optimizer.step()
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
