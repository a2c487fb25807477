"""Lesions cut what they say and nothing else; a portrait records what the rule decided."""

import pytest
import torch

from nfopt.meta.lesions import LESIONS, without_control, without_features, without_gains
from nfopt.meta.nets import Architecture
from nfopt.meta.portrait import HELD, NOMINAL, lesion_losses, record
from nfopt.meta.rules import LearnedRules
from nfopt.meta.task import Task, TaskConfig
from nfopt.optim import LearnedUpdateRule, RuleConfig
from nfopt.optim.controls import CONTROL_NAMES, Controls
from nfopt.symmetry import PermutationSpec
from tests.optim.models import learned_checkpoint

CONFIG = TaskConfig(
    Architecture("mlp", (7, 5), 10, (1, 8, 8)),
    batch_images=16,
    train_images=101,
    validation_images=67,
    horizon=12,
)
SHAPES = {"a": (5, 3), "b": (7, 5), "c": (7,)}


def controls(theta: dict[str, torch.Tensor]) -> Controls:
    """What the rule decides on the first step of some tensors."""
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES), RuleConfig())
    draw = torch.Generator().manual_seed(1)
    params, grads = ({n: torch.randn(s, generator=draw) for n, s in SHAPES.items()} for _ in range(2))
    return rule.propose(theta, params, grads, rule.init_state(params), torch.tensor(0.3)).controls


@pytest.mark.parametrize("name", CONTROL_NAMES)
def test_a_control_that_is_cut_off_is_nominal_and_the_others_stay(name: str) -> None:
    theta = dict(learned_checkpoint().theta)
    intact, cut = controls(theta), controls(without_control(name)(theta))
    nominal = 0.5 if name == "fast_share" else 0.0
    assert not torch.allclose(getattr(intact, name), torch.tensor(nominal), atol=1e-3)
    assert torch.equal(getattr(cut, name), torch.full((len(SHAPES),), nominal))
    for other in CONTROL_NAMES:
        assert other == name or torch.equal(getattr(cut, other), getattr(intact, other))
    assert torch.equal(cut.gain, intact.gain)


def test_without_gains_all_rows_and_columns_move_alike() -> None:
    theta = dict(learned_checkpoint().theta)
    assert not torch.allclose(controls(theta).gain, torch.tensor(1.0), atol=1e-3)
    assert torch.equal(controls(without_gains(theta)).gain, torch.ones(5 + 3 + 7 + 5 + 7))


def test_every_lesion_changes_the_decisions_and_leaves_the_given_theta_alone() -> None:
    theta = dict(learned_checkpoint().theta)
    before = {name: value.clone() for name, value in theta.items()}
    intact = controls(theta)
    for name, cut in LESIONS.items():
        found = controls(cut(theta))
        assert not (
            torch.equal(found.log_step, intact.log_step)
            and torch.equal(found.fast_share, intact.fast_share)
            and torch.equal(found.log_decay, intact.log_decay)
            and torch.equal(found.gain, intact.gain)
        ), name
    assert all(torch.equal(theta[name], value) for name, value in before.items())


def test_a_rule_blind_to_the_clock_decides_the_same_at_any_progress() -> None:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES), RuleConfig())
    draw = torch.Generator().manual_seed(1)
    params, grads = ({n: torch.randn(s, generator=draw) for n, s in SHAPES.items()} for _ in range(2))

    def steps(theta: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        state = rule.init_state(params)
        return [
            rule.propose(theta, params, grads, state, torch.tensor(p)).controls.log_step for p in (0.1, 0.9)
        ]

    theta = dict(learned_checkpoint().theta)
    early, late = steps(theta)
    assert not torch.allclose(early, late, atol=1e-3)
    blind = without_features(("age", "horizon", "progress", "early", "late"))(theta)
    early, late = steps(blind)
    assert torch.equal(early, late)


def test_a_portrait_records_every_step_and_the_nominal_rule_decides_nothing() -> None:
    rules, task = LearnedRules(RuleConfig()), Task.make(CONFIG)
    vector, layout = rules.init_theta(0)
    seen = record(task, rules, layout.unflatten(vector), (1, 2))
    count = len(seen.names)
    assert seen.step_factor.shape == seen.fast_share.shape == (CONFIG.horizon, count)
    assert torch.allclose(seen.progress, torch.arange(1, 13) / 12)
    assert torch.equal(seen.fast_share, torch.full((12, count), 0.5))
    assert not seen.gain_spread.any()
    active = record(task, rules, dict(learned_checkpoint().theta), (1, 2))
    assert active.gain_spread.min() > 0
    assert not torch.allclose(active.step_factor, seen.step_factor, rtol=0.05)


def test_lesions_are_paired_with_the_intact_rule() -> None:
    rules, task = LearnedRules(RuleConfig()), Task.make(CONFIG)
    theta = dict(learned_checkpoint().theta)
    lesions = {"none": lambda theta: dict(theta), "gains": without_gains}
    found = lesion_losses(task, rules, theta, lesions, (1, 2, 3))
    assert list(found) == [NOMINAL, "none", "gains", HELD]
    assert found[HELD]["mean"] != 0.0
    # Copies side by side may differ in the last bits.
    assert found["none"] == pytest.approx({"mean": 0.0, "error": 0.0}, abs=1e-5)
    assert abs(found["gains"]["mean"] or 0.0) > 1e-4
    assert found[NOMINAL]["error"] > 0
