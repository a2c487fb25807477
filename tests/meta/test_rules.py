"""Meta-training's view of the learned update rule: copies side by side, a nominal start, true gradients."""

import pytest
import torch

from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.family import TaskFamily
from nfopt.meta.nets import Architecture
from nfopt.meta.objective import Objective
from nfopt.meta.rules import LearnedRules
from nfopt.meta.selection import Selection, longer_tasks
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.optim import RuleConfig

RULES = LearnedRules(RuleConfig())
ARCHITECTURES = [
    Architecture("mlp", (5, 7), 10, (1, 8, 8)),
    Architecture("mlp", (5,), 10, (1, 8, 8), norm="layer"),
    Architecture("resnet", (3, 5), 10, (1, 8, 8), norm="batch"),
    Architecture("depthwise", (3, 5), 10, (1, 8, 8), activation="gelu"),
]


def unrolled(
    architecture: Architecture, dtype: torch.dtype = torch.float64
) -> tuple[TruncatedUnroll, torch.Tensor]:
    config = TaskConfig(architecture, batch_images=6, train_images=31, validation_images=17, horizon=6)
    task = Task.make(config, dtype)
    theta, layout = RULES.init_theta(0)
    return TruncatedUnroll(task, RULES(task), layout, [0, 1], Objective(every=3)), theta.to(dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_copies_of_the_learned_rule_train_as_each_would_alone(architecture: Architecture) -> None:
    run, theta = unrolled(architecture)
    draw = torch.Generator().manual_seed(0)
    thetas = theta + 0.3 * torch.randn(4, len(theta), generator=draw, dtype=theta.dtype)
    together = run.run(thetas, run.start().repeated(2), 6)
    assert not together.failed.any()
    apart = [run.run(thetas[k : k + 2], run.start(), 6).losses for k in (0, 2)]
    torch.testing.assert_close(together.losses, torch.cat(apart), rtol=1e-9, atol=1e-12)
    assert len(together.losses.unique()) == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES[:3], ids=str)
def test_backpropagation_through_the_learned_rule_is_its_derivative(architecture: Architecture) -> None:
    run, theta = unrolled(architecture)
    estimate, _ = TruncatedBackprop(None, max_norm=1e9).step(
        run, theta, TruncatedBackprop().begin(run, theta), torch.Generator()
    )
    assert estimate.failures == 0
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=theta.dtype)
    h = 1e-6  # a larger one may cross a kink of the net's relus
    ahead, behind = (
        run.run((theta + s * h * direction).expand(2, -1), run.start(), 6).losses for s in (1, -1)
    )
    torch.testing.assert_close(
        estimate.gradients @ direction, (ahead - behind) / (2 * h), rtol=2e-3, atol=1e-7
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:3], ids=str)
def test_backprop_in_segments_gives_the_rules_whole_gradient(architecture: Architecture) -> None:
    run, theta = unrolled(architecture)
    theta = theta + 0.1 * torch.randn(
        len(theta), generator=torch.Generator().manual_seed(0), dtype=theta.dtype
    )
    draw = torch.Generator()
    found = []
    for segment in (None, 4):
        estimator = TruncatedBackprop(None, 1e9, segment)
        estimate, carry = estimator.step(run, theta, estimator.begin(run, theta), draw)
        assert carry is None
        found.append(estimate)
    assert found[0].gradients.abs().max() > 1e-3
    torch.testing.assert_close(found[1].gradients, found[0].gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1].losses, found[0].losses)
    cut = TruncatedBackprop(4, 1e9)
    first, carry = cut.step(run, theta, cut.begin(run, theta), draw)
    assert carry is not None
    second, _ = cut.step(run, theta, carry, draw)
    biased = first.gradients + second.gradients
    assert not torch.allclose(biased, found[0].gradients, rtol=1e-2)


def test_the_nominal_theta_has_zero_tensors_and_one_layout_for_every_architecture() -> None:
    theta, layout = RULES.init_theta(3)
    assert torch.equal(theta, RULES.init_theta(3)[0])
    assert not torch.equal(theta, RULES.init_theta(4)[0])
    assert any(not value.any() for value in layout.unflatten(theta).values())
    task = Task.make(TaskConfig(ARCHITECTURES[2], batch_images=4, train_images=9))
    assert {n: tuple(v.shape) for n, v in RULES(task).init_theta().items()} == dict(layout.shapes)


def test_a_rule_is_built_once_for_an_architecture() -> None:
    tasks = [Task.make(TaskConfig(ARCHITECTURES[0], batch_images=b, train_images=9)) for b in (3, 5)]
    assert RULES(tasks[0]) is RULES(tasks[1])


def test_selection_gives_the_nominal_theta_no_advantage_over_itself() -> None:
    family = TaskFamily(
        sources=("digits",),
        kinds=(("mlp", 1.0),),
        widths=(5, 7),
        depths=(1, 1),
        batch_images=(8, 8),
        horizon=(4, 6),
    )
    theta, layout = RULES.init_theta(0)
    tasks = longer_tasks(family, 2, seed=0, horizon_factor=2)
    assert all(8 <= task.horizon <= 12 for task in tasks)
    losses = Selection(tasks, RULES, layout, Objective(every=4), 2, 0).losses([theta, theta, theta + 1])
    assert losses.shape == (3, 2)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
