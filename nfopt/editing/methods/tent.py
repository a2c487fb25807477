"""Method `tent`: entropy minimised over BatchNorm's scales and shifts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nfopt.editing.methods.descent import chosen_parameters, descend_by_batch, entropies, notes_of
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.methods.options import check_descent
from nfopt.editing.norms import (
    affine_parameters,
    statistics_of,
)


@edit_method("tent")
@dataclass(frozen=True)
class Tent(Method):
    """Mean entropy of the predictions, each batch normalised by itself, minimised by Adam.

    Source: Wang et al. 2021, "Tent: Fully test-time adaptation by entropy minimization" (arXiv:2006.10726),
    equation 1 and section 3.2. There a stream is answered while it is learned from. An edit is made once: it
    takes `steps` steps on the given images, then the statistics of all of them are put in place.

    Attributes:
        lr: learning rate of Adam.
        steps: optimizer steps.
        batch_size: images per step.
        source_count: of the final statistics, see `bn`.
        include: patterns of the parameters to train; None for the scales and shifts of BatchNorm.
    """

    lr: float = 1e-3
    steps: int = 20
    batch_size: int = 64
    source_count: float = 0.0
    include: tuple[str, ...] | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __post_init__(self) -> None:
        check_descent(self, source_count=self.source_count)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained."""
        return chosen_parameters(model, self.include, affine_parameters(model))

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the trained parameters and the statistics."""
        return [*self.parameters(model), *statistics_of(model)]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Descend, then put the statistics."""
        parameters = self.parameters(model)
        losses = descend_by_batch(
            self.name,
            model,
            parameters,
            lambda trained: torch.optim.Adam(trained, self.lr),
            lambda logits, _: entropies(logits).mean(),
            task,
            steps=self.steps,
            batch_size=self.batch_size,
            source_count=self.source_count,
        )
        return notes_of(parameters, losses)
