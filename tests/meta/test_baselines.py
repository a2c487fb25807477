"""The hand-made rules take the same steps as the libraries' optimizers."""

from functools import partial

import pytest
import timm.optim.muon
import torch
from torch import Tensor

from nfopt.meta.baselines import LAYOUT, AdamWRule, MuonRule, decayed, newton_schulz, settings

SHAPES = {
    "conv": (7, 3, 3, 3),
    "depthwise": (7, 1, 3, 3),
    "wide": (5, 7),
    "tall": (11, 5),
    "thin": (3, 5),
    "bias": (5,),
}
STEPS = 12


def trajectories(rule, optimizer_of, theta: dict[str, float]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train a toy loss by the rule and by the library; the library's rate follows the rule's schedule."""
    draw = torch.Generator().manual_seed(0)
    start = {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}
    aims = {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}
    named = {name: torch.tensor(value, dtype=torch.float64) for name, value in theta.items()}
    params, state = start, rule.init_state(start)
    theirs = {n: torch.nn.Parameter(p.clone()) for n, p in start.items()}
    optimizer = optimizer_of(list(theirs.values()))
    for step in range(STEPS):
        progress = torch.tensor((step + 1) / STEPS, dtype=torch.float64)
        grads = {n: torch.sin(p - aims[n]) for n, p in params.items()}
        updates, state = rule(named, params, grads, state, progress, step + 1)
        params = {n: p + updates[n] for n, p in params.items()}
        for group in optimizer.param_groups:
            group["lr"] = float(decayed(named, progress))
        for n, p in theirs.items():
            p.grad = torch.sin(p.detach() - aims[n])
        optimizer.step()
    return params, {n: p.detach() for n, p in theirs.items()}


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_adamw_takes_the_steps_of_torch(cosine: float) -> None:
    theta = {"learning_rate": 0.05, "weight_decay": 0.1, "momentum": 0.8, "cosine": cosine}
    ours, theirs = trajectories(
        AdamWRule(), partial(torch.optim.AdamW, betas=(0.8, 0.999), weight_decay=0.1), theta
    )
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("nesterov", "names"), [(True, ("conv", "wide", "tall")), (False, ("depthwise", "thin", "bias"))]
)
def test_muon_takes_the_steps_of_timm_in_the_same_precision(
    monkeypatch: pytest.MonkeyPatch, nesterov: bool, names: tuple[str, ...]
) -> None:
    exact = partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float64)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", exact)
    theta = {"learning_rate": 0.02, "weight_decay": 0.1, "momentum": 0.9, "cosine": 0.0}
    muon = partial(timm.optim.muon.Muon, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    ours, theirs = trajectories(MuonRule(), muon, theta)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_another_momentum_is_not_taken_for_the_same() -> None:
    theta = {"learning_rate": 0.05, "weight_decay": 0.1, "momentum": 0.9, "cosine": 0.0}
    ours, theirs = trajectories(
        AdamWRule(), partial(torch.optim.AdamW, betas=(0.8, 0.999), weight_decay=0.1), theta
    )
    assert not torch.allclose(ours["wide"], theirs["wide"], rtol=1e-4)


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    for cosine in (0.0, 1.0):
        theta = {"learning_rate": torch.tensor(2.0), "cosine": torch.tensor(cosine)}
        rates = [float(decayed(theta, torch.tensor(t / 100))) for t in range(1, 101)]
        assert rates[0] < rates[1]
        assert rates[1] > rates[50] > rates[98] > 0
        assert rates[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 31), (31, 5)])
def test_newton_schulz_pushes_singular_values_towards_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(matrix))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_a_grid_holds_every_combination_in_the_layouts_order() -> None:
    grid = settings((0.1, 0.2), (0.0,), (0.8, 0.9))
    assert len(grid) == 8
    assert all(list(entry) == [name for name, _ in LAYOUT.shapes] for entry in grid)
