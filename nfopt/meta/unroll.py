"""TruncatedUnroll: inner training of many copies side by side, in pieces that add up to the meta-loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vmap

from nfopt.errors import NfoptError
from nfopt.meta.task import Task, Tensors
from nfopt.meta.theta import ThetaLayout


class UpdateRule(Protocol):
    """What meta-training needs of an optimizer: pure functions of copies that train side by side."""

    def init_state(self, params: Tensors) -> Tensors:
        """Return one copy's state before the first step; works under `torch.func.vmap`."""
        ...

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state): the new parameters are params + updates.

        All tensors but `progress` have the same leading dimension: one entry per copy.
        `progress` is the share of the training done with this step, in (0, 1].
        """
        ...


class Vmapped:
    """An update rule for copies, from one that is written for a single copy.

    Args:
        rule: its tensors have no leading dimension; no control flow may depend on data.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.init_state = rule.init_state
        self._call = vmap(rule, in_dims=(0, 0, 0, 0, None))

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state) of every copy."""
        return self._call(theta, params, grads, state, progress)


@dataclass(frozen=True, slots=True)
class Objective:
    """The meta-loss: log validation loss, averaged over the training's evaluations.

    An evaluation of loss v counts log((min(v, ceiling c) + floor) / c), c = log(classes) being the loss of a
    guess: 0 is chance, and a difference of two rules on one task is the log of the ratio of their losses, the
    same for easy and hard tasks. Measuring against another rule's curve at the same steps and batches only
    subtracts a constant, which antithetic and backpropagated gradients do not see; so reports subtract the
    nominal curve and gradients need not.

    Attributes:
        every: inner steps between evaluations; the last step is always evaluated.
        final_share: weight of the last evaluation, in [0, 1]; the rest is spread evenly over all evaluations.
        floor: added to the loss in nats, so that a solved task does not outweigh all others.
        ceiling: multiple of c at which the loss is cut.
        failure: what a copy with a non-finite loss counts on top of the ceiling; it also counts as failed.
    """

    every: int = 10
    final_share: float = 0.5
    floor: float = 0.02
    ceiling: float = 4.0
    failure: float = 0.5

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.final_share <= 1 or self.floor <= 0 or self.ceiling <= 0:
            raise NfoptError(
                f"an objective needs every >= 1, final_share in [0, 1], floor and ceiling > 0, not {self}."
            )

    def evaluates(self, step: int, horizon: int) -> bool:
        """Return whether the loss is taken once `step` inner steps are done."""
        return step == horizon or step % self.every == 0

    def weight(self, step: int, horizon: int) -> float:
        """Return the weight of the evaluation at `step`; over a whole training they sum to 1."""
        count = horizon // self.every + (horizon % self.every > 0)
        return (1 - self.final_share) / count + self.final_share * (step == horizon)

    def value(self, loss: Tensor, classes: int) -> Tensor:
        """Return the meta-loss of losses in nats, elementwise; non-finite ones get the bounded penalty."""
        chance = log(classes)
        worst = log((self.ceiling * chance + self.floor) / chance) + self.failure
        finite = torch.isfinite(loss)
        safe = torch.where(finite, loss, torch.ones_like(loss))
        value = torch.log((safe.clamp(max=self.ceiling * chance) + self.floor) / chance)
        return torch.where(finite, value, torch.full_like(value, worst))


@dataclass(frozen=True, eq=False)
class InnerState:
    """Where inner training stands: copies along the leading dimension.

    Attributes:
        params: (copies, ...) by parameter name.
        rule_state: (copies, ...) by state name.
        step: inner steps done.
    """

    params: Tensors
    rule_state: Tensors
    step: int

    def tensors(self) -> Tensors:
        """Return every tensor under one flat naming, for a checkpoint."""
        return {f"params/{name}": value for name, value in self.params.items()} | {
            f"rule/{name}": value for name, value in self.rule_state.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], step: int) -> "InnerState":
        """Rebuild a state from `tensors`."""
        parts: dict[str, Tensors] = {"params": {}, "rule": {}}
        for name, value in tensors.items():
            kind, key = name.split("/", 1)
            parts[kind][key] = value
        return cls(parts["params"], parts["rule"], step)

    def detached(self) -> "InnerState":
        """Return the state cut off from the autograd graph."""
        return InnerState(
            {name: value.detach() for name, value in self.params.items()},
            {name: value.detach() for name, value in self.rule_state.items()},
            self.step,
        )

    def repeated(self, repeats: int) -> "InnerState":
        """Return `repeats` groups of all copies, one group after the other."""
        return replace(
            self,
            params={n: torch.cat([p] * repeats) for n, p in self.params.items()},
            rule_state={n: torch.cat([s] * repeats) for n, s in self.rule_state.items()},
        )


@dataclass(frozen=True, eq=False)
class Unrolled:
    """Result of one piece of inner training.

    Attributes:
        losses: (copies,), each copy's contribution to its meta-loss.
        failed: (copies,), whether a loss in this piece was not finite.
        state: where inner training stands afterwards.
        curve: (evaluations in the piece, copies), the validation losses in nats, without a graph.
    """

    losses: Tensor
    failed: Tensor
    state: InnerState
    curve: Tensor


class TruncatedUnroll:
    """Inner training of one task's instances under one rule.

    Copies of the same instance share initialisation, batches and validation images whatever their theta:
    differences between them are the rule's (common random numbers).

    Args:
        task: the task.
        rule: the update rule, built for the task's parameters.
        layout: how a theta vector splits into the rule's tensors.
        seeds: one per instance.
        objective: the meta-loss.
    """

    def __init__(
        self, task: Task, rule: UpdateRule, layout: ThetaLayout, seeds: Sequence[int], objective: Objective
    ) -> None:
        self.task = task
        self.rule = rule
        self.layout = layout
        self.objective = objective
        self.instances = task.instances(seeds)
        self._validation = task.validation_batch(self.instances)

    @property
    def horizon(self) -> int:
        """Inner steps of a whole training."""
        return self.task.config.horizon

    @property
    def instance_count(self) -> int:
        """Number of instances."""
        return len(self.instances.seeds)

    def start(self) -> InnerState:
        """Return the state before the first step: one copy per instance."""
        params = self.task.initial_parameters(self.instances)
        state = vmap(self.rule.init_state)(params)
        return InnerState(params, {name: value.clone() for name, value in state.items()}, 0)

    def run(self, theta: Tensor, state: InnerState, steps: int, *, differentiable: bool = False) -> Unrolled:
        """Train every copy for `steps` inner steps.

        Args:
            theta: (copies, meta-parameters); copies is a multiple of the instances, and copy k trains
                instance k mod instances.
            state: as from `start`, `InnerState.repeated`, or an earlier piece.
            steps: at least 1, at most what is left of the horizon.
            differentiable: keep the graph, so that the losses can be backpropagated into theta.

        Raises:
            NfoptError: `steps` does not fit the horizon or `theta` not the copies.
        """
        self._check(theta, state, steps)
        repeats = len(theta) // self.instance_count
        named = self.layout.unflatten(theta)
        positions = self.task.batch_positions(self.instances, state.step, steps)
        divisor = {name: value.repeat(repeats) for name, value in self.instances.divisor.items()}
        images, labels = self._validation
        validation = (torch.cat([images] * repeats), torch.cat([labels] * repeats))
        losses = theta.new_zeros(len(theta), dtype=self.task.dtype)
        failed = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
        params, rule_state = state.params, state.rule_state
        curve: list[Tensor] = []
        with torch.set_grad_enabled(differentiable):
            for offset in range(steps):
                images, labels = self.task.train_batch(self.instances, positions[offset])
                batch = (torch.cat([images] * repeats), torch.cat([labels] * repeats))
                done = state.step + offset
                grads = self._gradients(params, divisor, batch, differentiable)
                progress = torch.tensor((done + 1) / self.horizon, dtype=self.task.dtype, device=theta.device)
                updates, rule_state = self.rule(named, params, grads, rule_state, progress)
                params = {name: p + updates[name] for name, p in params.items()}
                if self.objective.evaluates(done + 1, self.horizon):
                    loss = vmap(self.task.loss)(params, divisor, *validation)
                    value = self.objective.value(loss, self.task.source.classes)
                    losses = losses + self.objective.weight(done + 1, self.horizon) * value
                    curve.append(loss.detach())
                    failed = failed | ~torch.isfinite(curve[-1])
        # A checkpoint stores contiguous tensors; strides decide the order of summation in a product, so the
        # uninterrupted run has to go on from the same ones.
        ended = InnerState(
            {name: p.contiguous() for name, p in params.items()},
            {name: s.contiguous() for name, s in rule_state.items()},
            state.step + steps,
        )
        return Unrolled(
            losses, failed, ended, torch.stack(curve) if curve else losses.new_zeros(0, len(theta))
        )

    def _gradients(
        self, params: Tensors, divisor: Tensors, batch: tuple[Tensor, Tensor], differentiable: bool
    ) -> Tensors:
        # Copies do not touch each other, so the gradient of their summed losses holds each copy's own; an
        # ordinary backward pass over the batched graph is cheaper than vmap(grad).
        with torch.enable_grad():
            params = {
                name: p if differentiable and p.requires_grad else p.detach().requires_grad_()
                for name, p in params.items()
            }
            loss = vmap(self.task.loss)(params, divisor, *batch).sum()
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=differentiable)
        return dict(zip(params, grads, strict=True))

    def _check(self, theta: Tensor, state: InnerState, steps: int) -> None:
        copies = len(next(iter(state.params.values())))
        if theta.ndim != 2 or len(theta) != copies or copies % self.instance_count:
            raise NfoptError(
                f"theta has shape {tuple(theta.shape)}; {copies} copies of {self.instance_count} instances "
                f"need ({copies}, {self.layout.length})."
            )
        if not 1 <= steps <= self.horizon - state.step:
            raise NfoptError(
                f"{steps} steps from step {state.step} do not fit the horizon of {self.horizon} steps."
            )
