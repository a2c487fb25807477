"""Method `shot-im`: information maximisation over all but the classifier's last layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.editing.methods.descent import chosen_parameters, descend_by_batch, entropies, notes_of
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.methods.options import check_descent
from nfopt.editing.norms import statistics_of


def information_maximisation(logits: Float[Tensor, "images classes"]) -> Tensor:
    """Return mean entropy of the predictions less entropy of their mean: sure of each, and of many classes.

    Source: Liang et al. 2020, equation 3 (its constant left away).
    """
    mean = logits.softmax(1).mean(0)
    return entropies(logits).mean() + (mean * mean.clamp_min(1e-12).log()).sum()


@edit_method("shot-im")
@dataclass(frozen=True)
class ShotIM(Method):
    """Information maximisation, the source's last layer kept as the hypothesis.

    Source: Liang et al. 2020, "Do we really need to access the source data? Source hypothesis transfer"
    (arXiv:2002.08546), equation 3 without the pseudo-labels of equation 6; SGD with Nesterov momentum 0.9.
    Works without BatchNorm; where there is any, batches normalise themselves and the target's statistics are
    put in place at the end.

    Attributes:
        lr: learning rate.
        steps: optimizer steps.
        batch_size: images per step.
        source_count: of the final statistics, see `bn`.
        include: patterns of the parameters to train; None for all but those of the last layer that runs.
    """

    lr: float = 1e-2
    steps: int = 20
    batch_size: int = 64
    source_count: float = 0.0
    include: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_descent(self, source_count=self.source_count)

    def parameters(self, model: nn.Module, example: Tensor) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained."""
        head = set(last_layer(model, example))
        floating = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        return chosen_parameters(
            model, self.include, {name: p for name, p in floating.items() if name not in head}
        )

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the trained parameters and the statistics."""
        return [*self.parameters(model, example), *statistics_of(model)]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Descend, then put the statistics."""
        parameters = self.parameters(model, task.images[:2])
        losses = descend_by_batch(
            self.name,
            model,
            parameters,
            lambda trained: torch.optim.SGD(trained, self.lr, momentum=0.9, nesterov=True),
            lambda logits, _: information_maximisation(logits),
            task,
            steps=self.steps,
            batch_size=self.batch_size,
            source_count=self.source_count,
        )
        return notes_of(parameters, losses)


@torch.no_grad()
def last_layer(model: nn.Module, example: Tensor) -> list[str]:
    """Return the parameter names of the linear map or convolution that runs last."""
    ran: list[str] = []

    def hook(name: str) -> Any:
        return lambda *_: ran.append(name)

    hooks = [
        part.register_forward_hook(hook(name))
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        model(example)
    finally:
        for each in hooks:
            each.remove()
    if not ran:
        return []
    prefix = f"{ran[-1]}." if ran[-1] else ""
    return [
        name for name, _ in model.named_parameters() if name.removesuffix(name.rpartition(".")[2]) == prefix
    ]
