"""Task: what is asked about the nets of a zoo, how wrong an answer is, and how it is scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from nfopt.experiments.question import Forward, Question, Tensors
from nfopt.zoo import Zoo

Network: TypeAlias = Callable[[Tensors], Any]
"""A reader's network: tensors by name to a vector per net, or to tensors by name."""

SCORE_BATCH = 256


@dataclass(frozen=True)
class Task(ABC):
    """One question about every net of a zoo; the leaves are its kinds.

    A task is prepared with `targets` once, and then knows the loss of some nets and the scores of a side.

    Attributes:
        metric: the score that methods are compared and chosen by; a key of what `scores` returns.
        higher_is_better: whether a higher score is the better one.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked, for the nets of `zoo`."""

    @abstractmethod
    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return what the loss needs to know of each net, [nets, ...]; statistics are of the train side.

        Raises:
            UnknownNameError: the zoo lacks a fact.
            ExperimentError: a fact is not of the form that the task needs.
        """

    @abstractmethod
    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the loss of some nets, a mean over them; `draws` is the source of anything random."""

    @abstractmethod
    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return the scores on the nets of one side; `network` is in evaluation mode."""

    @abstractmethod
    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return what one can do without reading any net, in a few words, and its score on a side."""


@torch.no_grad()
def answers(network: Network, tensors: Tensors) -> Tensor:
    """Return the vectors of all nets, read a batch at a time: [nets, outputs]."""
    count = len(next(iter(tensors.values())))
    parts = [
        network({name: tensor[start : start + SCORE_BATCH] for name, tensor in tensors.items()})
        for start in range(0, count, SCORE_BATCH)
    ]
    return torch.cat(parts)
