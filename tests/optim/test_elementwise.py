"""The element-wise part of a step: its formula, and the Triton kernel, interpreted, against it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nfopt.errors import OptimizerError
from nfopt.optim import elementwise
from nfopt.optim.elementwise import Mix, fold
from tests.optim.loops import build, take_steps
from tests.optim.models import mlp

ROOT = Path(__file__).parents[2]
HAS_TRITON = find_spec("triton") is not None
NUMBERS = Mix(*torch.tensor([0.5, 0.3, 0.7, 0.2, 0.05, 0.2], dtype=torch.float64).unbind())

# Triton reads the variable when it is imported, so that the kernel runs in a process of its own.
COMPARISON = """
import json, torch
from nfopt.optim import elementwise, elementwise_triton
from tests.optim.loops import build, take_steps, weights
from tests.optim.models import mlp
found = {}
double, single, half = torch.float64, torch.float32, torch.bfloat16
for work, kept in ((double, double), (single, single), (single, half)):
    draw = torch.Generator().manual_seed(0)
    grad, slow, fast = (torch.randn(5, 7, 53, generator=draw).to(kept) for _ in range(3))
    grad[0, 0, 0], grad[1, 1, 1], grad[2, 2, 2] = float("nan"), float("inf"), -float("inf")
    mix = elementwise.Mix(*torch.rand(6, generator=draw).to(work).unbind())
    plain, fused = (fold(grad, slow, fast, mix) for fold in (elementwise.fold, elementwise_triton.fold))
    found[f"{work} {kept}"] = max(float((a - b).abs().max()) for a, b in zip(plain, fused, strict=True))
ends = []
for fused in (False, True):
    model = mlp().double()
    take_steps(model, build(model, fused=fused), 5)
    ends.append(weights(model))
found["training"] = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
print(json.dumps(found))
"""


def test_what_is_not_finite_counts_as_zero_and_the_mixture_is_that_of_the_new_momenta() -> None:
    grad, slow, fast = torch.randn(3, 5, 7, dtype=torch.float64).unbind()
    grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = fold(grad, slow, fast, NUMBERS)
    clean = torch.where(grad.isfinite(), grad, 0.0) * 0.5
    torch.testing.assert_close(found.slow, 0.95 * slow + 0.05 * clean)
    torch.testing.assert_close(found.fast, 0.8 * fast + 0.2 * clean)
    torch.testing.assert_close(found.mixed, 0.3 * found.slow + 0.7 * found.fast + 0.2 * clean)


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_the_kernel_agrees_with_the_formula_in_every_dtype_and_over_a_training() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", COMPARISON]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert differences.pop("training") < 1e-9
    assert differences.pop("torch.float64 torch.float64") < 1e-12
    assert len(differences) == 2 and max(differences.values()) < 1e-5


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_on_the_cpu_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = mlp()
    with pytest.raises(OptimizerError, match="for parameters on a GPU"):
        take_steps(model, build(model, fused=True), 1)


def test_without_triton_the_kernel_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "nfopt.optim.elementwise_triton", raising=False)
    with pytest.raises(OptimizerError, match="pip install triton"):
        elementwise.fused_fold()
