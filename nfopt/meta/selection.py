"""Selection: how a theta does on a fixed set of longer, held-out trainings, against the nominal rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfopt.meta.mixture import TaskDistribution
from nfopt.meta.objective import Objective
from nfopt.meta.slot import RuleFactory
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.meta.workers import OneProcess, Workers
from nfopt.seeds import derive_seed, generator


@dataclass(frozen=True, eq=False)
class Selection:
    """A fixed set of trainings to choose a theta by.

    Attributes:
        tasks: the trainings.
        rules: builds the update rule for a task.
        layout: how theta splits into the rule's tensors.
        objective: the meta-loss, over whole trainings.
        instances: instances per task.
        seed: the seed of the instances.
        device: where the trainings run.
    """

    tasks: tuple[TaskConfig, ...]
    rules: RuleFactory
    layout: ThetaLayout
    objective: Objective
    instances: int
    seed: int
    device: torch.device | str = "cpu"

    def losses(self, thetas: Sequence[Tensor], workers: Workers | None = None) -> Tensor:
        """Train every task under each theta, side by side on the same batches.

        Args:
            thetas: vectors (meta-parameters,).
            workers: the processes that share the tasks, all of which make this call.

        Returns:
            (thetas, tasks): meta-losses, averaged over instances.
        """
        workers = workers or OneProcess()
        losses = torch.zeros(len(thetas), len(self.tasks))
        for index in range(workers.rank, len(self.tasks), workers.count):
            task = Task.make(self.tasks[index], device=self.device)
            seeds = [derive_seed(self.seed, "selection", index, i) for i in range(self.instances)]
            unroll = TruncatedUnroll(task, self.rules(task), self.layout, seeds, self.objective)
            copies = torch.cat([theta.expand(self.instances, -1) for theta in thetas])
            ran = unroll.run(copies, unroll.start().repeated(len(thetas)), unroll.horizon)
            losses[:, index] = ran.losses.reshape(len(thetas), self.instances).mean(1)
        return workers.total(losses)


def longer_tasks(
    family: TaskDistribution, count: int, seed: int, horizon_factor: int = 5
) -> tuple[TaskConfig, ...]:
    """Draw `count` tasks of `family` from seeds of their own, with `horizon_factor` times their horizon."""
    return tuple(
        family.sample(generator(seed, "selection task", index), horizon_factor) for index in range(count)
    )
