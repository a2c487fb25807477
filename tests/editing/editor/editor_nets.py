"""Nets for the editor's tests, in float64, and an editor whose outputs are not zero."""

import torch
from torch import Tensor, nn

from nfopt.editing.editor import EditorConfig, WeightEditor
from nfopt.editing.model_state import state_of
from nfopt.symmetry import PermutationSpec, trace_permutation_spec
from tests.editing.nets import normed


def deep_normed(seed: int = 0) -> nn.Module:
    """Two convolutions with BatchNorm, whose statistics are not those of a fresh net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 7, 3, stride=2),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 3),
        )
        for _ in range(9):
            model(2 * torch.randn(11, 2, 7, 7) + 1)
    return model.eval().double()


def plain(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(2 * 7 * 7, 5), nn.ReLU(), nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 3)
        ).double()


def traced(model: nn.Module, images: Tensor) -> tuple[PermutationSpec, dict[str, Tensor]]:
    spec = trace_permutation_spec(model, images[:2])
    return spec, {name: t.detach() for name, t in state_of(model).items() if name in spec.tensors}


def images(count: int = 13, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 7, 7, generator=generator, dtype=torch.float64)


def awake(config: EditorConfig, seed: int = 5) -> WeightEditor:
    """Return an editor in float64 that has something to say of every element."""
    editor = WeightEditor(config, torch.Generator().manual_seed(seed)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        weight = editor.network.element_out.weight
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return editor


__all__ = ["awake", "deep_normed", "images", "normed", "plain", "traced"]
