"""Reading images in batches, and the scores of a model over every process's share of them."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from nfopt.recipe.train.images import Images, Key

EVALUATION_BATCH = 256


def image_loader(images: Images, sampler: Sampler[list[Key]], workers: int) -> DataLoader[Any]:
    """Return a loader of batches, read by `workers` other processes if that is not 0."""
    # Its own generator, so that the loader draws nothing from the training's.
    return DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_read,
        generator=torch.Generator(),
    )


def _as_read(batch: Any) -> Any:
    return batch


@torch.no_grad()
def evaluated(
    module: nn.Module, images: Images, classes: int, accelerator: Accelerator, workers: int = 0
) -> tuple[float, float]:
    """Return mean cross-entropy in nats and accuracy in [0, 1]; every process takes its share of the images.

    The module's mode is left as it was.
    """
    # By default torchmetrics leaves out what is not a number, and a diverged model would look well.
    loss = MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(accelerator.device)
    accuracy = MulticlassAccuracy(classes, average="micro").to(accelerator.device)
    numbers = list(range(accelerator.process_index, len(images), accelerator.num_processes))
    batches = [numbers[i : i + EVALUATION_BATCH] for i in range(0, len(numbers), EVALUATION_BATCH)]
    sampler: Any = [[(number, 0) for number in batch] for batch in batches]
    was_training = module.training
    module.eval()
    try:
        for pixels, labels in image_loader(images, sampler, workers):
            labels = labels.to(accelerator.device)
            logits = module(pixels.to(accelerator.device)).float()
            loss.update(functional.cross_entropy(logits, labels, reduction="none").double())
            accuracy.update(logits, labels)
    finally:
        module.train(was_training)
    return loss.compute().item(), accuracy.compute().item()
