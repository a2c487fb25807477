"""Method `finetune`: a few labelled target images and cross-entropy, the baseline to show beside all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.editing.methods.descent import chosen_parameters, descend, notes_of
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.methods.options import check_descent
from nfopt.editing.norms import measure_statistics, put_statistics, statistics_of
from nfopt.errors import EditingError


@edit_method("finetune")
@dataclass(frozen=True)
class Finetune(Method):
    """Cross-entropy of the labelled target images, by Adam; BatchNorm stays in evaluation mode.

    Attributes:
        lr: learning rate.
        steps: optimizer steps.
        batch_size: images per step.
        statistics: "target" first puts the statistics of all target images in place; "keep" does not.
        include: patterns of the parameters to train; None for all.
    """

    lr: float = 1e-3
    steps: int = 40
    batch_size: int = 64
    statistics: Literal["target", "keep"] = "target"
    include: tuple[str, ...] | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    trains_on_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_descent(self)
        if self.statistics not in ("target", "keep"):
            raise EditingError(f"statistics of finetune is 'target' or 'keep', not {self.statistics!r}.")

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained."""
        floating = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        return chosen_parameters(model, self.include, floating)

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the trained parameters and, if they are the target's, the statistics."""
        return [*self.parameters(model), *(statistics_of(model) if self.statistics == "target" else [])]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Put the statistics, then descend."""
        assert task.labels is not None
        if self.statistics == "target":
            put_statistics(model, measure_statistics(model, task.images), images=len(task.images))
        known = task.labels >= 0
        labels = task.labels[known]
        parameters = self.parameters(model)

        def objective(logits: Tensor, index: Tensor) -> Tensor:
            return functional.cross_entropy(logits, labels[index.to(labels.device)])

        losses = descend(
            self.name,
            model,
            parameters,
            lambda trained: torch.optim.Adam(trained, self.lr),
            objective,
            replace(task, images=task.images[known]),
            steps=self.steps,
            batch_size=self.batch_size,
        )
        return {**notes_of(parameters, losses), "labelled_images": int(known.sum())}
