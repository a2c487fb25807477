"""TruncatedUnroll: inner training of many copies side by side, in pieces that add up to the meta-loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vmap

from nfopt.errors import NfoptError
from nfopt.meta.objective import Objective
from nfopt.meta.task import Task, Tensors
from nfopt.meta.theta import ThetaLayout


class UpdateRule(Protocol):
    """What meta-training needs of an optimizer: pure functions of copies that train side by side."""

    def init_state(self, params: Tensors) -> Tensors:
        """Return one copy's state before the first step; works under `torch.func.vmap`."""
        ...

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor, step: int
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state): the new parameters are params + updates.

        All tensors but `progress` have the same leading dimension: one entry per copy.
        `progress` is the share of the training done with this step, in (0, 1]; `step` counts from 1.
        """
        ...


class Vmapped:
    """An update rule for copies, from one that is written for a single copy.

    Args:
        rule: its tensors have no leading dimension; no control flow may depend on data.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.init_state = rule.init_state
        self._call = vmap(rule, in_dims=(0, 0, 0, 0, None, None))

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor, step: int
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state) of every copy."""
        return self._call(theta, params, grads, state, progress, step)


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

    def to(self, device: torch.device | str) -> "InnerState":
        """Return the state on `device`."""
        return InnerState(
            {name: value.to(device) for name, value in self.params.items()},
            {name: value.to(device) for name, value in self.rule_state.items()},
            self.step,
        )

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
        self.validation = task.validation_batch(self.instances)

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
        device = self.task.device
        repeats = len(theta) // self.instance_count
        named = self.layout.unflatten(theta.to(device))
        divisor = {name: value.repeat(repeats) for name, value in self.instances.divisor.items()}
        validation = _repeated(self.validation, repeats)
        losses = torch.zeros(len(theta), dtype=self.task.dtype, device=device)
        failed = torch.zeros(len(theta), dtype=torch.bool, device=device)
        params, rule_state, done = state.params, state.rule_state, state.step
        curve: list[Tensor] = []
        with torch.set_grad_enabled(differentiable):
            for batch in self.batches(done, steps, repeats):
                done += 1
                grads = self.gradients(params, divisor, batch, differentiable)
                # Filled where it is needed: a copy from the host would wait for the device in every step.
                progress = torch.full((), done / self.horizon, dtype=self.task.dtype, device=device)
                updates, rule_state = self.rule(named, params, grads, rule_state, progress, done)
                params = {name: p + updates[name] for name, p in params.items()}
                if self.objective.evaluates(done, self.horizon):
                    loss = vmap(self.task.loss)(params, divisor, *validation)
                    value = self.objective.value(loss, self.task.source.classes)
                    losses = losses + self.objective.weight(done, self.horizon) * value
                    curve.append(loss.detach())
                    failed = failed | ~torch.isfinite(curve[-1])
        # A checkpoint stores contiguous tensors; strides decide the order of summation in a product, so the
        # uninterrupted run has to go on from the same ones.
        ended = InnerState(
            {name: p.contiguous() for name, p in params.items()},
            {name: s.contiguous() for name, s in rule_state.items()},
            done,
        )
        home = theta.device
        losses, failed = losses.to(home), failed.to(home)
        return Unrolled(
            losses, failed, ended, torch.stack(curve).to(home) if curve else losses.new_zeros(0, len(theta))
        )

    def batches(self, start: int, steps: int, repeats: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of steps start + 1 ... start + steps, each with a leading copies dimension.

        Args:
            start: inner steps done.
            steps: how many follow.
            repeats: groups of copies that read the same batches.
        """
        positions = self.task.batch_positions(self.instances, start, steps)
        for step in positions.unbind():
            yield _repeated(self.task.train_batch(self.instances, step), repeats)

    def gradients(
        self,
        params: Tensors,
        divisor: Tensors,
        batch: tuple[Tensor, Tensor],
        differentiable: bool = False,
    ) -> Tensors:
        """Return the gradient of every copy's loss on its batch, by parameter name.

        Args:
            params: (copies, ...) by name.
            divisor: (copies,) by name, as in `Instances`.
            batch: images and labels, as from `batches`.
            differentiable: keep the graph.
        """
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


def _repeated(pair: tuple[Tensor, Tensor], repeats: int) -> tuple[Tensor, Tensor]:
    images, labels = pair
    return torch.cat([images] * repeats), torch.cat([labels] * repeats)
