"""Scores of a classifier, and how soon a training curve reaches a target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean cross-entropy in nats, and accuracy in [0, 1], over a set of images."""

    loss: float
    accuracy: float


def classification_scores(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Scores:
    """Return mean cross-entropy and accuracy; a non-finite logit gives a non-finite loss, never a guess."""
    loss = functional.cross_entropy(logits.float(), labels).item()
    hits = multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro")
    return Scores(loss, hits.item())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Float[Tensor, "images channels height width"],
    labels: Int[Tensor, " images"],
    *,
    batch_size: int = 1024,
) -> Scores:
    """Return the scores of `model` in evaluation mode; its mode is left as it was."""
    was_training = model.training
    model.eval()
    try:
        logits = torch.cat([model(part) for part in images.split(batch_size)])
    finally:
        model.train(was_training)
    return classification_scores(logits, labels)


def steps_to_target(steps: Sequence[int], losses: Sequence[float], target: float) -> int | None:
    """Return the first of the evaluated `steps` whose loss is at most `target`; None if none is."""
    for step, loss in zip(steps, losses, strict=True):
        if loss <= target:
            return step
    return None
