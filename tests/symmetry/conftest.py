"""Nets written as one function of their parameters, and the proof that their traced spec must pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfopt.symmetry import PermutationSpec, trace_permutation_spec, verify

Compute = Callable[..., Any]


class Net(nn.Module):
    """`compute(self, *inputs)` with parameters of the given shapes as attributes."""

    def __init__(self, compute: Compute, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.compute = compute
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, *inputs: Tensor) -> Any:
        return self.compute(self, *inputs)


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture(params=["export", "run"])
def tracer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def prove() -> Callable[..., PermutationSpec]:
    """Trace, verify with every negative control, and return the spec."""

    def run(module: nn.Module, inputs: Any, *, tracer: Any = None, idle: int = 0) -> PermutationSpec:
        torch.manual_seed(0)
        spec = trace_permutation_spec(module, inputs, tracer=tracer)
        report = verify(module, spec, inputs, controls=None)
        assert report.passed, str(report)
        assert len(report.suspected_ties) == idle, str(report)
        return spec

    return run
