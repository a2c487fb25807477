"""Classification of nets: which class the image is of that an implicit representation was fitted to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nfopt.experiments.question import ExperimentError, Forward, Question, Tensors
from nfopt.experiments.tasks.task import Network, Task, answers
from nfopt.metrics import classification_scores
from nfopt.zoo import SIDES, Zoo


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy on a fact that is a class; scored by accuracy (Navon et al. 2023, INR classification).

    Attributes:
        fact: name of the fact, whole numbers from 0.
        classes: number of classes; 0 counts those of the whole zoo.
    """

    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    fact: str = "label"
    classes: int = 0

    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked: a logit per class."""
        classes = self.classes or int(zoo.fact(self.fact).max()) + 1
        return Question(zoo.spec, outputs=max(classes, 2), forward=forward, inputs=inputs)

    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return the class of each net."""
        labels = zoo.fact(self.fact)
        if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
            raise ExperimentError(
                f"the fact {self.fact!r} is {labels.dtype} of shape {tuple(labels.shape)}; classes are one "
                "whole number from 0 for each net."
            )
        return {"label": labels.long()}

    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return F.cross_entropy(network(tensors), targets["label"])

    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return accuracy in [0, 1] and cross-entropy in nats."""
        here = zoo.side == SIDES.index(side)
        logits = answers(network, {name: tensor[here] for name, tensor in zoo.tensors.items()})
        found = classification_scores(logits, targets["label"][here])
        return {"accuracy": found.accuracy, "loss": found.loss}

    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return the accuracy of the train side's commonest class."""
        commonest = targets["label"][zoo.side == 0].mode().values
        here = targets["label"][zoo.side == SIDES.index(side)]
        return "always the commonest class", (here == commonest).float().mean().item()
