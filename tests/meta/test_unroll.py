"""TruncatedUnroll against one plain training at a time, and the meta-loss's promises."""

from dataclasses import replace
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_toys import MomentumRule, momentum_theta

from nfopt.errors import NfoptError
from nfopt.meta.nets import Architecture
from nfopt.meta.objective import Objective
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.unroll import TruncatedUnroll, Vmapped

CONFIG = TaskConfig(
    Architecture("mlp", (5,), 10, (1, 8, 8)),
    batch_images=6,
    train_images=31,
    validation_images=17,
    horizon=11,
)
SEEDS = [3, 8, 9]


def unroll(config: TaskConfig = CONFIG, objective: Objective | None = None) -> TruncatedUnroll:
    _, layout = momentum_theta(torch.float64)
    objective = objective or Objective(every=4)
    return TruncatedUnroll(
        Task.make(config, torch.float64), Vmapped(MomentumRule()), layout, SEEDS, objective
    )


def thetas(copies: int) -> torch.Tensor:
    theta, _ = momentum_theta(torch.float64)
    draw = torch.Generator().manual_seed(0)
    return theta + 0.3 * torch.randn(copies, len(theta), generator=draw, dtype=torch.float64)


def trained_alone(run: TruncatedUnroll, theta: torch.Tensor, instance: int) -> tuple[dict, float]:
    """One copy, step by step, with nothing batched: the obviously right training."""
    task, rule = run.task, MomentumRule()
    instances = task.instances([SEEDS[instance]])
    params = {name: p[0] for name, p in task.initial_parameters(instances).items()}
    divisor = {name: d[0] for name, d in instances.divisor.items()}
    state = rule.init_state(params)
    validation = [x[0] for x in task.validation_batch(instances)]
    total = 0.0
    for step in range(run.horizon):
        x, y = (part[0] for part in task.train_batch(instances, task.batch_positions(instances, step, 1)[0]))
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        grads = torch.autograd.grad(task.loss(leaves, divisor, x, y), list(leaves.values()))
        progress = torch.tensor((step + 1) / run.horizon, dtype=torch.float64)
        named = run.layout.unflatten(theta)
        updates, state = rule(named, params, dict(zip(params, grads, strict=True)), state, progress, step + 1)
        params = {name: p + updates[name] for name, p in params.items()}
        if run.objective.evaluates(step + 1, run.horizon):
            value = run.objective.value(task.loss(params, divisor, *validation), 10)
            total += run.objective.weight(step + 1, run.horizon) * float(value)
    return params, total


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, rescale=10.0),
        replace(CONFIG, architecture=Architecture("resnet", (3, 5), 10, (1, 8, 8), norm="batch"), horizon=5),
    ],
    ids=("mlp", "rescaled", "batch-norm resnet"),
)
def test_copies_side_by_side_train_as_each_would_alone(config: TaskConfig) -> None:
    run = unroll(config)
    theta = thetas(6)
    ran = run.run(theta, run.start().repeated(2), run.horizon)
    for copy in range(6):
        params, loss = trained_alone(run, theta[copy], copy % 3)
        assert float(ran.losses[copy]) == pytest.approx(loss, abs=1e-9)
        for name, p in params.items():
            torch.testing.assert_close(ran.state.params[name][copy], p, rtol=1e-9, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 10))
def test_pieces_add_up_to_the_whole_training(cut: int) -> None:
    run = unroll()
    theta = thetas(3)
    whole = run.run(theta, run.start(), 11)
    first = run.run(theta, run.start(), cut)
    second = run.run(theta, first.state, 11 - cut)
    torch.testing.assert_close(first.losses + second.losses, whole.losses)
    torch.testing.assert_close(torch.cat([first.curve, second.curve]), whole.curve)
    for name, p in whole.state.params.items():
        assert torch.equal(second.state.params[name], p)


def test_copies_with_the_same_theta_and_instance_are_equal_and_others_are_not() -> None:
    run = unroll()
    theta = thetas(1).expand(6, -1)
    losses = run.run(theta, run.start().repeated(2), 11).losses
    assert torch.equal(losses[:3], losses[3:])
    assert len(losses[:3].unique()) == 3


