"""Nets of prime widths, and states made from bits."""

import torch
from torch import nn


def normed(seed: int = 0, classes: int = 3) -> nn.Module:
    """Return a convolution, BatchNorm and a head, with statistics that are not those of a fresh net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 25, classes)
        )
        model(torch.randn(11, 2, 7, 7))
    return model.eval()


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return a copy with every tensor of floating point changed."""
    import copy

    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    return other


def bits_of(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }
