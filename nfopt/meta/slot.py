"""A slot: one place in the outer batch, in which one inner training after another runs piece by piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nfopt.meta.estimator import Carry, Estimate, GradientEstimator
from nfopt.meta.mixture import TaskDistribution
from nfopt.meta.objective import Objective
from nfopt.meta.task import Task
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.unroll import TruncatedUnroll, UpdateRule
from nfopt.seeds import derive_seed, generator

RuleFactory = Callable[[Task], UpdateRule]


@dataclass(frozen=True, eq=False)
class SlotSettings:
    """What every slot of a meta-training has in common.

    Attributes:
        family: the tasks.
        rules: builds the update rule for a task.
        layout: how theta splits into the rule's tensors.
        estimator: the meta-gradient's estimator.
        objective: the meta-loss.
        nominal: (meta-parameters,), the theta that is reported against.
        instances: instances (antithetic pairs) per task.
        reference_share: share of trainings beside which the nominal rule runs too, for the report.
        seed: the meta-training's seed.
        device: where the inner trainings run; theta and the estimates stay on the CPU.
    """

    family: TaskDistribution
    rules: RuleFactory
    layout: ThetaLayout
    estimator: GradientEstimator
    objective: Objective
    nominal: Tensor
    instances: int
    reference_share: float
    seed: int
    device: torch.device | str = "cpu"


@dataclass(frozen=True, eq=False)
class SlotReport:
    """One piece of one slot.

    Attributes:
        estimate: the meta-gradient estimates.
        gain: meta-loss of the piece minus the nominal rule's on the same instance, or None without one.
    """

    estimate: Estimate
    gain: float | None


class Slot:
    """One place in the outer batch. All its draws follow from the meta-seed, its index and its counters.

    Args:
        settings: shared by all slots.
        index: the slot's number.
        episode: number of trainings finished in this slot.
        piece: number of pieces of the current training that are done.
        tensors: the carry's and the reference's tensors as from `tensors`; None to start the training.
        step: inner steps of the current training that are done.
    """

    def __init__(
        self,
        settings: SlotSettings,
        index: int,
        episode: int = 0,
        piece: int = 0,
        step: int = 0,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.index = index
        self._begin(episode, piece, step, tensors)

    def _path(self, *rest: int | str) -> tuple[int | str, ...]:
        return self.settings.seed, "slot", self.index, "episode", self.episode, *rest

    def _begin(self, episode: int, piece: int, step: int, tensors: Mapping[str, Tensor] | None) -> None:
        shared = self.settings
        self.episode, self.piece = episode, piece
        self.task = Task.make(shared.family.sample(generator(*self._path("task"))), device=shared.device)
        self.unroll = self._unrolled(shared.instances)
        if tensors is None:
            self.carry = shared.estimator.begin(self.unroll, shared.nominal)
            self.reference = self._reference()
        else:
            carried = {name: value for name, value in tensors.items() if name != "reference"}
            carry = Carry.from_tensors(carried, step)
            self.carry = replace(carry, state=carry.state.to(shared.device))
            self.reference = tensors["reference"]

    def _unrolled(self, instances: int) -> TruncatedUnroll:
        shared = self.settings
        seeds = [derive_seed(*self._path("instance", i)) for i in range(instances)]
        return TruncatedUnroll(self.task, shared.rules(self.task), shared.layout, seeds, shared.objective)

    def _reference(self) -> Tensor:
        shared = self.settings
        share = torch.rand((), generator=generator(*self._path("reference")))
        if float(share) >= shared.reference_share:
            return shared.nominal.new_zeros(0)
        unroll = self._unrolled(1)
        state, losses = unroll.start(), []
        while state.step < unroll.horizon:
            piece = shared.estimator.truncation or unroll.horizon
            ran = unroll.run(shared.nominal[None], state, min(piece, unroll.horizon - state.step))
            state = ran.state
            losses.append(ran.losses)
        return torch.cat(losses)

    def advance(self, theta: Tensor) -> SlotReport:
        """Run the next piece at `theta`; at its end, or when all copies fail, the next training begins."""
        draw = generator(*self._path("piece", self.piece))
        estimate, carry = self.settings.estimator.step(self.unroll, theta, self.carry, draw)
        gain = None
        if len(self.reference):
            gain = float(estimate.losses[0] - self.reference[self.piece])
        if carry is None or estimate.void:
            self._begin(self.episode + 1, 0, 0, None)
        else:
            self.carry = carry
            self.piece += 1
        return SlotReport(estimate, gain)

    def counters(self) -> dict[str, int]:
        """Return the counters that a checkpoint holds beside `tensors`."""
        return {"episode": self.episode, "piece": self.piece, "step": self.carry.state.step}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that the next piece depends on."""
        kept = self.carry.tensors() | {"reference": self.reference}
        return {name: value.contiguous() for name, value in kept.items()}
