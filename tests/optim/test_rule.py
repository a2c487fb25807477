"""The pure update rule: its nominal point, its guard, its state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nfopt.errors import OptimizerError, PermutationSpecError
from nfopt.optim import LearnedUpdateRule, RuleConfig, directions
from nfopt.optim.directions import MomentumRates
from nfopt.optim.dtypes import work_dtype
from nfopt.optim.moments import DAMPED, SECOND, SKIPPED, STEP, TENSOR_STATE
from nfopt.optim.schedule import built_in_schedule
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace.incidence import MatrixLayout
from tests.optim.models import learned_checkpoint

SHAPES = {"conv": (5, 3, 2, 2), "linear": (7, 5), "bias": (7,), "scalar": (), "depthwise": (5, 1, 3, 3)}
SPEC = PermutationSpec.uncoupled(SHAPES)
HALF = torch.tensor(0.5, dtype=torch.float64)


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def theta_of(rule: LearnedUpdateRule, seed: int = 0) -> dict[str, Tensor]:
    return {k: v.double() for k, v in learned_checkpoint(seed).theta.items()}


def run(rule: LearnedUpdateRule, theta: dict[str, Tensor], steps: int, seed: int = 10):
    params = tensors(0)
    state = rule.init_state(params)
    updates: dict[str, Tensor] = {}
    for i in range(steps):
        updates, state = rule(theta, params, tensors(seed + i), state, HALF)
    return params, updates, state


def test_with_zero_output_layers_it_is_the_nominal_optimizer() -> None:
    """Written out again from the definition: Muon for matrices, Adam for the rest, decay on matrices."""
    config = RuleConfig()
    rule = LearnedUpdateRule(SPEC, config)
    theta = {k: v.double() for k, v in rule.init_theta(torch.Generator().manual_seed(3)).items()}
    params, updates, _ = run(rule, theta, 4)
    rates, factor = MomentumRates(), float(built_in_schedule(HALF, torch.tensor(4.0)))
    for name, shape in SHAPES.items():
        slow = fast = second = torch.zeros(shape, dtype=torch.float64)
        for i in range(4):
            grad = tensors(10 + i)[name]
            slow = rates.slow * slow + (1 - rates.slow) * grad
            fast = rates.fast * fast + (1 - rates.fast) * grad
            second = rates.second * second + (1 - rates.second) * grad**2
        nesterov = [
            rate * m / (1 - rate**4) + (1 - rate) * grad
            for m, rate in ((slow, rates.slow), (fast, rates.fast))
        ]
        momentum = (nesterov[0] + nesterov[1]) / 2
        if name in ("conv", "linear"):
            layout = MatrixLayout.of(SPEC.tensors[name])
            direction = directions.orthogonal([momentum], [layout])[0]
            fan_in = momentum[0].numel()
            step = config.kernel_step if name == "conv" else config.matrix_step
            eased = 1 - 0.7 * (1 - 4 / 800)
            size, decay = step / fan_in**0.5, eased * config.matrix_step * config.weight_decay
        else:
            direction = momentum / second.sqrt()
            direction = direction / direction.square().mean().sqrt()
            size, decay = (config.kernel_step / 3 if name == "depthwise" else config.vector_step), 0.0
        expected = -factor * (size * direction + decay * params[name])
        # Up to the small shares under which a gradient counts as gone.
        assert float((updates[name] - expected).norm() / expected.norm()) < 1e-4, name


def test_random_output_layers_change_every_tensor_within_the_bounds() -> None:
    rule = LearnedUpdateRule(SPEC)
    nominal = {k: v.double() for k, v in rule.init_theta().items()}
    _, plain, _ = run(rule, nominal, 3)
    _, learned, _ = run(rule, theta_of(rule), 3)
    for name in SHAPES:
        assert not torch.allclose(plain[name], learned[name], rtol=1e-2), name
        ratio = float(learned[name].norm() / plain[name].norm())
        assert 1 / (7.4 * 4 * 1.2) < ratio < 7.4 * 4 * 1.2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(value: float) -> None:
    rule = LearnedUpdateRule(SPEC)
    theta = theta_of(rule)
    params, _, before = run(rule, theta, 3)
    grads = tensors(99)
    grads["bias"][2] = value
    updates, after = rule(theta, params, grads, before, HALF)
    assert all(not update.any() for update in updates.values())
    for name in SHAPES:
        kept = [key for key in TENSOR_STATE if f"{name}/{key}" in before]
        assert (SECOND in kept) == (name not in ("conv", "linear"))
        assert all(torch.equal(after[f"{name}/{key}"], before[f"{name}/{key}"]) for key in kept)
        assert after[f"{name}/{STEP}"] == before[f"{name}/{STEP}"] == 3
        assert after[f"{name}/{SKIPPED}"] == 1
    resumed, _ = rule(theta, params, tensors(50), after, HALF)
    straight, _ = rule(theta, params, tensors(50), before, HALF)
    assert all(torch.equal(resumed[n], straight[n]) for n in SHAPES)


def test_an_anomalous_gradient_falls_back_to_the_nominal_step_of_that_tensor() -> None:
    rule = LearnedUpdateRule(SPEC)
    theta = theta_of(rule)
    params, _, state = run(rule, theta, 20)
    grads = tensors(7)
    grads["linear"] = 1e6 * grads["linear"]
    updates, after = rule(theta, params, grads, state, HALF)
    zero = {k: torch.zeros_like(v) if "output" in k else v for k, v in theta.items()}
    nominal, _ = rule(zero, params, grads, state, HALF)
    assert torch.allclose(updates["linear"], nominal["linear"], rtol=1e-12)
    assert not torch.allclose(updates["conv"], nominal["conv"], rtol=1e-2)
    assert after[f"linear/{DAMPED}"] == 1
    assert after[f"conv/{DAMPED}"] == 0


def test_scaling_a_tensors_gradients_by_a_constant_changes_nothing() -> None:
    rule = LearnedUpdateRule(SPEC)
    theta = theta_of(rule)
    params = tensors(0)
    plain, scaled = rule.init_state(params), rule.init_state(params)
    for i in range(4):
        grads = tensors(10 + i)
        first, plain = rule(theta, params, grads, plain, HALF)
        second, scaled = rule(theta, params, {n: 1e-4 * g for n, g in grads.items()}, scaled, HALF)
    assert all(torch.allclose(first[n], second[n], rtol=1e-5, atol=1e-10) for n in SHAPES)


@pytest.mark.parametrize("how", ["leading dimension", "vmap"])
def test_many_copies_run_side_by_side_as_they_do_alone(how: str) -> None:
    rule = LearnedUpdateRule(SPEC)
    thetas = [theta_of(rule, seed) for seed in range(3)]
    params = [tensors(seed) for seed in range(3)]
    states = [rule.init_state(p) for p in params]

    def stack(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def plain(theta: Any, params: Any, grads: Any, state: Any) -> Any:
        return rule(theta, params, grads, state, HALF)

    many = torch.func.vmap(plain) if how == "vmap" else plain
    together = stack(states)
    for i in range(3):
        grads = [tensors(20 + 3 * i + k) for k in range(3)]
        updates, together = many(stack(thetas), stack(params), stack(grads), together)
        for k in range(3):
            alone, states[k] = rule(thetas[k], params[k], grads[k], states[k], HALF)
            assert all(torch.allclose(updates[n][k], alone[n], rtol=1e-9, atol=1e-12) for n in SHAPES)


def test_state_is_kept_in_at_least_float32() -> None:
    params = {n: t.to(torch.bfloat16) for n, t in tensors(0).items()}
    rule = LearnedUpdateRule(SPEC)
    state = rule.init_state(params)
    assert {value.dtype for value in state.values()} == {torch.float32}
    updates, state = rule(rule.init_theta(), params, params, state, torch.tensor(0.5))
    assert {value.dtype for value in updates.values()} == {torch.bfloat16}
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_dtypes_that_cannot_be_trained_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(OptimizerError, match=str(dtype)):
        work_dtype(dtype)


def test_a_name_outside_the_spec_is_refused() -> None:
    with pytest.raises(PermutationSpecError, match="no tensor 'other'"):
        LearnedUpdateRule(SPEC, names=("other",))


def test_the_meta_gradient_is_finite_where_gradients_vanish_exactly() -> None:
    """Meta-training by backpropagation meets dead neurons: roots and norms of zero must not yield NaN."""
    rule = LearnedUpdateRule(SPEC)
    theta = {k: v.clone().requires_grad_() for k, v in theta_of(rule).items()}
    params = {n: t.clone().requires_grad_() for n, t in tensors(0).items()}
    state = rule.init_state(params)
    dead = {
        n: 0 * g if n == "bias" else g.index_fill(0, torch.tensor([1]), 0.0) if g.dim() else g
        for n, g in tensors(1).items()
    }
    for _ in range(2):
        updates, state = rule(
            theta, params, {n: g * (1 + 0 * params[n]) for n, g in dead.items()}, state, HALF
        )
    total = sum(update.square().sum() for update in updates.values())
    found = torch.autograd.grad(total, [*theta.values(), *params.values()])
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    assert any(bool(gradient.any()) for gradient in found[: len(theta)])


def test_once_the_gradients_vanish_the_weights_come_to_rest() -> None:
    """A model that fits its data exactly has gradients that shrink without end; weights must not grow."""
    rule = LearnedUpdateRule(SPEC)
    theta = {k: v.double() for k, v in rule.init_theta().items()}
    params = tensors(0)
    state = rule.init_state(params)
    for i in range(30):
        _, state = rule(theta, params, tensors(i), state, HALF)
    moving, _ = rule(theta, params, tensors(30), state, HALF)
    for i in range(200):
        vanished = {n: 1e-6 * g for n, g in tensors(100 + i).items()}
        undecayed = [0.0] * len(SHAPES)
        resting, state = rule(theta, params, vanished, state, HALF, weight_decay=undecayed)
    for name in SHAPES:
        assert float(resting[name].norm()) < 0.1 * float(moving[name].norm()), name


def test_once_the_gradients_vanish_weights_decay_three_times_as_fast() -> None:
    rule = LearnedUpdateRule(SPEC)
    theta = {k: v.double() for k, v in rule.init_theta().items()}
    params = tensors(0)
    state = rule.init_state(params)

    def decay(grads: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> torch.Tensor:
        updates, undecayed = (
            rule(theta, params, grads, state, HALF, weight_decay=[share] * len(SHAPES))[0]["linear"]
            for share in (rule.config.weight_decay, 0.0)
        )
        return updates - undecayed

    for i in range(29):
        _, state = rule(theta, params, tensors(i), state, HALF)
    living = decay(tensors(29), state)
    for i in range(201):
        gone = {n: 1e-6 * g for n, g in tensors(100 + i).items()}
        _, state = rule(theta, params, gone, state, HALF)
    ratio = decay({n: 1e-6 * g for n, g in tensors(0).items()}, state).norm() / living.norm()
    ageing = built_in_schedule(HALF, torch.tensor(231.0)) / built_in_schedule(HALF, torch.tensor(30.0))
    young = 1 - 0.7 * (1 - 30 / 800)
    assert 0.9 / young < float(ratio / ageing) < 1.001 / young


def test_decay_that_is_not_eased_is_the_nominal_one() -> None:
    rule = LearnedUpdateRule(SPEC)
    theta = {k: v.double() for k, v in rule.init_theta().items()}
    params = tensors(0)
    _, state = rule(theta, params, tensors(1), rule.init_state(params), HALF)
    eased, whole = (
        rule.plan(theta, params, tensors(2), state, HALF, ease_decay=ease).shrink for ease in (True, False)
    )
    nominal = rule.config.matrix_step * rule.config.weight_decay * built_in_schedule(HALF, torch.tensor(2.0))
    for i, name in enumerate(rule.names):
        assert float(whole[i]) == pytest.approx(float(nominal) if name in rule.matrices else 0)
        assert name not in rule.matrices or float(eased[i]) < 0.4 * float(whole[i])
