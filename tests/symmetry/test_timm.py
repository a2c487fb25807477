"""Models of timm: the groups counted by hand, and the spec proved."""

from typing import Any

import pytest
import timm
import torch

from nfopt.symmetry import trace_permutation_spec, verify

FAMILIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "a residual network of basic blocks": ("resnet18", {}, 64, 12),
    "a vision transformer: the stream, and heads, channels and hidden units of each block": (
        "vit_tiny_patch16_224",
        {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32},
        32,
        1 + 3 * 2,
    ),
    "inverted residuals with squeeze and excitation": ("test_efficientnet", {}, 64, 13),
    "blocks with layer scale": ("test_convnext", {}, 64, 13),
    "mixing of tokens: the stream, and two hidden layers of each block": (
        "mixer_s32_224",
        {"img_size": 64},
        64,
        1 + 2 * 8,
    ),
}
LARGE: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "a residual network of bottlenecks": ("resnet50", {}, 64, 37),
    "dense connections": ("densenet121", {}, 64, 120),
    "grouped convolutions": ("resnext50_32x4d", {}, 64, 53),
    "hierarchical splits": ("res2net50_26w_4s", {}, 64, 93),
    "shifted windows": ("swin_tiny_patch4_window7_224", {}, 224, 40),
    "fused multi-resolution branches": ("hrnet_w18_small", {}, 64, 45),
    "class attention": ("cait_xxs24_224", {"img_size": 64}, 64, 105),
    "biases cached in eval mode": ("levit_128s", {"img_size": 64}, 64, 50),
    "methods chosen by the instance": ("fasternet_t0", {}, 64, 35),
}


def prove(name: str, options: dict[str, Any], size: int, groups: int) -> None:
    model = timm.create_model(name, pretrained=False, **options)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    spec = trace_permutation_spec(model, x)
    assert len(spec.groups) == groups
    assert not spec.unruled
    report = verify(model, spec, x, trials=1, controls=4)
    assert report.passed, str(report)
    assert not report.suspected_ties, str(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_small_models_are_those_counted_by_hand(family: str) -> None:
    prove(*FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", LARGE)
def test_groups_of_large_models_are_those_counted_by_hand(family: str) -> None:
    prove(*LARGE[family])


def test_both_tracers_find_the_same_axes_in_a_residual_network() -> None:
    model = timm.create_model("resnet18", pretrained=False)
    x = torch.zeros(1, 3, 64, 64)
    exported = trace_permutation_spec(model, x, tracer="export")
    run = trace_permutation_spec(model, x, tracer="run")
    assert {n: (e.axes, e.role, e.dims, e.depth) for n, e in exported.tensors.items()} == {
        n: (e.axes, e.role, e.dims, e.depth) for n, e in run.tensors.items()
    }
