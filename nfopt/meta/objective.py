"""Objective: the meta-loss of one inner training, from its validation losses."""

from dataclasses import dataclass
from math import floor, log

import torch
from torch import Tensor

from nfopt.errors import NfoptError


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
        final_share: weight of the last evaluation, in [0, 1]; the rest is spread evenly over all that count.
        after: share of the training, in [0, 1), up to which no evaluation counts.
        floor: added to the loss in nats, so that a solved task does not outweigh all others.
        ceiling: multiple of c at which the loss is cut.
        failure: what a copy with a non-finite loss counts on top of the ceiling; it also counts as failed.
    """

    every: int = 10
    final_share: float = 0.5
    floor: float = 0.02
    ceiling: float = 4.0
    failure: float = 0.5
    after: float = 0.0

    def __post_init__(self) -> None:
        shares = 0 <= self.final_share <= 1 and 0 <= self.after < 1
        if self.every < 1 or not shares or self.floor <= 0 or self.ceiling <= 0:
            raise NfoptError(
                "an objective needs every >= 1, final_share in [0, 1], floor and ceiling > 0, and after in "
                f"[0, 1), not {self}."
            )

    def evaluates(self, step: int, horizon: int) -> bool:
        """Return whether the loss is taken once `step` inner steps are done."""
        return step == horizon or step % self.every == 0

    def weight(self, step: int, horizon: int) -> float:
        """Return the weight of the evaluation at `step`; over a whole training they sum to 1."""
        unseen = floor(self.after * horizon)
        if step <= unseen:
            return 0.0
        count = horizon // self.every + (horizon % self.every > 0) - unseen // self.every
        return (1 - self.final_share) / count + self.final_share * (step == horizon)

    def value(self, loss: Tensor, classes: int) -> Tensor:
        """Return the meta-loss of losses in nats, elementwise; non-finite ones get the bounded penalty."""
        chance = log(classes)
        worst = log((self.ceiling * chance + self.floor) / chance) + self.failure
        finite = torch.isfinite(loss)
        safe = torch.where(finite, loss, torch.ones_like(loss))
        value = torch.log((safe.clamp(max=self.ceiling * chance) + self.floor) / chance)
        return torch.where(finite, value, torch.full_like(value, worst))
