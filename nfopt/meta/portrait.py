"""Portrait: what a learned rule decides while it trains a task, and what its parts are worth there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from nfopt.meta.evaluate import mean_and_error
from nfopt.meta.lesions import Lesion, without_learned_part
from nfopt.meta.objective import Objective
from nfopt.meta.rules import LearnedRules
from nfopt.meta.task import Task, Tensors
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.optim import LearnedUpdateRule
from nfopt.optim.schedule import built_in_schedule

NOMINAL = "nominal point"
HELD = "holding of decisions"


@dataclass(frozen=True)
class Decisions:
    """What the rule decided in a training, averaged over instances.

    Attributes:
        names: the tensors.
        matrices: which of them are matrices.
        progress: (steps,), share of the training done.
        step_factor: (steps, tensors), what the nominal step is multiplied by, the schedule included.
        fast_share: (steps, tensors), share of the fast momentum.
        decay_factor: (steps, tensors), what the nominal weight decay is multiplied by.
        gain_spread: (steps, tensors), standard deviation of the log gains over a tensor's rows and columns.
    """

    names: tuple[str, ...]
    matrices: frozenset[str]
    progress: Tensor
    step_factor: Tensor
    fast_share: Tensor
    decay_factor: Tensor
    gain_spread: Tensor


class RecordingRule:
    """An update rule that writes down what it decides, averaged over copies."""

    def __init__(self, rule: LearnedUpdateRule) -> None:
        self.rule = rule
        self._rows: list[Tensor] = []
        self._progress: list[Tensor] = []

    def init_state(self, params: Tensors) -> Tensors:
        """Return the state before the first step."""
        return self.rule.init_state(params)

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor, step: int
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state)."""
        decide = (step - 1) % self.rule.config.cadence == 0
        proposal = self.rule.propose(theta, params, grads, state, progress, decide=decide)
        chosen = proposal.controls
        log_gain = chosen.gain.log()
        of = self.rule.incidence.entry_tensor
        count = len(self.rule.names)
        squares = log_gain.new_zeros(*log_gain.shape[:-1], count).index_add(-1, of, log_gain.square())
        entries = torch.bincount(of, minlength=count)
        spread = (squares / entries).sqrt()
        age = torch.full_like(chosen.log_step, step)
        factor = built_in_schedule(progress, age) * torch.exp(chosen.log_step)
        parts = (factor, chosen.fast_share, torch.exp(chosen.log_decay), spread)
        self._rows.append(torch.stack([part.mean(0) for part in parts]))
        self._progress.append(progress)
        return proposal.updates, proposal.state

    def decisions(self) -> Decisions:
        """Return everything that was written down."""
        factor, share, decay, spread = torch.stack(self._rows).unbind(1)
        progress = torch.stack(self._progress)
        return Decisions(self.rule.names, self.rule.matrices, progress, factor, share, decay, spread)


def record(task: Task, rules: LearnedRules, theta: Mapping[str, Tensor], seeds: Sequence[int]) -> Decisions:
    """Train one instance of `task` per seed and return what the rule decided."""
    rule, layout = RecordingRule(rules(task)), ThetaLayout.of(theta)
    unroll = TruncatedUnroll(task, rule, layout, seeds, Objective(every=task.config.horizon))
    unroll.run(layout.flatten(theta).repeat(len(seeds), 1), unroll.start(), unroll.horizon)
    return rule.decisions()


def lesion_losses(
    task: Task,
    rules: LearnedRules,
    theta: Mapping[str, Tensor],
    lesions: Mapping[str, Lesion],
    seeds: Sequence[int],
) -> dict[str, dict[str, float | None]]:
    """Return by how much each lesion raises the final validation loss.

    So do, beside the lesions, the nominal point, and fresh decisions in every step. Every
    variant trains the same instances. Values are mean and standard error of the paired differences in
    nats to the intact rule; None where a training diverged.
    """
    layout = ThetaLayout.of(theta)
    cuts = {NOMINAL: without_learned_part, **lesions}
    variants = {"": dict(theta)} | {name: cut(theta) for name, cut in cuts.items()}
    rows = torch.stack([layout.flatten(variant) for variant in variants.values()])
    objective = Objective(every=task.config.horizon)
    unroll = TruncatedUnroll(task, rules(task), layout, seeds, objective)
    start = unroll.start().repeated(len(variants))
    ran = unroll.run(rows.repeat_interleave(len(seeds), 0), start, unroll.horizon)
    finals = ran.curve[-1].reshape(len(variants), len(seeds))
    fresh = LearnedRules(replace(rules.config, cadence=1))
    held = TruncatedUnroll(task, fresh(task), layout, seeds, objective)
    finals = torch.cat([finals, held.run(rows[:1].repeat(len(seeds), 1), held.start(), held.horizon).curve])
    gaps = (finals[1:] - finals[0]).tolist()
    return {
        name: mean_and_error([gap if isfinite(gap) else None for gap in row])
        for name, row in zip([*cuts, HELD], gaps, strict=True)
    }
