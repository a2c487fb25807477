"""Small models with prime widths that the optimizer's tests train."""

import torch
from torch import Tensor, nn

from nfopt.checkpoints import Checkpoint
from nfopt.optim import LearnedUpdateRule, RuleConfig
from nfopt.optim.rule_checkpoint import rule_checkpoint
from nfopt.symmetry import PermutationSpec


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3))


class Residual(nn.Module):
    """A residual network with BatchNorm, a strided block with a projection, and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
        self.same = nn.Sequential(
            nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 1)
        )
        self.down = nn.Conv2d(5, 11, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(5, 11, 1, stride=2)
        self.depthwise = nn.Conv2d(11, 11, 3, padding=1, groups=11)
        self.norm = nn.BatchNorm2d(11)
        self.head = nn.Linear(11, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        x = x + self.same(x)
        x = torch.relu(self.norm(self.depthwise(torch.relu(self.down(x))) + self.shortcut(x)))
        return self.head(x.mean(dim=(2, 3)))


def resnet(seed: int = 0) -> Residual:
    torch.manual_seed(seed)
    return Residual()


def learned_checkpoint(seed: int = 0, scale: float = 0.5) -> Checkpoint:
    """A rule whose output layers are random, so that every learned control is active."""
    config = RuleConfig()
    generator = torch.Generator().manual_seed(seed)
    theta = LearnedUpdateRule(PermutationSpec.uncoupled({"w": (3, 5)}), config).init_theta(generator)
    noisy = {
        name: value + scale * torch.randn(value.shape, generator=generator) for name, value in theta.items()
    }
    return rule_checkpoint(noisy, config, {}, name="random")
