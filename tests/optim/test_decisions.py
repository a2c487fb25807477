"""Decisions: packed per tensor, held between two of them, and no more trusted than the gradients."""

import copy

import pytest
import torch

from nfopt import NFOptimizer
from nfopt.optim.decisions import DECISIONS, Decisions, Packing, decisions_size
from nfopt.optim.rule import LearnedUpdateRule, RuleConfig
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.trace import trace_permutation_spec
from nfopt.weightspace.incidence import build_incidence
from tests.optim.models import learned_checkpoint, resnet

SHAPES = {"a": (5, 3), "b": (5,), "c": (7, 5, 3, 3), "d": ()}
THETA = dict(learned_checkpoint().theta)


def draws(count: int) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{n: torch.randn(s, generator=draw) for n, s in SHAPES.items()} for _ in range(count)]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_packing_and_reading_give_back_the_same_decisions(batch: tuple[int, ...]) -> None:
    traced = trace_permutation_spec(resnet().eval(), torch.randn(2, 3, 5, 5))
    for spec in (PermutationSpec.uncoupled(SHAPES), traced):
        incidence = build_incidence(spec)
        packing = Packing.of(incidence)
        tensors = torch.randn(*batch, len(incidence.names), 3)
        decisions = Decisions(tensors, torch.randn(*batch, incidence.entry_count))
        written = packing.write(decisions)
        sizes = dict(zip(packing.names, packing.sizes, strict=True))
        assert {n.rsplit("/", 1)[0]: part.shape[-1] for n, part in written.items()} == sizes
        shapes = [layout.shape for layout in incidence.layouts]
        assert packing.sizes == tuple(map(decisions_size, shapes))
        back = packing.read(written)
        assert torch.equal(back.tensors, decisions.tensors) and torch.equal(back.entries, decisions.entries)
        # A tensor's vector holds what belongs to it: its controls, then the gains of its rows.
        first = incidence.names[0]
        own = written[f"{first}/{DECISIONS}"]
        assert torch.equal(own[..., :3], tensors[..., 0, :])
        rows = decisions.entries[..., incidence.slices[first, "out"]]
        assert torch.equal(own[..., 3 : 3 + rows.shape[-1]], rows)


def taken(cadence: int) -> list[torch.Tensor]:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES), RuleConfig(cadence=cadence))
    params, *grads = draws(6)
    state, found = rule.init_state(params), []
    for i, grad in enumerate(grads):
        updates, state = rule(THETA, params, grad, state, torch.tensor((i + 1) / 8), i + 1)
        found.append(updates["a"])
    return found


def test_the_rule_decides_anew_only_when_its_time_has_come() -> None:
    always, second = taken(1), taken(2)
    equal = [torch.equal(x, y) for x, y in zip(always, second, strict=True)]
    assert equal == [True, False, True, False, True]


def test_decisions_that_are_held_are_trusted_no_more_than_the_gradients() -> None:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES), RuleConfig())
    params, grads = draws(2)
    state = rule.init_state(params)
    for i in range(15):
        _, state = rule(THETA, params, grads, state, torch.tensor(0.1), i + 1)
    usual = rule.propose(THETA, params, grads, state, torch.tensor(0.1), decide=False).controls
    absurd = {name: 1e6 * grad for name, grad in grads.items()}
    faded = rule.propose(THETA, params, absurd, state, torch.tensor(0.1), decide=False).controls
    assert float(usual.log_step.abs().max()) > 0.01
    assert torch.equal(faded.log_step, torch.zeros(len(SHAPES)))
    assert torch.equal(faded.gain, torch.ones_like(faded.gain))


def test_a_skipped_step_decides_nothing() -> None:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES), RuleConfig(cadence=1))
    params, grads = draws(2)
    _, state = rule(THETA, params, grads, rule.init_state(params), torch.tensor(0.1), 1)
    broken = {name: grad * float("nan") for name, grad in grads.items()}
    _, after = rule(THETA, params, broken, state, torch.tensor(0.2), 2)
    for name in SHAPES:
        assert torch.equal(after[f"{name}/{DECISIONS}"], state[f"{name}/{DECISIONS}"])
    _, fine = rule(THETA, params, grads, state, torch.tensor(0.2), 2)
    assert not torch.equal(fine[f"a/{DECISIONS}"], state[f"a/{DECISIONS}"])


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_resumed_between_two_decisions_keeps_to_the_last_one(keep: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5))
    inputs = torch.randn(13, 3)
    optimizer = NFOptimizer(model, 30, checkpoint=learned_checkpoint())

    def steps(net: torch.nn.Module, opt: NFOptimizer, count: int) -> None:
        for _ in range(count):
            opt.zero_grad()
            net(inputs).square().mean().backward()
            opt.step()

    steps(model, optimizer, 13)
    other = copy.deepcopy(model)
    resumed = NFOptimizer(other, 30, checkpoint=learned_checkpoint())
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry[DECISIONS] *= keep
    resumed.load_state_dict(saved)
    for net, opt in ((model, optimizer), (other, resumed)):
        steps(net, opt, 4)
    assert torch.equal(model[0].weight, other[0].weight) == keep
