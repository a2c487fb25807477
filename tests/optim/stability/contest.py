"""A stress case and its contest: the same start and batches for AdamW and for nfopt, and what must hold."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from nfopt.optim import GuardReport, NFOptimizer, NfoptWarning
from tests.optim.stability.problems import Problem

ADAMW = "adamw"
CONTESTANTS = ("default", "nominal")


@dataclass(frozen=True)
class Case:
    """One way in which a training can be out of the ordinary, and what is claimed of it.

    The claim: nfopt stays finite, ends no higher than it started, and no more than `margin` nats above
    AdamW at `adamw_lr` with linear decay (or without, where nfopt's schedule is constant).

    Attributes:
        name: names the case in tests and tables.
        problem: what is trained.
        steps: optimizer steps.
        total_steps: False: nfopt is not told where the training ends.
        lr: nfopt's factor on the step size.
        adamw_lr: a sane learning rate of AdamW.
        loss_factor: step -> factor on that step's loss.
        margin: allowed excess over AdamW's final loss, in nats.
        fast: True: runs by default; else only with `-m stress`.
        fails: contestant -> measured reason, where the claim is known not to hold.
    """

    name: str
    problem: Problem = field(default_factory=Problem)
    steps: int = 200
    total_steps: bool = True
    lr: float = 1.0
    adamw_lr: float = 5e-3
    loss_factor: Callable[[int], float] | None = None
    margin: float = 0.05
    fast: bool = False
    fails: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How one contestant fared.

    Attributes:
        start: the loss before the first step.
        final: the loss after the last.
        guard: what nfopt's guard did; None for AdamW.
    """

    start: float
    final: float
    guard: GuardReport | None = None


def train(case: Case, contestant: str) -> Outcome:
    """Run one contestant of a case: "adamw", or the name of a checkpoint of nfopt's."""
    model = case.problem.start().train()
    start = case.problem.score(model)
    optimizer = _optimizer(case, contestant, model)
    schedule = None
    if contestant == ADAMW and case.total_steps:
        schedule = LambdaLR(optimizer, lambda step: 1 - step / case.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NfoptWarning)
        for step, batch in enumerate(case.problem.batches(case.steps)):
            factor = 1.0 if case.loss_factor is None else case.loss_factor(step)
            loss = functional.cross_entropy(model(batch.images).float(), batch.labels) * factor
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    guard = optimizer.guard_report() if isinstance(optimizer, NFOptimizer) else None
    return Outcome(start, case.problem.score(model), guard)


def violations(case: Case, reference: Outcome, outcome: Outcome) -> list[str]:
    """Return what a contestant's outcome breaks of the case's claim, in words; empty when it holds."""
    if not math.isfinite(outcome.final):
        return [f"the final loss is {outcome.final}"]
    found = []
    if outcome.final > outcome.start + 1e-3:
        found.append(f"it ends at {outcome.final:.3f}, above its start {outcome.start:.3f}")
    if outcome.final > reference.final + case.margin:
        found.append(f"it ends at {outcome.final:.3f}, AdamW at {reference.final:.3f} (+{case.margin})")
    return found


def _optimizer(case: Case, contestant: str, model: nn.Module) -> torch.optim.Optimizer:
    if contestant == ADAMW:
        return torch.optim.AdamW(model.parameters(), lr=case.adamw_lr)
    total_steps = case.steps if case.total_steps else None
    return NFOptimizer(model, total_steps, lr=case.lr, checkpoint=contestant)
