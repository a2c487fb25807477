"""Zoos so small that an experiment over them takes no time."""

import torch
from torch import nn

from nfopt.experiments.question import Question
from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo import Zoo
from nfopt.zoo.siren import SirenConfig, siren
from tests.hand_specs import random_tensors

SIREN = SirenConfig(inputs=2, hidden=(5, 3), outputs=1)


def siren_zoo(nets=30, *, seed=0, dtype=torch.float32, config=SIREN) -> Zoo:
    """Untrained SIRENs; what is known of each follows from its weights, whatever the order of neurons."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: t.to(dtype) for n, t in config.named(starts(config, nets, generator)).items()}
    size = tensors["2.weight"].square().mean((1, 2))
    facts = {
        "label": (size > size.median()).long(),
        "frequency": 3 + 100 * size,
        "test_accuracy": (1000 * size).sigmoid(),
    }
    return Zoo(config.spec(), tensors, facts, torch.arange(nets) % 3, {"kind": "toy", "seed": seed})


def starts(config, nets, generator):
    # Scales that differ from net to net, so that there is something to tell apart.
    spread = 0.3 + torch.rand(nets, 1, generator=generator)
    return torch.stack([config.start(generator) for _ in range(nets)]) * spread


def values(tensors, config=SIREN) -> torch.Tensor:
    points = torch.linspace(-1, 1, 7 * config.inputs).view(7, config.inputs)
    return siren(tensors, points.to(next(iter(tensors.values()))), omega_0=config.omega_0)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def conv_question(**options) -> Question:
    return Question(trace_permutation_spec(ConvNet(), torch.zeros(2, 1, 5, 5)), **options)


def random_nets(spec, nets, seed=0):
    return random_tensors(spec, seed, (nets,))


def permuted(spec, tensors, seed=0):
    """Every net renumbered by a permutation of its own."""
    generator = torch.Generator().manual_seed(seed)
    count = len(next(iter(tensors.values())))
    nets = [spec.act(spec.sample(generator), {n: t[i] for n, t in tensors.items()}) for i in range(count)]
    return {name: torch.stack([net[name] for net in nets]) for name in tensors}
