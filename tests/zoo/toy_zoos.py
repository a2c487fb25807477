from functools import lru_cache

import torch
from torch import nn

from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo import Zoo


@lru_cache(maxsize=1)
def toy_spec():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    return trace_permutation_spec(module, torch.zeros(2, 2))


def toy_zoo(nets=7, *, seed=0, dtype=torch.float32):
    """A zoo of random MLPs 2-3-5-1."""
    spec = toy_spec()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(nets, *entry.shape, generator=generator, dtype=dtype)
        for name, entry in spec.tensors.items()
    }
    facts = {
        "label": torch.randint(10, (nets,), generator=generator),
        "image": torch.rand(nets, 1, 3, 3, generator=generator),
    }
    return Zoo(spec, tensors, facts, torch.arange(nets) % 3, {"kind": "toy", "seed": seed})