def test_the_differentiable_run_has_the_derivative_of_the_plain_one() -> None:
    run = unroll()
    theta = thetas(3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        run.run(theta, run.start(), 11, differentiable=True).losses.sum(), theta
    )
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 1e-5
    ahead, behind = (run.run(theta.detach() + s * h * direction, run.start(), 11).losses for s in (1, -1))
    torch.testing.assert_close(
        (gradient * direction).sum(1), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-8
    )


def test_a_copy_that_blows_up_is_marked_penalised_and_alone() -> None:
    run = unroll()
    theta = thetas(3)
    sound = run.run(theta, run.start(), 11)
    theta[1, 0] = 800.0
    ran = run.run(theta, run.start(), 11)
    assert ran.failed.tolist() == [False, True, False]
    assert torch.isfinite(ran.losses).all()
    assert float(ran.losses[1]) > max(sound.losses.max(), 1.0)
    assert torch.equal(ran.losses[[0, 2]], sound.losses[[0, 2]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_as_the_cpu_does() -> None:
    run, theta = unroll(), thetas(3)
    task = Task.make(CONFIG, torch.float64, "cuda")
    there = TruncatedUnroll(task, run.rule, run.layout, SEEDS, run.objective)
    expected, ran = (u.run(theta, u.start(), u.horizon) for u in (run, there))
    assert ran.losses.device.type == "cpu"
    torch.testing.assert_close(ran.losses, expected.losses)
    for name, p in ran.state.params.items():
        torch.testing.assert_close(p.cpu(), expected.state.params[name])


def test_steps_past_the_horizon_and_wrong_thetas_are_refused() -> None:
    run = unroll()
    with pytest.raises(NfoptError, match="horizon"):
        run.run(thetas(3), run.start(), 12)
    with pytest.raises(NfoptError, match="copies"):
        run.run(thetas(2), run.start(), 1)


@given(
    every=st.integers(1, 30),
    horizon=st.integers(1, 100),
    share=st.floats(0, 1, allow_nan=False),
    after=st.floats(0, 1, exclude_max=True, allow_nan=False),
)
def test_the_weights_of_a_training_sum_to_one_and_begin_after_its_share(
    every: int, horizon: int, share: float, after: float
) -> None:
    objective = Objective(every=every, final_share=share, after=after)
    steps = [s for s in range(1, horizon + 1) if objective.evaluates(s, horizon)]
    weights = {s: objective.weight(s, horizon) for s in steps}
    assert steps[-1] == horizon
    assert sum(weights.values()) == pytest.approx(1)
    assert all((weights[s] == 0) == (s <= after * horizon or share == 1) for s in steps[:-1])


def test_the_meta_loss_is_zero_at_chance_bounded_and_worst_for_a_failure() -> None:
    objective = Objective()
    losses = torch.tensor([0.0, log(10) - objective.floor, 3.0, 9e9, float("inf"), float("nan")])
    values = objective.value(losses.double(), 10)
    assert float(values[1]) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(values).all()
    assert values[:5].tolist() == sorted(values[:5].tolist())
    assert float(values[4]) == float(values[5]) == pytest.approx(float(values[3]) + objective.failure)


def test_a_failure_gives_no_gradient_and_no_nan_to_others() -> None:
    losses = torch.tensor([1.0, float("nan")], requires_grad=True)
    (gradient,) = torch.autograd.grad(Objective().value(losses, 10).sum(), losses)
    assert gradient[0] > 0
    assert gradient[1] == 0


@pytest.mark.parametrize(
    "bad", [{"every": 0}, {"final_share": 1.5}, {"floor": 0.0}, {"ceiling": 0.0}, {"after": 1.0}]
)
def test_impossible_objectives_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(NfoptError):
        Objective(**bad)  # pyright: ignore[reportArgumentType]


def test_a_theta_layout_inverts_itself_and_refuses_another_theta() -> None:
    layout = ThetaLayout((("a", (3, 5)), ("b", ()), ("c", (7,))))
    vector = torch.randn(2, layout.length)
    parts = layout.unflatten(vector)
    assert {name: tuple(p.shape) for name, p in parts.items()} == {"a": (2, 3, 5), "b": (2,), "c": (2, 7)}
    one = {name: p[1] for name, p in parts.items()}
    assert torch.equal(layout.flatten(one), vector[1])
    with pytest.raises(NfoptError, match="same rule"):
        layout.flatten({"a": one["a"]})
