"""Regression and ranking of nets: the frequency of a sine, the accuracy of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.regression import kendall_rank_corrcoef

from nfopt.experiments.question import ExperimentError, Forward, Question, Tensors
from nfopt.experiments.tasks.task import Network, Task, answers
from nfopt.zoo import SIDES, Zoo


@dataclass(frozen=True)
class Regression(Task):
    """Squared error on a fact, standardised by the train side (Navon et al. 2023, sine waves).

    Attributes:
        fact: name of the fact, one number per net.
    """

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    fact: str = "frequency"

    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked: a number per net."""
        return Question(zoo.spec, forward=forward, inputs=inputs)

    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return the fact, standardised, and for every net the mean and the scale that it was divided by."""
        value = single(zoo, self.fact)
        train = value[zoo.side == 0]
        mean, scale = train.mean(), train.std(correction=0)
        if not bool(scale > 0):
            raise ExperimentError(
                f"the fact {self.fact!r} is the same for all nets of the train side: nothing can be learned."
            )
        return {
            "value": (value - mean) / scale,
            "mean": mean.expand(len(value)),
            "scale": scale.expand(len(value)),
        }

    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the mean squared error in units of the train side's variance."""
        return F.mse_loss(network(tensors)[:, 0], targets["value"])

    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return the mean squared error in the fact's own units, and the share of variance explained."""
        here = zoo.side == SIDES.index(side)
        found = answers(network, {name: tensor[here] for name, tensor in zoo.tensors.items()})[:, 0]
        value = targets["value"][here]
        error = (found - value).square().mean()
        variance = value.var(correction=0)
        return {
            "mse": (error * targets["scale"][0].square()).item(),
            "explained": (1 - error / variance).item() if variance > 0 else 0.0,
        }

    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return the error of the train side's mean."""
        value = targets["value"][zoo.side == SIDES.index(side)]
        # Standardised by the train side, whose mean is zero.
        error = value.square().mean() * targets["scale"][0].square()
        return "always the train side's mean", error.item()


@dataclass(frozen=True)
class Ranking(Task):
    """Prediction of a classifier's test accuracy from its weights; scored by Kendall's tau (b).

    The loss is binary cross-entropy between the sigmoid of the answer and the accuracy (Zhou et al. 2023,
    predicting generalization), or the squared error of that sigmoid.

    Attributes:
        fact: name of the fact, in [0, 1].
        kind: "bce" or "mse".
    """

    metric: ClassVar[str] = "tau"
    higher_is_better: ClassVar[bool] = True
    fact: str = "test_accuracy"
    kind: Literal["bce", "mse"] = "bce"

    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked: a logit of accuracy per net."""
        return Question(zoo.spec, forward=forward, inputs=inputs)

    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return the accuracy of each net."""
        value = single(zoo, self.fact)
        if len(value) and bool(((value < 0) | (value > 1)).any()):
            raise ExperimentError(
                f"the fact {self.fact!r} runs from {float(value.min()):g} to {float(value.max()):g}; an "
                "accuracy lies in 0 .. 1. Use the task regression for other numbers."
            )
        return {"value": value}

    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the mean of the chosen loss."""
        found = network(tensors)[:, 0]
        if self.kind == "mse":
            return F.mse_loss(found.sigmoid(), targets["value"])
        return F.binary_cross_entropy_with_logits(found, targets["value"])

    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return Kendall's tau and the root mean squared error of the accuracy.

        Where every answer is the same there is no order, and tau is 0.
        """
        here = zoo.side == SIDES.index(side)
        found = answers(network, {name: tensor[here] for name, tensor in zoo.tensors.items()})[:, 0].sigmoid()
        value = targets["value"][here]
        return {
            "tau": tau(found, value),
            "rmse": (found - value).square().mean().sqrt().item(),
        }

    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return the tau of one answer for all."""
        return "one answer for all", 0.0


def tau(found: Tensor, wanted: Tensor) -> float:
    """Return Kendall's tau-b of two lists; 0 where one of them has no order, NaN where one is not finite."""
    if not bool(found.isfinite().all()):
        return float("nan")
    if bool((found == found[0]).all()) or bool((wanted == wanted[0]).all()):
        return 0.0
    value = kendall_rank_corrcoef(found.double(), wanted.double())
    assert isinstance(value, Tensor)
    return value.item()


def single(zoo: Zoo, name: str) -> Tensor:
    """Return a fact that is one number per net, as float32.

    Raises:
        UnknownNameError: the zoo does not know it.
        ExperimentError: it is not one number per net.
    """
    value = zoo.fact(name)
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1:
        raise ExperimentError(
            f"the fact {name!r} has shape {tuple(value.shape)}; this task needs one number per net."
        )
    return value.float()
