"""What every host trains: a small MLP or BatchNorm CNN on fixed data, by a rule with every control active."""

import torch
from torch import Tensor, nn

from tests.optim.models import learned_checkpoint, mlp

RULE = learned_checkpoint()
INPUTS = torch.randn(26, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).argmax(dim=1)
IMAGES = torch.randn(26, 3, 7, 7, generator=torch.Generator().manual_seed(2))

__all__ = ["IMAGES", "INPUTS", "RULE", "TARGETS", "backward", "cnn", "equal", "mlp", "steps", "weights"]


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.BatchNorm2d(7),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3),
    )  # fmt: skip


def backward(model: nn.Module, inputs: Tensor = INPUTS, targets: Tensor = TARGETS) -> float:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    return float(loss.detach())


def steps(model: nn.Module, optimizer, count: int, inputs: Tensor = INPUTS) -> list[float]:
    """The plain loop of any training script."""
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        losses.append(backward(model, inputs))
        optimizer.step()
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))
