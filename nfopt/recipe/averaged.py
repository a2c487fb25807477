"""Evaluating the average of Schedule-Free: its weights, and BatchNorm statistics that belong to them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS_IMAGES, STATISTICS_BATCH = 2048, 256


class HasTwoModes(Protocol):
    """An optimizer that trains one point and answers with another."""

    def train(self) -> None:
        """Put the point that is trained into the parameters."""
        ...

    def eval(self) -> None:
        """Put the average into the parameters."""
        ...


def averaged_weights(optimizer: HasTwoModes) -> Callable[[nn.Module, Tensor], AbstractContextManager[None]]:
    """Return the `evaluating` of an Optimization whose optimizer switches by `eval()` and `train()`.

    Inside the context the parameters are the average, and the running statistics of every BatchNorm are those
    of the average on the first 2,048 training images: the ones at hand belong to the point that is trained
    (Defazio et al. 2024, "The Road Less Scheduled", say so in their code's notes). Afterwards parameters and
    statistics are restored to the bit, so that looking at a training does not change it.
    """

    @contextmanager
    def evaluating(model: nn.Module, images: Tensor) -> Iterator[None]:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        held = [*model.parameters(), *(buffer for norm in norms for buffer in norm.buffers())]
        before = [tensor.detach().clone() for tensor in held]
        optimizer.eval()
        try:
            if norms:
                _measure_statistics(model, norms, images[:STATISTICS_IMAGES])
            yield
        finally:
            optimizer.train()
            with torch.no_grad():
                for tensor, value in zip(held, before, strict=True):
                    tensor.copy_(value)

    return evaluating


@torch.no_grad()
def _measure_statistics(model: nn.Module, norms: list[_BatchNorm], images: Tensor) -> None:
    """Set the running statistics to their mean over batches of `images`."""
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    model.train()
    try:
        for batch in images.split(STATISTICS_BATCH):
            if len(batch) > 1:
                model(batch)
    finally:
        model.train(was_training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
