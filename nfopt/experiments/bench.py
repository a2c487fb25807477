"""Bench: one zoo and one task, with the nets as each reader wants them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nfopt.experiments.alignment import align
from nfopt.experiments.canonical import canonical_relu, canonical_siren
from nfopt.experiments.fitting import Augment
from nfopt.experiments.forward import forward_of, is_siren, omega_of
from nfopt.experiments.question import ExperimentError
from nfopt.experiments.readers.reader import Preparation, Reader, check_readers
from nfopt.experiments.tasks.task import Task
from nfopt.progress import ProgressCallback, silent
from nfopt.zoo import Permute, Zoo

_POINTS = 5


class Bench:
    """A zoo and a task, prepared once for all readers.

    Args:
        zoo: the nets of all three sides, on the device of the trainings.
        task: what is asked of them.
        progress: hears of the alignment.

    Raises:
        ExperimentError: the zoo has no nets of one side, or its facts do not fit the task.
        UnknownNameError: the zoo lacks a fact.
    """

    def __init__(self, zoo: Zoo, task: Task, *, progress: ProgressCallback = silent) -> None:
        counts = {side: int((zoo.side == i).sum()) for i, side in enumerate(("train", "val", "test"))}
        if not all(counts.values()):
            raise ExperimentError(
                f"the zoo has {counts['train']} nets for training, {counts['val']} for validation and "
                f"{counts['test']} for testing; an experiment needs some of each."
            )
        self.zoo, self.task, self._progress = zoo, task, progress
        forward, inputs = forward_of(zoo)
        self.question = task.question(zoo, forward, inputs)
        self._zoos: dict[Preparation, Zoo] = {"none": zoo}

    def check(self, readers: Iterable[str]) -> None:
        """Raise an error if one of `readers` is unknown, or cannot answer the task's question."""
        check_readers(list(readers), self.question)

    def prepared(self, preparation: Preparation, train_nets: int | None) -> tuple[Zoo, Mapping[str, Tensor]]:
        """Return the zoo as a reader wants it, with so many nets of the train side, and the task's targets.

        Alignment is to the first net of the train side.

        Raises:
            ExperimentError: there are fewer nets, or the nets have no canonical form.
        """
        if preparation not in self._zoos:
            self._zoos[preparation] = self._changed(preparation)
        zoo = self._zoos[preparation]
        if train_nets is not None:
            train = (zoo.side == 0).nonzero().flatten()
            if train_nets > len(train):
                raise ExperimentError(
                    f"{train_nets} training nets are asked for, but the zoo has {len(train)}. Ask for fewer, "
                    "or make a larger zoo."
                )
            keep = zoo.side != 0
            keep[train[:train_nets]] = True
            zoo = zoo.subset(keep)
        return zoo, self.task.targets(zoo)

    def augment(self, reader: Reader) -> Augment | None:
        """Return how the nets of a batch are changed for a reader; None for not at all."""
        return Permute(self.zoo.spec) if reader.permutes else None

    def _changed(self, preparation: Preparation) -> Zoo:
        zoo = self.zoo
        if preparation == "aligned":
            first = int((zoo.side == 0).nonzero()[0])
            found = align(zoo.spec, zoo.tensors, zoo.net(first), progress=self._progress).tensors
        else:
            found = self._canonical()
        return Zoo(zoo.spec, found, zoo.facts, zoo.side, zoo.card)

    def _canonical(self) -> dict[str, Tensor]:
        zoo, run = self.zoo, self.question.forward
        if run is None:
            omega_of(zoo)  # says what the card lacks
            raise ExperimentError(
                "the zoo does not say what its nets compute, so they have no canonical form."
            )
        if is_siren(zoo):
            return canonical_siren(zoo.spec, zoo.tensors, omega_of(zoo))
        found = canonical_relu(zoo.spec, zoo.tensors)
        # No card tells whether every activation is a ReLU, but a few nets and inputs do.
        points = torch.randn(_POINTS, self.question.inputs, generator=torch.Generator().manual_seed(0))
        points = points.to(next(iter(found.values())))
        before, after = (
            run({name: tensor[:_POINTS] for name, tensor in nets.items()}, points)
            for nets in (zoo.tensors, found)
        )
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().mean())):
            raise ExperimentError(
                "nets whose neurons were scaled do not compute what they did, so they are no ReLU nets, and "
                "have no canonical form here. Leave canonical readers out."
            )
        return found
